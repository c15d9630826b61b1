"""Vectors of one tenant and one scope, searched for the nearest.

Nothing is ever compared across tenants, nor across scopes (`router.fingerprint`), so there is one index per tenant and
scope, and most are tiny: every conversation has a scope of its own. An HNSW index takes 50 KB before its first vector,
hence a scope starts as a plain matrix, which is searched exactly in microseconds, and becomes a usearch index when it
has `PROMOTE_AT` vectors. usearch because it removes single vectors and uses their room again (of 5,000 vectors, after
15,000 replacements, recall@1 was still .999), and is one small native module.

Vectors are kept as signed bytes: a quarter of the room, and two to three times as fast as 16-bit floats where the
processor has no instructions for those (docs/cache.md has the recall). What a search says of the vectors that it found
is the cosine of the question's own numbers to their bytes, whichever way they are held.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROMOTE_AT = 256

CANDIDATES = 8
"""How many near questions are looked at; the verifier may rule out the first ones."""

CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 64, 64
"""Of the graph: links of a node, and how many nodes a search for them, or for the nearest, keeps in sight. Twice the
expansion doubles the time of an insert for half a percent of recall."""

LOST = 0.001
"""Of a cosine, at most, as the vectors are kept in signed bytes."""

_EXACT_FROM = 512
_BULK, _BULK_THREADS = 16, min(4, os.cpu_count() or 1)
_INDEX_BYTES = 620
_GRAPH_BYTES, _GRAPH_NODE_BYTES = 50_000, 208
"""A usearch index, and each of its vectors besides its numbers. Measured: `memory_usage` says 16 MB from the first."""

Vector = NDArray[np.float32]
Codes = NDArray[np.int8]


def quantised(vectors: Vector) -> Codes:
    """Each vector in signed bytes, its largest number as 127: a cosine is off by 0.0003 then. Doing it again to what
    `unit` gives back changes nothing."""
    most = np.maximum(np.abs(vectors).max(axis=-1, keepdims=True), 1e-9)
    codes: Codes = np.rint(vectors * (127 / most)).astype(np.int8)
    return codes


def codes_of(embedding: bytes) -> bytes:
    """Of float32 numbers, little-endian."""
    return quantised(np.frombuffer(embedding, dtype="<f4")).tobytes()


def unit(codes: Codes) -> Vector:
    """The vectors of unit length that these bytes stand for."""
    vectors = codes.astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
    return vectors


class ScopeIndex:
    """Quantised vectors by entry number, of one tenant and one scope."""

    __slots__ = ("_graph", "_ids", "_known", "_nodes", "_rows", "changes")

    def __init__(self, dimensions: int) -> None:
        self._ids: list[int] = []
        self._rows: Codes = np.empty((1, dimensions), dtype=np.int8)
        self._graph: Any = None  # a usearch Index, once there are many
        self._nodes = 0  # of the graph at its largest: it uses room again, but gives none back
        self._known: set[int] | None = None  # of a saved graph: vectors of entries that have not come yet
        self.changes = 0  # of the graph since it was saved

    @classmethod
    def saved(cls, data: bytes | bytearray) -> ScopeIndex:
        """What `data` has, which `save` made. Its entries are expected: `add` takes the vector of each from here, and
        `forget_unknown` drops the rest. Raises ValueError."""
        from usearch.index import Index

        try:
            graph = Index.restore(data, expansion_add=EXPANSION_ADD, expansion_search=EXPANSION_SEARCH)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        if graph is None or graph.dtype.name != "I8":
            raise ValueError("no index of signed bytes")
        index = cls(graph.ndim)
        index._graph, index._nodes = graph, len(graph)
        index._known = set(np.asarray(graph.keys).tolist())
        return index

    def save(self) -> bytearray:
        """A copy of the graph. Nothing else runs meanwhile: 0.1 s for 100,000 vectors."""
        self.changes = 0
        data: bytearray = self._graph.save(None)
        return data

    @property
    def is_graph(self) -> bool:
        return self._graph is not None

    @property
    def dimensions(self) -> int:
        return int(self._rows.shape[1])

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        if self._graph is None:
            return _INDEX_BYTES + self._rows.nbytes
        return _INDEX_BYTES + _GRAPH_BYTES + self._nodes * (self.dimensions + _GRAPH_NODE_BYTES)

    def __len__(self) -> int:
        return len(self._ids) if self._graph is None else len(self._graph)

    def __iter__(self) -> Iterator[int]:
        """The numbers of its entries."""
        return iter(self._ids if self._graph is None else np.asarray(self._graph.keys).tolist())

    def add(self, entry_ids: Sequence[int], codes: Codes) -> None:
        """Of new entries, one row of `codes` each."""
        if self._known:
            fresh = [at for at, entry_id in enumerate(entry_ids) if entry_id not in self._known]
            self._known.difference_update(entry_ids)
            entry_ids, codes = [entry_ids[at] for at in fresh], codes[fresh]
        for start in range(0, len(entry_ids), PROMOTE_AT):
            self._add(entry_ids[start : start + PROMOTE_AT], codes[start : start + PROMOTE_AT])

    def _add(self, entry_ids: Sequence[int], codes: Codes) -> None:
        if self._graph is None and len(self._ids) + len(entry_ids) >= PROMOTE_AT:
            self._promote()
        if self._graph is not None:
            threads = _BULK_THREADS if len(entry_ids) >= _BULK else 1
            self._graph.add(np.array(entry_ids, dtype=np.uint64), codes, threads=threads)
            self._nodes = max(self._nodes, len(self._graph))
            self.changes += len(entry_ids)
            return
        count = len(self._ids)
        while count + len(entry_ids) > len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[count : count + len(entry_ids)] = codes
        self._ids.extend(entry_ids)

    def remove(self, entry_id: int) -> None:
        """Raises ValueError where it is not here."""
        if self._graph is not None:
            if not self._graph.remove(entry_id):
                raise ValueError(entry_id)
            if self._known:
                self._known.discard(entry_id)
            self.changes += 1
            return
        row, last = self._ids.index(entry_id), len(self._ids) - 1
        self._ids[row] = self._ids[last]
        self._rows[row] = self._rows[last]
        self._ids.pop()

    def forget_unknown(self) -> None:
        """Drop the vectors whose entries have not come."""
        gone, self._known = self._known, None
        if gone:
            self._graph.remove(np.array([*gone], dtype=np.uint64))
            self.changes += len(gone)

    def codes(self, entry_id: int) -> Codes:
        """Raises ValueError where it is not here."""
        if self._graph is None:
            row: Codes = self._rows[self._ids.index(entry_id)].copy()
            return row
        found = self._graph.get(entry_id)
        if found is None:
            raise ValueError(entry_id)
        codes: Codes = np.asarray(found, dtype=np.int8).reshape(-1)
        return codes

    def nearest(self, vector: Vector, threshold: float) -> list[tuple[float, int]]:
        """Cosine similarity and entry number of up to `CANDIDATES` vectors from `threshold` up, nearest first."""
        if self._graph is None:
            pairs = _similar(self._ids, self._rows[: len(self._ids)], vector, threshold)
        else:
            keys = self._graph.search(quantised(vector), CANDIDATES, threads=1).keys
            pairs = _similar(keys.tolist(), np.stack(self._graph.get(keys)), vector, threshold) if len(keys) else []
        return pairs[:CANDIDATES]

    def within(self, vector: Vector, similarity: float) -> list[tuple[float, int]]:
        """All vectors from a cosine similarity of `similarity` up, nearest first; compared with each of them. A little
        less is enough, or a vector would not be within 1.0 of itself."""
        similarity -= LOST
        if self._graph is None:
            return _similar(self._ids, self._rows[: len(self._ids)], vector, similarity)
        asked, size, count = quantised(vector), len(self._graph), _EXACT_FROM
        found = self._graph.search(asked, min(count, size), exact=True, threads=1)
        while count < size and found.distances[-1] <= 1 - similarity:
            count *= 8  # not all at once: an ordered list of all takes time in its square
            found = self._graph.search(asked, min(count, size), exact=True, threads=1)
        near = found.distances <= 1 - similarity
        pairs = zip((1 - found.distances[near]).tolist(), found.keys[near].tolist(), strict=True)
        return sorted(pairs, reverse=True)

    def _promote(self) -> None:
        from usearch.index import Index

        graph: Any = Index(
            ndim=self.dimensions,
            metric="cos",
            dtype="i8",
            connectivity=CONNECTIVITY,
            expansion_add=EXPANSION_ADD,
            expansion_search=EXPANSION_SEARCH,
        )
        if self._ids:
            graph.add(np.array(self._ids, dtype=np.uint64), self._rows[: len(self._ids)], threads=1)
        self._graph = graph  # now: what fails above leaves the matrix as it was
        self._nodes = self.changes = len(self._ids)
        self._ids, self._rows = [], np.empty((0, self.dimensions), dtype=np.int8)  # a slice would hold it all


def _similar(ids: Sequence[int], codes: Codes, vector: Vector, similarity: float) -> list[tuple[float, int]]:
    """Nearest first, the newer of equals before the older."""
    rows = codes.astype(np.float32)
    found = (rows @ vector) / np.maximum(np.sqrt(np.einsum("ij,ij->i", rows, rows)), 1e-9)
    return sorted(((float(found[row]), ids[row]) for row in np.flatnonzero(found >= similarity)), reverse=True)
