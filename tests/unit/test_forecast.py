from __future__ import annotations

import random

import pytest

from router.accounting.forecast import forecast


def days(
    chance: random.Random, count: int, trend: float = 0.0, weekend: float = 1.0, noise: float = 10.0
) -> list[float]:
    return [
        max(0.0, (100 + trend * day) * (weekend if day % 7 in (5, 6) else 1.0) + chance.gauss(0, noise))
        for day in range(count)
    ]


@pytest.mark.parametrize(("basis", "trend", "weekend"), [(8, 0.0, 1.0), (20, 0.0, 1.0), (56, 1.0, 0.3), (28, 0.0, 0.2)])
def test_the_interval_holds_the_truth_as_often_as_it_says(basis: int, trend: float, weekend: float) -> None:
    chance, held, tries = random.Random(7), 0, 300
    for _ in range(tries):
        series = days(chance, basis + 14, trend, weekend)
        found = forecast(series[:basis], 0, 14)
        assert found is not None and found.low <= found.expected <= found.high
        held += found.low <= sum(series[basis:]) <= found.high
    assert held / tries > 0.9
    assert basis < 20 or found.high - found.low < 0.6 * found.expected  # and is not merely wide


def test_weekdays_and_trends_are_seen() -> None:
    found = forecast(days(random.Random(1), 42, 1.0, 0.1), 0, 7)
    assert found is not None
    assert found.daily[5] < 0.3 * found.daily[0] and found.daily[0] > 125
    assert found.basis_days == 42 and found.expected == pytest.approx(sum(found.daily), abs=0.01)


def test_what_is_skipped_and_what_is_known_is_not_counted() -> None:
    series = days(random.Random(2), 28, 0.0, 0.1)
    whole, later = forecast(series, 0, 3), forecast(series, 0, 2, skip=1)
    assert whole is not None and later is not None and later.daily == whole.daily[1:]
    left = whole.less(whole.daily[0] / 2)
    assert left.expected == pytest.approx(whole.expected - whole.daily[0] / 2)
    assert whole.less(10**9).low == whole.less(10**9).daily[0] == 0.0


def test_of_too_few_days_nothing_is_said() -> None:
    assert forecast([1.0] * 6, 0, 7) is None and forecast([1.0] * 9, 0, 0) is None
    steady = forecast([5.0] * 9, 0, 2)
    assert steady is not None and (steady.low, steady.expected, steady.high) == pytest.approx((10, 10, 10))
