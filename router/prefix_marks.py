"""Marks for Anthropic's prompt cache, at the ends of what stays the same from one request to the next: tools and
instructions. What is read from that cache costs a tenth, what is written to it a quarter more than without, so nothing
is marked unless somebody asks for it (https://platform.claude.com/docs/en/build-with-claude/prompt-caching).

A request has up to four marks. Two are set here, the tools' and the instructions' (which come after the tools, so that
their prefix has both), and none where the caller has set one: who does knows better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from models.catalog import ModelEntry
from models.messages import CacheTtl, ChatRequest, ImagePart, Message, TextPart, Tool
from router.tokens import prompt_tokens

TTL: CacheTtl = "5m"
_INSTRUCTIONS = ("system", "developer")


def with_marks(request: ChatRequest, entry: ModelEntry) -> tuple[ChatRequest, tuple[dict[str, Any], ...]]:
    """`request` as it is sent to this model, and what was marked, for the receipt. A prefix counts as long as it is
    at four characters a token: the provider does not take one that is too short, and says nothing."""
    if entry.engine != "anthropic" or request.raw_prompt or _has_marks(request):
        return request, ()
    instructions = list(takewhile(lambda message: message.role in _INSTRUCTIONS, request.messages))
    tools, tokens = request.tools, 0
    marks: list[str] = []
    if tools and (length := _tokens(tools)) >= entry.cached_from_tokens:
        tools = (*tools[:-1], replace(tools[-1], cache=TTL))
        marks, tokens = ["tools"], length
    place = _last_text(instructions)
    if place and (length := _tokens(tools, instructions[: place[0] + 1])) >= entry.cached_from_tokens:
        message, part, text = place
        parts = [*instructions[message].parts]
        parts[part] = replace(text, cache=TTL)
        instructions[message] = replace(instructions[message], parts=tuple(parts))
        marks, tokens = [*marks, "instructions"], length
    if not marks:
        return request, ()
    made = replace(request, tools=tools, messages=(*instructions, *request.messages[len(instructions) :]))
    return made, ({"change": "prompt_cache", "model": entry.name, "marks": marks, "prefix_tokens": tokens},)


def _has_marks(request: ChatRequest) -> bool:
    if request.cache is not None or any(tool.cache for tool in request.tools):
        return True
    return any(
        message.cache is not None
        or any(isinstance(part, TextPart | ImagePart) and part.cache for part in message.parts)
        or any(call.cache for call in message.tool_calls)
        for message in request.messages
    )


def _tokens(tools: tuple[Tool, ...], messages: Sequence[Message] = ()) -> int:
    return prompt_tokens(ChatRequest("", tuple(messages), tools=tools)).expected


def _last_text(messages: Sequence[Message]) -> tuple[int, int, TextPart] | None:
    """The last one, with the places of its message and of itself; an empty one is not sent, and cannot be marked."""
    for message in reversed(range(len(messages))):
        for at in reversed(range(len(messages[message].parts))):
            part = messages[message].parts[at]
            if isinstance(part, TextPart) and part.text:
                return message, at, part
    return None
