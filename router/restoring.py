"""A shard's answers after a restart: from its log, with the saved indexes of its large scopes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from router.cache_lines import Gone
from router.cache_log import CacheLog
from router.cache_records import Stored
from router.invalidation import Bar, Bars
from router.vector_index import SavedIndex, VectorIndex

LATE_S = 60.0
"""An answer may be stored so long after it was made."""

AT_ONCE = 16
"""Records between which requests get their turn: a millisecond, or five where no saved index has their vectors."""

logger = logging.getLogger(__name__)


class Restorable(Protocol):
    vectors: VectorIndex
    bars: Bars

    def replay(self, records: Sequence[Stored | Gone], began_unix_s: float) -> None: ...

    def recheck(self, since_unix_s: float) -> None: ...


def restored(store: Restorable, log: CacheLog, saved: list[SavedIndex], began_unix_s: float) -> Iterator[None]:
    """A little with each step; the list of indexes is empty afterwards, so that their bytes do not stay. What cannot be
    taken over goes from the log too: it could not be forgotten. What was on its way when it was forgotten, and came
    before that was read, goes again."""
    try:
        while saved:
            store.vectors.adopt(saved.pop())
            yield
        records = log.read()
        while some := list(islice(records, AT_ONCE)):
            try:
                for bar in some:
                    if isinstance(bar, Bar):
                        store.bars.put(bar)
                store.replay([record for record in some if not isinstance(record, Bar)], began_unix_s)
            except Exception as error:
                logger.error("%d records of a log are passed over (%s)", len(some), type(error).__name__)
                log.fall_behind()
            yield
        store.recheck(began_unix_s - LATE_S)
    finally:
        store.vectors.settle()
