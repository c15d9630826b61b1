"""Journal, shipper, store and books together, as one process would have them; no Ray."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BudgetExceeded, ModelUnavailable, Overloaded
from router.accounting.books import Books
from router.accounting.budget import Budgets
from router.accounting.journal import Chunk, Journal, encode, names
from router.accounting.limits import month_of
from router.accounting.shipper import Shipper, take_in_orphans
from router.accounting.store import SQLiteStore
from router.accounting.usage_sql import UsageQuery
from router.events import RequestClosed, RequestOpened
from tests.unit.leases import Fixed, monthly, reserve
from tests.unit.test_journal import CLOSED, OPENED

NOW = int(time.time() * 1000)


def opened(request_id: str, reserved: int = 500) -> RequestOpened:
    return replace(OPENED, request_id=request_id, opened_at_unix_ms=NOW, reserved_microusd=reserved)


def closed(request_id: str, cost: int = 100) -> RequestClosed:
    return replace(CLOSED, request_id=request_id, opened_at_unix_ms=NOW, closed_at_unix_ms=NOW + 5, cost_microusd=cost)


@asynccontextmanager
async def books_in(folder: Path, store: type[SQLiteStore] = SQLiteStore) -> AsyncIterator[Books]:
    books = await Books.open(lambda: store(folder / "ledger.sqlite3", lock_wait_s=5), folder / "journal")
    try:
        yield books
    finally:
        await books.close()


@asynccontextmanager
async def shipping(folder: Path, name: str, ledger: Books) -> AsyncIterator[Shipper]:
    shipper = Shipper(Journal(folder / "journal", name), ledger)
    task = asyncio.create_task(shipper.run())
    try:
        yield shipper
    finally:
        await shipper.close(5)
        task.cancel()
        await asyncio.wait({task})


async def spent(books: Books, org: str = "acme") -> tuple[int, int]:
    """Requests and micro-USD."""
    (row,) = await books.usage(UsageQuery(org, 0, 2 * NOW))
    return row["requests"], row["cost_microusd"]


async def test_a_record_reaches_the_books_and_its_receipt_is_waited_for(tmp_path: Path) -> None:
    async with books_in(tmp_path) as books, shipping(tmp_path, "one", books) as shipper:
        assert await books.receipt("acme", "r", 0) is None
        waiting = [asyncio.create_task(books.receipt("acme", "r", 5)) for _ in range(3)]
        await asyncio.sleep(0.01)
        shipper.sink(opened("r"))
        shipper.sink(closed("r"))
        for receipt in await asyncio.gather(*waiting):
            assert receipt is not None and receipt["cost_microusd"] == 100
        assert await shipper.drain(5) and shipper.backlog_bytes == 0
        assert await books.receipt("other", "r", 0.01) is None
        assert not books._waiters and books._waiting == 0


async def test_a_shipper_that_meets_a_dead_ledger_tries_until_it_lives(tmp_path: Path) -> None:
    async with books_in(tmp_path) as books:

        class Unreliable:
            failures = 5

            async def ingest(self, holder: str, chunk: bytes) -> int:
                self.failures -= 1
                if self.failures == 1:  # taken in, but the answer is lost
                    await books.ingest(holder, chunk)
                if self.failures > 0:
                    raise ModelUnavailable("down")
                return await books.ingest(holder, chunk)

            async def retire(self, holder: str) -> None:
                raise AssertionError

        shipper = Shipper(Journal(tmp_path / "journal", "one"), Unreliable())
        task = asyncio.create_task(shipper.run())
        for number in range(20):
            shipper.sink(closed(f"r{number}"))
        assert await shipper.drain(10)
        assert await spent(books) == (20, 2000)
        task.cancel()
        await asyncio.wait({task})
        await shipper.close(0)


async def test_a_journal_that_cannot_be_read_for_a_while_is_delivered_later(tmp_path: Path) -> None:
    failures = [OSError(5, "Input/output error"), OSError(24, "Too many open files")]

    class Moody(Journal):
        def unshipped(self, *limit: int) -> Chunk | None:
            if failures:
                raise failures.pop()
            return super().unshipped(*limit)

    async with books_in(tmp_path) as books:
        shipper = Shipper(Moody(tmp_path / "journal", "one"), books)
        task = asyncio.create_task(shipper.run())
        shipper.sink(closed("r"))
        assert await shipper.drain(10)
        assert await spent(books) == (1, 100) and not failures
        task.cancel()
        await asyncio.wait({task})
        await shipper.close(0)


async def test_a_journal_that_cannot_be_read_at_all_ends_the_delivery_for_all_to_see(tmp_path: Path) -> None:
    async with books_in(tmp_path) as books:
        shipper = Shipper(Journal(tmp_path / "journal", "one"), books, patience_s=0.2)
        shipper.sink(closed("r"))
        (segment,) = (tmp_path / "journal" / "one").glob("*.log")
        segment.unlink()
        with pytest.raises(FileNotFoundError):
            await asyncio.wait_for(shipper.run(), 10)
        await shipper.close(0)


async def test_a_journal_without_an_owner_is_taken_in_and_what_it_left_open_is_closed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", "dead")
    for record in (opened("a"), closed("a"), opened("b", reserved=700)):
        journal.append(record)
    async with books_in(tmp_path) as books:
        await books.sweep()
        assert await spent(books) == (0, 0)  # its owner lives
        journal.close()
        await books.sweep()
        assert await spent(books) == (2, 800)
        receipt = await books.receipt("acme", "b", 0)
        assert receipt is not None and receipt["status"] == "abandoned" and receipt["estimated"]
        assert names(tmp_path / "journal") == set() and books.counts.abandoned == 1
        await books.sweep()
        assert await spent(books) == (2, 800)


async def test_another_node_delivers_its_own_orphans(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "elsewhere", "dead")
    journal.append(opened("a", reserved=10))
    journal.close()
    async with books_in(tmp_path) as books:
        assert await take_in_orphans(tmp_path / "elsewhere", books) == 1
        assert await spent(books) == (1, 10) and names(tmp_path / "elsewhere") == set()


async def test_balances_and_leases_survive_the_ledger(tmp_path: Path) -> None:
    async with books_in(tmp_path) as books, shipping(tmp_path, "one", books) as shipper:
        budgets = Budgets("one", Fixed({monthly(): 1000}), books.lease)
        await reserve(budgets, "acme", "a", 300)
        shipper.sink(closed("a", cost=300))
        budgets.settle("a", 300, 0)
        await reserve(budgets, "acme", "b", 400)  # is under way while the ledger restarts
        await budgets.renew()
        await budgets.renew()
        shipper.sink(opened("b", reserved=400))
    async with books_in(tmp_path) as books:  # the first owner's journal is not taken in yet
        other = Budgets("two", Fixed({monthly(): 1000}), books.lease)
        with pytest.raises(BudgetExceeded) as refused:
            await reserve(other, "acme", "c", 301)
        assert refused.value.details["left_microusd"] == 300
        await books.sweep()
        assert await spent(books) == (2, 700)
        await reserve(other, "acme", "c", 300)
        with pytest.raises(BudgetExceeded):
            await reserve(other, "acme", "d", 1)
    assert month_of(NOW) == month_of(int(time.time() * 1000))


async def test_torn_lines_are_counted(tmp_path: Path) -> None:
    async with books_in(tmp_path) as books:
        assert await books.ingest("one", encode(closed("a")) + encode(closed("b"))[:50]) == 1
        assert books.counts.torn == 1


async def test_slow_sums_are_bounded_and_do_not_make_the_books_look_dead(tmp_path: Path) -> None:
    proceed = threading.Event()

    class Slow(SQLiteStore):
        def usage(self, query: UsageQuery) -> list[dict[str, Any]]:
            assert proceed.wait(10)
            return super().usage(query)

    async with books_in(tmp_path, Slow) as books:
        asked = [asyncio.create_task(spent(books)) for _ in range(16)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await spent(books)
        asked.pop().cancel()
        await asyncio.sleep(0.01)
        asked.append(asyncio.create_task(spent(books)))
        receipt = asyncio.create_task(books.receipt("acme", "r", 0))
        async with asyncio.timeout(20):
            await books.check()
        proceed.set()
        assert await asyncio.gather(*asked) == [(0, 0)] * 16 and await receipt is None
        assert books.counts.reads_refused == 1 and not books._reading.total()


async def test_what_is_no_record_is_set_aside_and_counted(tmp_path: Path) -> None:
    async with books_in(tmp_path) as books:
        text = b'{"kind":"close","org":"acme","request_id":"odd"}'
        assert await books.ingest("one", encode(closed("a")) + b"%08x %s\n" % (zlib.crc32(text), text)) == 1
        assert (books.counts.records, books.counts.rejected) == (1, 1)


actions = st.one_of(
    st.tuples(st.sampled_from(["open", "close", "hit", "ship", "ship_unacknowledged", "die"]), st.integers(0, 2)),
    st.tuples(st.sampled_from(["sweep", "restart"]), st.just(0)),
)


@settings(max_examples=40)
@given(st.lists(actions, min_size=5, max_size=40))
def test_crashes_neither_lose_nor_double_a_request(plan: list[tuple[str, int]]) -> None:
    """Three processes that write, ship, and die; a ledger that restarts. In the end each request is there once."""
    asyncio.run(_crashes(plan))


async def _crashes(plan: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        serial = 0
        expected: dict[str, tuple[str, int]] = {}  # request -> status, cost
        under_way: list[dict[str, int]] = [{}, {}, {}]

        def start() -> Journal:
            nonlocal serial
            serial += 1
            return Journal(folder / "journal", f"p{serial}", segment_bytes=3000)

        journals = [start() for _ in range(3)]

        def die(place: int) -> None:
            journals[place].close()
            expected.update({request: ("abandoned", cost) for request, cost in under_way[place].items()})
            under_way[place].clear()

        books = await Books.open(lambda: SQLiteStore(folder / "db", lock_wait_s=5), folder / "journal")
        for action, place in plan:
            serial += 1
            journal = journals[place]
            match action:
                case "open":
                    journal.append(opened(f"r{serial}", reserved=serial))
                    under_way[place][f"r{serial}"] = serial
                case "close" if under_way[place]:
                    request, reserved = under_way[place].popitem()
                    journal.append(closed(request, cost=reserved // 2))
                    expected[request] = ("ok", reserved // 2)
                case "hit":
                    journal.append(closed(f"r{serial}", cost=0))
                    expected[f"r{serial}"] = ("ok", 0)
                case "ship" | "ship_unacknowledged":
                    chunk = journal.unshipped(1500)
                    if chunk is not None:
                        await books.ingest(journal.name, chunk.data)
                        if action == "ship":
                            journal.acknowledge(chunk.end)
                case "die":
                    die(place)
                    journals[place] = start()
                case "sweep":
                    await books.sweep()
                case "restart":
                    await books.close()
                    books = await Books.open(lambda: SQLiteStore(folder / "db", lock_wait_s=5), folder / "journal")
        for place in range(3):
            die(place)
        await books.sweep()
        await books.sweep()
        for request, outcome in expected.items():
            receipt = await books.receipt("acme", request, 0)
            assert receipt is not None and (receipt["status"], receipt["cost_microusd"]) == outcome
        assert await spent(books) == (len(expected), sum(cost for _, cost in expected.values()))
        assert names(folder / "journal") == set()
        await books.close()
