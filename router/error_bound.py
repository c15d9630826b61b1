"""How permissive the cache may be for one tenant: no more than its audits show to be safe.

The risk of a threshold is the share of requests that would be answered wrongly if every candidate with at least that
score answered. Of every request that the model answers although there was a candidate, we learn whether that one's
answer was the same: of all near misses, and of a random share of hits. A hit that was to be audited with probability p
counts 1/p times, so the mean of what is seen is the risk (Horvitz and Thompson 1952).

What is said about it is said by betting (Waudby-Smith and Ramdas 2023, "Estimating means of bounded random variables
by betting", arXiv:2010.09686): if the risk is not below a bound, a gambler who stakes on it can multiply the stake by
1/alpha, ever, with probability at most alpha (Ville's inequality). So one may look after every request.

It starts where a measured stream has shown no more wrong answers than delta allows (`start_for`).
Below the threshold it starts from, the cache earns: a lower one is taken when the risk between the two is proven to be
below half of delta. Lower ones are tested in order, and risk only grows downwards, so their number needs no correction.
The other half is for what is served from the start. Against drift another gambler bets that the risk of all that is
served is above delta; when that one wins, the threshold goes back up a step and what was earned is proven anew.
It holds for requests in random order; after a drift, from the next retreat on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LADDER = (0.999, 0.99, 0.98, 0.97, 0.95, 0.93, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Scores that may become the threshold."""

NEVER = 1.01
"""A threshold that no score reaches: nothing similar is answered."""

SHOWN = (
    (0.1, 0.0100),
    (0.2, 0.0066),
    (0.3, 0.0045),
    (0.4, 0.0036),
    (0.5, 0.0033),
    (0.6, 0.0025),
    (0.7, 0.0020),
    (0.8, 0.0015),
    (0.9, 0.0005),
)
"""Thresholds, and how many wrong answers per request each gave at most (the upper end of Wilson's 95 % interval) where
only the verifier could answer, on the stream of docs/cache.md: `python -m cluster.bench.cache_starts --data DATA`."""

ALPHA = 0.05
"""The probability with which a proof may fail."""

EARNED_AUDIT = 0.25
"""The share of hits that is audited below the threshold that the cache started from."""

_PROOF = math.log(1 / ALPHA)
_SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
"""Stakes, as shares of the largest that cannot ruin (for a bet upwards: of two in the largest value). The wealth is the
mean over them, so none has to be the right one from the start (a mixture of martingales is one)."""

_LOOK_EVERY = 16
"""Requests between two looks at what is proven, besides one before each wrong answer. A proof that holds whenever one
looks does not ask to be looked at every time."""

_CANDIDATE_BOUNDS = tuple(0.0005 * 1.3**power for power in range(29))


def start_for(delta: float, min_score: float) -> float:
    """The threshold of a cache that has learnt nothing yet: from `min_score` up the first that has shown to be wrong
    no more often than `delta`. `NEVER` where none has."""
    shown = min((threshold for threshold, wrong in SHOWN if wrong <= delta), default=NEVER)
    return max(min_score, shown)


