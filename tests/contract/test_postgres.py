"""What only PostgreSQL does: the wall between organisations, and connections that break."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from pyarrow import parquet

from cluster.usage_export import export
from models.errors import InternalError, Overloaded, SwitchyardError
from router.accounting.books import Books
from router.accounting.budget import Budgets
from router.accounting.directory import Org
from router.accounting.journal import Journal
from router.accounting.registrar import Put
from router.accounting.shipper import Shipper
from router.accounting.store import PostgresStore
from router.accounting.usage_sql import UsageQuery
from router.events import Actor
from router.settings import AlertChannel, AlertSettings
from tests.contract.test_stores import AT, closed, opened, take
from tests.postgres_server import Server
from tests.unit.leases import Fixed, monthly, reserve
from tests.unit.test_alert_channels import receiving

OUTAGE_S = float(os.environ.get("OUTAGE_S", "1"))

TABLES = (
    "open_requests",
    "requests",
    "attempts",
    "receipts",
    "leases",
    "directory",
    "audit",
    "usage_hours",
    "usage_user_weeks",
    "usage_days",
    "usage_plain_days",
    "usage_by",
    "alerts",
    "dropped_costs",
    "feedback",
    "experiment_outcomes",
    "experience",
)


def test_a_query_that_forgets_to_ask_for_an_org_gets_nothing_of_another(postgres: Server) -> None:
    store = PostgresStore(postgres.new_database())
    take(store, opened("o", "acme"), opened("p", "other"), closed("r", "acme"), closed("s", "other"))
    for org, mine in (("acme", {"acme"}), ("other", {"other"}), ("third", set()), ("", set())):
        with store._file.reading(org) as reader:
            for table in ("open_requests", "requests", "attempts", "receipts", "usage_hours"):
                assert {row[0] for row in reader.execute(f"SELECT org FROM {table}")} == mine
    assert store._file.reader.execute("SELECT COUNT(*) FROM requests").fetchone() == (0,)  # and without an org, nothing
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        store._file.reader.execute("DELETE FROM requests")
    walled = store._file.writer.execute("SELECT relname FROM pg_class WHERE relrowsecurity AND relforcerowsecurity")
    assert {name for (name,) in walled} == set(TABLES)
    owned = store._file.writer.execute("SELECT table_name FROM information_schema.columns WHERE column_name = 'org'")
    assert {name for (name,) in owned} <= set(TABLES)  # a new table needs the wall too
    store.close()


def test_the_books_can_be_taken_along_beside_the_ledger(postgres: Server, tmp_path: Path) -> None:
    url = postgres.new_database()
    store = PostgresStore(url)
    take(store, *(closed(f"r{number}", ("acme", "other")[number % 2], at=AT + number) for number in range(50)))
    out = tmp_path / "u.parquet"
    assert export(tmp_path, out, "parquet", UsageQuery(None, AT, AT + 40), batch_rows=7, url=url) == 40
    rows = parquet.read_table(out).to_pylist()
    assert {row["org"] for row in rows} == {"acme", "other"} and len(rows) == 40
    assert rows[0]["estimated"] is False and rows[0]["output_tokens"] == 5
    assert json.loads(rows[0]["decision"])["strategy"] == "complexity" and rows[0]["feedback"] is None
    assert [attempt["outcome"] for attempt in json.loads(rows[0]["attempts"])][-1] == "ok"
    assert export(tmp_path, tmp_path / "days", "days", UsageQuery(None, AT, AT + 40), batch_rows=7, url=url) == 40
    with pytest.raises(InternalError, match="cannot be written") as refused:
        export(tmp_path, out, "parquet", UsageQuery(None, AT, AT + 40), url="postgresql://u:sesame@127.0.0.1:1/x")
    assert "sesame" not in str(refused.value)
    store.close()


def test_a_database_that_is_not_there_is_said_so_without_its_password(postgres: Server) -> None:
    for url in ("postgresql://u:sesame@127.0.0.1:1/x", postgres.new_database().replace("test_", "never_")):
        with pytest.raises(InternalError, match="SWITCHYARD_LEDGER_URL") as refused:
            PostgresStore(url)
        assert "sesame" not in str(refused.value)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_while_the_database_is_gone_requests_go_on_and_nothing_is_lost(postgres: Server, tmp_path: Path) -> None:
    """It is killed with all its processes, and comes back after `OUTAGE_S`: for 60 s in `make chaos`."""
    url = postgres.new_database()
    books = await Books.open(lambda: PostgresStore(url), tmp_path / "journal")

    class Ledger:
        """As a hop makes it: what the database raises is no error of ours."""

        async def ingest(self, holder: str, chunk: bytes) -> int:
            try:
                return await books.ingest(holder, chunk)
            except psycopg.Error:
                raise InternalError("down") from None

        async def lease(self, ask: object) -> object:
            try:
                return await books.lease(ask)
            except psycopg.Error:
                raise InternalError("down") from None

    shipper = Shipper(Journal(tmp_path / "journal", "one"), Ledger())
    budgets = Budgets("one", Fixed({monthly(): 10_000}), Ledger().lease)
    task = asyncio.create_task(shipper.run())
    now = int(time.time() * 1000)

    async def request(name: str) -> None:
        await reserve(budgets, "acme", name, 10)
        shipper.sink(opened(name, at=now))
        await asyncio.sleep(0)
        shipper.sink(closed(name, cost=10, at=now))
        budgets.settle(name, 10, 0)

    await books.registrar.do(Put(Org("acme", 0)), Actor("default"), {})
    await request("before")
    assert await shipper.drain(10)
    with receiving() as receiver:
        channel = AlertChannel(name="ops", url=receiver.url)
        books.watch.settings = AlertSettings(channels=(channel,), database_down_s=OUTAGE_S / 4)
        await books.watch.look()
        watching = asyncio.create_task(books.watch.run())
        postgres.kill()
        served, until_s = 0, time.monotonic() + OUTAGE_S
        while time.monotonic() < until_s or served < 10:
            with suppress(Overloaded):  # when what was leased is used
                await request(f"r{served}")
                served += 1
            await asyncio.sleep(0.02 if OUTAGE_S < 10 else 1.0)
        with pytest.raises((psycopg.Error, SwitchyardError)):
            await books.registrar.do(Put(Org("acme", 0, disabled=True)), Actor("default"), {})
        assert not await shipper.drain(1) and shipper.backlog_bytes > 0
        await until(lambda: receiver.got)
        await asyncio.to_thread(postgres.restart)
        assert await shipper.drain(30)
        await until(lambda: not books.watch._pending)
        alerts = await books.alerts(None, 9)
        watching.cancel()
        await asyncio.wait({watching})
    assert [told["kind"] for told in receiver.bodies()] == [alert["kind"] for alert in alerts] == ["database"]
    for _ in range(2):  # again, with records on their way
        await request(f"r{served}")
        served += 1
        await asyncio.to_thread(postgres.kill)
        await asyncio.to_thread(postgres.restart)
    assert await shipper.drain(30)
    (row,) = await books.usage(UsageQuery("acme", AT, now + 10**6))
    assert (row["requests"], row["cost_microusd"]) == (served + 1, 10 * (served + 1))
    assert not books.registrar.directory.get(Org, "acme").disabled
    await books.registrar.do(Put(Org("other", 0)), Actor("default"), {})
    verdict = await books.registrar.audit_verdict(None)
    assert (verdict.entries, verdict.broken_at) == (2, None)
    for number in range(1_100):
        try:
            await reserve(budgets, "acme", f"s{number}", 10)
        except SwitchyardError:
            break
        budgets.settle(f"s{number}", 10, 0)
    assert number == 1_000 - (served + 1)  # so many tens were left of 10,000
    task.cancel()
    await asyncio.wait({task})
    await shipper.close(0)
    await books.close()
