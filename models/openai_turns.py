"""A conversation in the words of OpenAI's dialect, which every model with its API or its chat template understands."""

from __future__ import annotations

from dataclasses import replace

from models.messages import Message, TextPart

_FAILED = "Error: "


def openai_turns(messages: tuple[Message, ...]) -> list[Message]:
    """What an assistant said after a tool call goes into the same message, since the call's result must follow it. A
    tool that failed says so in its text: there is no other word for it."""
    turns: list[Message] = []
    for message in messages:
        last = turns[-1] if turns else None
        if last and last.role == message.role == "assistant" and last.tool_calls:
            parts, calls = last.parts + message.parts, last.tool_calls + message.tool_calls
            turns[-1] = replace(last, parts=parts, tool_calls=calls)
        else:
            turns.append(_with_failure(message) if message.is_error else message)
    return turns


def _with_failure(message: Message) -> Message:
    first = message.parts[0] if message.parts else TextPart("")
    if isinstance(first, TextPart):
        return replace(message, parts=(replace(first, text=_FAILED + first.text), *message.parts[1:]))
    return replace(message, parts=(TextPart(_FAILED), *message.parts))
