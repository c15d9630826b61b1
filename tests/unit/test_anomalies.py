from __future__ import annotations

import random
from typing import Any

from router.accounting.anomalies import explained, find, unusual

HOUR, DAY = 3_600_000, 86_400_000
BEGIN = 20_000 * DAY


def hours(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Busy by day, quiet by night."""
    chance, rows = random.Random(seed), []
    for hour in range(count):
        requests = max(0, round(chance.gauss(200 if 8 <= hour % 24 < 20 else 20, 10)))
        times = {"p95": chance.gauss(900, 60)}
        row = {"requests": requests, "errors": chance.randrange(3), "cost_microusd": requests * 1000, "total_ms": times}
        rows.append({"hour": BEGIN + hour * HOUR, **row})
    return rows


def test_ordinary_hours_raise_nothing() -> None:
    for seed in range(20):
        assert find(hours(24 * 14, seed), "hour", BEGIN + 7 * DAY, BEGIN + 14 * DAY, BEGIN) == []


def test_what_is_out_of_the_ordinary_is_found_with_its_measure() -> None:
    rows = hours(24 * 14)
    at = BEGIN + 13 * DAY + 3 * HOUR
    row = next(row for row in rows if row["hour"] == at)
    row |= {"cost_microusd": 2_000_000, "errors": 40, "total_ms": {"p95": 9_000.0}, "requests": 60}
    found = {each.measure: each for each in find(rows, "hour", BEGIN + 12 * DAY, BEGIN + 14 * DAY, BEGIN)}
    assert {each.at_unix_ms for each in found.values()} == {at}
    assert set(found) >= {"cost_microusd", "errors", "total_p95_ms"}
    assert found["cost_microusd"].value == 2_000_000 and found["cost_microusd"].score > 6


def test_a_first_request_after_quiet_days_is_no_anomaly_and_a_flood_is() -> None:
    quiet = [{"hour": BEGIN, "requests": 1, "errors": 0, "cost_microusd": 5, "total_ms": None}]
    row = {"hour": BEGIN + 5 * DAY, "errors": 0, "cost_microusd": 900, "total_ms": None}
    assert find([*quiet, {**row, "requests": 3}], "hour", BEGIN + 4 * DAY, BEGIN + 6 * DAY, BEGIN) == []
    (flood,) = find([*quiet, {**row, "requests": 300}], "hour", BEGIN + 4 * DAY, BEGIN + 6 * DAY, BEGIN)
    assert (flood.measure, flood.usual) == ("requests", 0.0)


def test_nothing_is_usual_before_there_is_enough() -> None:
    assert unusual([1.0] * 4, 1e9, 10) is None
    assert unusual([100.0] * 9, 119.0, 10) is None  # not even where nothing ever changed
    assert unusual([100.0] * 9, 300.0, 10) == (100.0, 20.0)


def test_the_reason_names_who_it_was() -> None:
    rows = hours(24 * 10)
    rows[-1] |= {"cost_microusd": 9_000_000}
    (deviation,) = find(rows, "hour", BEGIN + 9 * DAY, BEGIN + 10 * DAY, BEGIN)
    now = {"key": [{"key": "k1", "cost_microusd": 8_900_000}, {"key": "k2", "cost_microusd": 100_000}]}
    now["model"] = [{"model": "a", "cost_microusd": 4_600_000}, {"model": "b", "cost_microusd": 4_400_000}]
    before = {"key": [{"key": "k2", "cost_microusd": 2_000_000}], "model": []}
    told = explained(deviation, "hour", now, before, 100.0)
    assert told.by == {"key": "k1"} and told.share > 0.95
    assert "9.00 USD in this hour" in told.reason and "key 'k1'" in told.reason
    alone = explained(deviation, "hour", {}, {}, 100.0)
    assert alone.by == {} and alone.reason.endswith("USD).")
