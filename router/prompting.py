"""What a tenant has done to its prompts before a model is asked: nothing, unless its settings say so.

Answers are found and stored under what was asked, so a cache is the same with and without this. Every change is told,
without a word of the prompt, for the receipt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from models.errors import DeadlineExceeded
from models.messages import ChatRequest, Message, Part, TextPart
from router.compression import without_boilerplate, without_spaces
from router.few_shot import Embed, Examples
from router.history import trimmed
from router.ports import Embedded
from router.tokens import prompt_tokens
from router.trial_settings import PromptSettings

Change = dict[str, Any]
LONG_CHARS = 20_000
"""Of a conversation that another thread compresses, since it would hold up others for a millisecond or more."""


class Prompting:
    """Of one process. embed: the cluster's encoder, where there is one."""

    def __init__(self, embed: Embed | None, timeout_s: float) -> None:
        self._examples, self._embed, self._timeout_s = Examples(timeout_s), embed, timeout_s

    async def changed(self, request: ChatRequest, settings: PromptSettings) -> tuple[ChatRequest, tuple[Change, ...]]:
        """The question as it is put to models, and what was changed. A text to go on with (`raw_prompt`) stays."""
        if request.raw_prompt or not settings.changes:
            return request, ()
        changes: list[Change] = []
        messages: Sequence[Message] = request.messages
        if settings.compress != "off":
            long = sum(len(message.text) for message in messages) > LONG_CHARS
            compressed = asyncio.to_thread(_compressed, messages, settings) if long else None
            messages, told = await compressed if compressed else _compressed(messages, settings)
            changes += told
        if settings.history_tokens is not None:
            messages, gone = trimmed(messages, settings.history_tokens)
            if gone:
                changes.append({"change": "history", "messages": list(gone)})
        if settings.examples and settings.shots:
            messages, told = await self._with_examples(messages, settings)
            changes += told
        if not changes:
            return request, ()
        made = replace(request, messages=tuple(messages))
        before, after = (prompt_tokens(each).expected for each in (request, made))
        return made, (*changes, {"change": "tokens", "before": before, "after": after})

    async def _with_examples(
        self, messages: Sequence[Message], settings: PromptSettings
    ) -> tuple[list[Message], list[Change]]:
        """Before the first word of the user, by which they are chosen: so they stay the same for a conversation."""
        first = next((at for at, message in enumerate(messages) if message.role == "user"), None)
        if first is None:
            return list(messages), []
        known = [example.question for example in settings.examples]
        chosen, by = await self._examples.nearest(messages[first].text, known, settings.shots, self._within())
        shown: list[Message] = []
        for at in chosen:
            example = settings.examples[at]
            shown.append(Message("user", (TextPart(example.question),)))
            shown.append(Message("assistant", (TextPart(example.answer),)))
        told: Change = {"change": "examples", "examples": chosen, "by": by}
        return [*messages[:first], *shown, *messages[first:]], [told]

    def _within(self) -> Embed | None:
        embed = self._embed
        if embed is None:
            return None

        async def soon(texts: Sequence[str], dimensions: int | None) -> Embedded:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await embed(texts, dimensions)
            except TimeoutError:
                raise DeadlineExceeded("The encoder did not answer in time; try again.") from None

        return soon


def _compressed(messages: Sequence[Message], settings: PromptSettings) -> tuple[list[Message], list[Change]]:
    made: list[Message] = []
    told: list[Change] = []
    for at, message in enumerate(messages):
        if message.role != "user":
            made.append(message)
            continue
        parts, removed = _shorter(message.parts, settings.compress == "boilerplate")
        saved = len(message.text) - sum(len(part.text) for part in parts if isinstance(part, TextPart))
        made.append(replace(message, parts=parts) if saved else message)
        if saved:
            told.append({"change": "compression", "message": at, "characters": saved, "boilerplate": removed})
    return made, told


def _shorter(parts: Sequence[Part], boilerplate: bool) -> tuple[tuple[Part, ...], int]:
    made: list[Part] = []
    removed = 0
    for part in parts:
        if isinstance(part, TextPart):
            text, count = without_boilerplate(part.text) if boilerplate else (part.text, 0)
            removed += count
            shorter = without_spaces(text)
            part = replace(part, text=shorter) if shorter != part.text else part
        made.append(part)
    return tuple(made), removed
