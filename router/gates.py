"""The threshold of a gate, learned from outcomes: how sure was a model of its first tokens, and was its answer good?

An outcome is the mean log probability of the tokens that the gate looked at, and how good the answer was, in [0, 1].
Each model of a cascade has outcomes and a threshold of its own: what one is as good as certain of, another says with
half of that, and a stronger model is asked only what the weaker ones were not sure of.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

Outcomes = Sequence[tuple[float, float]]


def threshold(outcomes: Outcomes, target: float) -> float | None:
    """The lowest sureness from which at least `target` of what is given out is good; None: there is none."""
    ranked = sorted(outcomes, reverse=True)
    best, good = None, 0.0
    for number, (sureness, value) in enumerate(ranked, 1):
        good += value
        last_of_its_kind = number == len(ranked) or ranked[number][0] < sureness
        if last_of_its_kind and good >= target * number:
            best = sureness
    return best


def auroc(outcomes: Outcomes) -> float:
    """The probability that a good answer (from a half on) is surer than a bad one; NaN without one of each."""
    good = [sureness for sureness, value in outcomes if value >= 0.5]
    bad = sorted(sureness for sureness, value in outcomes if value < 0.5)
    wins = sum((bisect_left(bad, each) + bisect_right(bad, each)) / 2 for each in good)
    return wins / (len(good) * len(bad)) if good and bad else math.nan
