"""Anthropic's Messages API through the official SDK (https://platform.claude.com/docs/en/api/messages).

The only file that imports `anthropic` (and `httpx2`, the transport that the SDK lets errors through from).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.errors import DeadlineExceeded, InvalidRequest
from models.messages import (
    ChatRequest,
    Event,
    Finish,
    FinishReason,
    ImagePart,
    Message,
    Part,
    ReasoningDelta,
    ReasoningPart,
    TextDelta,
    TextPart,
    Tool,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from models.upstream import CONNECT_TIMEOUT_S, UpstreamCall, begin, begin_health_check, parse_json

_BASE_URL = "https://api.anthropic.com"
_DEFAULT_MAX_TOKENS = 4096  # the API wants a limit with every request
# The SDK's own version, 2026-10-21, refuses temperature and top_p; with this one the models that have them take them.
_SAMPLING_VERSION = "2023-06-01"
# Thinking that the provider encrypted comes and goes back as the signature of a reasoning part without text.
_REDACTED = "redacted_thinking:"
_DIALECT = Capabilities(tools=True, images=True, json_schema=True, reasoning=True, seed=False)
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class AnthropicModel:
    """A `ChatModel` for all the models behind one key, or of a server that speaks alike (`base_url`, without `/v1`).

    What the Messages API lacks (n, seed, logprobs, penalties, JSON without a schema) is refused, even where an entry
    claims it.
    """

    def __init__(self, entries: Mapping[str, ModelEntry], api_key: str | None, base_url: str | None = None) -> None:
        import anthropic

        self._entries = {
            name: entry.model_copy(update={"capabilities": _within_dialect(entry.capabilities)})
            for name, entry in entries.items()
        }
        # Key and address are always given, else the SDK looks for them in the environment and in the home folder.
        self._client = anthropic.AsyncAnthropic(
            api_key=api_key or "none",
            base_url=base_url or _BASE_URL,
            timeout=anthropic.Timeout(None, connect=CONNECT_TIMEOUT_S),
            max_retries=0,
            open_telemetry=False,
        )

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        entry, upstream = begin(self._entries, request, call, self._client.is_closed())
        arguments = encode(request, entry)
        with _translated(upstream):
            stream = await upstream.wait(self._client.messages.create(**arguments, stream=True))
            answer = _Answer()
            try:
                events = aiter(stream)
                while (raw := await upstream.wait(anext(events, None))) is not None:
                    for event in answer.read(raw):
                        upstream.started = True
                        yield event
                if answer.finish is None:
                    raise upstream.broken("ended its answer before it was finished")
            finally:
                await stream.close()
            yield Finish(answer.finish)
            yield UsageReport(answer.usage)

    async def check_health(self) -> None:
        """Lists the provider's models, which costs nothing; an endpoint without that list is healthy if it answers."""
        import anthropic

        upstream = begin_health_check(self._entries, self._client.is_closed())
        try:
            await upstream.wait(self._client.models.list(limit=1))
        except anthropic.APIStatusError as error:
            if error.status_code in (401, 402, 403):
                raise upstream.refused(error.status_code, {}, None) from None
            if error.status_code >= 500:
                raise upstream.unreachable() from None
        except (anthropic.AnthropicError, DeadlineExceeded):
            raise upstream.unreachable() from None

    async def close(self) -> None:
        await self._client.close()


def _within_dialect(capabilities: Capabilities) -> Capabilities:
    lacking = {field.name: False for field in fields(Capabilities) if not getattr(_DIALECT, field.name)}
    return replace(capabilities, **lacking)


@contextmanager
def _translated(upstream: UpstreamCall) -> Iterator[None]:
    """The SDK's errors as ours. Their texts hold what the provider wrote, so they are left behind."""
    import anthropic
    import httpx2

    try:
        yield
    except anthropic.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        raise upstream.refused(error.status_code, error.response.headers, body.get("error")) from None
    except (anthropic.APIConnectionError, anthropic.CredentialsError) as error:
        # The SDK does not tell a refused connection from one that broke before the answer.
        raise upstream.unreachable() from error
    except (anthropic.AnthropicError, httpx2.HTTPError, httpx2.StreamError) as error:
        raise upstream.broken("broke off") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise upstream.broken("sent something other than a message stream") from error


