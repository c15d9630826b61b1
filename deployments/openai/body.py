"""What the bodies of all of OpenAI's doors have in common."""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from models.errors import InvalidRequest, UnsupportedFeature


class Body(BaseModel):
    """What a body or a part of it may hold. Anything else is refused, so that nothing is silently dropped."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Parsed = TypeVar("Parsed", bound=BaseModel)
_UNION_BRANCH = re.compile(r"[A-Z]|.*\[|(?:str|int|float|bool)$")


def read_json(kind: type[Parsed], body: bytes) -> Parsed:
    """Raises `InvalidRequest` naming the field, or `UnsupportedFeature` for an unknown one."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise explained(error) from None


def explained(error: ValidationError) -> InvalidRequest:
    """The first thing wrong, without the caller's text in it. Where a field may be several things, the nearest miss."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    path = path_of(found[0]["loc"])
    same_field = [wrong for wrong in found if path_of(wrong["loc"])[: len(path)] == path]
    first = max(same_field, key=lambda wrong: len(path_of(wrong["loc"])))
    where = ".".join(map(str, path_of(first["loc"])))
    if first["type"] == "json_invalid":
        return InvalidRequest("The body is not valid JSON; send a JSON object.")
    if first["type"] == "extra_forbidden":
        return UnsupportedFeature(f"'{where}' is not supported; leave it out.", where)
    return InvalidRequest(f"'{where}': {first['msg']}." if where else f"{first['msg']}.", where or None)


def path_of(location: tuple[int | str, ...]) -> list[int | str]:
    """The fields and places in lists that lead to an error. Pydantic names the branches of a union among them."""
    return [part for part in location if isinstance(part, int) or not _UNION_BRANCH.match(part)]