class Bets:
    """Wealth of gamblers, one for each of `bounds`, who stake that the mean of values in [0, `largest`] is below the
    bound, or above it."""

    def __init__(self, bounds: Sequence[float], largest: float, above: bool = False) -> None:
        self._above = above
        self._bounds = np.array(bounds)[:, None]
        most = np.full_like(self._bounds, 2 / largest) if above else 1 / np.maximum(largest - self._bounds, 1e-9)
        self._stakes = most * np.array(_SHARES)
        self._logs = np.zeros(self._stakes.shape)
        self._of_zero = self._gain(np.zeros(len(bounds)))
        self._zeros = 0

    def see(self, values: NDArray[np.float64] | None) -> None:
        """One value for each gambler; None: all are zero."""
        if values is None:
            self._zeros += 1  # most are: they are worked off together
        else:
            self._logs += self._gain(values)

    @property
    def proven(self) -> NDArray[np.bool_]:
        self._logs += self._zeros * self._of_zero
        self._zeros = 0
        top = self._logs.max(axis=1, keepdims=True)
        found: NDArray[np.bool_] = top[:, 0] + np.log(np.exp(self._logs - top).mean(axis=1)) >= _PROOF
        return found

    def _gain(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        difference = values[:, None] - self._bounds
        gained: NDArray[np.float64] = np.log1p(self._stakes * (difference if self._above else -difference))
        return gained


class ErrorBound:
    """Of one tenant. `start`: the threshold that it serves from without proof; `delta`: wrong answers per request that
    are allowed; `audit`: the share of hits from `start` up that are sent to the model anyway, above 0."""

    def __init__(self, delta: float, start: float, audit: float) -> None:
        self.delta, self.start, self.audit = delta, start, audit
        self.requests = self.served = self.audited = self.compared = self.wrong = self.retreats = 0
        self.threshold = start
        self._realised = Bets(_CANDIDATE_BOUNDS, 1 / audit)
        self._held = np.zeros(len(_CANDIDATE_BOUNDS), dtype=bool)
        self._begin()

    def audit_share(self, score: float) -> float:
        """The probability with which a hit of this score has to be audited."""
        return self.audit if score >= self.start else max(self.audit, EARNED_AUDIT)

    def see(self, score: float | None, same: bool | None, hit: bool | None = None) -> None:
        """One request. `score`: its best candidate's, None without one. `same`: whether that one's answer was the
        model's, None where the model was not asked or nothing could be said. `hit`: whether it was answered, but for an
        audit; None: by its score."""
        if hit is None:
            hit = score is not None and score >= self.threshold
        self.requests += 1
        self.compared += same is not None
        self.audited += hit and same is not None
        self.served += hit and same is None
        value = 0.0
        if same is False and score is not None:
            self.wrong += 1
            value = 1 / self.audit_share(score) if hit else 1.0
        if value or self.requests % _LOOK_EVERY == 0:
            self._look()
        served = value if hit else 0.0
        self._drift.see(np.array([served]) if served else None)
        self._realised.see(np.full(len(_CANDIDATE_BOUNDS), served) if served else None)
        reached = value if score is not None and score < self.start else 0.0
        self._lower.see(np.where(self._steps <= (score or 0.0), reached, 0.0) if reached else None)
        if served and self._drift.proven[0]:
            self._retreat()

    def upper_bound(self) -> float:
        """Wrong answers per request, at most, if all that was served since the start were counted; with a confidence of
        1 - `ALPHA`, whenever one looks. 1.0: nothing can be said yet."""
        self._look()
        return self.last_upper_bound

    @property
    def last_upper_bound(self) -> float:
        """The same, of the last look, at most `_LOOK_EVERY` requests ago; it costs no computation."""
        return _CANDIDATE_BOUNDS[self._held.argmax()] if self._held.any() else 1.0

    def _retreat(self) -> None:
        above = [each for each in LADDER if each > self.threshold]
        self.threshold = above[-1] if above else NEVER
        self.start = max(self.start, self.threshold)
        self.retreats += 1
        self._begin()

    def _look(self) -> None:
        self._held |= self._realised.proven
        self._safe |= self._lower.proven
        earned = len(self._safe) if self._safe.all() else int(self._safe.argmin())  # in order, down to the first doubt
        if earned:
            self.threshold = min(self.threshold, float(self._steps[earned - 1]))

    def _begin(self) -> None:
        """Nothing below the start is proven."""
        self._drift = Bets([self.delta], 1 / self.audit, above=True)
        self._steps = np.array([threshold for threshold in LADDER if threshold < self.start])
        self._lower = Bets([self.delta / 2] * len(self._steps), 1 / EARNED_AUDIT)
        self._safe = np.zeros(len(self._steps), dtype=bool)
