"""The steps of a cascade: which models are asked, one after the other. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations

from models.catalog import TIERS, ModelEntry
from router.constraints import Candidate
from router.objective import failure_price
from router.settings import RoutingSettings


def stronger(one: ModelEntry, other: ModelEntry) -> bool:
    return TIERS.index(one.tier) > TIERS.index(other.tier)


def steps_of(plan: Sequence[Candidate]) -> list[Candidate]:
    """Of those in this order: the first, and each that is stronger than the one taken before it."""
    steps = [plan[0]]
    for candidate in plan[1:]:
        if stronger(candidate.entry, steps[-1].entry):
            steps.append(candidate)
    return steps


def cascade_of(
    plan: Sequence[Candidate], chance: Mapping[str, float], known: Mapping[str, float], routing: RoutingSettings
) -> tuple[str, ...]:
    """The names of those that are asked, the first of `plan` in any case."""
    first, *later = steps_of(plan)
    if known and later:
        asked = worthwhile([first, *later], chance, known, failure_price(plan, routing))
        later = [candidate for candidate in asked if candidate is not first]
    return tuple(candidate.entry.name for candidate in (first, *later))


def gates_version(steps: Sequence[Candidate], heads_version: str, routing: RoutingSettings) -> str:
    """Names everything that decides when a cascade goes on, so that logged decisions stay comparable."""
    names = [candidate.entry.name for candidate in steps[:-1]]
    parts: list[object] = [(name, routing.gate_of(name).model_dump_json()) for name in names]
    if heads_version:
        parts += [heads_version, routing.failure_price_microusd, routing.failure_price_answers]
    return "1-" + hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def worthwhile(
    steps: Sequence[Candidate], chance: Mapping[str, float], known: Mapping[str, float], failure: float
) -> tuple[Candidate, ...]:
    """Which steps of a cascade are worth asking: those with the least expected loss. `steps`: at least one, each of a
    stronger tier than the one before.

    Reckoned as if a stronger model were right wherever a weaker one is, and as if gates could tell: a step is reached
    where all before it are wrong, and costs its answer; what they all get wrong costs `failure`. Only a model whose
    own answers are `known` is left out, and the steps after one only where that one's are: a place between small and
    large is too rough a guess for that.
    """

    def may(left: Sequence[Candidate]) -> bool:
        out = {candidate.entry.name for candidate in steps if candidate not in left}
        return out <= known.keys() and (left[-1] is steps[-1] or left[-1].entry.name in known)

    def loss(left: Sequence[Candidate]) -> float:
        total, best = 0.0, 0.0
        for candidate in left:
            total += (1 - best) * candidate.real_cost_microusd
            best = max(best, known.get(candidate.entry.name, chance[candidate.entry.name]))
        return total + failure * (1 - best)

    some = [left for count in range(1, len(steps) + 1) for left in combinations(steps, count) if may(left)]
    return min(some, key=lambda left: (round(loss(left), 6), -len(left)))
