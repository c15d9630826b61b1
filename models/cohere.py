"""Cohere's chat, version 2 (https://docs.cohere.com/v2/reference/chat-stream).

Cohere has an OpenAI-compatible endpoint as well, but that one refuses `stream_options`, and so a stream of it need not
say what it cost. Here every stream ends with its usage.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import urljoin

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
from models.quick_json import decoded
from models.sse import SSEDecoder
from models.upstream import UpstreamCall, begin, begin_health_check, described_schema, parse_json
from models.upstream_http import HttpUpstream

_BASE_URL = "https://api.cohere.com/v2"
_STREAM = "a chat stream"
_DIALECT = Capabilities(
    tools=True,
    images=True,
    json_object=True,
    json_schema=True,
    seed=True,
    penalties=True,
    temperature=True,
    top_k=True,
)
_FINISH: dict[str, FinishReason] = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
}


class CohereModel:
    """A `ChatModel` for all the models behind one key.

    What the API lacks here (n, logprobs, an effort) is refused, even where an entry claims it.
    """

    def __init__(self, entries: Mapping[str, ModelEntry], api_key: str | None, base_url: str | None = None) -> None:
        self._entries = {name: entry.within(_DIALECT) for name, entry in entries.items()}
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = HttpUpstream(base_url or _BASE_URL, headers)
        self._health = urljoin(base_url or _BASE_URL, "/v1/models")  # version 2 has no such list

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        entry, upstream = begin(self._entries, request, call, self._http.is_closed)
        body = json.dumps(encode(request, entry), ensure_ascii=False).encode()
        answer = Answer(upstream)
        async with aclosing(self._http.stream(upstream, "chat", body, answer)) as events:  # type: ignore[type-var]
            async for event in events:
                yield event

    async def check_health(self) -> None:
        """Lists the models, which costs nothing."""
        await self._http.check_health(begin_health_check(self._entries, self._http.is_closed), self._health)

    async def close(self) -> None:
        await self._http.close()


# ---- the question --------------------------------------------------------------------------------------------------


def encode(request: ChatRequest, entry: ModelEntry) -> dict[str, Any]:
    """The JSON body, always of a stream.

    Raises `InvalidRequest` for a schema that is not JSON, and `UnsupportedFeature` for what the API cannot do.
    """
    sampling = request.sampling
    named = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "p": sampling.top_p,
        "k": sampling.top_k,
        "seed": sampling.seed,
        "stop_sequences": list(sampling.stop) or None,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "response_format": _format(request),
        "tool_choice": _tool_choice(request, entry),
        "strict_tools": any(tool.strict for tool in request.tools) or None,
    }
    body = {
        "model": entry.source or entry.name,
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        **{name: value for name, value in named.items() if value is not None},
    }
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": parse_json(tool.parameters or "{}", "tools"),
                },
            }
            for tool in request.tools
        ]
    return body


def _tool_choice(request: ChatRequest, entry: ModelEntry) -> str | None:
    if request.parallel_tool_calls is False:
        raise UnsupportedFeature(
            f"Model '{entry.name}' cannot be kept from calling several tools at once; leave out "
            "'parallel_tool_calls' or choose another model.",
            "parallel_tool_calls",
        )
    if request.tool_choice is None or request.tool_choice.mode == "auto":
        return None
    if request.tool_choice.mode == "tool":
        raise UnsupportedFeature(
            f"Model '{entry.name}' cannot be made to call one tool; set 'tool_choice' to 'required', or choose another "
            "model.",
            "tool_choice",
        )
    return request.tool_choice.mode.upper()


def _format(request: ChatRequest) -> dict[str, Any] | None:
    wanted = request.response_format
    if wanted is None or wanted.kind == "text":
        return None
    if wanted.kind == "json_object":
        return {"type": "json_object"}
    return {"type": "json_object", "json_schema": described_schema(wanted)}


def _message(message: Message) -> dict[str, Any]:
    """Earlier reasoning stays behind: it is another model's, or was shown only."""
    fields: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    content = _content(message)
    if content or not message.tool_calls:
        fields["content"] = content
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        fields["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return fields


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not any(isinstance(part, ImagePart) for part in message.parts):
        return message.text
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image_url", "image_url": {"url": part.url, "detail": part.detail}}
        for part in message.parts
        if isinstance(part, TextPart | ImagePart)
    ]


# ---- the answer ----------------------------------------------------------------------------------------------------


class Answer:
    """Decodes the body of one streamed answer. `done` is set by `message-end`."""

    def __init__(self, upstream: UpstreamCall) -> None:
        self._upstream = upstream
        self._sse = SSEDecoder()
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
        delta = event.get("delta") or {}
        message = delta.get("message") or {}
        match event.get("type"):
            case "content-delta":
                content = message.get("content") or {}
                if content.get("thinking"):
                    events.append(ReasoningDelta(content["thinking"]))
                if content.get("text"):
                    events.append(TextDelta(content["text"]))
            case "tool-plan-delta":  # what it is about to do, said before the calls
                events.append(ReasoningDelta(message["tool_plan"]))
            case "tool-call-start":
                call = message["tool_calls"]
                function = call["function"]
                text = function.get("arguments") or ""
                events.append(ToolCallDelta(event["index"], call["id"], function["name"], text))
            case "tool-call-delta":
                text = message["tool_calls"]["function"]["arguments"]
                events.append(ToolCallDelta(event["index"], arguments=text))
            case "message-end":
                self._close(delta)
            case None:  # an error in the stream has no type, only a message
                raise self._upstream.refused(500, {}, event.get("message"))

    def _close(self, delta: dict[str, Any]) -> None:
        reason = delta.get("finish_reason")
        if reason not in _FINISH:
            raise self._upstream.broken("broke off its answer")
        self._finish = _FINISH[reason]
        self.done = True
        if usage := delta.get("usage"):
            # Billed are fewer tokens than were read: Cohere's own preamble is free.
            counted = usage.get("billed_units") or usage.get("tokens") or {}
            self._usage = Usage(int(counted.get("input_tokens") or 0), int(counted.get("output_tokens") or 0))
