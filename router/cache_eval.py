"""`python -m router.cache_eval`: the product's cache without a cluster, driven by JSON lines on stdin.

One request and one reply per line:

    {"op": "reset", "params": {...}}                          {"ok": true}
    {"op": "lookup", "body": {...}}                           {"hit": true, "key": "k1", "similarity": 0.97}
    {"op": "insert", "body": {...}, "key": "k1"}              {"ok": true}
    {"op": "feedback", "body": {...}, "key": "k1", "same": true}   {"ok": true}

A body is one of OpenAI's chat completions. `params` are fields of `CacheSettings`, and those of `IngressSettings` that
are named in `_DOOR_FIELDS`. A line that is not understood gets `{"error": "..."}` and changes nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from models.encoder import Encoder
from models.messages import ChatRequest, Finish, Message, ResponseFormat, Sampling, TextDelta, TextPart, Tool, Usage
from router.fingerprint import fingerprint
from router.ports import CachedAnswer, CacheKey, Lookup
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings, IngressSettings

ORG = "evaluation"
TTL_S = 10 * 365 * 86_400.0
_DOOR_FIELDS = ("semantic_cache", "semantic_max_temperature")
_SAMPLING = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "top_k")
_KNOWN = {
    *_SAMPLING, "model", "messages", "max_tokens", "max_completion_tokens", "n", "stop", "logprobs", "top_logprobs",
    "tools", "response_format", "reasoning_effort", "verbosity", "user", "stream", "stream_options", "metadata",
}  # fmt: skip


def chat_request(body: dict[str, Any]) -> ChatRequest:
    """The request in a plain body. Raises ValueError for a field that this reader does not know: what it means for the
    cache would be a guess. The door's own reader, which takes all of them, is in deployments/openai."""
    unknown = body.keys() - _KNOWN
    if unknown:
        raise ValueError(f"fields that this reader does not know: {', '.join(sorted(unknown))}")
    stop = body.get("stop") or ()
    shape = body.get("response_format")
    return ChatRequest(
        model=body["model"],
        messages=tuple(_message(message) for message in body["messages"]),
        sampling=Sampling(
            max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
            n=body.get("n") or 1,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            top_logprobs=(body.get("top_logprobs") or 0) if body.get("logprobs") else None,
            **dict[str, Any]({name: body.get(name) for name in _SAMPLING}),
        ),
        tools=tuple(Tool(tool["function"]["name"], "", json.dumps(tool)) for tool in body.get("tools") or ()),
        response_format=ResponseFormat(shape["type"], schema=json.dumps(shape)) if shape else None,
        reasoning_effort=body.get("reasoning_effort"),
        verbosity=body.get("verbosity"),
        user=body.get("user"),
    )


def _message(message: dict[str, Any]) -> Message:
    content = message.get("content") or ""
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    return Message(message["role"], tuple(map(TextPart, texts)), name=message.get("name"))


class Bench:
    """The shared cache of one tenant as `deployments.cache.SemanticCache` has it, without the hop."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.reset({})

    def reset(self, params: dict[str, Any]) -> None:
        """Raises ValueError (pydantic's) for a setting that there is not."""
        door = {name: value for name, value in params.items() if name in _DOOR_FIELDS}
        rest = {name: value for name, value in params.items() if name not in _DOOR_FIELDS}
        self._door = IngressSettings(**door)
        settings = CacheSettings(**{"ttl_s": TTL_S, "max_bytes": 2**33, **rest})
        self._store = SemanticStore(settings, agree=lambda one, other: None)  # nobody answers here, so none compares
        self._last: tuple[CacheKey | None, bytes | None] = (None, None)

    def lookup(self, body: dict[str, Any]) -> dict[str, Any]:
        key = self._key(body)
        if key is None:
            return {"hit": False, "key": None}
        found, embedding = self._store.exact(key), None
        if found is None:
            embedding = self._embedding(key)
            found = self._store.lookup(key, embedding)
        self._last = (key, embedding)
        return self._reply(found)

    def insert(self, body: dict[str, Any], name: str) -> None:
        key = self._key(body)
        if key is None:
            return
        known, embedding = self._last
        if known != key:
            embedding = self._embedding(key)
        events = (TextDelta("an answer", 2), Finish("stop"))
        answer = CachedAnswer(name, body["model"], events, Usage(), 0, time.time(), TTL_S)
        self._store.store(key, answer, embedding)

    def feedback(self, body: dict[str, Any], same: bool) -> None:
        """Whether the answer of the near question that a miss came with is that of this one."""
        key = self._key(body)
        if key is not None:
            self._store.compared(key, same)

    def _key(self, body: dict[str, Any]) -> CacheKey | None:
        found = fingerprint(chat_request(body), ORG, "", self._door)
        return found.key(self._door) if found else None

    def _embedding(self, key: CacheKey) -> bytes | None:
        if not key.scope:
            return None
        (reading,) = self._encoder.read([key.text])
        if not (reading.whole):
            return None
        return bytes(self._encoder.encode([key.text])[0].astype("<f4").tobytes())

    @staticmethod
    def _reply(found: Lookup) -> dict[str, Any]:
        hit = found.answer is not None
        key = found.answer.answer_id if found.answer else None
        return {"hit": hit, "key": key or found.near, "similarity": found.similarity, "score": found.score}


def answer(bench: Bench, line: str) -> dict[str, Any]:
    """The reply to one line."""
    try:
        match json.loads(line):
            case {"op": "reset", "params": dict(params)}:
                bench.reset(params)
            case {"op": "lookup", "body": dict(body)}:
                return bench.lookup(body)
            case {"op": "insert", "body": dict(body), "key": str(name)}:
                bench.insert(body, name)
            case {"op": "feedback", "body": dict(body), "same": bool(same)}:
                bench.feedback(body, same)
            case _:
                return {"error": "a line is an object with 'op' (reset, lookup, insert, feedback) and its fields"}
    except (ValueError, KeyError, TypeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"ok": True}


def replies(lines: Iterator[str], bench: Bench) -> Iterator[str]:
    for line in lines:
        if line.strip():
            yield json.dumps(answer(bench, line))


def main() -> None:
    for reply in replies(iter(sys.stdin.readline, ""), Bench(Encoder())):
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
