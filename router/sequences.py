"""Confidence sequences: intervals that hold at every moment at once, so that one may look at any time and stop.

Of values in [0, 1]: a mixture over what a gambler could stake (Robbins 1970, "Statistical methods related to the law of
the iterated logarithm"; for a Bernoulli mean the beta-binomial mixture of Howard, Ramdas, McAuliffe and Sekhon 2021,
arXiv:1810.08240). The wealth (p/m)^x ((1-p)/(1-m))^(1-x) is convex in x, so its mean is at most 1 for any value in
[0, 1] of mean m (Hoeffding 1963): the sequence holds for these too, and needs only their number and their sum.

Of others (costs, times): the asymptotic sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021,
arXiv:2103.06476, Theorem 2.2: exact only in the limit, as intervals by the central limit theorem are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

TIGHTEST_AT = 200.0
"""The number of values at which the asymptotic sequence is about as narrow as it can be."""


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


def of_bounded(count: int, total: float, alpha: float) -> Interval:
    """Of the mean of values in [0, 1] that sum to `total`; it misses the mean ever with probability `alpha` at most."""
    if count == 0:
        return Interval(0.0, 1.0)
    good, bad = min(total, float(count)), max(0.0, count - total)
    most = math.log(1 / alpha)
    mixture = _log_beta(0.5 + good, 0.5 + bad) - _log_beta(0.5, 0.5)

    def refuted(mean: float) -> bool:
        return mixture - _times_log(good, mean) - _times_log(bad, 1 - mean) >= most

    middle = good / count
    return Interval(_edge(0.0, middle, refuted), _edge(1.0, middle, refuted))


def of_any(count: int, mean: float, variance: float, alpha: float) -> Interval:
    """Of the mean of values without bounds, of which there should be some tens."""
    if count < 2:
        return Interval(-math.inf, math.inf)
    # the mixture's parameter for which the sequence is narrow at TIGHTEST_AT, by the same paper's approximation
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / TIGHTEST_AT
    spread = (count * rho2 + 1) / (count * rho2)
    half = math.sqrt(variance * spread / count * 2 * math.log(math.sqrt(count * rho2 + 1) / alpha))
    return Interval(mean - half, mean + half)


def _edge(outside: float, inside: float, refuted: Callable[[float], bool]) -> float:
    """Between a mean that may be refuted and one that is not; the wealth only grows away from the latter."""
    if not refuted(outside):
        return outside
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if refuted(middle) else (outside, middle)
    return outside


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _times_log(times: float, value: float) -> float:
    """0 log 0 is 0."""
    return 0.0 if times <= 0 else times * math.log(value) if value > 0 else -math.inf
