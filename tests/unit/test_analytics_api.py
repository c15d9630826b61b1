"""Usage and what follows from it, through the door and the command line, over a ledger in this process."""

from __future__ import annotations

import asyncio
import json
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from pyarrow import parquet

from cluster import usage_command
from cluster.checks import StartError
from cluster.cli import _parser
from deployments.batcher import Meter
from deployments.upkeep import readings_of
from models.errors import InvalidRequest
from router.accounting.feedback import Feedback
from router.accounting.node_time import Reading, node_rows
from router.accounting.prices import PriceBook
from router.accounting.usage_sql import MAX_ROWS, UsageQuery
from router.events import as_json
from tests.contract.test_stores import closed
from tests.unit.test_admin_api import OPERATOR, Cluster, cluster

__all__ = ["cluster"]

HOUR, DAY = 3_600_000, 86_400_000


async def fill(cluster: Cluster) -> str:
    """Thirty days of acme's requests, a few of globex's, and an expensive hour. Returns a key of acme's."""
    now = int(time.time() * 1000)
    made = await cluster.ingresses[0].done("POST", "/v1/admin/keys", org="acme", scopes=["usage"])
    records = []
    for hour in range(30 * 24):
        at = now - hour * HOUR - 1
        spike = 3 * HOUR <= now - at < 4 * HOUR + HOUR // 2
        changes = {"model": "medium-1", "provider": "p", "user": f"u{hour % 3}", "key_id": "loud" if spike else "key"}
        changes |= {"attempts": (), "ttft_ms": 10.0 + hour % 5, "total_ms": 100.0}
        records.append(closed(f"r{hour}", "acme", 3_000_000 if spike else 1_000 + hour % 7, at, **changes))
    records += [closed(f"g{n}", "globex", 7, now - n * DAY) for n in range(3)]
    cluster.books._store.ingest("h", [json.loads(json.dumps(as_json(record))) for record in records])
    return str(made["key"])


async def test_usage_is_summed_with_percentiles_and_as_csv(cluster: Cluster) -> None:
    one, key = cluster.ingresses[0], await fill(cluster)
    told = await one.done("GET", "/v1/usage?group_by=model,day&latency=true", key)
    assert len(told["data"]) == 30 and 10.0 * 0.98 <= told["total"]["ttft_ms"]["p50"] <= 14.0 * 1.02
    assert told["data"][0]["total_ms"]["p99"] == pytest.approx(100, rel=0.02)
    by_key = await one.done("GET", "/v1/usage?group_by=key,hour", key)
    assert sum(row["requests"] for row in by_key["data"]) == told["total"]["requests"] == by_key["total"]["requests"]
    answer = await one.ask("GET", "/v1/usage?group_by=user&format=csv", key)
    assert answer.headers["content-type"].startswith("text/csv") and len(answer.text.splitlines()) == 4


async def test_the_operator_reads_all_organisations_and_nobody_else_another(cluster: Cluster) -> None:
    one, key = cluster.ingresses[0], await fill(cluster)
    everyone = await one.done("GET", "/v1/usage?org=*&group_by=org")
    assert [row["org"] for row in everyone["data"]] == ["acme", "globex"]
    assert (await one.done("GET", "/v1/usage?org=globex"))["total"]["cost_microusd"] == 21
    assert (await one.done("GET", "/v1/usage"))["total"]["requests"] == 0
    for path in ("", "/forecast", "/anomalies", "/savings", "/recommendations"):
        for org in ("globex", "*", "default"):
            answer = await one.ask("GET", f"/v1/usage{path}?org={org}", key)
            assert answer.status_code == 403, path
        assert (await one.ask("GET", f"/v1/usage{path}?org=acme", key)).status_code == 200


