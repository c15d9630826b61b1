"""Stored answers on their way from one cache to another: a file of JSON lines.

An answer is found by digests of which its organisation is a part (`router.fingerprint`). So the file does not say whose
the answers are: they belong to whoever takes them in, and are found only where the same organisation asks. No vectors
are in it; the encoder that reads it makes its own.

    {"object": "cache.export", "version": 1, "org": "acme", ...}         first, for whoever reads the file
    {"object": "cache.answer", "namespace": "", "key": {...}, "answer": {...}}
    {"object": "cache.export.end", "count": 1}                           last: without it something is missing
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from models.errors import InvalidRequest
from router.cache_lines import answer_back, answer_told
from router.fingerprint import MAX_SIMILAR_CHARS, partition, parts_of
from router.ports import CachedAnswer, CacheKey
from router.strict import Strict

VERSION = 1
HEAD, ANSWER, END = "cache.export", "cache.answer", "cache.export.end"
MAX_TAGS, MAX_NAME_CHARS = 16, 200
MAX_EVENTS = 100_000
MAX_TOKENS = 10**8  # the books sum up in 64 bits what each hit saves

TakenIn = Literal["kept", "expired", "held", "forgotten", "refused"]
"""What came of an answer that was brought: it is kept, or its time is over, or one as new is there, or it was forgotten
after it was asked for, or it is not complete, or larger than the cache."""

Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class _Key(Strict):
    exact: Digest
    scope: Digest | None
    text: str = Field(max_length=MAX_SIMILAR_CHARS)
    surface: Digest | None


class _Line(Strict):
    object: Literal["cache.answer"]
    namespace: str = Field(max_length=128)
    key: _Key
    answer: dict[str, Any]


@cache
def _answers() -> TypeAdapter[tuple[CachedAnswer]]:
    """A dataclass has no settings of its own, and takes those of what it is in."""
    settings = ConfigDict(strict=True, revalidate_instances="always", allow_inf_nan=False)
    return TypeAdapter(tuple[CachedAnswer], config=settings)


def head_line(org: str, now_unix_ms: int) -> bytes:
    return _line({"object": HEAD, "version": VERSION, "org": org, "created_at_unix_ms": now_unix_ms})


def end_line(count: int) -> bytes:
    return _line({"object": END, "count": count})


def answer_line(key: CacheKey, answer: CachedAnswer) -> bytes:
    named = {"exact": key.exact, "scope": key.scope, "text": key.text, "surface": key.surface}
    return _line({"object": ANSWER, "namespace": parts_of(key.tenant)[1], "key": named, "answer": answer_told(answer)})


def read_answer(told: dict[str, Any], org: str, now_unix_s: float) -> tuple[CacheKey, CachedAnswer]:
    """An answer of a file, for `org`, whoever's it was. Nothing in it is believed: what is no answer raises
    `InvalidRequest`, without a word of it. Made later than now is made now."""
    try:
        line = _Line.model_validate(told)
        answer = checked(answer_back(line.answer))
    except ValidationError as error:
        raise _no_answer(error) from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise InvalidRequest("this is no stored answer, or one of another version") from None
    if (line.key.scope is None) != (not line.key.text):
        raise InvalidRequest("this is no stored answer: it has a question without 'scope', or the other way about")
    key = CacheKey(partition(org, line.namespace), **line.key.model_dump())
    created_unix_s = min(answer.created_at_unix_s, now_unix_s)
    opened_unix_s = min(answer.opened_at_unix_s or created_unix_s, created_unix_s)
    return key, replace(answer, created_at_unix_s=created_unix_s, opened_at_unix_s=opened_unix_s)


def checked(answer: CachedAnswer) -> CachedAnswer:
    """An answer that somebody else wrote down. Raises `InvalidRequest` where a part of it is not what it has to be."""
    try:
        _answers().validate_python((answer,))
    except ValidationError as error:
        raise _no_answer(error) from None
    usage = answer.usage
    least = min(answer.cost_microusd, answer.ttl_s, answer.created_at_unix_s, answer.opened_at_unix_s)
    tokens = (usage.input_tokens, usage.output_tokens, usage.cached_input_tokens, usage.reasoning_tokens)
    if min(least, *tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) < 0:
        raise InvalidRequest("this is no stored answer: a number in it is below 0")
    if max(*tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) > MAX_TOKENS:
        raise InvalidRequest(f"this is no stored answer: it has more than {MAX_TOKENS} tokens")
    if len(answer.events) > MAX_EVENTS:
        raise InvalidRequest(f"this is no stored answer: it has more than {MAX_EVENTS} parts")
    names = (answer.answer_id, answer.model, answer.version, *answer.tags)
    if len(answer.tags) > MAX_TAGS or max(map(len, names)) > MAX_NAME_CHARS:
        raise InvalidRequest("this is no stored answer: it has too many tags, or too long a name")
    return answer


def _no_answer(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(part for part in map(str, first["loc"]) if part not in ("0", "root"))
    return InvalidRequest(f"this is no stored answer ('{where}': {first['msg']})")


def _line(told: dict[str, Any]) -> bytes:
    return json.dumps(told).encode() + b"\n"