# ---- the question --------------------------------------------------------------------------------------------------


def encode(request: ChatRequest, entry: ModelEntry) -> dict[str, Any]:
    """Arguments of the SDK's `messages.create`.

    Raises `InvalidRequest` for tool arguments or a schema that are not JSON, and for an effort the API has no word for.
    """
    sampling = request.sampling
    arguments: dict[str, Any] = {
        "model": entry.source or entry.name,
        "max_tokens": sampling.max_tokens or entry.max_output_tokens or _DEFAULT_MAX_TOKENS,
        "messages": _turns(request.messages),
    }
    if system := "\n\n".join(m.text for m in request.messages if m.role in ("system", "developer") and m.text):
        arguments["system"] = system
    if sampling.stop:
        arguments["stop_sequences"] = list(sampling.stop)
    extra = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if extra := {name: value for name, value in extra.items() if value is not None}:
        arguments["extra_body"] = extra
        arguments["extra_headers"] = {"anthropic-version": _SAMPLING_VERSION}
    if request.tools:
        arguments["tools"] = [_tool(tool) for tool in request.tools]
        arguments |= _tool_choice(request)
    if request.user:
        arguments["metadata"] = {"user_id": request.user}
    return arguments | _output(request)


def _output(request: ChatRequest) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    config: dict[str, Any] = {}
    if effort := request.reasoning_effort:
        if effort == "none":
            arguments["thinking"] = {"type": "disabled"}
        elif effort in _EFFORTS:
            arguments["thinking"] = {"type": "adaptive", "display": "summarized"}
            config["effort"] = effort
        else:
            raise InvalidRequest(f"reasoning_effort must be none or one of {', '.join(_EFFORTS)}.", "reasoning_effort")
    if request.response_format and request.response_format.kind == "json_schema":
        schema = parse_json(request.response_format.schema or "{}", "response_format")
        config["format"] = {"type": "json_schema", "schema": schema}
    return arguments | ({"output_config": config} if config else {})


def _tool(tool: Tool) -> dict[str, Any]:
    schema = parse_json(tool.parameters, "tools")
    fields: dict[str, Any] = {"name": tool.name, "input_schema": {"type": "object", **schema}}
    if tool.description:
        fields["description"] = tool.description
    if tool.strict is not None:
        fields["strict"] = tool.strict
    return fields


def _tool_choice(request: ChatRequest) -> dict[str, Any]:
    choice: dict[str, Any] = {"type": "auto"}
    if request.tool_choice:
        choice["type"] = {"required": "any"}.get(request.tool_choice.mode, request.tool_choice.mode)
        if request.tool_choice.mode == "tool":
            choice["name"] = request.tool_choice.name
    if request.parallel_tool_calls is not None and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = not request.parallel_tool_calls
    return {"tool_choice": choice} if request.tool_choice or request.parallel_tool_calls is not None else {}


