"""The Ledger on a real cluster: hops, receipts, restarts, budgets over several holders, orphans."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from deployments.ledger import Ledger, LedgerHandle, journal_folder, ledger_deployment
from models.errors import BudgetExceeded
from router.accounting.budget import Budgets
from router.accounting.journal import Journal, names
from router.accounting.shipper import Shipper
from router.accounting.usage_sql import UsageQuery
from router.events import RequestClosed, RequestOpened
from tests.unit.leases import Fixed, monthly, reserve
from tests.unit.test_journal import CLOSED, OPENED

NOW = int(time.time() * 1000)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledger")


@pytest.fixture(scope="module")
def ledger(local_ray: None, data_dir: Path) -> Iterator[LedgerHandle]:
    handle = serve.run(ledger_deployment(str(data_dir)), name="ledger-test", route_prefix=None)
    handle._init(_run_router_in_separate_loop=True)  # each test has a loop of its own
    yield LedgerHandle(handle)
    serve.delete("ledger-test")


def opened(request_id: str, reserved: int = 500) -> RequestOpened:
    return replace(OPENED, request_id=request_id, opened_at_unix_ms=NOW, reserved_microusd=reserved)


def closed(request_id: str, cost: int = 100, **changes: Any) -> RequestClosed:
    times = {"opened_at_unix_ms": NOW, "closed_at_unix_ms": NOW + 5}
    return replace(CLOSED, request_id=request_id, cost_microusd=cost, **times, **changes)


@asynccontextmanager
async def shipping(data_dir: Path, name: str, ledger: LedgerHandle) -> AsyncIterator[Shipper]:
    shipper = Shipper(Journal(journal_folder(data_dir), name), ledger)
    task = asyncio.create_task(shipper.run())
    try:
        yield shipper
    finally:
        await shipper.close(10)
        task.cancel()
        await asyncio.wait({task})


async def test_a_receipt_can_be_read_by_whoever_asks_next(ledger: LedgerHandle, data_dir: Path) -> None:
    async with shipping(data_dir, "one", ledger) as shipper:
        shipper.sink(opened("r1"))
        shipper.sink(closed("r1", cost=77))
        receipt = await ledger.receipt("acme", "r1", 5)
        assert receipt is not None and receipt["cost_microusd"] == 77
        assert await ledger.receipt("other", "r1", 0) is None
    (row,) = await ledger.usage(UsageQuery("acme", NOW - 1, NOW + 1, ("model",)))
    assert (row["model"], row["cost_microusd"]) == ("m", 77)


async def test_a_budget_holds_over_three_holders(ledger: LedgerHandle) -> None:
    holders = [Budgets(f"holder-{n}", Fixed({monthly("tight"): 1000}), ledger.lease) for n in range(3)]
    results = await asyncio.gather(
        *(reserve(holders[n % 3], "tight", f"t{n}", 10) for n in range(200)), return_exceptions=True
    )
    refused = [result for result in results if result is not None]
    assert all(isinstance(error, BudgetExceeded) for error in refused)
    assert 200 - len(refused) <= 100
    for budgets in holders:
        await budgets.close()


async def test_a_killed_ledger_loses_nothing_and_the_requests_go_on(ledger: LedgerHandle, data_dir: Path) -> None:
    budgets = Budgets("one-killed", Fixed({monthly(): 10_000}), ledger.lease)
    async with shipping(data_dir, "one-killed", ledger) as shipper:
        await reserve(budgets, "acme", "k0", 100)
        killed = _ledger_pid(data_dir)
        os.kill(killed, signal.SIGKILL)
        for number in range(10):
            await reserve(budgets, "acme", f"k{number + 1}", 100)
            shipper.sink(opened(f"k{number}", reserved=100))
            shipper.sink(closed(f"k{number}", cost=1))
        assert await shipper.drain(120)
        for number in range(10):
            assert await ledger.receipt("acme", f"k{number}", 0) is not None
        assert _ledger_pid(data_dir) != killed


CHILD = """
import sys
from pathlib import Path
from router.accounting.journal import Journal
from tests.deployments.test_ledger import closed, opened
journal = Journal(Path(sys.argv[1]), "killed")
for record in (opened("o1"), closed("o1"), opened("o2", reserved=321)):
    journal.append(record)
print("written", flush=True)
sys.stdin.read()
"""


async def test_what_a_killed_process_left_is_taken_in(ledger: LedgerHandle, data_dir: Path) -> None:
    folder = journal_folder(data_dir)
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, str(folder)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None and await process.stdout.readline() == b"written\n"
    assert "killed" in names(folder)
    process.kill()
    await process.communicate()
    finished, abandoned = await ledger.receipt("acme", "o1", 20), await ledger.receipt("acme", "o2", 20)
    assert finished is not None and finished["status"] == "ok"
    assert abandoned is not None and (abandoned["status"], abandoned["cost_microusd"]) == ("abandoned", 321)
    async with asyncio.timeout(120):
        while "killed" in names(folder):  # noqa: ASYNC110 - another process removes it
            await asyncio.sleep(0.05)


async def test_a_new_replica_waits_for_the_old_one_to_let_go(ledger: LedgerHandle, data_dir: Path) -> None:
    """A roll-out with nothing lost on the way."""
    before = _ledger_pid(data_dir)
    async with shipping(data_dir, "rolling", ledger) as shipper:
        update = asyncio.create_task(asyncio.to_thread(_redeploy, data_dir))
        number = 0
        while not update.done():
            shipper.sink(closed(f"u{number}", cost=0))
            number += 1
            await asyncio.sleep(0.02)
        await update
        assert await shipper.drain(120)
        assert await ledger.receipt("acme", f"u{number - 1}", 5) is not None
    assert _ledger_pid(data_dir) != before
    (row,) = await ledger.usage(UsageQuery("acme", NOW - 1, NOW + 1))
    assert row["requests"] >= number


def _redeploy(data_dir: Path) -> None:
    changed = Ledger.options(ray_actor_options={"num_cpus": 0.2})
    serve.run(changed.bind(str(data_dir)), name="ledger-test", route_prefix=None)


def _ledger_pid(data_dir: Path) -> int:
    """Of the process that has the database open."""
    database = str(data_dir / "ledger.sqlite3")
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and any(os.readlink(fd) == database for fd in (entry / "fd").iterdir()):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError("nobody has the database open")
