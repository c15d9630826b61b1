"""Hours and days unlike those before: what stands out, by how much, and who or what it was."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.accounting.usage_sql import DAY_MS, HOUR_MS

LEAST_BEFORE = 5
"""Comparable hours or days, without which nothing is usual yet."""
LEAST_SCORE = 6.0
"""Robust standard deviations from the median: fewer than one in a million hours like those before is further off."""
MOST_FOUND = 50
STEP_MS = {"hour": HOUR_MS, "day": DAY_MS}
_LEAST_SHARE = 0.2
MEASURES = {"cost_microusd": 10_000, "requests": 20, "errors": 5, "total_p95_ms": 500}
"""What is looked at -> by how much it has to be off at least, to be worth a word."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """at_unix_ms: when the hour or the day began. usual: the median of those it was compared with. score: how many
    robust standard deviations it is off. by: who made the most of the difference, such as {"key": "key_1"}, and `share`
    of it."""

    measure: str
    at_unix_ms: int
    value: float
    usual: float
    score: float
    by: dict[str, str]
    share: float
    reason: str


def unusual(before: Sequence[float], value: float, least: float) -> tuple[float, float] | None:
    """The median of `before` and the score of `value` (Iglewicz and Hoaglin, 1993), where that is high."""
    if len(before) < LEAST_BEFORE:
        return None
    usual = statistics.median(before)
    spread = statistics.median(abs(each - usual) for each in before) * 1.4826
    # Of counts, chance alone makes the root of it; and nothing is so steady that a fifth more would be news.
    spread = max(spread, usual * 0.1, math.sqrt(max(usual, 1.0)) if least <= 100 else 0.0, least / LEAST_SCORE)
    score = (value - usual) / spread
    return (usual, round(score, 1)) if score >= LEAST_SCORE and value - usual >= least else None


@dataclass(frozen=True, slots=True)
class Deviation:
    """What `find` saw: `compared` are the moments that made the usual."""

    measure: str
    at_unix_ms: int
    value: float
    usual: float
    score: float
    compared: tuple[int, ...]


def find(
    totals: Sequence[Mapping[str, Any]], step: str, since_unix_ms: int, until_unix_ms: int, begins_unix_ms: int
) -> list[Deviation]:
    """Those that began in [since, until), the newest first.

    totals: rows of usage by `step`, with `total_ms`. Hours without requests may be left out; the first that is known is
    `begins_unix_ms`. An hour is compared with the same hour of the days before and the hours just before it, a day with
    the days before.
    """
    found: list[Deviation] = []
    step_ms = STEP_MS[step]
    for measure, least in MEASURES.items():
        series = {int(row[step]): _measured(row, measure) for row in totals}
        empty = None if measure == "total_p95_ms" else 0.0
        for at in range(since_unix_ms // step_ms * step_ms, until_unix_ms, step_ms):
            if (value := series.get(at)) is None:
                continue
            compared = tuple(moment for moment in _comparable(at, step, step_ms) if moment >= begins_unix_ms)
            before = [known for moment in compared if (known := series.get(moment, empty)) is not None]
            if far := unusual(before, value, least):
                found.append(Deviation(measure, at, value, *far, compared))
    return sorted(found, key=lambda each: (-each.at_unix_ms, -each.score))[:MOST_FOUND]


def explained(
    deviation: Deviation,
    step: str,
    now: Mapping[str, Sequence[Mapping[str, Any]]],
    before: Mapping[str, Sequence[Mapping[str, Any]]],
    periods: float,
) -> Anomaly:
    """With who or what it was. now, before: by dimension, rows of usage by it: of that hour or day, and of `periods`
    such ones before it."""
    by, share = _culprit(deviation, now, before, periods)
    reason = _reason(deviation.measure, deviation.value, deviation.usual, step, by, share)
    return Anomaly(
        *(deviation.measure, deviation.at_unix_ms, round(deviation.value, 1), round(deviation.usual, 1)),
        *(deviation.score, by, share, reason),
    )


def _measured(row: Mapping[str, Any], measure: str) -> float | None:
    if measure != "total_p95_ms":
        return float(row[measure])
    times = row.get("total_ms")
    return float(times["p95"]) if times and row["requests"] >= 20 else None


def _comparable(at: int, step: str, step_ms: int) -> list[int]:
    if step == "day":
        return [at - number * step_ms for number in range(1, 29)]
    return sorted({*(at - number * step_ms for number in range(1, 25)), *(at - 24 * n * step_ms for n in range(1, 29))})


def _culprit(
    deviation: Deviation,
    now: Mapping[str, Sequence[Mapping[str, Any]]],
    before: Mapping[str, Sequence[Mapping[str, Any]]],
    periods: float,
) -> tuple[dict[str, str], float]:
    """Who is over its own mean by the largest share of what is unusual; only where that is a fifth or more."""
    best: tuple[float, dict[str, str]] = (0.0, {})
    excess, measure = deviation.value - deviation.usual, deviation.measure
    for dimension, rows in now.items() if measure != "total_p95_ms" else ():
        earlier = {row[dimension]: float(row[measure]) for row in before.get(dimension, ())}
        for row in rows:
            if name := row[dimension]:
                share = (float(row[measure]) - earlier.get(name, 0.0) / max(1.0, periods)) / excess
                if share > best[0] + 1e-9:
                    best = (share, {dimension: name})
    share = round(min(1.0, best[0]), 2)
    return (best[1], share) if share >= _LEAST_SHARE else ({}, 0.0)


def _reason(measure: str, value: float, usual: float, step: str, by: Mapping[str, str], share: float) -> str:
    times = f", {value / usual:.1f} times the usual" if usual > 0 else ""
    who = "".join(
        f"; {round(share * 100)} % of what is above that comes from {name} '{what}'" for name, what in by.items()
    )
    return f"{_said(measure, value)} in this {step}{times} ({_said(measure, usual)}){who}."


def _said(measure: str, value: float) -> str:
    match measure:
        case "cost_microusd":
            return f"{value / 1e6:.2f} USD"
        case "total_p95_ms":
            return f"{value:.0f} ms for the slowest 5 % of requests"
        case _:
            return f"{value:.0f} {measure}"