def _turns(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """User and assistant turns in turn: tool results are user content here, and those of one turn belong together."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        role = "assistant" if message.role == "assistant" else "user"
        if not turns or turns[-1]["role"] != role:
            turns.append({"role": role, "content": []})
        turns[-1]["content"] += _blocks(message)
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    blocks = [block for part in message.parts if (block := _block(part))]
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": blocks}]
    for call in message.tool_calls:
        value = parse_json(call.arguments or "{}", "messages")
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": value})
    return blocks


def _block(part: Part) -> dict[str, Any] | None:
    """None for what the API refuses: empty text, and thinking that it did not sign (another model's)."""
    match part:
        case TextPart():
            return {"type": "text", "text": part.text} if part.text else None
        case ImagePart():
            return {"type": "image", "source": _image_source(part.url)}
        case ReasoningPart():
            if part.signature is None:
                return None
            if part.signature.startswith(_REDACTED):
                return {"type": "redacted_thinking", "data": part.signature.removeprefix(_REDACTED)}
            return {"type": "thinking", "thinking": part.text, "signature": part.signature}


def _image_source(url: str) -> dict[str, str]:
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    head, _, data = url.removeprefix("data:").partition(",")
    media_type, _, encoding = head.rpartition(";")
    if encoding != "base64" or not data:
        raise InvalidRequest(
            "An image's data URI must be base64, as in 'data:image/png;base64,...'; correct it.", "messages"
        )
    return {"type": "base64", "media_type": media_type, "data": data}


# ---- the answer ----------------------------------------------------------------------------------------------------


class _Answer:
    """Reads the SDK's raw events of one answer. `finish` is None until the message has stopped."""

    def __init__(self) -> None:
        self.finish: FinishReason | None = None
        self.usage = Usage()
        self._reason: FinishReason = "stop"
        self._calls = 0
        self._arguments_seen = False
        self._block_type = ""

    def read(self, raw: Any) -> list[Event]:
        match raw.type:
            case "message_start":
                self._count(raw.message.usage)
            case "content_block_start":
                return self._start(raw.content_block)
            case "content_block_delta":
                return self._delta(raw.delta)
            case "content_block_stop" if self._block_type == "tool_use" and not self._arguments_seen:
                return [ToolCallDelta(self._calls - 1, arguments="{}")]
            case "message_delta":
                self._reason = _FINISH.get(raw.delta.stop_reason or "end_turn", "stop")
                self._count(raw.usage)
            case "message_stop":
                self.finish = self._reason
        return []

    def _start(self, block: Any) -> list[Event]:
        self._block_type = block.type
        match block.type:
            case "text" if block.text:
                return [TextDelta(block.text)]
            case "thinking" if block.thinking:
                return [ReasoningDelta(block.thinking)]
            case "redacted_thinking":
                return [ReasoningDelta("", _REDACTED + block.data)]
            case "tool_use":
                arguments = json.dumps(block.input, ensure_ascii=False) if block.input else ""
                self._arguments_seen = bool(arguments)
                self._calls += 1
                return [ToolCallDelta(self._calls - 1, block.id, block.name, arguments)]
        return []

    def _delta(self, delta: Any) -> list[Event]:
        match delta.type:
            case "text_delta":
                return [TextDelta(delta.text)]
            case "thinking_delta":
                return [ReasoningDelta(delta.thinking)]
            case "signature_delta":
                return [ReasoningDelta("", delta.signature)]
            case "input_json_delta" if delta.partial_json:
                self._arguments_seen = True
                return [ToolCallDelta(self._calls - 1, arguments=delta.partial_json)]
        return []

    def _count(self, usage: Any) -> None:
        """The API's input leaves out what the cache read and wrote, ours does not. A later count replaces an earlier
        one in what it names."""
        now = self.usage
        read = _either(usage.cache_read_input_tokens, now.cached_input_tokens)
        written_1h = now.cache_write_1h_tokens
        # Only the first count has the split by lifetime; the default lifetime is five minutes.
        if split := getattr(usage, "cache_creation", None):
            written_1h = split.ephemeral_1h_input_tokens
        written_before = now.cache_write_5m_tokens + now.cache_write_1h_tokens
        written = _either(usage.cache_creation_input_tokens, written_before)
        fresh = _either(usage.input_tokens, now.input_tokens - now.cached_input_tokens - written_before)
        details = getattr(usage, "output_tokens_details", None)
        self.usage = Usage(
            input_tokens=fresh + read + written,
            output_tokens=usage.output_tokens,
            cached_input_tokens=read,
            cache_write_5m_tokens=written - written_1h,
            cache_write_1h_tokens=written_1h,
            reasoning_tokens=details.thinking_tokens if details else now.reasoning_tokens,
        )


def _either(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value
