"""A shard's answers after a restart: from its log, with the saved indexes of its large scopes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from router.cache_log import CacheLog, Record
from router.vector_index import SavedIndex, VectorIndex

AT_ONCE = 16
"""Records between which requests get their turn: a millisecond, or five where no saved index has their vectors."""


class Restorable(Protocol):
    vectors: VectorIndex

    def replay(self, records: Sequence[Record], began_unix_s: float) -> None: ...


def restored(store: Restorable, log: CacheLog, saved: list[SavedIndex], began_unix_s: float) -> Iterator[None]:
    """A little with each step; the list of indexes is empty afterwards, so that their bytes do not stay."""
    while saved:
        store.vectors.adopt(saved.pop())
        yield
    records = log.read()
    while some := list(islice(records, AT_ONCE)):
        store.replay(some, began_unix_s)
        yield
    store.vectors.settle()
