"""Ids of tool calls as a provider takes them.

An id only pairs a call with its result. Each provider makes its own kind, and some refuse those of others, so a
conversation that goes on with another model would break at its first tool call.
"""

from __future__ import annotations

import re
import string
from dataclasses import replace
from hashlib import blake2b

from models.messages import Message

MISTRALS = re.compile(r"[a-zA-Z0-9]{9}")
"""Of its API ("must be a-z, A-Z, 0-9, with a length of 9", https://github.com/langchain-ai/langchain/pull/24668) and of
its models' chat templates."""
OPENAIS = re.compile(r"(?s).{1,40}")
""""Expected a string with maximum length 40", https://github.com/vercel/ai/issues/5171"""
ANTHROPICS = re.compile(r"[a-zA-Z0-9_-]{1,64}")
""""String should match pattern '^[a-zA-Z0-9_-]+$'", and 64 characters on Bedrock,
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ToolUseBlock.html"""

_ALPHABET = string.digits + string.ascii_letters
_LENGTH = 9


def with_fitting_ids(messages: tuple[Message, ...], taken: re.Pattern[str] | None) -> tuple[Message, ...]:
    """`messages` with ids that all match what is `taken` (None: anything is), in calls and in their results."""
    if taken is None:
        return messages
    return tuple(_with_fitting(m, taken) if m.tool_calls or m.tool_call_id is not None else m for m in messages)


def _with_fitting(message: Message, taken: re.Pattern[str]) -> Message:
    result = None if message.tool_call_id is None else fitting(message.tool_call_id, taken)
    calls = tuple(replace(call, id=fitting(call.id, taken)) for call in message.tool_calls)
    return replace(message, tool_call_id=result, tool_calls=calls)


def fitting(identifier: str, taken: re.Pattern[str]) -> str:
    """`identifier`, where all of it matches what is `taken`, else nine letters and digits made of its digest, which
    every known provider takes.

    The same id always becomes the same one, so call and result stay a pair and a provider's cache of the prompt holds.
    Two ids become the same one with a chance of 1 in 10^16 (62^9).
    """
    if taken.fullmatch(identifier):
        return identifier
    left = int.from_bytes(blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=16).digest(), "big")
    letters = []
    for _ in range(_LENGTH):
        left, place = divmod(left, len(_ALPHABET))
        letters.append(_ALPHABET[place])
    return "".join(letters)
