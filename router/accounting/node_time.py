"""What the nodes of local models cost, at work and without: kept apart from what requests are charged.

Admission counts replica-seconds since it started (`router.work.WorkMeter`). Ingresses read that off and tell the
ledger, each for itself: what is added is the difference to the last reading, so it counts once whoever reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import InvalidRequest
from router.accounting.directory_store import Database
from router.accounting.postgres import EVERY_ORG
from router.accounting.usage_sql import DAY_MS, HOUR_MS, MAX_ROWS, UsageQuery

GROUPS = ("model", "hour", "day")
_METER_KEPT_MS = 7 * DAY_MS
_MONEY = ("cost_microusd", "busy_microusd", "idle_microusd", "charged_microusd")
NODE_SUMS = ("replica_s", "busy_replica_s", *_MONEY)
"""Of each row of `node_rows`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Of the replicas of one model: seconds since `meter` was started, and what a replica costs an hour now; None:
    nobody has said that, and what has run until now never counts."""

    meter: str
    model: str
    replica_s: float
    busy_s: float
    microusd_per_hour: int | None


@dataclass(frozen=True, slots=True)
class NodeHour:
    """Of an hour, or of the day, or other step, that begins then."""

    at_unix_ms: int
    model: str
    microusd_per_hour: int
    replica_ms: int
    busy_ms: int


class NodeTimeStore:
    """The tables `node_hours` and `node_meters`: no organisation's. `hours` belongs to the thread that reads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, readings: Sequence[Reading], now_unix_ms: int) -> None:
        """Add what was counted since the last reading to the hour that is now. Whatever comes twice, or late, adds
        nothing."""
        with self._database.transaction() as writer:
            for reading in readings:
                self._take(writer.execute, reading, now_unix_ms)
            writer.execute("DELETE FROM node_meters WHERE at_unix_ms < ?", (now_unix_ms - _METER_KEPT_MS,))

    def _take(self, execute: Callable[..., Any], reading: Reading, now_unix_ms: int) -> None:
        key, seen = (reading.meter, reading.model), (round(reading.replica_s * 1000), round(reading.busy_s * 1000))
        which = "WHERE meter = ? AND model = ?"
        *last, read_unix_ms = execute(
            f"SELECT replica_ms, busy_ms, at_unix_ms FROM node_meters {which}", key
        ).fetchone() or (0, 0, now_unix_ms)
        if seen[0] <= last[0]:
            if now_unix_ms - read_unix_ms > DAY_MS:  # a model that sleeps for weeks is not to be counted anew then
                execute(f"UPDATE node_meters SET at_unix_ms = ? {which}", (now_unix_ms, *key))
            return
        added = (seen[0] - last[0], min(seen[0] - last[0], max(0, seen[1] - last[1])))
        execute(
            "INSERT INTO node_meters (meter, model, at_unix_ms, replica_ms, busy_ms) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (meter, model) DO UPDATE SET at_unix_ms = excluded.at_unix_ms, "
            "replica_ms = excluded.replica_ms, busy_ms = excluded.busy_ms",
            (*key, now_unix_ms, *seen),
        )
        if reading.microusd_per_hour is None:
            return
        execute(
            "INSERT INTO node_hours (hour_unix_ms, model, microusd_per_hour, replica_ms, busy_ms) "
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT (hour_unix_ms, model, microusd_per_hour) DO UPDATE SET "
            "replica_ms = node_hours.replica_ms + excluded.replica_ms, busy_ms = node_hours.busy_ms + excluded.busy_ms",
            (now_unix_ms // HOUR_MS * HOUR_MS, reading.model, reading.microusd_per_hour, *added),
        )

    def hours(self, since_unix_ms: int, until_unix_ms: int, step_ms: int = HOUR_MS) -> list[NodeHour]:
        """Of the hours that begin in [since, until), summed by `step_ms`, oldest first; up to `MAX_ROWS` and one."""
        at = f"hour_unix_ms / {step_ms} * {step_ms}"
        sums = (f"CAST(SUM({name}) AS BIGINT)" for name in ("replica_ms", "busy_ms"))  # PostgreSQL's is decimal
        with self._database.reading(EVERY_ORG) as reader:
            rows = reader.execute(
                f"SELECT {at}, model, microusd_per_hour, {', '.join(sums)} FROM node_hours "
                "WHERE hour_unix_ms >= ? AND hour_unix_ms < ? GROUP BY 1, 2, 3 ORDER BY 1, 2, 3 LIMIT ?",
                (since_unix_ms, until_unix_ms, MAX_ROWS + 1),
            ).fetchall()
        return [NodeHour(*row) for row in rows]


def step_of(query: UsageQuery) -> int:
    """By which the time of replicas is to be summed for `node_rows`, in ms."""
    return HOUR_MS if "hour" in query.group_by else DAY_MS


def whole_hours(query: UsageQuery) -> UsageQuery:
    """Of the requests of all organisations in the hours that `query` touches, grouped as `node_rows` needs them. Raises
    `InvalidRequest` for groups that nodes do not have."""
    if unknown := [name for name in query.group_by if name not in GROUPS]:
        raise InvalidRequest(f"Nodes are grouped by {', '.join(GROUPS)}, not by '{unknown[0]}'.", "group_by")
    if query.latency:
        raise InvalidRequest("Nodes have no percentiles; leave out 'latency'.", "latency")
    groups = ("model", *(name for name in query.group_by if name != "model"))
    since = query.since_unix_ms // HOUR_MS * HOUR_MS
    return UsageQuery(None, since, -(-query.until_unix_ms // HOUR_MS) * HOUR_MS, groups)


def node_rows(
    hours: Sequence[NodeHour], charged: Sequence[Mapping[str, Any]], query: UsageQuery
) -> list[dict[str, Any]]:
    """A row for each model (and hour, or day) of which there is a replica's time. charged: the usage of the same time
    and groups. Raises `InvalidRequest` where there are more rows of one of the two than are read."""
    if max(len(charged), len(hours)) > MAX_ROWS:
        raise InvalidRequest(
            f"This takes more than {MAX_ROWS} rows; ask for a shorter time or for fewer groups.", "group_by"
        )
    steps = {"hour": HOUR_MS, "day": DAY_MS}
    found: dict[tuple[Any, ...], list[int]] = {}
    for each in hours:
        at = (each.at_unix_ms // steps[name] * steps[name] for name in query.group_by if name in steps)
        cell = found.setdefault((each.model, *at), [0, 0, 0, 0])
        price = each.microusd_per_hour
        for number, more in enumerate((each.replica_ms, each.busy_ms, each.replica_ms * price, each.busy_ms * price)):
            cell[number] += more
    paid = {tuple(row[name] for name in query.group_by): row["cost_microusd"] for row in charged}
    rows = []
    for key, (replica_ms, busy_ms, cost, busy) in sorted(found.items()):
        whole, at_work = round(cost / HOUR_MS), round(busy / HOUR_MS)
        rows.append(
            {
                **dict(zip(query.group_by, key, strict=True)),
                "replica_s": replica_ms / 1000,
                "busy_replica_s": busy_ms / 1000,
                **dict(zip(_MONEY, (whole, at_work, whole - at_work, paid.get(key, 0)), strict=True)),
            }
        )
    return rows
