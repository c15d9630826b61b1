"""Gemini's `streamGenerateContent`, with a key (Google AI Studio) or on Vertex AI.

Source: https://ai.google.dev/api/generate-content, https://ai.google.dev/gemini-api/docs/thought-signatures and
https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference.

Gemini's tool arguments are JSON objects and arrive whole. They become text once, as `json.dumps` writes it without
escaping what is not ASCII, keys in the order in which they came: the same object is always the same text.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.errors import SwitchyardError
from models.gemini_request import SIGNATURE, encode
from models.google_auth import GoogleCredentials
from models.messages import (
    ChatRequest,
    Event,
    Finish,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from models.quick_json import decoded
from models.sse import SSEDecoder
from models.upstream import UpstreamCall, begin, begin_health_check
from models.upstream_http import HttpUpstream

_BASE_URL = "https://generativelanguage.googleapis.com/v1beta"
_STREAM = "a content stream"
_DIALECT = Capabilities(
    tools=True,
    images=True,
    json_object=True,
    json_schema=True,
    reasoning=True,
    seed=True,
    penalties=True,
    temperature=True,
    top_k=True,
)
_FINISH: dict[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "ESCALATION": "content_filter",
}
# 400s that are the operator's to mend (google.rpc.ErrorInfo), not the caller's.
_OPERATORS = ("API_KEY_INVALID", "API_KEY_EXPIRED", "SERVICE_DISABLED", "BILLING_DISABLED", "CONSUMER_INVALID")


class GeminiModel:
    """A `ChatModel` for all the models behind one key, or of one Vertex AI project.

    models: the path before a model's name. health: what to ask for that costs nothing; None: credentials are enough.
    call_ids: whether it takes the ids of calls of tools.
    What the API lacks here (n, logprobs) is refused, even where an entry claims it.
    """

    def __init__(
        self,
        entries: Mapping[str, ModelEntry],
        http: HttpUpstream,
        models: str = "models",
        health: str | None = "models",
        call_ids: bool = True,
    ) -> None:
        self._entries = {name: entry.within(_DIALECT) for name, entry in entries.items()}
        self._http = http
        self._models = models
        self._health = health
        self._call_ids = call_ids

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        entry, upstream = begin(self._entries, request, call, self._http.is_closed)
        body = json.dumps(encode(request, entry, self._call_ids), ensure_ascii=False).encode()
        path = f"{self._models}/{quote(entry.source or entry.name, '')}:streamGenerateContent"
        answer = Answer(upstream)
        async with aclosing(self._http.stream(upstream, path, body, answer, {"alt": "sse"})) as events:  # type: ignore[type-var]
            async for event in events:
                yield event

    async def check_health(self) -> None:
        """Asks for a list, which costs nothing; an endpoint without that list is healthy if it answers."""
        await self._http.check_health(begin_health_check(self._entries, self._http.is_closed), self._health)

    async def close(self) -> None:
        await self._http.close()


def ai_studio(entries: Mapping[str, ModelEntry], api_key: str | None, base_url: str | None = None) -> GeminiModel:
    """base_url: up to and with the version."""
    headers = {"x-goog-api-key": api_key} if api_key else {}
    return GeminiModel(entries, HttpUpstream(base_url or _BASE_URL, headers, refusal=refusal))


def vertex(
    entries: Mapping[str, ModelEntry],
    project: str,
    location: str,
    base_url: str | None = None,
    credentials: GoogleCredentials | None = None,
) -> GeminiModel:
    """location: a region, or `global`. credentials: None: Google's application default ones.

    Version 1 of this API refuses ids of calls ('Unknown name "id" at function_call',
    https://github.com/vercel/ai/issues/15664).
    """
    host = "aiplatform.googleapis.com" if location == "global" else f"{location}-aiplatform.googleapis.com"
    who = credentials or GoogleCredentials()
    http = HttpUpstream(base_url or f"https://{host}/v1", {}, credentials=who.headers, refusal=refusal)
    models = f"projects/{quote(project, '')}/locations/{quote(location, '')}/publishers/google/models"
    return GeminiModel(entries, http, models, health=None, call_ids=False)


def refusal(upstream: UpstreamCall, status: int, headers: Mapping[str, str], error: object) -> SwitchyardError:
    """Google's errors (https://cloud.google.com/apis/design/errors) have their code in `status`, and in `details` the
    reason and how long to wait."""
    details = (error.get("details") if isinstance(error, dict) else None) or ()
    known = [detail for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []
    if any(detail.get("reason") in _OPERATORS for detail in known):
        status = 401
    if isinstance(error, dict) and error.get("status") == "FAILED_PRECONDITION":  # no billing, or not in this country
        status = 403
    delay = next((str(detail["retryDelay"]) for detail in known if "retryDelay" in detail), "")
    if delay.endswith("s") and "retry-after" not in headers:
        headers = {**headers, "retry-after": delay.removesuffix("s")}
    fields = {**error, "code": error.get("status")} if isinstance(error, dict) else error
    return upstream.refused(status, headers, fields)


# ---- the answer ----------------------------------------------------------------------------------------------------


class Answer:
    """Decodes the body of one streamed answer: server-sent `GenerateContentResponse`s without an end mark."""

    done = False

    def __init__(self, upstream: UpstreamCall) -> None:
        self._upstream = upstream
        self._sse = SSEDecoder()
        self._finish: FinishReason | None = None
        self._usage: Usage | None = None
        self._usage_told = False
        self._calls = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        with self._upstream.reading(_STREAM):
            found = self._sse.feed(chunk)
        for data in found:
            events: list[Event] = []
            with self._upstream.reading(_STREAM):
                self._read(decoded(data), events)
            if events and self._usage and not (self._usage_told or self._finish):
                self._usage_told = True  # what is known so far, should the answer break off
                events.append(UsageReport(self._usage, estimated=True))
            yield from events

    def end(self) -> list[Event]:
        if self._finish is None:
            raise self._upstream.broken("ended its answer before it was finished")
        reason = "tool_calls" if self._finish == "stop" and self._calls else self._finish
        return [Finish(reason), UsageReport(self._usage or Usage(), estimated=self._usage is None)]

    def _read(self, chunk: dict[str, Any], events: list[Event]) -> None:
        if error := chunk.get("error"):
            raise refusal(self._upstream, int(error.get("code") or 500), {}, error)
        if usage := chunk.get("usageMetadata"):
            self._usage = _usage(usage)
        if (chunk.get("promptFeedback") or {}).get("blockReason"):
            self._finish = "content_filter"
        for candidate in chunk.get("candidates") or ():
            for part in (candidate.get("content") or {}).get("parts") or ():
                self._read_part(part, events)
            if reason := candidate.get("finishReason"):
                if reason not in _FINISH:  # MALFORMED_FUNCTION_CALL, OTHER and whatever comes: no whole answer
                    raise self._upstream.broken("broke off its answer")
                self._finish = _FINISH[reason]

    def _read_part(self, part: dict[str, Any], events: list[Event]) -> None:
        signature = SIGNATURE + part["thoughtSignature"] if part.get("thoughtSignature") else None
        text = part.get("text") or ""
        if part.get("thought") and (text or signature):
            events.append(ReasoningDelta(text, signature))
            return
        if signature:
            events.append(ReasoningDelta("", signature))
        if text:
            events.append(TextDelta(text))
        if call := part.get("functionCall"):
            arguments = json.dumps(call.get("args") or {}, ensure_ascii=False)
            identifier = call.get("id") or f"call_{uuid4().hex[:24]}"
            events.append(ToolCallDelta(self._calls, identifier, call["name"], arguments))
            self._calls += 1


def _usage(usage: dict[str, Any]) -> Usage:
    """`promptTokenCount` has the cached ones in it, `candidatesTokenCount` has not the thoughts."""
    thoughts = usage.get("thoughtsTokenCount") or 0
    return Usage(
        input_tokens=(usage.get("promptTokenCount") or 0) + (usage.get("toolUsePromptTokenCount") or 0),
        output_tokens=(usage.get("candidatesTokenCount") or 0) + thoughts,
        cached_input_tokens=usage.get("cachedContentTokenCount") or 0,
        reasoning_tokens=thoughts,
    )
