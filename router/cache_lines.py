"""A stored answer as JSON values, and what is known of one besides."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from models.messages import Finish, ReasoningDelta, TextDelta, TokenLogprob, ToolCallDelta, Usage, UsageReport
from router.ports import CachedAnswer, CacheKey

_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (TextDelta, ReasoningDelta, ToolCallDelta, Finish, UsageReport, Usage, TokenLogprob)
}


@dataclass(frozen=True, slots=True)
class Keyed:
    key: CacheKey

    @property
    def tenant(self) -> str:
        return self.key.tenant

    @property
    def exact(self) -> str:
        return self.key.exact


@dataclass(frozen=True, slots=True)
class Kept(Keyed):
    answer: CachedAnswer
    embedding: bytes | None


@dataclass(frozen=True, slots=True)
class Gone:
    """The answer to this very question must not come back."""

    tenant: str
    exact: str


def answer_told(answer: CachedAnswer) -> dict[str, Any]:
    """As JSON values."""
    told = {field.name: getattr(answer, field.name) for field in fields(answer) if field.name != "events"}
    return told | {"usage": plain(answer.usage), "events": [plain(event) for event in answer.events]}


def answer_back(told: dict[str, Any]) -> CachedAnswer:
    """Raises KeyError or TypeError."""
    events = tuple(back(event) for event in told["events"])
    return CachedAnswer(**told | {"events": events, "usage": back(told["usage"]), "tags": tuple(told["tags"])})


def plain(value: Any) -> Any:
    """JSON values of what events are made of: a text as itself, the rest with its name and what is not the default."""
    if type(value) is TextDelta and not (value.logprobs or value.choice):
        return [value.text, value.tokens]  # nearly all events, so worth a short way
    if isinstance(value, tuple):
        return {"": "tuple", "of": [plain(each) for each in value]}
    if isinstance(value, bytes):
        return {"": "bytes", "hex": value.hex()}
    if is_dataclass(value):
        told = {"": type(value).__name__}
        for field in fields(value):
            given = getattr(value, field.name)
            if field.default is MISSING or given != field.default:
                told[field.name] = plain(given)
        return told
    return value


def back(told: Any) -> Any:
    """Raises KeyError or TypeError for what another version of this wrote."""
    if isinstance(told, list):
        return TextDelta(*told)
    if isinstance(told, dict):
        kind = told.pop("")
        if kind == "tuple":
            return tuple(back(each) for each in told["of"])
        if kind == "bytes":
            return bytes.fromhex(told["hex"])
        return _KINDS[kind](**{name: back(value) for name, value in told.items()})
    return told
