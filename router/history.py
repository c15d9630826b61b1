"""Which turns of a long conversation are still sent: the newest, within a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from models.messages import Message
from router.tokens import CHARS_PER_TOKEN

KEPT_AT_A_CUT = 0.7
"""Of the budget, so that the beginning stays the same for some turns: providers cache a prompt by its beginning."""


def trimmed(messages: Sequence[Message], budget_tokens: int) -> tuple[tuple[Message, ...], tuple[int, ...]]:
    """What is sent, and the positions of what is not.

    Instructions (system, developer) always stay, and so does the last turn, however long it is. A turn is what a user
    says with all that follows, so calls of tools stay with their results. The cut follows from the conversation alone:
    turn by turn, whenever there are more tokens than the budget, the oldest turns go until a good part is free.
    """
    turns: list[list[int]] = []
    for position, message in enumerate(messages):
        if message.role in ("system", "developer"):
            continue
        if message.role == "user" and not (turns and messages[turns[-1][-1]].role == "user"):
            turns.append([])
        if not turns:
            turns.append([])
        turns[-1].append(position)
    sizes = [sum(_tokens(messages[position]) for position in turn) for turn in turns]
    first = held = 0
    for last, size in enumerate(sizes):
        held += size
        if held > budget_tokens:
            while first < last and held > KEPT_AT_A_CUT * budget_tokens:
                held -= sizes[first]
                first += 1
    gone = {position for turn in turns[:first] for position in turn}
    return tuple(m for position, m in enumerate(messages) if position not in gone), tuple(sorted(gone))


def _tokens(message: Message) -> int:
    """About, and of text only."""
    return (len(message.text) + sum(len(call.arguments) for call in message.tool_calls)) // CHARS_PER_TOKEN + 1
