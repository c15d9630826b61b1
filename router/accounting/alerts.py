"""Alerts: what is worth telling somebody, told once, and how far each channel is with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from router.accounting.analyst import Outlook
from router.accounting.anomalies import Anomaly
from router.accounting.balances import Standing
from router.accounting.directory_store import Database
from router.accounting.limits import Limit, iso, period_of
from router.accounting.postgres import EVERY_ORG

AlertKind = Literal["budget", "forecast", "anomaly", "database", "test"]
MAX_PAGE = 200
ALERT_DAYS = 400
"""For so long they are kept."""


@dataclass(frozen=True, slots=True)
class Alert:
    """key: what it is about; of an org there is one alert with a key. data: plain JSON values, without a prompt."""

    org: str
    key: str
    at_unix_ms: int
    kind: AlertKind
    severity: Literal["info", "warning", "critical"]
    title: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """As the generic webhook sends it and `GET /v1/alerts` shows it."""
        shown = asdict(self)
        del shown["at_unix_ms"]
        return {"object": "alert", **shown, "at": iso(self.at_unix_ms)}


@dataclass(slots=True)
class Delivery:
    """To one channel. error: why the last attempt failed, in a word."""

    state: Literal["due", "sent", "failed"] = "due"
    attempts: int = 0
    due_unix_ms: int = 0
    error: str = ""


@dataclass(slots=True)
class Told:
    """An alert and its way to each channel, by name."""

    alert: Alert
    deliveries: dict[str, Delivery]

    @property
    def due_unix_ms(self) -> int | None:
        return min((each.due_unix_ms for each in self.deliveries.values() if each.state == "due"), default=None)


class AlertStore:
    """The table `alerts`. `page` belongs to the thread that reads, the rest to the one that writes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, told: Told) -> bool:
        """False: it was told before."""
        alert = told.alert
        row = (alert.org, alert.key, alert.at_unix_ms, json.dumps(asdict(alert)), _written(told), told.due_unix_ms)
        with self._database.transaction() as writer:
            done = writer.execute(
                "INSERT INTO alerts (org, alert_key, at_unix_ms, body, deliveries, due_unix_ms) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (org, alert_key) DO NOTHING",
                row,
            )
        return bool(done.rowcount)

    def save(self, told: Told) -> None:
        with self._database.transaction() as writer:
            writer.execute(
                "UPDATE alerts SET deliveries = ?, due_unix_ms = ? WHERE org = ? AND alert_key = ?",
                (_written(told), told.due_unix_ms, told.alert.org, told.alert.key),
            )

    def due(self, limit: int) -> list[Told]:
        """Those that are still to be delivered, the oldest first."""
        rows = self._database.writer.execute(
            "SELECT body, deliveries FROM alerts WHERE due_unix_ms IS NOT NULL ORDER BY at_unix_ms LIMIT ?", (limit,)
        )
        return [_read(*row) for row in rows]

    def page(self, org: str | None, limit: int) -> list[dict[str, Any]]:
        """The newest first; `org` None: of all."""
        where, values = ("", ()) if org is None else ("WHERE org = ? ", (org,))
        with self._database.reading(EVERY_ORG if org is None else org) as reader:
            rows = reader.execute(
                f"SELECT body, deliveries FROM alerts {where}ORDER BY at_unix_ms DESC LIMIT ?", (*values, limit)
            ).fetchall()
        return [
            {**told.alert.body(), "deliveries": {name: asdict(each) for name, each in told.deliveries.items()}}
            for told in (_read(*row) for row in rows)
        ]

    def drop(self, before_unix_ms: int) -> int:
        with self._database.transaction() as writer:
            removed: int = writer.execute("DELETE FROM alerts WHERE at_unix_ms < ?", (before_unix_ms,)).rowcount
        return removed


def _written(told: Told) -> str:
    return json.dumps({name: asdict(each) for name, each in told.deliveries.items()})


