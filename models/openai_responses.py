"""OpenAI's responses as a provider speaks them (https://platform.openai.com/docs/api-reference/responses): for models
that OpenAI has nowhere else, and for other servers with that API, such as vLLM.

Nothing is stored there: each request brings its whole conversation, and earlier reasoning stays behind.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.errors import UnsupportedFeature
from models.messages import (
    ChatRequest,
    Event,
    Finish,
    FinishReason,
    ImagePart,
    Message,
    ReasoningDelta,
    TextDelta,
    TextPart,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from models.openai_compatible import key_header, token_logprobs, token_usage
from models.openai_turns import openai_turns
from models.prefix_salt import PrefixSalt
from models.providers import Quirks
from models.quick_json import decoded
from models.sse import SSEDecoder
from models.tool_call_ids import with_fitting_ids
from models.upstream import UpstreamCall, begin, begin_health_check, parse_json
from models.upstream_http import HttpUpstream

_BASE_URL = "https://api.openai.com/v1"
_STREAM = "a response stream"
_DIALECT = Capabilities(
    tools=True,
    images=True,
    json_object=True,
    json_schema=True,
    logprobs=True,
    reasoning=True,
    seed=False,
    temperature=True,
    verbosity=True,
)
_INCOMPLETE: dict[str, FinishReason] = {"max_output_tokens": "length", "content_filter": "content_filter"}
_STATUS = {
    "rate_limit_exceeded": 429,
    "too_many_requests": 429,  # Azure's word for it
    "insufficient_quota": 429,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "content_policy_violation": 400,
    "invalid_prompt": 400,
    "bio_policy": 400,
    "misalignment_policy_violation": 400,
    "invalid_request_error": 400,
    "data_residency_mismatch": 403,
}
"""Of the errors that a response which had begun can end with, by code or type. What is said of an image is the caller's
too; all others are the provider's own."""


class ResponsesModel:
    """A `ChatModel` for all the models of one endpoint.

    What the API lacks (stop sequences, a seed, penalties, several choices) is refused, even where an entry claims it.
    Of the `quirks` those count that are not about a field of chat completions: key_header, headers, query,
    tool_call_ids, prefix_salt, and `user` in leaves_out.
    """

    def __init__(
        self,
        entries: Mapping[str, ModelEntry],
        api_key: str | None,
        base_url: str | None = None,
        quirks: Quirks | None = None,
    ) -> None:
        self._entries = {name: entry.within(_DIALECT) for name, entry in entries.items()}
        self._quirks = quirks or Quirks()
        headers = {**self._quirks.headers, **key_header(self._quirks, api_key)}
        self._http = HttpUpstream(base_url or _BASE_URL, headers, self._quirks.query)
        self._salt = PrefixSalt.of_endpoint(api_key) if self._quirks.prefix_salt else None

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        entry, upstream = begin(self._entries, request, call, self._http.is_closed)
        asked = encode(request, entry, self._quirks)
        if self._salt is not None and (salt := self._salt.of(call.tenant)):
            asked["cache_salt"] = salt
        body = json.dumps(asked, ensure_ascii=False).encode()
        answer = Answer(upstream)
        async with aclosing(self._http.stream(upstream, "responses", body, answer)) as events:  # type: ignore[type-var]
            async for event in events:
                yield event

    async def check_health(self) -> None:
        """Lists the endpoint's models, which costs nothing."""
        await self._http.check_health(begin_health_check(self._entries, self._http.is_closed), "models")

    async def close(self) -> None:
        await self._http.close()


# ---- the question --------------------------------------------------------------------------------------------------


def encode(request: ChatRequest, entry: ModelEntry, quirks: Quirks) -> dict[str, Any]:
    """The JSON body, always of a stream that is not stored.

    Raises `InvalidRequest` for a schema that is not JSON, and `UnsupportedFeature` for what the API cannot do.
    """
    sampling = request.sampling
    if sampling.stop:
        raise UnsupportedFeature(
            f"Model '{entry.name}' knows no stop sequences; leave out 'stop' or choose another model.", "stop"
        )
    messages = with_fitting_ids(request.messages, quirks.tool_call_ids)
    named = {
        "max_output_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_logprobs": sampling.top_logprobs,
        "include": ["message.output_text.logprobs"] if sampling.top_logprobs is not None else None,
        "parallel_tool_calls": request.parallel_tool_calls,
        "tool_choice": _tool_choice(request),
        "tools": [_tool(request, at) for at in range(len(request.tools))] or None,
        "text": _text(request) or None,
        "reasoning": _reasoning(request, entry),
        "user": None if "user" in quirks.leaves_out else request.user,
        "prompt_cache_key": request.prompt_cache_key,
        "safety_identifier": request.safety_identifier,
    }
    return {
        "model": entry.source or entry.name,
        "input": [item for message in openai_turns(messages) for item in _items(message)],
        "stream": True,
        "store": False,
        **{name: value for name, value in named.items() if value is not None},
    }


def _tool(request: ChatRequest, at: int) -> dict[str, Any]:
    tool = request.tools[at]
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": parse_json(tool.parameters, "tools"),
        "strict": bool(tool.strict),  # left out it would be true, and most schemas are not made for that
    }


def _tool_choice(request: ChatRequest) -> str | dict[str, Any] | None:
    if request.tool_choice is None:
        return None
    named = {"type": "function", "name": request.tool_choice.name}
    return named if request.tool_choice.mode == "tool" else request.tool_choice.mode


