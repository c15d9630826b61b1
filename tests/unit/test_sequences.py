from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.sequences import of_any, of_bounded

ALPHA = 0.1


@given(st.integers(0, 500), st.floats(0, 1), st.floats(0.001, 0.5))
def test_the_mean_is_within_and_so_are_the_bounds(count: int, share: float, alpha: float) -> None:
    found = of_bounded(count, share * count, alpha)
    assert 0 <= found.low <= found.high <= 1
    if count:
        assert found.low <= share + 1e-9 and found.high >= share - 1e-9
        wider = of_bounded(count, share * count, alpha / 2)
        assert wider.low <= found.low + 1e-9 and wider.high >= found.high - 1e-9


def test_it_narrows_and_knows_the_ends() -> None:
    widths = [(found := of_bounded(n, 0.3 * n, ALPHA)).high - found.low for n in (10, 100, 1_000, 10_000)]
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.04
    assert of_bounded(200, 0.0, ALPHA).low == 0 and of_bounded(200, 0.0, ALPHA).high < 0.03
    assert of_bounded(200, 200.0, ALPHA).high == 1
    assert of_bounded(0, 0.0, ALPHA).high == 1


def ever_missed(draw: random.Random, value: object, mean: float, steps: int = 400) -> tuple[bool, bool]:
    """Whether one who looks after every value sees the mean outside: of the sequence, and of a plain 95 % interval."""
    assert callable(value)
    total, missed, plain = 0.0, False, False
    for count in range(1, steps + 1):
        total += value(draw)
        found = of_bounded(count, total, ALPHA)
        missed |= not found.low <= mean <= found.high
        share = total / count
        half = 1.645 * math.sqrt(max(share * (1 - share), 1e-9) / count)
        plain |= count >= 20 and abs(share - mean) > half
    return missed, plain


@pytest.mark.parametrize(
    ("value", "mean"), [(lambda d: float(d.random() < 0.2), 0.2), (lambda d: d.betavariate(0.5, 0.5), 0.5)]
)
def test_who_looks_after_every_value_is_rarely_misled(value: object, mean: float) -> None:
    draw = random.Random(1)
    runs = [ever_missed(draw, value, mean, 120) for _ in range(60)]
    assert sum(missed for missed, _ in runs) <= 10  # 6 are expected at the most; more than 10 once in 30 such tests
    if mean == 0.2:
        assert sum(plain for _, plain in runs) > 12  # a plain 90 % interval misleads him far more often


def test_values_without_bounds() -> None:
    draw = random.Random(2)
    misled = 0
    for _ in range(60):
        total = squares = 0.0
        outside = False
        for count in range(1, 400):
            value = draw.expovariate(1 / 50)
            total, squares = total + value, squares + value**2
            if count >= 50:
                mean = total / count
                found = of_any(count, mean, squares / count - mean**2, ALPHA)
                outside |= not found.low <= 50 <= found.high
        misled += outside
    assert misled <= 10
    assert of_any(1, 5.0, 0.0, ALPHA).high == math.inf
