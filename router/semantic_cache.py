"""The shared cache of one shard: exact answers and, per tenant, a search by meaning.

It lives in memory and starts empty after a restart: a lost shard is a miss, not an error.

Nothing is ever compared across tenants, nor across scopes (`router.fingerprint`), so there is one index per tenant and
scope, and most are tiny: every conversation has a scope of its own. An HNSW index takes 50 KB before its first vector,
hence a scope starts as a plain matrix, which is searched exactly in microseconds, and becomes a usearch index when it
has `PROMOTE_AT` vectors. usearch because it removes single vectors and uses their room again (of 5,000 vectors, after
15,000 replacements, recall@1 was still .999), keeps vectors as 16-bit floats, and is one small native module.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.config import CacheSettings
from router.exact_cache import answer_bytes, is_complete
from router.ports import CachedAnswer, CacheKey, Lookup
from router.vetoes import facts, veto

PROMOTE_AT = 256
CANDIDATES = 8
"""How many near questions are looked at; the vetoes may rule out the first ones."""

_ENTRY_BYTES = 192
"""What an entry takes besides its answer and the texts of its key: the objects themselves, slots of three tables."""

_PARTITION_BYTES = 384
_INDEX_BYTES = 384
_GRAPH_BYTES, _GRAPH_NODE_BYTES = 50_000, 256
"""A usearch index, and each of its vectors besides its numbers. Measured: `memory_usage` says 16 MB from the first."""

Vector = NDArray[np.float32]


class ScopeIndex:
    """Vectors of unit length by entry number, of one tenant and one scope."""

    __slots__ = ("_graph", "_ids", "_nodes", "_rows")

    def __init__(self, dimensions: int) -> None:
        self._ids: list[int] = []
        self._rows: Vector = np.empty((1, dimensions), dtype=np.float32)
        self._graph: Any = None  # a usearch Index, once there are many
        self._nodes = 0  # of the graph at its largest: it uses room again, but gives none back

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        if self._graph is None:
            return _INDEX_BYTES + self._rows.nbytes
        dimensions: int = self._rows.shape[1]
        return _INDEX_BYTES + _GRAPH_BYTES + self._nodes * (2 * dimensions + _GRAPH_NODE_BYTES)

    def __len__(self) -> int:
        return len(self._ids) if self._graph is None else len(self._graph)

    def add(self, entry_id: int, vector: Vector) -> None:
        if self._graph is not None:
            self._graph.add(entry_id, vector, threads=1)
            self._nodes = max(self._nodes, len(self._graph))
            return
        count = len(self._ids)
        if count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[count] = vector
        self._ids.append(entry_id)
        if len(self._ids) == PROMOTE_AT:
            self._promote()

    def remove(self, entry_id: int) -> None:
        if self._graph is not None:
            self._graph.remove(entry_id)
            return
        row, last = self._ids.index(entry_id), len(self._ids) - 1
        self._ids[row] = self._ids[last]
        self._rows[row] = self._rows[last]
        self._ids.pop()

    def nearest(self, vector: Vector, threshold: float) -> list[tuple[float, int]]:
        """Cosine similarity and entry number of up to `CANDIDATES` vectors from `threshold` up, nearest first."""
        if self._graph is None:
            similarities = self._rows[: len(self._ids)] @ vector
            pairs = [(float(similarities[row]), self._ids[row]) for row in np.flatnonzero(similarities >= threshold)]
        else:
            found = self._graph.search(vector, CANDIDATES, threads=1)
            pairs = [(1.0 - float(d), int(key)) for d, key in zip(found.distances, found.keys, strict=True)]
            pairs = [pair for pair in pairs if pair[0] >= threshold]
        return sorted(pairs, reverse=True)[:CANDIDATES]

    def _promote(self) -> None:
        from usearch.index import Index

        self._graph = Index(ndim=self._rows.shape[1], metric="cos", dtype="f16")
        self._graph.add(np.array(self._ids, dtype=np.uint64), self._rows[: len(self._ids)], threads=1)
        self._nodes = len(self._ids)
        self._ids, self._rows = [], np.empty((0, self._rows.shape[1]), dtype=np.float32)  # a slice would hold it all


@dataclass(slots=True)
class _Entry:
    key: CacheKey
    answer: CachedAnswer
    size_bytes: int
    indexed: bool


@dataclass(slots=True)
class _Partition:
    """All that one tenant has here."""

    by_exact: dict[str, int] = field(default_factory=dict)
    by_scope: dict[str, ScopeIndex] = field(default_factory=dict)


class SemanticStore:
    """Least recently used answers leave first, over all tenants, when `max_bytes` are full. Not for several threads.

    An embedding is float32, little-endian, of unit length. `clock` gives Unix seconds.
    """

    def __init__(self, settings: CacheSettings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._partitions: dict[str, _Partition] = {}
        self._used_bytes = 0
        self._next_id = 0
        self._counts: Counter[str] = Counter()
        self._vetoes: Counter[str] = Counter()

    def lookup(self, key: CacheKey, embedding: bytes | None = None) -> Lookup:
        """The very question, or else one near `embedding` that nothing speaks against."""
        found = self.exact(key)
        if found is None and embedding is not None:
            found = self.similar(key, embedding)
        if found is None:
            self._counts["misses"] += 1
            return Lookup("miss", embedding=embedding)
        return found

    def exact(self, key: CacheKey) -> Lookup | None:
        """The answer to the very question; it needs no embedding."""
        partition = self._partitions.get(key.tenant)
        entry_id = partition.by_exact.get(key.exact) if partition else None
        entry = self._fresh(entry_id) if entry_id is not None else None
        if entry is None:
            return None
        self._counts["hits_exact"] += 1
        return Lookup("hit-exact", entry.answer)

    def similar(self, key: CacheKey, embedding: bytes) -> Lookup | None:
        """The answer to the nearest question of the same tenant and scope that no veto keeps apart."""
        partition = self._partitions.get(key.tenant)
        index = partition.by_scope.get(key.scope) if partition and key.scope else None
        if index is None:
            return None
        vector = np.frombuffer(embedding, dtype="<f4")
        for similarity, entry_id in index.nearest(vector, self._settings.threshold):
            entry = self._fresh(entry_id)
            if entry is None:
                continue
            objection = veto(facts(entry.key.text), facts(key.text))
            if objection is None:
                self._counts["hits_semantic"] += 1
                return Lookup("hit-semantic", entry.answer, min(similarity, 1.0), embedding)
            self._vetoes[objection] += 1
        return None

    def store(self, key: CacheKey, answer: CachedAnswer, embedding: bytes | None = None) -> None:
        """Keep a complete `answer`; without scope or embedding only for the very question."""
        vector = np.frombuffer(embedding, dtype="<f4") if embedding and key.scope else None
        size = _entry_bytes(key, answer)
        if not is_complete(answer) or size + len(embedding or b"") > self._settings.max_bytes:
            self._counts["refused"] += 1
            return
        partition = self._partitions.get(key.tenant)
        if partition and key.exact in partition.by_exact:
            self._remove(partition.by_exact[key.exact])
        partition = self._partition(key.tenant)
        entry_id, self._next_id = self._next_id, self._next_id + 1
        self._entries[entry_id] = _Entry(key, answer, size, vector is not None)
        partition.by_exact[key.exact] = entry_id
        if vector is not None and key.scope:
            self._index(partition, key.scope, entry_id, vector)
        self._used_bytes += size
        self._counts["stores"] += 1
        self._shrink()

    def reconfigure(self, settings: CacheSettings) -> None:
        self._settings = settings
        self._shrink()

    def stats(self) -> dict[str, int]:
        """Counts since the start (`veto_<name>`: candidates that a veto ruled out); what is held now."""
        names = ("hits_exact", "hits_semantic", "misses", "stores", "refused", "evicted", "expired")
        return {
            **{name: self._counts[name] for name in names},
            **{f"veto_{name}": count for name, count in self._vetoes.items()},
            "entries": len(self._entries),
            "tenants": len(self._partitions),
            "used_bytes": self._used_bytes,
        }

    def _fresh(self, entry_id: int) -> _Entry | None:
        """The entry, now the most recently used one; an outlived one is removed."""
        entry = self._entries[entry_id]
        if self._clock() >= entry.answer.created_at_unix_s + min(entry.answer.ttl_s, self._settings.ttl_s):
            self._remove(entry_id)
            self._counts["expired"] += 1
            return None
        self._entries.move_to_end(entry_id)
        return entry

    def _partition(self, tenant: str) -> _Partition:
        if tenant not in self._partitions:
            self._partitions[tenant] = _Partition()
            self._used_bytes += _PARTITION_BYTES
        return self._partitions[tenant]

    def _index(self, partition: _Partition, scope: str, entry_id: int, vector: Vector) -> None:
        index = partition.by_scope.get(scope)
        if index is None:
            index = partition.by_scope[scope] = ScopeIndex(len(vector))
        else:
            self._used_bytes -= index.size_bytes
        index.add(entry_id, vector)
        self._used_bytes += index.size_bytes

    def _shrink(self) -> None:
        while self._used_bytes > self._settings.max_bytes:
            self._remove(next(iter(self._entries)))
            self._counts["evicted"] += 1

    def _remove(self, entry_id: int) -> None:
        entry = self._entries.pop(entry_id)
        self._used_bytes -= entry.size_bytes
        partition = self._partitions[entry.key.tenant]
        del partition.by_exact[entry.key.exact]
        if entry.indexed and entry.key.scope:
            index = partition.by_scope[entry.key.scope]
            self._used_bytes -= index.size_bytes
            index.remove(entry_id)
            if len(index):
                self._used_bytes += index.size_bytes
            else:
                del partition.by_scope[entry.key.scope]
        if not partition.by_exact:
            del self._partitions[entry.key.tenant]
            self._used_bytes -= _PARTITION_BYTES


def _entry_bytes(key: CacheKey, answer: CachedAnswer) -> int:
    texts = (key.tenant, key.exact, key.scope, key.text)
    return answer_bytes(answer) + sum(map(sys.getsizeof, texts)) + _ENTRY_BYTES
