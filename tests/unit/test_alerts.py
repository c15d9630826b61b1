"""Alerts from the books to real servers on loopback: once, signed, again until they are taken, and written down."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.accounting import books as books_module
from router.accounting import watch as watch_module
from router.accounting.alerts import Alert, Delivery, Told, budget_alerts, forecast_alert
from router.accounting.analyst import Outlook
from router.accounting.balances import LeaseAsk, Standing
from router.accounting.books import Books
from router.accounting.directory import Org, Policy
from router.accounting.forecast import Forecast
from router.accounting.limits import Account, Limit, month_of
from router.accounting.registrar import Put
from router.accounting.store import SQLiteStore
from router.accounting.watch import Watch
from router.events import Actor, as_json
from router.settings import AlertSettings
from tests.contract.test_stores import closed
from tests.unit.test_admin_api import Cluster, cluster
from tests.unit.test_alert_channels import ALERT, SECRETS, channel, receiving

__all__ = ["cluster"]


# ---- rules ---------------------------------------------------------------------------------------------------------


def test_the_highest_threshold_that_is_passed_is_told() -> None:
    limit = Limit(Account("acme", "microusd", "month"), 1_000_000)
    now = 1_780_000_000_000

    def told(used: int) -> list[Alert]:
        return list(budget_alerts(limit, Standing(used, 0, 0, now), (0.5, 0.8, 1.0), now))

    assert told(499_999) == []
    (half,), (most,), (all_,) = told(500_000), told(900_000), told(1_000_000)
    assert (half.severity, most.data["threshold"], all_.severity) == ("warning", 0.8, "critical")
    assert len({half.key, most.key, all_.key}) == 3 and told(950_000)[0].key == most.key
    assert "Further requests are refused" in all_.text and "0.90 of 1.00 USD" in most.text


def test_a_budget_that_will_not_last_is_told_with_the_day() -> None:
    limit = Limit(Account("acme", "microusd", "month"), 1_000)
    ahead = Forecast(900.0, 700.0, 1_100.0, (300.0, 300.0, 300.0), 30)
    now = 1_780_000_000_000
    alert = forecast_alert(limit, Outlook("2026-05", 400, 3, ahead), now)
    assert alert is not None and alert.data["used_up_on"] == "2026-05-30" and alert.data["expected_microusd"] == 1_300
    assert forecast_alert(limit, Outlook("2026-05", 50, 3, ahead), now) is None
    assert forecast_alert(limit, Outlook("2026-05", 1_000, 3, ahead), now) is None  # that is another alert
    assert forecast_alert(limit, Outlook("2026-05", 400, 3, None), now) is None


# ---- the look-out --------------------------------------------------------------------------------------------------


@pytest.fixture
async def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Books]:
    monkeypatch.setattr(watch_module, "PAUSES_S", (0, 0, 0))
    opened = await open_books(tmp_path)
    yield opened
    await opened.close()


async def open_books(folder: Path) -> Books:
    return await Books.open(lambda: SQLiteStore(folder / "l"), folder / "journal", SECRETS)


async def spend(books: Books, cost: int, at: int | None = None) -> None:
    now = int(time.time() * 1000) if at is None else at
    record = closed(f"r{time.time_ns()}", "acme", cost, now, attempts=())
    await books._take("h", [json.loads(json.dumps(as_json(record)))])


def settings(url: str, **changes: Any) -> AlertSettings:
    return AlertSettings(channels=(channel(url),), every_s=1, **changes)


async def looked(watch: Watch) -> None:
    watch._looked_s.clear()
    await watch.look()
    await watch.deliver()


async def test_a_budget_is_told_once_per_threshold_also_after_a_restart(books: Books, tmp_path: Path) -> None:
    with receiving() as receiver:
        await books.registrar.do(Put(Org("acme", 0)), Actor("default"), {})
        await books.registrar.do(Put(Policy("acme", "microusd", "month", 1_000, 0)), Actor("default"), {})
        books.watch.settings = settings(receiver.url)
        for cost in (400, 150, 0, 300, 200, 10):
            await spend(books, cost)
            await looked(books.watch)
        again = Watch(books, books._store.alerts, books._write, SECRETS)
        again.settings = settings(receiver.url)
        await looked(again)
    assert [told["data"]["threshold"] for told in receiver.bodies()] == [0.5, 0.8, 1.0]
    page = await books.alerts("acme", 10)
    assert [each["deliveries"]["ops"]["state"] for each in page] == ["sent"] * 3
    assert await books.alerts("globex", 10) == [] and len(await books.alerts(None, 10)) == 3
    assert books.watch.counts == {"alerts_sent": 3, "alerts_failed": 0}


async def test_what_is_not_taken_is_tried_again_and_given_up_in_the_end(books: Books, tmp_path: Path) -> None:
    with receiving(500, 503, 200, 404, 500, 500, 500, 500) as receiver:
        books.watch.settings = settings(receiver.url)
        for key, attempts, state in (("a", 3, "sent"), ("b", 1, "failed"), ("c", 4, "failed")):
            assert await books.watch.tell(replace(ALERT, key=key))
            assert not await books.watch.tell(replace(ALERT, key=key))
            for _ in range(5):
                await books.watch.deliver()
            (found,) = [each for each in await books.alerts("acme", 9) if each["key"] == key]
            assert (found["deliveries"]["ops"]["attempts"], found["deliveries"]["ops"]["state"]) == (attempts, state)
    assert books.watch._pending == {} and books.watch.counts == {"alerts_sent": 1, "alerts_failed": 2}


async def test_what_was_on_its_way_goes_on_after_a_restart(books: Books, tmp_path: Path) -> None:
    books.watch.settings = settings("http://127.0.0.1:1/")
    await books.watch.tell(ALERT)
    await books.watch.deliver()
    with receiving() as receiver:
        again = Watch(books, books._store.alerts, books._write, SECRETS)
        again.settings = settings(receiver.url)
        await looked(again)
    assert len(receiver.got) == 1
    (found,) = await books.alerts("acme", 9)
    assert (found["deliveries"]["ops"]["state"], found["deliveries"]["ops"]["attempts"]) == ("sent", 2)


async def test_each_channel_has_what_it_asked_for(books: Books) -> None:
    with receiving() as receiver:
        mine = channel(receiver.url, orgs=("acme",), kinds=("anomaly",))
        books.watch.settings = AlertSettings(channels=(mine,))
        assert not await books.watch.tell(ALERT)
        assert not await books.watch.tell(replace(ALERT, org="globex", kind="anomaly"))
        assert await books.watch.tell(replace(ALERT, kind="anomaly"))


async def test_anomalies_and_forecasts_are_looked_for(books: Books) -> None:
    now, hour, day = int(time.time() * 1000), 3_600_000, 86_400_000
    this_hour = now // hour * hour
    for number in range(24 * 20):
        await spend(books, 10_000, this_hour - number * hour - 3 * hour)
    for _ in range(3):
        await spend(books, 2_000_000, this_hour - hour // 2)
    await books.registrar.do(Put(Org("acme", 0)), Actor("default"), {})
    amount = 20_000_000  # of which some is spent; the rest does not last when days cost as much as the last hour
    await books.registrar.do(Put(Policy("acme", "microusd", "month", amount, 0)), Actor("default"), {})
    with receiving() as receiver:
        books.watch.settings = settings(receiver.url, budget_thresholds=())
        await looked(books.watch)
        await looked(books.watch)
    kinds = [told["kind"] for told in receiver.bodies()]
    assert kinds.count("anomaly") == 1 and now - day < now
    (anomaly,) = [told for told in receiver.bodies() if told["kind"] == "anomaly"]
    assert anomaly["data"]["measure"] == "cost_microusd" and "USD in this hour" in anomaly["text"]


async def test_a_database_that_is_gone_is_told_and_written_down_when_it_is_back(books: Books) -> None:
    with receiving() as receiver:
        watch = books.watch
        watch.settings = settings(receiver.url, database_down_s=0)
        await looked(watch)
        real, gone = watch._write, True

        async def write(work: Any) -> Any:
            if gone:
                raise OSError("the database is gone")
            return await real(work)

        watch._write = write
        for _ in range(3):
            await looked(watch)
        assert [told["kind"] for told in receiver.bodies()] == ["database"]
        assert await books.alerts(None, 9) == []
        gone = False
        await looked(watch)
        await looked(watch)
    (found,) = await books.alerts(None, 9)
    assert found["kind"] == "database" and found["deliveries"]["ops"]["state"] == "sent" and len(receiver.got) == 1


async def test_the_door_shows_them_and_only_the_operator_sends_a_test(cluster: Cluster) -> None:
    one = cluster.ingresses[0]
    key = (await one.done("POST", "/v1/admin/keys", org="acme", scopes=["usage", "admin"]))["key"]
    assert (await one.ask("POST", "/v1/alerts/test")).status_code == 400
    with receiving() as receiver:
        cluster.books.watch.settings = settings(receiver.url)
        assert (await one.ask("POST", "/v1/alerts/test")).status_code == 202
        await cluster.books.watch.tell(ALERT)
        await cluster.books.watch.deliver()
    assert {told["kind"] for told in receiver.bodies()} == {"test", "budget"}
    assert [each["kind"] for each in (await one.done("GET", "/v1/alerts", key))["data"]] == ["budget"]
    assert len((await one.done("GET", "/v1/alerts"))["data"]) == 2
    assert (await one.ask("POST", "/v1/alerts/test", key)).status_code == 403


async def test_a_tenant_sees_its_own_alerts_and_no_channel_and_so_does_a_team_of_the_operators(
    cluster: Cluster,
) -> None:
    one = cluster.ingresses[0]
    await one.done("PUT", "/v1/admin/orgs/default/teams/web", disabled=False)
    of_team = (await one.done("POST", "/v1/admin/keys", org="default", team="web", scopes=["usage", "audit"]))["key"]
    of_acme = (await one.done("POST", "/v1/admin/keys", org="acme", scopes=["usage"]))["key"]
    cluster.books._store.alerts.add(Told(ALERT, {"ops": Delivery(error="SWITCHYARD_ALERT_URL_CHAT is not set")}))
    assert (await one.done("GET", "/v1/alerts", of_team))["data"] == []
    assert {each["org"] for each in (await one.done("GET", "/v1/audit", of_team))["data"]} == {"default"}
    assert {each["org"] for each in (await one.done("GET", "/v1/audit"))["data"]} > {"default"}
    (shown,) = (await one.done("GET", "/v1/alerts", of_acme))["data"]
    assert shown["kind"] == "budget" and "deliveries" not in shown
    assert "ops" in (await one.done("GET", "/v1/alerts"))["data"][0]["deliveries"]


async def test_a_budget_that_nobody_asks_for_any_more_is_not_looked_at(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = Account("acme", "microusd", "month")
    await books.lease(LeaseAsk(account, month_of(int(time.time() * 1000)), "h", 1, 100, 0, 1))
    await books.sweep()
    assert [limit.account for limit in books.watch.limits()] == [account]
    monkeypatch.setattr(books_module, "ASKED_FOR_S", 0.0)
    await books.sweep()
    assert books.watch.limits() == []
