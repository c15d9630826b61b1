"""What another policy would have cost, or been worth, from what this one logged: nothing is run again.

Inverse propensity scoring, its self-normalised form (Swaminathan and Joachims 2015), and the doubly robust estimate
(Dudik, Langford and Li 2011, arXiv 1103.4601), which is right when either the propensities or the predictions are, with
95 % intervals by the central limit theorem. Propensities are logged, so IPS and doubly robust are unbiased; what they
need is overlap: where the logging policy never chose what the other one would, no arithmetic helps (`effective`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of the mean of a request, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Valuation:
    """effective: how many requests of its own the other policy's sample is worth (Kish 1965). covered: the mean weight,
    1 where the log has overlap with everything that the other policy does."""

    ips: Estimate
    snips: Estimate
    doubly_robust: Estimate
    effective: float
    covered: float


@dataclass(frozen=True, slots=True)
class Log:
    """Requests in rows, models in columns.

    chosen [n]: column of the model that answered; propensity [n]: with which it was chosen, in (0, 1]; outcome [n]:
    what is estimated (cost, quality); predicted [n, models]: what was to be expected of it, by anything but these
    outcomes."""

    chosen: Array
    propensity: Array
    outcome: Array
    predicted: Array

    def __post_init__(self) -> None:
        """Raises ValueError for shapes that do not fit and propensities that are none."""
        rows = len(self.chosen)
        if not (self.propensity.shape == self.outcome.shape == (rows,)) or len(self.predicted) != rows or rows < 2:
            raise ValueError("a log needs two requests at least and one propensity, outcome and prediction for each")
        if not ((self.propensity > 0) & (self.propensity <= 1)).all():
            raise ValueError("a propensity is the probability of what was chosen: above 0 and at most 1")


def evaluate(log: Log, policy: Array) -> Valuation:
    """`policy` [n, models]: with which probability the other policy chooses each model; rows sum to 1."""
    if policy.shape != log.predicted.shape or not np.allclose(policy.sum(axis=1), 1):
        raise ValueError("the other policy needs a probability for each model of each request, that sum to 1")
    rows = np.arange(len(log.chosen))
    weight = policy[rows, log.chosen] / log.propensity
    mean_weight = float(weight.mean())
    ips = weight * log.outcome
    snips = float(ips.sum() / weight.sum()) if weight.sum() > 0 else math.nan
    expected = (policy * log.predicted).sum(axis=1)
    robust = expected + weight * (log.outcome - log.predicted[rows, log.chosen])
    squares = float((weight**2).sum())
    return Valuation(
        _mean(ips),
        _around(snips, weight * (log.outcome - snips) / mean_weight if mean_weight > 0 else weight),
        _mean(robust),
        float(weight.sum() ** 2 / squares) if squares else 0.0,
        mean_weight,
    )


def always(columns: Array, models: int) -> Array:
    """The policy that chooses `columns` [n]."""
    policy = np.zeros((len(columns), models))
    policy[np.arange(len(columns)), columns] = 1.0
    return policy


def at_random(eligible: Array) -> Array:
    """The policy that draws from those that may answer; `eligible` [n, models] is boolean."""
    drawn: Array = eligible / eligible.sum(axis=1, keepdims=True)
    return drawn


def coin(cheap: Array, strong: Array, costs: Array, cost: float) -> Array:
    """A coin between two policies that costs as much as `cost` in the mean: what a router has to beat. `costs`
    [n, models] are expected ones. Outside the two the nearer one is taken."""
    low, high = float((cheap * costs).sum(axis=1).mean()), float((strong * costs).sum(axis=1).mean())
    share = 0.0 if high <= low else min(1.0, max(0.0, (cost - low) / (high - low)))
    mixed: Array = (1 - share) * cheap + share * strong
    return mixed


def mean_by_model(chosen: Array, outcome: Array, models: int, folds: int = 2) -> Array:
    """Predictions [n, models]: the mean outcome of each model over the other folds, so that no outcome predicts itself;
    the mean of all where a model has none there."""
    fold = np.arange(len(chosen)) % folds
    predicted = np.zeros((len(chosen), models))
    for number in range(folds):
        others = fold != number
        for model in range(models):
            seen = outcome[others & (chosen == model)]
            predicted[~others, model] = seen.mean() if len(seen) else outcome[others].mean()
    return predicted


def _mean(values: Array) -> Estimate:
    return _around(float(values.mean()), values - values.mean())


def _around(value: float, deviations: Array) -> Estimate:
    half = Z_95 * float(np.sqrt((deviations**2).mean() / (len(deviations) - 1)))
    return Estimate(value, value - half, value + half)
