"""Vectors of one tenant and one scope, searched for the nearest.

Nothing is ever compared across tenants, nor across scopes (`router.fingerprint`), so there is one index per tenant and
scope, and most are tiny: every conversation has a scope of its own. An HNSW index takes 50 KB before its first vector,
hence a scope starts as a plain matrix, which is searched exactly in microseconds, and becomes a usearch index when it
has `PROMOTE_AT` vectors. usearch because it removes single vectors and uses their room again (of 5,000 vectors, after
15,000 replacements, recall@1 was still .999), keeps vectors as 16-bit floats, and is one small native module.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PROMOTE_AT = 256

CANDIDATES = 8
"""How many near questions are looked at; the verifier may rule out the first ones."""

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

    def vector(self, entry_id: int) -> Vector:
        if self._graph is not None:
            return np.asarray(self._graph.get(entry_id), dtype=np.float32)
        return np.array(self._rows[self._ids.index(entry_id)], dtype=np.float32)

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

    def within(self, vector: Vector, similarity: float) -> list[tuple[float, int]]:
        """All vectors from a cosine similarity of `similarity` up, nearest first; compared with each of them."""
        if self._graph is None:
            similarities = self._rows[: len(self._ids)] @ vector
            pairs = [(float(similarities[row]), self._ids[row]) for row in np.flatnonzero(similarities >= similarity)]
        else:
            found = self._graph.search(vector, len(self._graph), exact=True, threads=1)
            pairs = [(1.0 - float(d), int(key)) for d, key in zip(found.distances, found.keys, strict=True)]
        return sorted((pair for pair in pairs if pair[0] >= similarity), reverse=True)

    def _promote(self) -> None:
        from usearch.index import Index

        self._graph = Index(ndim=self._rows.shape[1], metric="cos", dtype="f16")
        self._graph.add(np.array(self._ids, dtype=np.uint64), self._rows[: len(self._ids)], threads=1)
        self._nodes = len(self._ids)
        self._ids, self._rows = [], np.empty((0, self._rows.shape[1]), dtype=np.float32)  # a slice would hold it all
