"""The lines of a batch's files: what is asked, what came of it.

Source: https://platform.openai.com/docs/api-reference/batch/request-input, /request-output.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import InternalError
from router.sealing import Sealer, key_id

logger = logging.getLogger(__name__)

BATCH_DOOR = "openai-batch"
"""By which a line comes to the pipeline."""
MAX_ERRORS = 20
"""Wrong lines that a caller is told of."""


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """`body` is JSON, as the endpoint takes it."""

    custom_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What an endpoint said: its status, its body as JSON, the id that finds the receipt."""

    status: int
    body: bytes
    request_id: str
    retry_after_s: float | None = None


Opener = Callable[[], BinaryIO]


def check_lines(opener: Opener, endpoint: str, max_lines: int, max_line_bytes: int) -> tuple[int, list[dict[str, Any]]]:
    """How many lines there are, and what is wrong with the first wrong ones, as OpenAI's batch errors."""
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    number = 0

    def wrong(code: str, message: str, param: str | None = None) -> None:
        errors.append({"code": code, "line": number, "message": message, "param": param})

    with opener() as file:
        while (raw := file.readline(max_line_bytes + 1)) and len(errors) < MAX_ERRORS:
            number += 1
            if len(raw) > max_line_bytes:
                wrong("line_too_long", f"A line has more than {max_line_bytes} bytes.")
                break
            if number > max_lines:
                wrong("too_many_requests", f"A batch has up to {max_lines} lines; split the file.")
                break
            if not raw.strip():
                continue
            try:
                line = _Line.model_validate_json(raw)
            except ValidationError as error:
                first = error.errors(include_url=False, include_context=False, include_input=False)[0]
                where = ".".join(map(str, first["loc"]))
                wrong("invalid_json_line" if not where else "invalid_line", f"{first['msg']}.", where or None)
                continue
            if line.url != endpoint:
                wrong("invalid_url", f"'url' is not the batch's endpoint, {endpoint}.", "url")
            if line.custom_id in seen:
                wrong("duplicate_custom_id", "Another line has the same 'custom_id'.", "custom_id")
            if line.body.get("stream"):
                wrong("invalid_line", "An answer in a batch cannot be streamed; leave out 'stream'.", "body.stream")
            seen.add(line.custom_id)
    if not seen and not errors:
        wrong("empty_file", "The file has no line.")
    return len(seen), errors


def read_lines(opener: Opener, done: set[str]) -> Iterator[Line]:
    """Those of a checked file that are not `done`."""
    with opener() as file:
        for raw in file:
            if raw.strip():
                line = json.loads(raw)
                if line["custom_id"] not in done:
                    yield Line(line["custom_id"], json.dumps(line["body"]).encode())


def result(line: Line, answer: LineAnswer) -> bytes:
    """The line of the output file, or of the error file where the status is an error's."""
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": json.loads(answer.body)}
    return _written(line, response, None)


def failure(line: Line, code: str, message: str) -> bytes:
    """The line of the error file for what was not asked, or got no answer."""
    return _written(line, None, {"code": code, "message": message})


def _written(line: Line, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    fields = {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }
    return json.dumps(fields).encode() + b"\n"


class Results:
    """The files of results: a line each, sealed one by one where that is on, since they come one by one."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def line(self, path: Path, written: bytes) -> bytes:
        """As it is appended to the file."""
        if not self._sealer.on:
            return written
        return base64.b64encode(self._sealer.seal(written, f"result/{path.name}")) + b"\n"

    def read(self, path: Path) -> Iterator[bytes]:
        """Its lines, as they were written."""
        with path.open("rb") as file:
            for raw in file:
                if (plain := self._plain(path, raw)) is not None:
                    yield plain

    def written_ids(self, path: Path) -> set[str]:
        """The `custom_id`s in it. What a crash left of a last line is cut off; a line that is torn is not there."""
        done: set[str] = set()
        if not path.exists():
            return done
        whole = 0
        with path.open("rb+") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                whole += len(raw)
                if (plain := self._plain(path, raw)) is not None:
                    done.add(json.loads(plain)["custom_id"])
            file.truncate(whole)
        return done

    def facts(self, folder: Path) -> dict[str, Any]:
        """Of the results of batches under way: how many lines and bytes, and by which key they are sealed."""
        by_key: Counter[str] = Counter()
        size_bytes = 0
        for path in folder.glob("batch_*"):
            with suppress(FileNotFoundError), path.open("rb") as file:
                for raw in file:
                    size_bytes += len(raw)
                    by_key[_key_of(raw)] += 1
        return {"count": by_key.total(), "bytes": size_bytes, "sealed_by": dict(by_key)}

    def _plain(self, path: Path, raw: bytes) -> bytes | None:
        """None: it is torn, so its answer is lost and its line is asked again. Raises `InternalError` for a key that is
        not there."""
        try:
            sealed = b"" if raw.startswith(b"{") else base64.b64decode(raw.rstrip(b"\n"), validate=True)
            plain = self._sealer.open(sealed, f"result/{path.name}") if sealed else raw
            json.loads(plain)
        except ValueError:
            pass
        except InternalError:
            if key_id(sealed) not in self._sealer.ids:
                raise
        else:
            return plain
        logger.error("a line of %s is torn: what it answered is lost", path.name)
        return None


def _key_of(raw: bytes) -> str:
    """As `facts` calls it. A key's id is in the first eight bytes, which are in twelve characters."""
    try:
        return key_id(base64.b64decode(raw[:12])) or "none"
    except ValueError:
        return "none"
