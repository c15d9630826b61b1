"""A `ChatRequest` as a request to Anthropic's Messages API (https://platform.claude.com/docs/en/api/messages)."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from models.catalog import ModelEntry
from models.errors import InvalidRequest
from models.gemini_request import SIGNATURE as GEMINI_SIGNATURE
from models.messages import (
    CacheTtl,
    ChatRequest,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    Sampling,
    TextPart,
    Thinking,
    Tool,
)
from models.tool_call_ids import ANTHROPICS, with_fitting_ids
from models.upstream import described_schema, parse_json

_DEFAULT_MAX_TOKENS = 4096  # the API wants a limit with every request
# The SDK's own version, 2026-10-21, refuses temperature, top_p and top_k; with this one the models that have them take
# them.
_SAMPLING_VERSION = "2023-06-01"
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_INSTRUCTIONS = ("system", "developer")
_THINKING = {"adaptive": "adaptive", "budget": "enabled", "off": "disabled"}


@dataclass(frozen=True, slots=True)
class RawJSON:
    """JSON that goes into a body as it was written: parsing and writing it again would change its bytes."""

    text: str


def to_json(body: dict[str, Any]) -> bytes:
    """`body`, in which values may be `RawJSON`."""
    raw: list[str] = []
    mark = secrets.token_hex(16)  # nobody's text can hold it by chance or on purpose

    def keep(value: RawJSON) -> str:
        raw.append(value.text)
        return f"{mark}{len(raw) - 1}"

    text = json.dumps(body, ensure_ascii=False, default=keep)
    if raw:
        text = re.sub(f'"{mark}(\\d+)"', lambda found: raw[int(found[1])], text)
    return text.encode("utf-8", "backslashreplace")  # half a surrogate pair then is the escape that JSON has for it


def headers(request: ChatRequest) -> dict[str, str]:
    """What goes beside the body of `request`."""
    found = {"anthropic-version": _SAMPLING_VERSION} if _sampling(request.sampling) else {}
    return found | ({"anthropic-beta": ",".join(request.betas)} if request.betas else {})


def count_body(request: ChatRequest, entry: ModelEntry) -> dict[str, Any]:
    """The body of a question after the number of tokens: what `encode` gives, less what is about the answer."""
    about_the_answer = ("max_tokens", "metadata", "stop_sequences", "stream", "temperature", "top_k", "top_p")
    return {name: value for name, value in encode(request, entry).items() if name not in about_the_answer}


def encode(request: ChatRequest, entry: ModelEntry) -> dict[str, Any]:
    """The body of `POST /v1/messages`, always a stream.

    Raises `InvalidRequest` for tool arguments or a schema that are not JSON, and for an effort the API has no word for.
    """
    instructions = list(takewhile(lambda message: message.role in _INSTRUCTIONS, request.messages))
    body: dict[str, Any] = {
        "model": entry.source or entry.name,
        "max_tokens": request.sampling.max_tokens or entry.max_output_tokens or _DEFAULT_MAX_TOKENS,
        "messages": _turns(request.messages[len(instructions) :]),
        "stream": True,
        **_sampling(request.sampling),
    }
    if system := _system(instructions):
        body["system"] = system
    if request.sampling.stop:
        body["stop_sequences"] = list(request.sampling.stop)
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        body |= _tool_choice(request)
    if request.user:
        body["metadata"] = {"user_id": request.user}
    return body | _output(request) | _cache(request.cache)


def _sampling(sampling: Sampling) -> dict[str, Any]:
    fields = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return {name: value for name, value in fields.items() if value is not None}


def _output(request: ChatRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    config: dict[str, Any] = {}
    effort, thinking = request.reasoning_effort, request.thinking
    if effort not in (None, "none", *_EFFORTS):
        raise InvalidRequest(f"reasoning_effort must be none or one of {', '.join(_EFFORTS)}.", "reasoning_effort")
    if thinking is None and effort:  # OpenAI's dialect, in which an effort is a wish for reasoning
        thinking = Thinking("off") if effort == "none" else Thinking("adaptive", None, "summarized")
    if thinking and thinking.mode != "default":
        fields["thinking"] = {"type": _THINKING[thinking.mode]}
        if thinking.budget_tokens is not None:
            fields["thinking"]["budget_tokens"] = thinking.budget_tokens
        if thinking.display is not None:
            fields["thinking"]["display"] = thinking.display
    if effort and effort != "none":
        config["effort"] = effort
    if request.response_format and request.response_format.kind == "json_schema":
        config["format"] = {"type": "json_schema", "schema": described_schema(request.response_format)}
    return fields | ({"output_config": config} if config else {})


def _tool(tool: Tool) -> dict[str, Any]:
    schema = parse_json(tool.parameters, "tools")
    fields: dict[str, Any] = {"name": tool.name, "input_schema": {"type": "object", **schema}}
    if tool.description:
        fields["description"] = tool.description
    if tool.strict is not None:
        fields["strict"] = tool.strict
    return fields | _cache(tool.cache)


def _tool_choice(request: ChatRequest) -> dict[str, Any]:
    choice: dict[str, Any] = {"type": "auto"}
    if request.tool_choice:
        choice["type"] = {"required": "any"}.get(request.tool_choice.mode, request.tool_choice.mode)
        if request.tool_choice.mode == "tool":
            choice["name"] = request.tool_choice.name
    if request.parallel_tool_calls is not None and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = not request.parallel_tool_calls
    return {"tool_choice": choice} if request.tool_choice or request.parallel_tool_calls is not None else {}


def _cache(ttl: CacheTtl | None) -> dict[str, Any]:
    if ttl is None:
        return {}
    return {"cache_control": {"type": "ephemeral"} | ({"ttl": ttl} if ttl != "5m" else {})}


# ---- the conversation ----------------------------------------------------------------------------------------------


def _system(messages: list[Message]) -> str | list[dict[str, Any]]:
    """One text, unless there are parts to be told apart or marked."""
    blocks = [_texts(message) for message in messages]
    if any(len(texts) > 1 or "cache_control" in block for texts in blocks for block in texts):
        return [block for texts in blocks for block in texts]
    return "\n\n".join(message.text for message in messages if message.text)


def _texts(message: Message) -> list[dict[str, Any]]:
    return [block for part in message.parts if isinstance(part, TextPart) and (block := _block(part))]


def _turns(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """User and assistant turns in turn: tool results are user content here, and those of one turn belong together.

    Instructions within a conversation stay where they are; the older models refuse them there.
    """
    turns: list[dict[str, Any]] = []
    for message in with_fitting_ids(messages, ANTHROPICS):
        role = {"tool": "user", "developer": "system"}.get(message.role, message.role)
        if not (blocks := list(_blocks(message))):
            continue
        if not turns or turns[-1]["role"] != role:
            turns.append({"role": role, "content": []})
        turns[-1]["content"] += blocks
    return turns


def _blocks(message: Message) -> Iterator[dict[str, Any]]:
    blocks = [block for part in message.parts if (block := _block(part))]
    if message.role == "tool":
        failed = {"is_error": True} if message.is_error else {}
        result = {"type": "tool_result", "tool_use_id": message.tool_call_id, "content": blocks}
        yield result | failed | _cache(message.cache)
        return
    yield from blocks
    for call in message.tool_calls:
        arguments = call.arguments or "{}"
        if not isinstance(parse_json(arguments, "messages"), dict):
            raise InvalidRequest("The arguments of a tool call are not a JSON object; correct them.", "messages")
        fields = {"type": "tool_use", "id": call.id, "name": call.name, "input": RawJSON(arguments)}
        yield fields | _cache(call.cache)


def _block(part: Part) -> dict[str, Any] | None:
    """None for what the API refuses: empty text, and thinking that it did not sign (another model's)."""
    match part:
        case TextPart():
            return {"type": "text", "text": part.text} | _cache(part.cache) if part.text else None
        case ImagePart():
            return {"type": "image", "source": _image_source(part.url)} | _cache(part.cache)
        case ReasoningPart():
            if part.redacted is not None:
                return {"type": "redacted_thinking", "data": part.redacted}
            if part.signature is None or part.signature.startswith(GEMINI_SIGNATURE):
                return None
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
