"""A shard's store outside beside its requests: what was forgotten while it is read is not taken back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

import pytest

from deployments import cache_outside
from deployments.cache_outside import CacheOutside
from models.errors import ModelUnavailable
from models.messages import Usage
from router import outside
from router.fingerprint import partition
from router.invalidation import Bar, Selection
from router.outside import ACTS, CHUNK, OutsideLog, Row
from router.ports import CachedAnswer, CacheKey
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings
from tests.unit.test_cache_log import NOW_S, YES, kept, unit


class Rows:
    """Fills `router.outside.OutsideStore`, in memory. `breaks`: how often it goes away after a page of answers."""

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
        if self.breaks and tenant != ACTS:
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


async def no_vector(text: str) -> bytes | None:
    return None


async def test_what_was_forgotten_is_not_stored_by_a_shard_that_starts_later_either() -> None:
    rows = with_one()

    async def started() -> tuple[SemanticStore, CacheOutside]:
        store = SemanticStore(CacheSettings(audit=0), judge=lambda text, others: [])
        beside = CacheOutside(store, OutsideLog(rows, encoder="mini"), lambda tenant: True, no_vector)
        await beside.restored()
        return store, beside

    def comes(name: str, opened_unix_s: float, org: str = "acme") -> bool:
        """Whether an answer that was asked for then is kept."""
        now_s = time.time()
        made = CachedAnswer(name, "m", YES, Usage(1, 2), 5, now_s, 3600.0, ("tag",), opened_unix_s)
        key = CacheKey(partition(org, ""), f"exact {name}", None)
        store.store(key, made)
        return store.exact(key) is not None

    store, beside = await started()
    before_s, vector = time.time(), unit(9).astype("<f4").tobytes()
    for selection in (Selection("other"), Selection("acme", question="what?", similarity=0.999)):
        store.invalidate(selection, vector, dry_run=False)
        await beside.forgotten(selection, vector)
    await beside.close()
    store, beside = await started()
    assert len(store.entry_ids()) == 1  # to which the question was not near
    assert not comes("b", before_s) and not comes("c", before_s, "other")
    assert comes("d", time.time()) and comes("e", before_s, "third")
    await beside.close()


def test_acts_are_filed_once_each_and_the_oldest_of_many_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "MAX_BARS", 3)
    rows = Rows()
    log = OutsideLog(rows)
    for at in (1.0, 2.0):
        log.barred(Bar(Selection("acme", current=frozenset({("m", "1")})), at))
    assert len(log.take()) == 1
    acts = [Bar(Selection(f"org {number}", tag="t"), float(number)) for number in range(5)]
    log.write(acts)
    assert log.acts(4.5) == [Bar(None, 1.0), *acts[2:]] == log.acts(4.5)
    assert len(rows.rows) == 4
    assert log.acts(2.5)[-1].at_unix_s == 2.5  # nobody's clock forbids what is asked later


def test_many_acts_are_read_in_a_moment_and_the_newest_is_written_down_whatever_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = OutsideLog(Rows())
    acts = [Bar(Selection("acme", answer_id=f"{number}"), float(number)) for number in range(1500)]
    log._store.put([log._act_row(act) for act in acts])
    monkeypatch.setattr(outside, "MAX_BARS", 8)
    began_s = time.thread_time()
    assert log.acts(1e9) == [Bar(None, 1491.0), *acts[-8:]]
    assert time.thread_time() - began_s < 0.4
    for number in range(50):  # a shard that runs for long reads none of them
        log.write([Bar(Selection("other", answer_id=f"{number}"), 2000.0 + number)])
    assert len(next(log._store.read(ACTS))) <= 2 * 8
    monkeypatch.setattr(outside, "MAX_WAITING", 2)
    for name in ("a", "b", "c"):
        log.gone(CacheKey("t", name, None))
    log.barred(acts[0])
    assert [getattr(each, "exact", None) for each in log.take()] == ["b", None] and log.dropped == 2


def test_what_somebody_planted_is_no_act() -> None:
    rows = Rows()
    log = OutsideLog(rows)
    log.write([kept("a"), Bar(Selection("acme"), 1.0)])
    (row,) = next(rows.read(ACTS))
    (answer,) = next(rows.read(partition("acme", "")))
    rows.put([Row(ACTS, "x" * 64, 2.0, row.body), Row(ACTS, row.exact, 2.0, answer.body), Row(ACTS, "y", 2.0, b"junk")])
    strange = log._act_row(Bar(Selection("acme", tag=5), 1.0))  # type: ignore[arg-type]
    rows.put([strange])
    assert log.acts(3.0) == [] and log.torn == 4
    assert [record.answer.answer_id for records in log.read(lambda tenant: True) for record in records] == ["a"]
