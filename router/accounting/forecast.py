"""What the next days will cost, from the days before: a level, a trend and the days of the week, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_DAYS = 84
LEAST_DAYS = 7
_WEEKDAYS_FROM = 21  # days, from which those of the week can be told apart
_TREND_FROM = 14


@dataclass(frozen=True, slots=True)
class Forecast:
    """Sums over the days to come; `low` and `high` hold the truth in 95 of 100 times where the days to come are like
    those before. daily: what each of them is expected to bring. basis_days: from how many days."""

    expected: float
    low: float
    high: float
    daily: tuple[float, ...]
    basis_days: int

    def less(self, known: float) -> Forecast:
        """Without what is known already of the first day."""
        expected, low, high = (max(0.0, each - known) for each in (self.expected, self.low, self.high))
        return Forecast(expected, low, high, (max(0.0, self.daily[0] - known), *self.daily[1:]), self.basis_days)


def forecast(history: Sequence[float], first_weekday: int, days: int, skip: int = 0) -> Forecast | None:
    """Of the sum of the `days` that begin `skip` days after `history`, which is whole days without gaps, oldest first;
    `first_weekday` is that of its first day (Monday 0). None: fewer than `LEAST_DAYS`.

    Least squares, weekdays from three weeks on, a trend from two on, with Student's t for the few days that there are;
    what neighbouring days have in common widens the interval (AR(1)).
    """
    import numpy as np

    if len(history) < LEAST_DAYS or days < 1:
        return None
    kept = np.asarray(history[-MOST_DAYS:], float)
    skipped = len(history) - len(kept)
    n = len(kept)
    positions = np.arange(n + skip + days)
    columns = [np.ones(len(positions))]
    if n >= _TREND_FROM:
        columns.append((positions - n / 2) / n)
    if n >= _WEEKDAYS_FROM:
        weekday = (first_weekday + skipped + positions) % 7
        columns += [(weekday == day) - (weekday == 6) * 1.0 for day in range(6)]
    design = np.stack(columns, axis=1)
    past, future = design[:n], design[n + skip :]
    inverse = np.linalg.pinv(past.T @ past)
    weights = inverse @ past.T @ kept
    daily = np.maximum(0.0, future @ weights)
    rest = kept - past @ weights
    freedom = max(1, n - design.shape[1])
    variance = float(rest @ rest) / freedom
    together = future.sum(axis=0)
    spread = variance * (days + float(together @ inverse @ together))
    alike = float(rest[:-1] @ rest[1:] / (rest @ rest)) if rest @ rest > 0 else 0.0
    alike = min(0.7, max(0.0, alike))
    half = _student_95(freedom) * math.sqrt(spread * (1 + alike) / (1 - alike))
    expected = float(daily.sum())
    shown = tuple(round(float(each), 3) for each in daily)
    return Forecast(expected, max(0.0, expected - half), expected + half, shown, n)


def _student_95(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by Cornish and Fisher's expansion (Abramowitz and Stegun, 26.7.5)."""
    z = 1.959964
    n = float(freedom)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / (n * n) + third / (n * n * n)
