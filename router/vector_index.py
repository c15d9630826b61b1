"""All vectors of a shard, by tenant and scope: nothing is searched across either."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from router.scope_index import Codes, ScopeIndex, Vector

SAVE_FROM = 1024
"""Vectors of a scope from which its index is saved: those of smaller ones are put in place again within a tenth of a
second."""

_SAVE_AT_SHARE = 0.1
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placed:
    """A vector in its place. codes: as `router.scope_index.quantised` makes them."""

    tenant: str
    scope: str
    entry_id: int
    codes: bytes


@dataclass(frozen=True, slots=True)
class SavedIndex:
    """An index of a scope as it was when it was saved."""

    tenant: str
    scope: str
    data: bytes | bytearray


class VectorIndex:
    """Not for several threads."""

    def __init__(self) -> None:
        self._by_tenant: dict[str, dict[str, ScopeIndex]] = {}
        self._graphs: dict[tuple[str, str], ScopeIndex] = {}
        self._adopted: list[tuple[str, str]] = []
        self._dimensions = 0  # of what was added last, besides what is older; 0: nothing was
        self.used_bytes = 0
        self.count = 0

    def add(self, vectors: Sequence[Placed], older: bool = False) -> None:
        """Vectors of new entries. One with another number of numbers is another encoder's: those that are there can be
        compared with nothing any more, and go. `older`: than all that were added without this word, so that it is they
        that do not come in."""
        if vectors and not older:
            self._dimensions = len(vectors[0].codes)
        elif self._dimensions:
            vectors = [each for each in vectors if len(each.codes) == self._dimensions]
        by_place: dict[tuple[str, str, int], list[Placed]] = {}
        for each in vectors:
            by_place.setdefault((each.tenant, each.scope, len(each.codes)), []).append(each)
        for (tenant, scope, _), some in by_place.items():
            codes = np.frombuffer(b"".join(each.codes for each in some), dtype=np.int8).reshape(len(some), -1)
            self._add(tenant, scope, [each.entry_id for each in some], codes)

    def _add(self, tenant: str, scope: str, entry_ids: list[int], codes: Codes) -> None:
        index = self._get(tenant, scope)
        if index is not None:
            self._count_out(index)
            if index.dimensions != codes.shape[1]:
                self._drop(tenant, scope)
                index = None
        if index is None:
            index = ScopeIndex(codes.shape[1])
            self._by_tenant.setdefault(tenant, {})[scope] = index
        try:
            index.add(entry_ids, codes)
        finally:  # some of them may be there
            self._count_in(index)
            if index.is_graph:
                self._graphs[tenant, scope] = index

    def remove(self, tenant: str, scope: str, entry_id: int) -> None:
        """What is not here is gone already."""
        index = self._get(tenant, scope)
        if index is None:
            return
        self._count_out(index)
        with suppress(ValueError):  # it was to be put in its place later
            index.remove(entry_id)
        if len(index):
            self._count_in(index)
        else:
            self._drop(tenant, scope)

    def nearest(self, tenant: str, scope: str, vector: Vector, threshold: float) -> list[tuple[float, int]]:
        """See `ScopeIndex.nearest`. Of a vector with another number of numbers nothing is near."""
        index = self._get(tenant, scope)
        return index.nearest(vector, threshold) if index is not None and index.dimensions == len(vector) else []

    def within(self, covers: Callable[[str], bool], vector: Vector, similarity: float) -> Iterator[tuple[float, int]]:
        """Of all scopes of the tenants that `covers` takes, compared with each vector."""
        for tenant in [name for name in self._by_tenant if covers(name)]:
            for index in list(self._by_tenant.get(tenant, {}).values()):
                if index.dimensions == len(vector):
                    yield from index.within(vector, similarity)

    def within_scope(self, tenant: str, scope: str, vector: Vector, similarity: float) -> list[tuple[float, int]]:
        index = self._get(tenant, scope)
        return index.within(vector, similarity) if index is not None else []

    def codes(self, tenant: str, scope: str | None, entry_id: int) -> bytes | None:
        """None where it is not here."""
        index = self._get(tenant, scope) if scope else None
        with suppress(ValueError):
            return index.codes(entry_id).tobytes() if index is not None else None
        return None

    # ---- saved and taken up again ----------------------------------------------------------------------------------

    def adopt(self, saved: SavedIndex) -> None:
        """Take up what was saved, beside what has come since; unless it is not what this version saves."""
        try:
            index = ScopeIndex.saved(saved.data)
        except ValueError as error:
            logger.warning("a saved index is built anew (%s)", error)
            return
        present = self._get(saved.tenant, saved.scope)
        if present is not None:
            if present.dimensions != index.dimensions or present.is_graph:
                return
            ids = list(present)
            codes = np.stack([present.codes(entry_id) for entry_id in ids])
            self._count_out(present)
            index.add(ids, codes)
        self._by_tenant.setdefault(saved.tenant, {})[saved.scope] = index
        self._graphs[saved.tenant, saved.scope] = index
        self._adopted.append((saved.tenant, saved.scope))
        self._count_in(index)

    def settle(self) -> None:
        """All entries have come: drop what else the adopted indexes have."""
        places, self._adopted = self._adopted, []
        for tenant, scope in places:
            index = self._get(tenant, scope)
            if index is None:
                continue
            self._count_out(index)
            index.forget_unknown()
            if len(index):
                self._count_in(index)
            else:
                self._drop(tenant, scope)

    def places(self) -> set[tuple[str, str]]:
        """Tenants and scopes whose indexes are worth saving."""
        return {place for place, index in self._graphs.items() if len(index) >= SAVE_FROM}

    def unsaved(self, least_changes: int | None = None) -> list[tuple[str, str]]:
        """Of these, those of which so much has changed since they were saved; None: a tenth."""
        sizes = ((place, len(index), index.changes) for place, index in self._graphs.items())
        return [
            place
            for place, size, changes in sizes
            if size >= SAVE_FROM and changes >= (least_changes or max(SAVE_FROM, _SAVE_AT_SHARE * size))
        ]

    def save(self, tenant: str, scope: str) -> SavedIndex | None:
        index = self._graphs.get((tenant, scope))
        return SavedIndex(tenant, scope, index.save()) if index is not None else None

    def _get(self, tenant: str, scope: str) -> ScopeIndex | None:
        scopes = self._by_tenant.get(tenant)
        return scopes.get(scope) if scopes is not None else None

    def _drop(self, tenant: str, scope: str) -> None:
        """An index that `_count_out` has seen."""
        scopes = self._by_tenant[tenant]
        del scopes[scope]
        if not scopes:
            del self._by_tenant[tenant]
        self._graphs.pop((tenant, scope), None)

    def _count_in(self, index: ScopeIndex) -> None:
        self.used_bytes += index.size_bytes
        self.count += len(index)

    def _count_out(self, index: ScopeIndex) -> None:
        self.used_bytes -= index.size_bytes
        self.count -= len(index)
