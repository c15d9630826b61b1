"""What a shard of the shared cache holds of each answer, and of each tenant, and how large that is."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from hashlib import blake2b

from router.packed_answer import PackedAnswer
from router.ports import CacheKey
from router.wariness import Voices

_ENTRY_BYTES = 600
"""What an entry takes besides its texts: the objects themselves, slots of five tables."""

PARTITION_BYTES = 448

COUNTED = (
    *("hits_exact", "hits_surface", "hits_semantic", "misses", "claimed", "stores", "refused"),
    *("evicted", "expired", "invalidated", "disliked", "restored"),
)
"""What came of requests and of answers since a shard's start."""


@dataclass(slots=True)
class Entry:
    key: CacheKey
    answer: PackedAnswer
    size_bytes: int
    indexed: bool
    least_score: float = 0.0  # of a question that it may answer: raised above each that turned out another one
    voices: Voices | None = None


@dataclass(slots=True)
class Partition:
    """All that one tenant has here, but for the vectors."""

    by_exact: dict[str, int] = field(default_factory=dict)
    by_surface: dict[str, int] = field(default_factory=dict)

    def keep(self, key: CacheKey, number: int) -> None:
        self.by_exact[key.exact] = number
        if key.surface:
            self.by_surface[key.surface] = number

    def drop(self, key: CacheKey, number: int) -> None:
        """Another one may have the same spelling by now."""
        del self.by_exact[key.exact]
        if key.surface and self.by_surface.get(key.surface) == number:
            del self.by_surface[key.surface]


def number_of(key: CacheKey) -> int:
    """63 bits, the same after a restart, so that a saved index has its entries again. Of a million questions two have
    the same with a probability of 1 in 20 million; then the newer one is kept."""
    name = f"{key.tenant}\0{key.exact}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big") >> 1


def held_key(key: CacheKey) -> CacheKey:
    """As it is held: the texts that many have in common once."""
    scope = sys.intern(key.scope) if key.scope else key.scope
    return CacheKey(sys.intern(key.tenant), key.exact, scope, key.text, key.surface)


def entry_bytes(key: CacheKey, answer: PackedAnswer) -> int:
    texts = (key.exact, key.text, key.surface, answer.answer_id, answer.body)
    return sum(map(sys.getsizeof, texts)) + sum(map(sys.getsizeof, answer.tags)) + _ENTRY_BYTES