def _read(body: str, deliveries: str) -> Told:
    return Told(Alert(**json.loads(body)), {name: Delivery(**each) for name, each in json.loads(deliveries).items()})


# ---- what is worth it ----------------------------------------------------------------------------------------------


def budget_alerts(limit: Limit, standing: Standing, thresholds: Sequence[float], now_unix_ms: int) -> Iterator[Alert]:
    """For the highest threshold that is passed in the period that is now."""
    account, amount = limit.account, limit.amount
    share = standing.used / amount if amount else 1.0
    passed = max((each for each in thresholds if share >= each), default=None)
    if passed is None:
        return
    period = period_of(account.span, now_unix_ms)
    used, of = f"{standing.used / 1e6:.2f}", f"{amount / 1e6:.2f} USD"
    ends = "" if standing.resets_at_unix_ms is None else f" It resets at {iso(standing.resets_at_unix_ms)}."
    after = " Further requests are refused." if passed >= 1 and limit.hard else ""
    yield Alert(
        account.org,
        f"budget {account.subject()} {account.span} {period} {amount} {passed:g}",
        now_unix_ms,
        "budget",
        "critical" if passed >= 1 else "warning",
        f"{passed:.0%} of a budget is used: {account.subject()}",
        f"{used} of {of} per {account.span} are spent ({period}).{after}{ends}",
        {**asdict(account), "used": standing.used, "limit": amount, "threshold": passed, "hard": limit.hard},
    )


def forecast_alert(limit: Limit, outlook: Outlook, now_unix_ms: int) -> Alert | None:
    """Where a month's budget is not used up yet, and is expected not to last."""
    account, ahead = limit.account, outlook.ahead
    if ahead is None or outlook.spent_microusd >= limit.amount:
        return None
    expected = outlook.spent_microusd + ahead.expected
    if expected <= limit.amount:
        return None
    left, day = limit.amount - outlook.spent_microusd, 0
    while day < len(ahead.daily) and left >= ahead.daily[day]:
        left -= round(ahead.daily[day])
        day += 1
    when = iso(now_unix_ms + day * 86_400_000)[:10]
    low, high = ((outlook.spent_microusd + each) / 1e6 for each in (ahead.low, ahead.high))
    return Alert(
        account.org,
        f"forecast {account.subject()} {outlook.month} {limit.amount}",
        now_unix_ms,
        "forecast",
        "warning",
        f"A budget will not last: {account.subject()}",
        f"{expected / 1e6:.2f} USD ({low:.2f} to {high:.2f}) are expected in {outlook.month}, of a budget of "
        f"{limit.amount / 1e6:.2f} USD; it is used up about {when}.",
        {
            **asdict(account),
            "limit": limit.amount,
            "expected_microusd": round(expected),
            "low_microusd": round(low * 1e6),
            "high_microusd": round(high * 1e6),
            "used_up_on": when,
        },
    )


def anomaly_alert(org: str, anomaly: Anomaly, now_unix_ms: int) -> Alert:
    return Alert(
        org,
        f"anomaly {anomaly.measure} {anomaly.at_unix_ms}",
        now_unix_ms,
        "anomaly",
        "warning",
        f"Unusual {anomaly.measure.removesuffix('_microusd').replace('_', ' ')} of organisation '{org}'",
        f"From {iso(anomaly.at_unix_ms)}: {anomaly.reason}",
        asdict(anomaly),
    )


def database_alert(since_unix_ms: int, now_unix_ms: int) -> Alert:
    return Alert(
        "default",
        f"database {since_unix_ms // 60_000}",
        now_unix_ms,
        "database",
        "critical",
        "The ledger's database does not answer",
        f"Since {iso(since_unix_ms)}. Requests go on inside the leases that the ingresses hold, for ten minutes at "
        "most, and records wait in the journals; nothing is lost. Bring the database back.",
        {"since": iso(since_unix_ms)},
    )
