"""What can be read from usage besides sums: what is to come, and what was unlike the rest.

Synchronous; it belongs to the thread that reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from router.accounting.anomalies import STEP_MS, Anomaly, explained, find
from router.accounting.forecast import MOST_DAYS, Forecast, forecast
from router.accounting.limits import month_of, period_span_unix_ms
from router.accounting.usage_sql import DAY_MS, UsageQuery

Read = Callable[[UsageQuery], list[dict[str, Any]]]
"""`Store.usage`."""

BEFORE_MS = 29 * DAY_MS
MOST_EXPLAINED = 10


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a month will have cost when it ends: `spent` until now and the rest of it, which `ahead` says; None where
    there are too few days yet. days: ahead, today's rest among them."""

    month: str
    spent_microusd: int
    days: int
    ahead: Forecast | None


class Analyst:
    def __init__(self, read: Read) -> None:
        self._read = read

    def outlook(self, org: str | None, now_unix_ms: int, groups: tuple[tuple[str, str], ...] = ()) -> Outlook:
        """Of the month that is now. groups: a dimension and its value, to look at that alone."""
        month = month_of(now_unix_ms)
        begin, end = period_span_unix_ms("month", month)
        today = now_unix_ms // DAY_MS * DAY_MS
        series = self._days(org, min(begin, today - MOST_DAYS * DAY_MS), today + DAY_MS, groups)
        spent = sum(int(cost) for day, cost in series.items() if day >= begin)
        days = ((end or 0) - today) // DAY_MS
        found = _ahead(series, today, days)
        return Outlook(month, spent, days, found and found.less(series.get(today, 0.0)))

    def forecast(self, org: str | None, days: int, now_unix_ms: int) -> Forecast | None:
        """Of the whole days from tomorrow on; None: too few days yet."""
        today = now_unix_ms // DAY_MS * DAY_MS
        series = self._days(org, today - MOST_DAYS * DAY_MS, today, ())
        return _ahead(series, today, days, skip=1)

    def anomalies(self, org: str | None, step: str, since_unix_ms: int, until_unix_ms: int) -> list[Anomaly]:
        """In the hours or days that are over by `until`. step: `hour` or `day`."""
        step_ms = STEP_MS[step]
        since, until = since_unix_ms // step_ms * step_ms, until_unix_ms // step_ms * step_ms
        if until <= since:
            return []
        totals = self._read(UsageQuery(org, since - BEFORE_MS, until, (step,), latency=True))
        if not totals:
            return []
        begins = min(row[step] for row in totals)
        found = find(totals, step, since, until, begins)
        told = []
        for number, deviation in enumerate(found):
            at = deviation.at_unix_ms
            earliest = max(begins, at - BEFORE_MS)
            dimensions = ("key", "model", "team", "task") if number < MOST_EXPLAINED else ()
            now = {name: self._read(UsageQuery(org, at, at + step_ms, (name,))) for name in dimensions}
            before = {name: self._read(UsageQuery(org, earliest, at, (name,))) for name in dimensions}
            told.append(explained(deviation, step, now, before, (at - earliest) / step_ms))
        return told

    def _days(
        self, org: str | None, since_unix_ms: int, until_unix_ms: int, groups: tuple[tuple[str, str], ...]
    ) -> dict[int, float]:
        """Micro-USD by day."""
        names = ("day", *(name for name, _ in groups))
        rows = self._read(UsageQuery(org, since_unix_ms, until_unix_ms, names, only=groups))
        return {row["day"]: float(row["cost_microusd"]) for row in rows}


def _ahead(series: dict[int, float], today: int, days: int, skip: int = 0) -> Forecast | None:
    """Of `days` days that begin `skip` days after today, by the days before today."""
    past = [day for day in series if day < today]
    if not past:
        return None
    history = [series.get(day, 0.0) for day in range(min(past), today, DAY_MS)]
    weekday = datetime.fromtimestamp(min(past) / 1000, UTC).weekday()
    return forecast(history, weekday, days, skip)