def _text(request: ChatRequest) -> dict[str, Any]:
    text: dict[str, Any] = {"verbosity": request.verbosity} if request.verbosity else {}
    wanted = request.response_format
    if wanted is None or wanted.kind == "text":
        return text
    if wanted.kind == "json_object":
        return {**text, "format": {"type": "json_object"}}
    schema = {"name": wanted.name, "schema": parse_json(wanted.schema or "{}", "response_format")}
    if wanted.description is not None:
        schema["description"] = wanted.description
    return {**text, "format": {"type": "json_schema", **schema, "strict": bool(wanted.strict)}}


def _reasoning(request: ChatRequest, entry: ModelEntry) -> dict[str, Any] | None:
    if not entry.capabilities.reasoning:
        return None
    if request.thinking and request.thinking.mode == "off":
        return {"effort": "none"}
    wished = {"effort": request.reasoning_effort, "summary": "auto" if _shows_thoughts(request) else None}
    return {name: value for name, value in wished.items() if value is not None} or None


def _shows_thoughts(request: ChatRequest) -> bool:
    return request.thinking is not None and request.thinking.display == "summarized"


def _items(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "function_call_output", "call_id": message.tool_call_id, "output": _content(message)}]
    items: list[dict[str, Any]] = []
    content = _content(message)
    if content or not message.tool_calls:
        items.append({"type": "message", "role": message.role, "content": content})
    for call in message.tool_calls:
        items.append({"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments})
    return items


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not any(isinstance(part, ImagePart) for part in message.parts):
        return message.text
    return [
        {"type": "input_text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "input_image", "image_url": part.url, "detail": part.detail}
        for part in message.parts
        if isinstance(part, TextPart | ImagePart)
    ]


# ---- the answer ----------------------------------------------------------------------------------------------------


class Answer:
    """Decodes the body of one streamed response. `done` is set by its last event."""

    def __init__(self, upstream: UpstreamCall) -> None:
        self._upstream = upstream
        self._sse = SSEDecoder()
        self._calls: dict[int, int] = {}  # by `output_index`, in their order: how much of the arguments has come
        self._finish: FinishReason | None = None
        self._usage: Usage | None = None
        self.done = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        with self._upstream.reading(_STREAM):
            found = self._sse.feed(chunk)
        for data in found:
            events: list[Event] = []
            if data != b"[DONE]":
                with self._upstream.reading(_STREAM):
                    self._read(decoded(data), events)
            yield from events

    def end(self) -> list[Event]:
        if self._finish is None:
            raise self._upstream.broken("ended its answer before it was finished")
        return [Finish(self._finish), UsageReport(self._usage or Usage(), estimated=self._usage is None)]

    def _read(self, event: dict[str, Any], events: list[Event]) -> None:
        match "error" if event.get("error") else event["type"]:
            case "response.output_text.delta":
                logprobs = token_logprobs(event.get("logprobs") or ())
                events.append(TextDelta(event["delta"], len(logprobs), logprobs))
            case "response.refusal.delta":
                events.append(TextDelta(event["delta"]))
            case "response.reasoning_text.delta" | "response.reasoning_summary_text.delta":
                events.append(ReasoningDelta(event["delta"]))
            case "response.reasoning_summary_part.added" if event["summary_index"]:
                events.append(ReasoningDelta("\n\n"))  # each is a paragraph, and its text does not say so
            case "response.output_item.added" if event["item"]["type"] == "function_call":
                self._call(event["output_index"], event["item"], events)
            case "response.function_call_arguments.delta":
                self._argue(event["output_index"], event["delta"], events)
            # Not all servers send the pieces, or both of these.
            case "response.function_call_arguments.done" if self._calls.get(event["output_index"]) == 0:
                self._argue(event["output_index"], event["arguments"], events)
            case "response.output_item.done" if event["item"]["type"] == "function_call":
                self._call(event["output_index"], event["item"], events)
                if not self._calls[event["output_index"]]:
                    self._argue(event["output_index"], event["item"]["arguments"], events)
            case "response.completed" | "response.incomplete" as kind:
                self._close(event["response"], kind.removeprefix("response."))
            case "response.failed":
                self._fail(event["response"].get("error") or {})
            case "error":
                error = event.get("error")  # in there is where OpenAI and Azure have it, whatever their pages say
                self._fail(error if isinstance(error, dict) else event)

    def _call(self, at: int, item: dict[str, Any], events: list[Event]) -> None:
        if at not in self._calls:
            events.append(ToolCallDelta(len(self._calls), item["call_id"], item["name"]))
            self._calls[at] = 0

    def _argue(self, at: int, text: str, events: list[Event]) -> None:
        self._calls[at] += len(text)
        if text:
            events.append(ToolCallDelta(list(self._calls).index(at), arguments=text))

    def _close(self, response: dict[str, Any], end: str) -> None:
        """end: what the event says. vLLM ends every answer as completed, and its status is what holds."""
        if (response.get("status") or end) == "completed":
            self._finish = "tool_calls" if self._calls else "stop"
        else:
            self._finish = _INCOMPLETE.get((response.get("incomplete_details") or {}).get("reason") or "")
        if self._finish is None:
            raise self._upstream.broken("broke off its answer")
        self.done = True
        if usage := response.get("usage"):
            self._usage = token_usage(usage, "input", "output")

    def _fail(self, error: dict[str, Any]) -> None:
        code = error.get("code")
        known = [_STATUS[name] for name in (code, error.get("type")) if name in _STATUS]
        status = known[0] if known else 400 if "image" in str(code) else 500
        raise self._upstream.refused(code if isinstance(code, int) else status, {}, error)
