"""The items of OpenAI's responses: those that callers send, and the messages that they stand for.

Source: https://platform.openai.com/docs/api-reference/responses/create#responses-create-input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError

from deployments.openai.body import Body, explained
from models.errors import InvalidRequest, UnsupportedFeature
from models.messages import ImagePart, Message, Part, ReasoningPart, Role, TextPart, ToolCall

Status = Literal["in_progress", "completed", "incomplete"]
SIGNATURE, REDACTED = "signature:", "redacted:"
"""What `encrypted_content` of a reasoning item begins with: a provider's proof of a thought, or the thought itself."""


class ContentPart(Body):
    type: Literal["input_text", "output_text", "text", "input_image", "refusal"]
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = Field(None, pattern=r"^(https?://|data:image/)")
    detail: Literal["auto", "low", "high"] | None = None
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


class MessageItem(Body):
    type: Literal["message"] = "message"
    role: Role
    content: str | list[ContentPart]
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class FunctionCallItem(Body):
    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    arguments: str
    id: str | None = None
    status: Status | None = None


class FunctionOutputItem(Body):
    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1)
    output: str | list[ContentPart]
    id: str | None = None
    status: Status | None = None


class ReasoningText(Body):
    type: Literal["summary_text", "reasoning_text"]
    text: str


class ReasoningItem(Body):
    type: Literal["reasoning"]
    summary: list[ReasoningText] = Field([])
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    id: str | None = None
    status: Status | None = None


Item = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem
_KINDS: dict[str, type[Item]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionOutputItem,
    "reasoning": ReasoningItem,
}
_WHY_NOT = {
    "item_reference": "send the item itself, or 'previous_response_id'",
    "input_file": "send the file's text",
}


def read_items(items: Sequence[Mapping[str, Any]], where: str = "input") -> list[Item]:
    """Raises `InvalidRequest` naming the place, or `UnsupportedFeature` for a kind that is not served."""
    return [_read(item, f"{where}.{number}") for number, item in enumerate(items)]


def _read(item: Mapping[str, Any], where: str) -> Item:
    kind = item.get("type") or "message"
    if kind not in _KINDS:
        instead = _WHY_NOT.get(str(kind), "it belongs to a tool of OpenAI's own; leave it out")
        raise UnsupportedFeature(f"'{where}' is of a type that is not served: {instead}.", f"{where}.type")
    present = {name: value for name, value in item.items() if value is not None}
    try:
        return _KINDS[kind].model_validate(present)
    except ValidationError as error:
        raise _at(explained(error), where) from None


def _at(error: InvalidRequest, where: str) -> InvalidRequest:
    """The same error for a field that is in `where`."""
    param = f"{where}.{error.param}" if error.param else where
    return type(error)(error.message.replace(f"'{error.param}'", f"'{param}'", 1), param)


def messages_of(items: Sequence[Item], where: str = "input") -> list[Message]:
    """What was said. Thoughts, text and calls of one turn of the assistant's are one message."""
    messages: list[Message] = []
    parts: list[Part] = []
    calls: list[ToolCall] = []

    def end_turn() -> None:
        if parts or calls:
            messages.append(Message("assistant", tuple(parts), tuple(calls)))
            parts.clear()
            calls.clear()

    for number, item in enumerate(items):
        match item:
            case MessageItem(role="assistant"):
                if calls:  # it speaks again after its calls
                    end_turn()
                parts += _parts(item.content, f"{where}.{number}")
            case MessageItem(role="tool"):
                raise InvalidRequest("The result of a tool is a 'function_call_output'.", f"{where}.{number}.role")
            case MessageItem():
                end_turn()
                messages.append(Message(item.role, tuple(_parts(item.content, f"{where}.{number}"))))
            case FunctionCallItem():
                calls.append(ToolCall(item.call_id, item.name, item.arguments))
            case FunctionOutputItem():
                end_turn()
                messages.append(
                    Message("tool", tuple(_parts(item.output, f"{where}.{number}")), tool_call_id=item.call_id)
                )
            case ReasoningItem():
                parts += _thoughts(item)
    end_turn()
    return messages


def _parts(content: str | list[ContentPart], where: str) -> list[Part]:
    if isinstance(content, str):
        return [TextPart(content)]
    parts: list[Part] = []
    for number, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type == "input_image" and part.image_url:
            parts.append(ImagePart(part.image_url, part.detail or "auto"))
        elif part.type != "input_image" and text is not None:
            parts.append(TextPart(text))
        else:
            place = f"{where}.content.{number}"
            raise InvalidRequest(f"'{place}' lacks the field that its type names.", place)
    return parts


def _thoughts(item: ReasoningItem) -> list[Part]:
    text = "".join(piece.text for piece in item.content or item.summary)
    proof = item.encrypted_content or ""
    if proof.startswith(REDACTED):
        return [ReasoningPart(text, None, proof.removeprefix(REDACTED))]
    signature = proof.removeprefix(SIGNATURE) if proof.startswith(SIGNATURE) else None
    return [ReasoningPart(text, signature)] if text or signature else []
