"""The short form of `make chaos`: real processes, killed over a real database; and many at once on a small budget."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

from cluster.bench import chaos, chaos_cluster
from cluster.bench.connection import Response
from cluster.config_check import check_config
from models.errors import BudgetExceeded
from router.accounting.books import Books
from router.accounting.budget import Budgets
from router.accounting.journal import Journal
from router.accounting.shipper import Shipper
from router.accounting.store import SQLiteStore
from router.accounting.usage_sql import UsageQuery
from tests.unit.leases import Fixed, monthly, reserve
from tests.unit.test_books import closed, opened


def test_killed_doors_and_ledgers_lose_double_and_overspend_nothing(tmp_path: Path) -> None:
    outcome = chaos.run(tmp_path, seconds=6, kills=3, seed=time.time_ns())
    assert outcome.holds, outcome
    assert outcome.finished > 15 and outcome.in_books >= outcome.finished


async def test_of_two_hundred_at_once_on_a_budget_for_a_hundred_a_hundred_are_paid_to_the_cent(tmp_path: Path) -> None:
    """Three ingresses' worth of accounting over one ledger: leases, journals, deliveries and the books."""
    books = await Books.open(lambda: SQLiteStore(tmp_path / "ledger.sqlite3"), tmp_path / "journal")
    limits, price = Fixed({monthly(): 100 * 970}), 970
    names = ("one", "two", "three")
    shippers = [Shipper(Journal(tmp_path / "journal", name), books) for name in names]
    holders = [Budgets(name, limits, books.lease) for name in names]
    running = [asyncio.create_task(shipper.run()) for shipper in shippers]

    async def request(number: int) -> int:
        place, name = number % 3, f"r{number}"
        for _ in range(20):  # what another ingress holds unused comes back after a moment
            try:
                await reserve(holders[place], "acme", name, price)
            except BudgetExceeded:
                await asyncio.sleep(0.1)
                await holders[(place + 1) % 3].renew()
                continue
            shippers[place].sink(opened(name, reserved=price))
            await asyncio.sleep(random.uniform(0, 0.02))
            shippers[place].sink(closed(name, cost=price))
            holders[place].settle(name, price, 10)
            return price
        return 0

    paid = await asyncio.gather(*(request(number) for number in range(200)))
    for shipper in shippers:
        assert await shipper.drain(10)
    (row,) = await books.usage(UsageQuery("acme", 0, 2**50))
    assert row["requests"] == sum(1 for cost in paid if cost) == 100
    assert row["cost_microusd"] == sum(paid) == 100 * price
    (standing,) = await books.standings(limits.limits_of_org())
    assert (standing.used, standing.left) == (100 * price, 0)
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    for shipper in shippers:
        await shipper.close(0)
    await books.close()


def test_the_cluster_that_is_put_under_fire_is_one_that_starts() -> None:
    config = chaos_cluster.config({"tight": "a", "wide": "b"})
    check_config(config)
    names = [f"SimulatedModel:{chaos_cluster.MODEL}", "Ingress", "Ledger"]
    assert sorted(chaos_cluster.VICTIMS) == sorted(names)


def test_an_answer_counts_as_finished_when_all_of_it_came() -> None:
    told = chaos_cluster.Told()
    headers = {"x-switchyard-request-id": "r", "x-switchyard-cost-microusd": "7"}
    broken = b'data: {"choices": []}\n\ndata: {"error": {}}\n\n'
    assert told.took("wide", Response(200, headers, b"{}", 1.0, 1.0), streamed=False)
    assert told.took("wide", Response(200, headers, b"data: {}\n\ndata: [DONE]\n\n", 1.0, 1.0), streamed=True)
    assert not told.took("wide", Response(200, headers, broken, 1.0, 1.0), streamed=True)
    assert not told.took("tight", Response(402, headers, b"{}", 1.0, 1.0), streamed=False)
    assert told.finished == [("wide", "r", "7"), ("wide", "r", str(chaos_cluster.COST_MICROUSD))]
    assert told.other == {"stream with an error": 1, "402": 1}
