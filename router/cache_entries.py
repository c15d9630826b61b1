"""What a shard of the shared cache holds of each answer, and of each tenant, and how large that is."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from router.exact_cache import answer_bytes
from router.ports import CachedAnswer, CacheKey
from router.scope_index import ScopeIndex
from router.wariness import Voices

_ENTRY_BYTES = 256
"""What an entry takes besides its answer and the texts of its key: the objects themselves, slots of four tables."""

PARTITION_BYTES = 448


@dataclass(slots=True)
class Entry:
    key: CacheKey
    answer: CachedAnswer
    size_bytes: int
    indexed: bool
    least_score: float = 0.0  # of a question that it may answer: raised above each that turned out another one
    voices: Voices | None = None


@dataclass(slots=True)
class Partition:
    """All that one tenant has here."""

    by_exact: dict[str, int] = field(default_factory=dict)
    by_surface: dict[str, int] = field(default_factory=dict)
    by_scope: dict[str, ScopeIndex] = field(default_factory=dict)


def entry_bytes(key: CacheKey, answer: CachedAnswer) -> int:
    texts = (key.tenant, key.exact, key.scope, key.text, key.surface)
    return answer_bytes(answer) + sum(map(sys.getsizeof, texts)) + _ENTRY_BYTES
