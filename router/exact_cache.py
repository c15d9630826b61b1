"""Answers by the fingerprint of the whole question, kept in this process: a hit costs no hop."""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace

from models.messages import Finish, TextDelta, ToolCallDelta
from router.invalidation import Bars, Selection
from router.ports import CachedAnswer, CacheKey
from router.settings import ExactCacheSettings

ENTRY_BYTES = 512
"""What an entry takes besides its answer: digests, table slots, bookkeeping."""

_TEXT_DELTA_BYTES = 96


def is_complete(answer: CachedAnswer) -> bool:
    """Whether `answer` ended, and with something in it. A stream that was cut short has no `Finish`."""
    ended = {event.choice for event in answer.events if isinstance(event, Finish)}
    filtered = any(isinstance(event, Finish) and event.reason == "content_filter" for event in answer.events)
    spoke = {
        event.choice
        for event in answer.events
        if isinstance(event, ToolCallDelta) or (isinstance(event, TextDelta) and event.text)
    }
    return bool(ended) and ended == spoke and not filtered


def answer_bytes(answer: CachedAnswer) -> int:
    """About what `answer` takes in memory."""
    total = ENTRY_BYTES
    for event in answer.events:
        if type(event) is TextDelta and not event.logprobs:  # nearly all events, so worth a short way
            total += _TEXT_DELTA_BYTES + sys.getsizeof(event.text)
        else:
            total += _deep_bytes(event)
    return total


def _deep_bytes(value: object) -> int:
    size = sys.getsizeof(value)
    if isinstance(value, tuple):
        size += sum(_deep_bytes(item) for item in value)
    elif is_dataclass(value):
        size += sum(_deep_bytes(getattr(value, field.name)) for field in fields(value))
    return size


@dataclass(slots=True)
class ExactCacheStats:
    """Counts since the process began; `entries` and `used_bytes` are of now."""

    evicted: int = 0
    expired: int = 0
    refused: int = 0
    entries: int = 0
    used_bytes: int = 0


class ExactCache:
    """Least recently used answers leave first when `max_bytes` are full. Not for several threads.

    `clock` gives Unix seconds: answers carry the time they were made, maybe on another machine.
    """

    def __init__(self, settings: ExactCacheSettings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._entries: OrderedDict[str, tuple[CachedAnswer, int, str]] = OrderedDict()
        self._stats = ExactCacheStats()
        self._bars = Bars()

    def get(self, exact: str) -> CachedAnswer | None:
        answer = self._fresh(exact)
        if answer is not None:
            self._entries.move_to_end(exact)
        return answer

    def peek(self, exact: str) -> bool:
        """Whether `get` would find an answer; keeps the order."""
        return self._fresh(exact) is not None

    def put(self, key: CacheKey, answer: CachedAnswer) -> None:
        """Keep `answer`, unless it is incomplete, larger than the whole cache, or was forgotten while it was made."""
        size, barred = answer_bytes(answer), self._bars.against(key.tenant, answer)
        if not self._settings.enabled or size > self._settings.max_bytes or not is_complete(answer) or barred:
            self._stats.refused += 1
            return
        self._drop(key.exact)
        self._entries[key.exact] = (answer, size, key.tenant)
        self._stats.used_bytes += size
        self._shrink()

    def forget(self, exact: str, newest_id: str) -> None:
        """Drop the answer to a question, unless it is the one with this id."""
        found = self._entries.get(exact)
        if found is not None and found[0].answer_id != newest_id:
            self._drop(exact)

    def invalidate(self, selection: Selection, exacts: Sequence[str]) -> None:
        """Drop the answers that are meant: those under `exacts`, which the shared cache found, and those that it may
        have had once. Which question was near another one is not known here: all that are meant but for that go, since
        the shared cache still has the others. What is on its way is not kept."""
        self._bars.add(selection, self._clock())
        for exact in exacts:
            if exact in self._entries and selection.covers(self._entries[exact][2]):
                self._drop(exact)
        wider = replace(selection, question=None)
        for exact in [e for e, (answer, _, tenant) in self._entries.items() if wider.means(tenant, answer)]:
            self._drop(exact)

    def reconfigure(self, settings: ExactCacheSettings) -> None:
        self._settings = settings
        if not settings.enabled:
            self._entries.clear()
            self._stats.used_bytes = 0
        self._shrink()

    def stats(self) -> ExactCacheStats:
        self._stats.entries = len(self._entries)
        return self._stats

    def _fresh(self, exact: str) -> CachedAnswer | None:
        found = self._entries.get(exact)
        if found is None:
            return None
        answer = found[0]
        if self._clock() < answer.created_at_unix_s + min(answer.ttl_s, self._settings.ttl_s):
            return answer
        self._drop(exact)
        self._stats.expired += 1
        return None

    def _drop(self, exact: str) -> None:
        found = self._entries.pop(exact, None)
        if found is not None:
            self._stats.used_bytes -= found[1]

    def _shrink(self) -> None:
        while self._stats.used_bytes > self._settings.max_bytes:
            _, (_, size, _) = self._entries.popitem(last=False)
            self._stats.used_bytes -= size
            self._stats.evicted += 1