async def test_what_nodes_cost_is_told_to_the_operator_beside_what_was_charged(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, key = cluster.ingresses[0], await fill(cluster)
    seconds = {"SimulatedModel:medium-1": (3_000.0, 600.0), "CloudModel:far": (9.0, 9.0)}
    readings = readings_of(one.pipeline, Meter("a", seconds))
    assert [(each.model, each.microusd_per_hour) for each in readings] == [("medium-1", 36_000_000)]
    unpriced = [each.model_copy(update={"node_price": None}) for each in one.pipeline.entries.values()]
    with monkeypatch.context() as patch:
        patch.setattr(one.pipeline, "prices", PriceBook(unpriced, {}, {}))
        assert readings_of(one.pipeline, Meter("a", seconds)) == [replace(readings[0], microusd_per_hour=None)]
    for _ in range(2):  # each ingress reads the same meter
        await cluster.books.take_node_time(readings)
    await cluster.books.take_node_time([replace(readings[0], replica_s=3_600.0, busy_s=800.0)])
    await cluster.books.take_node_time([replace(readings[0], meter="b", replica_s=3_600.0, busy_s=100.0)])
    told = await one.done("GET", "/v1/usage/nodes?since=2026-01-01")
    charged = (await one.done("GET", "/v1/usage?org=acme&group_by=model&since=2026-01-01"))["data"][0]["cost_microusd"]
    (row,) = told["data"]
    assert row == {
        **{"model": "medium-1", "replica_s": 7_200.0, "busy_replica_s": 900.0, "charged_microusd": charged},
        **{"cost_microusd": 72_000_000, "busy_microusd": 9_000_000, "idle_microusd": 63_000_000},
    }
    assert told["total"] == {name: value for name, value in row.items() if name != "model"}
    by_hour = await one.done("GET", "/v1/usage/nodes?group_by=hour")
    assert by_hour["group_by"] == ["model", "hour"] and sum(each["replica_s"] for each in by_hour["data"]) == 7_200.0
    assert (await one.ask("GET", "/v1/usage/nodes", key)).status_code == 403
    with pytest.raises(InvalidRequest, match="shorter time"):  # a row that was not read would count as nothing charged
        node_rows([], [{"model": "m", "cost_microusd": 1}] * (MAX_ROWS + 1), UsageQuery(None, 0, DAY, ("model",)))
    for wrong, param in (("group_by=team", "group_by"), ("latency=true", "latency"), ("org=acme", "org")):
        answer = await one.ask("GET", f"/v1/usage/nodes?{wrong}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_what_is_to_come_and_what_was_unlike_the_rest(cluster: Cluster) -> None:
    one, key = cluster.ingresses[0], await fill(cluster)
    ahead = await one.done("GET", "/v1/usage/forecast?days=7", key)
    assert ahead["low_microusd"] <= ahead["expected_microusd"] <= ahead["high_microusd"]
    assert len(ahead["daily_microusd"]) == 7 and 25 <= ahead["basis_days"] <= 30
    month = ahead["this_month"]
    assert month["expected_microusd"] >= month["spent_microusd"] > 0
    found = (await one.done("GET", "/v1/usage/anomalies", key))["data"]
    costly = [each for each in found if each["measure"] == "cost_microusd"]
    assert costly and all(each["by"] == {"key": "loud"} and each["share"] > 0.9 for each in costly)
    assert "key 'loud'" in costly[0]["reason"]
    young = await one.done("GET", "/v1/usage/forecast?org=globex")
    assert "fewer than 7 whole days" in young["reason"] and "expected_microusd" not in young["this_month"]


async def test_what_was_and_what_could_be_saved(cluster: Cluster) -> None:
    one, key = cluster.ingresses[0], await fill(cluster)
    told = await one.done("GET", "/v1/usage/savings", key)
    assert told["routing"]["cost_microusd"] > 0 and told["cache"]["hits"] == 0
    judged = Feedback("acme", "r1", "key", 1, "medium-1", "", "", 1.0)
    await cluster.books.keep_feedback(judged)
    advice = (await one.done("GET", "/v1/usage/recommendations", key))["data"]
    assert all(each["saves_microusd"] > 0 and each["reason"] for each in advice)


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/forecast?days=0", "days"),
        ("/forecast?day=3", "day"),
        ("/anomalies?step=week", "step"),
        ("/anomalies?since=2001-01-01", "since"),
        ("?group_by=model,team&latency=true", "group_by"),
        ("/savings?format=pdf", "format"),
    ],
)
async def test_what_is_wrong_is_named(cluster: Cluster, path: str, param: str) -> None:
    answer = await cluster.ingresses[0].ask("GET", f"/v1/usage{path}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_the_commands_say_it_in_a_shell(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, _ = cluster.ingresses[0], await fill(cluster)
    loop = asyncio.get_running_loop()

    class Wire(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            passed = one.client.request(request.method, request.url, headers=request.headers)
            answer = asyncio.run_coroutine_threadsafe(passed, loop).result(10)
            return httpx.Response(answer.status_code, content=answer.content)

    real = httpx.Client
    monkeypatch.setattr(usage_command.httpx, "Client", lambda **given: real(**given, transport=Wire()))

    async def switchyard(line: str) -> str:
        arguments: Namespace = _parser().parse_args(line.split())
        return await asyncio.to_thread(usage_command.run, arguments, "http://door", OPERATOR)

    table = await switchyard("usage show --org * --by org --latency")
    assert table.splitlines()[0].split()[:2] == ["org", "requests"] and "globex" in table and "total" in table
    assert "days from tomorrow" in await switchyard("usage forecast --org acme")
    assert "key 'loud'" in await switchyard("usage anomalies --org acme")
    assert "always-dearest" in await switchyard("usage savings --org acme")
    assert await switchyard("usage recommend --org globex") == "none"
    await cluster.books.take_node_time([Reading("a", "medium-1", 3_600.0, 900.0, 500_000)])
    nodes = (await switchyard("usage nodes --by model,day")).splitlines()
    assert nodes[1].split()[0] == "medium-1" and nodes[1].split()[2:5] == ["1.00", "25%", "0.50"]
    assert nodes[2].split()[:3] == ["total", "1.00", "25%"]
    out = tmp_path / "u.parquet"
    assert "30 rows written" in await switchyard(f"usage show --org acme --by day --latency --out {out}")
    assert "ttft_p95_ms" in parquet.read_table(out).column_names
    with pytest.raises(StartError, match="must be a time"):
        await switchyard("usage show --since yesterday")
