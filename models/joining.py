"""Pieces of an answer that arrived together, as one.

What a provider sent in one go need not be passed on token by token: nobody would see it earlier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from models.messages import Event, ReasoningDelta, TextDelta, ToolCallDelta

_Thread = tuple[type[Event], int, int]


def joined(events: Iterable[Event]) -> Iterator[Event]:
    """`events` with neighbours that continue each other as one event. Folded they are the same, byte for byte.

    What `events` raises is raised after all that came before it.
    """
    waiting: list[Event] = []
    thread: _Thread | None = None
    try:
        for event in events:
            found = _thread(event)
            if waiting and (found is None or found != thread):
                yield _one(waiting)
                waiting = []
            waiting.append(event)
            thread = found
    except Exception:
        if waiting:
            yield _one(waiting)
        raise
    if waiting:
        yield _one(waiting)


def _thread(event: Event) -> _Thread | None:
    """What the event goes on with, and may be gone on with; None for one that stands alone: the first piece of a tool
    call, the last of a thought, ends and counts."""
    match event:
        case TextDelta():
            return TextDelta, event.choice, 0
        case ReasoningDelta(signature=None, redacted=None):
            return ReasoningDelta, event.choice, 0
        case ToolCallDelta(id=None, name=None):
            return ToolCallDelta, event.choice, event.index
    return None


def _one(events: Sequence[Event]) -> Event:
    first = events[0]
    if len(events) == 1:
        return first
    if isinstance(first, TextDelta):
        texts = [event for event in events if isinstance(event, TextDelta)]
        return TextDelta(
            "".join(event.text for event in texts),
            sum(event.tokens for event in texts),
            tuple(chain.from_iterable(event.logprobs for event in texts)),
            first.choice,
        )
    if isinstance(first, ReasoningDelta):
        return ReasoningDelta("".join(e.text for e in events if isinstance(e, ReasoningDelta)), choice=first.choice)
    assert isinstance(first, ToolCallDelta)
    arguments = "".join(event.arguments for event in events if isinstance(event, ToolCallDelta))
    return ToolCallDelta(first.index, arguments=arguments, choice=first.choice)
