"""A shard's store outside beside its requests: what was forgotten while it is read is not taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from deployments import cache_outside
from deployments.cache_outside import CacheOutside
from models.errors import ModelUnavailable
from router.invalidation import Selection
from router.outside import CHUNK, OutsideLog, Row
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings
from tests.unit.test_cache_log import NOW_S, kept, unit


class Rows:
    """Fills `router.outside.OutsideStore`, in memory. `breaks`: how often it goes away after the first page."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self.breaks = 0

    def put(self, rows: Sequence[Row]) -> None:
        self.rows |= {(row.tenant, row.exact): row for row in rows}

    def remove(self, tenant: str, exacts: Sequence[str]) -> None:
        for exact in exacts:
            self.rows.pop((tenant, exact), None)

    def clear(self, tenant: str) -> None:
        self.rows = {names: row for names, row in self.rows.items() if names[0] != tenant}

    def tenants(self) -> list[str]:
        return sorted({tenant for tenant, _ in self.rows})

    def read(self, tenant: str, at_once: int = CHUNK) -> Iterator[list[Row]]:
        yield [row for names, row in self.rows.items() if names[0] == tenant]
        if self.breaks:
            self.breaks -= 1
            raise ModelUnavailable("away")

    def near(self, tenant: str, vector: bytes, similarity: float) -> Iterator[list[Row]]:
        return self.read(tenant)

    def close(self) -> None:
        pass


def with_one() -> Rows:
    rows = Rows()
    OutsideLog(rows, encoder="mini").write([kept("a", vector=unit(1))])
    return rows


def opened(rows: Rows, encode: cache_outside.Encode, encoder: str = "mini") -> tuple[SemanticStore, CacheOutside]:
    store = SemanticStore(CacheSettings(audit=0), lambda: NOW_S + 1, lambda text, others: [])
    return store, CacheOutside(store, OutsideLog(rows, encoder=encoder), lambda tenant: True, encode)


async def test_what_is_forgotten_while_its_question_is_encoded_does_not_come_back() -> None:
    encoding, go_on = asyncio.Event(), asyncio.Event()

    async def encode(text: str) -> bytes:
        encoding.set()
        await go_on.wait()
        return unit(1).astype("<f4").tobytes()

    store, beside = opened(with_one(), encode, "another")
    await encoding.wait()
    store.invalidate(Selection("acme"), dry_run=False)
    go_on.set()
    await beside.restored()
    assert store.entry_ids() == []
    await beside.close()


async def test_what_had_to_go_after_half_of_a_store_was_read_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_outside, "RETRY_S", (0.05,))
    monkeypatch.setattr(cache_outside, "FLUSH_S", 10.0)

    async def encode(text: str) -> bytes | None:
        return None

    rows = with_one()
    rows.breaks = 1
    store, beside = opened(rows, encode)
    await beside.restored()
    assert store.judge("acme", "a", "somebody", 0.0)
    await asyncio.wait({beside._restoring})
    assert store.entry_ids() == [] and rows.rows == {}
    await beside.close()
