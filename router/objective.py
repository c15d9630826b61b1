"""What each model's answer is expected to cost in all, and so which one is chosen. Pure.

The loss of a model is the cost of its answer, plus the price of a bad answer times the chance of one, plus the price of
waiting for its first token, plus what leaving the model that has the conversation costs. Scores come from strategies;
prices from the operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from models.catalog import TIERS, ModelEntry
from router.constraints import Candidate
from router.ports import Assessment, Outlook
from router.settings import RoutingSettings

BY_TIER = {"small": 0.6, "medium": 0.7, "large": 0.8}
"""Chance of a good answer where nothing is known of the question: only the order matters, evidence moves it."""
PRIOR_STRENGTH = 20.0
"""In outcomes: so many of them weigh as much as what is believed beforehand."""
HEAD_STRENGTH = 1_000.0
"""The same where a model's own answers are known: a head says it of this question, evidence of a whole kind of work."""
TRIVIAL_SCORE, TRIVIAL_GAIN = 0.12, 0.02
DEMANDING_GAIN = 0.15
ABSTAINED_SCALE = 0.4

Evidence = Mapping[str, tuple[float, float]]
"""By model: good and bad outcomes for this kind of work, as far as they still count."""


@dataclass(frozen=True, slots=True)
class Loss:
    """In micro-USD; `total` is what is compared."""

    chance: float
    cost: float
    failure: float
    waiting: float
    switching: float

    @property
    def total(self) -> float:
        return self.cost + self.failure + self.waiting + self.switching

    def explained(self) -> dict[str, float]:
        parts = {name: getattr(self, name) for name in ("chance", "cost", "failure", "waiting", "switching", "total")}
        return {name: round(value, 4) for name, value in parts.items()}


def quality_of(entry: ModelEntry, routing: RoutingSettings | None = None) -> float:
    """Where a model stands between the small (0) and the large (1) one that the classifier was trained on."""
    if routing is not None and entry.name in routing.quality:
        return routing.quality[entry.name]
    return entry.quality if entry.quality is not None else TIERS.index(entry.tier) / (len(TIERS) - 1)


def chance_of(outlook: Outlook, quality: float) -> float:
    """Of a model between the two, on the line between their log odds; outside [0, 1] on its continuation."""
    small, large = _logit(outlook.small), _logit(outlook.large)
    return 1 / (1 + math.exp(-(small + quality * (large - small))))


def bounded(outlook: Outlook, assessment: Assessment, routing: RoutingSettings) -> Outlook:
    """The learned word, held against the four factors: a trivial question needs no large model, a demanding one gains
    from it at least a little, and for what the classifier does not know the four factors decide, on the strong side."""
    gain, score = outlook.large - outlook.small, assessment.score
    if score < TRIVIAL_SCORE:
        gain = min(gain, TRIVIAL_GAIN)
    elif outlook.abstains:
        gain = max(gain, ABSTAINED_SCALE * score)
    elif score > routing.large_above:
        gain = max(gain, DEMANDING_GAIN)
    large = max(outlook.large, gain + 0.02)
    return replace(outlook, small=large - gain, large=large)


def chances(
    strategy: str, assessment: Assessment, candidates: Sequence[Candidate], evidence: Evidence, routing: RoutingSettings
) -> dict[str, float]:
    """Of a good answer, by model, as `strategy` sees it. Without an outlook only evidence tells models of a tier
    apart. What a head says stands before the place between small and large, and is not held against the four factors.
    """
    outlook = assessment.outlook
    known = heads(strategy, assessment)
    if outlook is not None and strategy == "hybrid":
        outlook = bounded(outlook, assessment, routing)
    elif outlook is not None and outlook.abstains:
        outlook = replace(outlook, small=min(outlook.small, outlook.large - 2 * (outlook.score - 0.5)))
    found = {}
    for candidate in candidates:
        entry = candidate.entry
        strength = PRIOR_STRENGTH
        if entry.name in known:
            chance, strength = known[entry.name], HEAD_STRENGTH
        elif outlook is None or strategy == "learning":
            chance = BY_TIER[entry.tier]
        else:
            chance = chance_of(outlook, quality_of(entry, routing))
        if strategy != "learned":
            good, bad = evidence.get(entry.name, (0.0, 0.0))
            chance = (strength * chance + good) / (strength + good + bad)
        found[entry.name] = chance
    return found


def heads(strategy: str, assessment: Assessment) -> Mapping[str, float]:
    """The chances of those models whose own answers are known; `learning` goes by outcomes alone."""
    return assessment.outlook.heads if assessment.outlook is not None and strategy != "learning" else {}


def losses(candidates: Sequence[Candidate], chance: Mapping[str, float], routing: RoutingSettings) -> dict[str, Loss]:
    """By model. A bad answer's price is the operator's, or so many answers of the strongest of `candidates`."""
    failure = failure_price(candidates, routing)
    found = {}
    for candidate in candidates:
        name = candidate.entry.name
        waited_s = (candidate.first_token_ms or 0.0) / 1000
        found[name] = Loss(
            chance[name],
            candidate.real_cost_microusd,
            failure * (1 - chance[name]),
            routing.waiting_price_microusd_per_s * waited_s,
            candidate.switch_cost_microusd * candidate.node_factor,
        )
    return found


def failure_price(candidates: Sequence[Candidate], routing: RoutingSettings) -> float:
    """Of a bad answer, in micro-USD."""
    price = routing.failure_price_microusd
    return float(price) if price is not None else routing.failure_price_answers * _strongest_cost(candidates)


def by_loss(candidates: Sequence[Candidate], loss: Mapping[str, Loss]) -> list[Candidate]:
    """The least first; of equals the one likelier to answer well, then the cheaper, then by name."""

    def key(candidate: Candidate) -> tuple[float, float, float, str]:
        name = candidate.entry.name
        return round(loss[name].total, 6), -loss[name].chance, candidate.real_cost_microusd, name

    return sorted(candidates, key=key)


def _strongest_cost(candidates: Sequence[Candidate]) -> float:
    best = max(TIERS.index(candidate.entry.tier) for candidate in candidates)
    return min(c.real_cost_microusd for c in candidates if TIERS.index(c.entry.tier) == best)


def _logit(chance: float) -> float:
    bound = min(0.999, max(0.001, chance))
    return math.log(bound / (1 - bound))
