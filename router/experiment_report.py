"""What an experiment says so far: each arm's measures with confidence sequences, and whether one has won.

All intervals of an experiment hold together, at every moment, with probability 1 - alpha: each has its share of alpha.
So one may look as often as one likes, and stop when there is a winner. A unit (tenant, user, conversation) counts once,
by the mean of its requests; what is promised is for units that come independently and do not change any more, which is
nearly so for conversations and least so for few tenants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from router.accounting.experiment_store import MEASURES, ArmTally, Tally
from router.sequences import Interval, of_any, of_bounded
from router.trial_settings import ExperimentSettings

BOUNDED = frozenset({"quality", "escalation", "failure"})
LEAST = {"cost": True, "latency": True, "escalation": True, "quality": False}
"""Whether less of it is better."""


@dataclass(frozen=True, slots=True)
class Measure:
    """`units` have it. mean None: none has."""

    units: int
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Arm:
    """verdict, against the first arm: `control`, `better`, `worse`, `open`, `too few`, or `better, quality open`: it
    wins by the measure, but may have lost more quality than the margin allows, where a failure is an answer of none."""

    arm: str
    shadow: bool
    units: int
    requests: int
    failed: int
    cost_microusd: int
    measures: dict[str, Measure]
    verdict: str


def report(settings: ExperimentSettings, tallies: Sequence[ArmTally]) -> list[Arm]:
    """In the order of the arms."""
    found = {tally.arm: tally for tally in tallies}
    alpha = settings.alpha / (len(settings.arms) * len(MEASURES))
    none = {name: Tally(0, 0.0, 0.0) for name in MEASURES}
    known = {arm: found.get(arm, ArmTally(arm, 0, 0, 0, 0, none)) for arm in settings.arms}
    bounds = {
        arm: {name: _interval(name, tally, alpha) for name, tally in each.measures.items()}
        for arm, each in known.items()
    }
    control = next(iter(settings.arms))
    return [
        Arm(
            *(arm, settings.arms[arm].shadow, each.units, each.requests, each.failed, each.microusd),
            {name: _measure(tally, bounds[arm][name]) for name, tally in each.measures.items()},
            "control" if arm == control else _verdict(settings, known[control], each, bounds[control], bounds[arm]),
        )
        for arm, each in known.items()
    ]


def winner(settings: ExperimentSettings, arms: Sequence[Arm]) -> str | None:
    """The arm to promote: of those that are better for sure, the best by its mean. None while there is none. A shadow
    answers nobody, so nothing is known of its quality, and it never wins."""
    better = [arm for arm in arms if arm.verdict == "better" and not arm.shadow]
    sign = 1 if LEAST[settings.metric] else -1
    return min(better, key=lambda arm: sign * (arm.measures[settings.metric].mean or 0.0)).arm if better else None


def as_json(name: str, settings: ExperimentSettings, arms: Sequence[Arm], promoted: str | None) -> dict[str, Any]:
    return {
        "object": "experiment",
        "id": name,
        "by": settings.by,
        "share": settings.share,
        "metric": settings.metric,
        "promote": settings.promote,
        "promoted": promoted,
        "winner": winner(settings, arms),
        "arms": [asdict(arm) for arm in arms],
    }


def _verdict(
    settings: ExperimentSettings,
    control: ArmTally,
    arm: ArmTally,
    at_control: dict[str, Interval],
    at_arm: dict[str, Interval],
) -> str:
    metric = settings.metric
    if min(control.measures[metric].units, arm.measures[metric].units) < settings.least_units:
        return "too few"
    one, other = at_arm[metric], at_control[metric]
    lower, higher = one.high < other.low, one.low > other.high
    if not (lower or higher):
        return "open"
    if lower != LEAST[metric]:
        return "worse"
    # Of an answer that came, feedback tells; a request that failed is worth nothing, whatever it was spared.
    had_at_most = at_control["quality"].high * (1 - at_control["failure"].low)
    has_at_least = at_arm["quality"].low * (1 - at_arm["failure"].high)
    may_lose = 0.0 if metric == "quality" else settings.margin
    return "better" if had_at_most - has_at_least <= may_lose else "better, quality open"


def _interval(name: str, tally: Tally, alpha: float) -> Interval:
    if name in BOUNDED:
        return of_bounded(tally.units, tally.total, alpha)
    if tally.units < 2:
        return of_any(0, 0.0, 0.0, alpha)
    mean = tally.total / tally.units
    return of_any(tally.units, mean, max(0.0, tally.squares / tally.units - mean**2), alpha)


def _measure(tally: Tally, bounds: Interval) -> Measure:
    if not tally.units:
        return Measure(0, None, None, None)
    finite = abs(bounds.low) != float("inf")
    low, high = (round(bounds.low, 4), round(bounds.high, 4)) if finite else (None, None)
    return Measure(tally.units, round(tally.total / tally.units, 4), low, high)
