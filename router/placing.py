"""Where a new model stands between the classifier's small and large one, from a few dozen labelled outcomes.

The chance of a good answer is on the line between the log odds of the two (`objective.chance_of`), so there is one
number to find: the quality. It is the one of the largest posterior, with a normal prior around the tier's usual place,
and its interval is by the curvature there (Laplace's approximation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from router.objective import chance_of
from router.ports import Outlook

PRIOR_SPREAD = 0.5
"""Standard deviation of the prior: half the way from small to large."""
LEAST, MOST = -1.0, 2.0
"""Of a quality, as the catalogue has it."""
_STEPS = 300
Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Place:
    """quality, with its 95 % interval. expected: the mean chance of a good answer that it gives these questions, beside
    the share that was good."""

    quality: float
    low: float
    high: float
    outcomes: int
    good: float
    expected: float


def place(outcomes: Sequence[tuple[Outlook, float]], prior: float) -> Place:
    """outcomes: what the classifier says of a question, and how good the answer was, in [0, 1]. Raises ValueError
    without any."""
    if not outcomes:
        raise ValueError("there is no outcome to go by")

    def log_posterior(quality: float) -> float:
        found = -((quality - prior) ** 2) / (2 * PRIOR_SPREAD**2)
        for outlook, good in outcomes:
            chance = min(1 - 1e-9, max(1e-9, chance_of(outlook, quality)))
            found += good * math.log(chance) + (1 - good) * math.log(1 - chance)
        return found

    width = (MOST - LEAST) / _STEPS
    first, last = 0, _STEPS
    while last - first > 2:  # the log odds are linear in the quality, so the posterior has one top
        left, right = first + (last - first) // 3, last - (last - first) // 3
        if log_posterior(LEAST + width * left) < log_posterior(LEAST + width * right):
            first = left
        else:
            last = right
    best = max((LEAST + width * step for step in range(first, last + 1)), key=log_posterior)
    inner = min(MOST - width, max(LEAST + width, best))
    curvature = (2 * log_posterior(inner) - log_posterior(inner - width) - log_posterior(inner + width)) / width**2
    half = Z_95 / math.sqrt(max(curvature, 1 / PRIOR_SPREAD**2 / 4))
    chances = [chance_of(outlook, best) for outlook, _ in outcomes]
    return Place(
        round(best, 2),
        round(max(LEAST, best - half), 2),
        round(min(MOST, best + half), 2),
        len(outcomes),
        math.fsum(good for _, good in outcomes) / len(outcomes),
        math.fsum(chances) / len(chances),
    )
