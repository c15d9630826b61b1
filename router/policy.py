"""The choice of a model and of those after it: constraints first, then the score's tier, then the price. Pure and
deterministic."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from models.catalog import TIERS
from models.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotFound,
    NoEligibleModel,
    SwitchyardError,
    UnsupportedFeature,
)
from models.messages import ChatRequest
from router.basis import basis_of
from router.constraints import NO_LIMITS, Candidate, Demand, Exclusion, Limits, allow_list, exclusion, standing_aside
from router.objective import Evidence, Loss, by_loss, chances, failure_price, heads, losses
from router.ports import Assessment
from router.settings import RoutingSettings, Strategy
from router.steps import cascade_of, gates_version, steps_of, worthwhile

__all__ = ["AUTO", "NO_LIMITS", "Candidate", "Circumstances", "Decision", "Limits", "Wish", "decide", "tier_of"]

AUTO = "auto"
WEIGHING = frozenset({"hybrid", "learned", "learning"})
"""Strategies that weigh a chance for each model; the others only order them."""
ABSTAINED = Assessment(1.0, "unknown", {}, "abstain")
"""Of a question that nothing assessed: the strong side is the safe one."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller says about the choice; None leaves it to the settings.

    fallbacks: the models to try after the first, in this order; empty: none. limits: whom they exclude is not chosen.
    prefer: the model for `auto` if it may answer, whatever the strategy says (an arm of an experiment).
    """

    strategy: Strategy | None = None
    fallbacks: tuple[str, ...] | None = None
    limits: Limits = NO_LIMITS
    prefer: str | None = None


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a decision depends on besides the request, so that the same circumstances give the same decision.

    turn: counts decisions, for `round_robin`. draw: a lot in [0, 1), for exploration. evidence: see `objective`.
    """

    turn: int = 0
    draw: float = 1.0
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """Which model answers, and everything needed to explain and to re-weigh that later.

    fallbacks: models to try in this order when `model` fails before its first token, those that sleep last.
    tier: of `model`; the score's own tier may have had no eligible model.
    score, task: None for a named model that was not assessed. work: the kind of work under which outcomes are evidence
        (`Experience`), whatever the strategy; empty where the learned classifier has not looked at it.
    eligible: the models that could have been chosen; excluded: the others, each with the reason.
    propensity: probability with which `model` was chosen: 1.0 where nothing is drawn by lot (`exploration`).
    expected_cost_microusd: of an answer of `model`; a cascade that goes on costs more.
    baseline_cost_microusd: expected cost of "always-strong", the cheapest eligible model of the strongest eligible
        tier, which is what a caller without a router would use. A named model is its own baseline: nothing was saved.
    cascade: the models of a cascade, each stronger than the one before; the answers of all but the last are judged.
    loss: by eligible model what its choice is expected to cost in all and the chance of a good answer, where the
        strategy weighs that (`objective.Loss`). explored: the model was drawn by lot, not chosen as the best.
    basis: what a choice for `auto` went by (`router.basis`), so that it can be made again under other settings.
    rule: the time rule that held. experiment: the part in one (`trials.Trial`); `propensity` is over its arms then.
    wakes: of the models that sleep, the one that would have been chosen, or asked by a cascade, had all of them run.
    """

    model: str
    backend: str
    fallbacks: tuple[str, ...]
    tier: str
    strategy: str
    strategy_version: str
    score: float | None
    task: str | None
    factors: dict[str, float]
    eligible: tuple[str, ...]
    excluded: dict[str, str]
    propensity: float
    expected_cost_microusd: int
    baseline_cost_microusd: int
    cascade: tuple[str, ...] = ()
    loss: dict[str, dict[str, float]] = field(default_factory=dict)
    explored: bool = False
    basis: dict[str, Any] | None = None
    rule: str = ""
    experiment: dict[str, str] | None = None
    wakes: str | None = None
    work: str = ""


def decide(
    request: ChatRequest,
    assessment: Assessment | None,
    candidates: Sequence[Candidate],
    routing: RoutingSettings,
    allowed_models: tuple[str, ...] | None,
    input_tokens_at_least: int,
    wish: Wish = Wish(),
    circumstances: Circumstances = Circumstances(),
) -> Decision:
    """The model for `request`: the named one, or what the strategy says for `auto`.

    complexity: the cheapest of the tier that the score asks for, else of the nearest stronger tier, else of the nearest
    weaker one; without an assessment the strongest, to be safe. cascade: the cheapest of the weakest tier. hybrid,
    learned, learning: the least expected loss (`objective`).

    Raises `ModelNotFound`, `PermissionDenied`, `UnsupportedFeature`, `ContextLengthExceeded`, `NoEligibleModel`, and
    `InvalidRequest` for a strategy beside a named model.
    """
    demand = Demand(request, allowed_models, input_tokens_at_least, wish.limits)
    pool = {candidate.entry.name: candidate for candidate in candidates}
    _check_wish(demand, pool, wish)
    if request.model == AUTO:
        assessed, priced = assessment or ABSTAINED, _as_priced(candidates, routing)
        decision = _choose(demand, assessed, priced, routing, wish, circumstances)
        eligible = [pool[name] for name in decision.eligible]
        return replace(decision, basis=basis_of(assessed, eligible, circumstances.evidence, wish.strategy))
    return _pin(demand, assessment, pool, routing, wish)


def work_of(assessment: Assessment | None) -> str:
    """The kind of work that outcomes of such a question are evidence for."""
    return assessment.outlook.work if assessment is not None and assessment.outlook is not None else ""


def tier_of(score: float, routing: RoutingSettings) -> str:
    if score < routing.medium_from:
        return "small"
    return "medium" if score <= routing.large_above else "large"


def _check_wish(demand: Demand, pool: Mapping[str, Candidate], wish: Wish) -> None:
    if wish.strategy is not None and demand.request.model != AUTO:
        raise InvalidRequest(
            f"A strategy chooses the model for '{AUTO}'; leave out 'switchyard.strategy' or the model's name.",
            "switchyard.strategy",
        )
    if wish.limits.min_quality is not None and demand.request.model != AUTO:
        raise InvalidRequest(
            f"'min_quality' is for '{AUTO}': a named model answers as well as it can. Leave one of them out.",
            "switchyard.min_quality",
        )
    for name in wish.fallbacks or ():
        if name not in pool:
            raise _unknown(name, demand, pool, "switchyard.fallbacks")
        if (refused := allow_list(demand, pool[name])) is not None:
            refused.param = "switchyard.fallbacks"
            raise refused


def _unknown(name: str, demand: Demand, pool: Mapping[str, Candidate], param: str) -> ModelNotFound:
    usable = sorted(other for other, candidate in pool.items() if allow_list(demand, candidate) is None)
    names = ", ".join(usable) or "(none for this key)"
    choice = f"'{AUTO}' or one of" if param == "model" else "some of"
    return ModelNotFound(f"There is no model '{name}'; use {choice}: {names}.", param)


def _pin(
    demand: Demand, assessment: Assessment | None, pool: Mapping[str, Candidate], routing: RoutingSettings, wish: Wish
) -> Decision:
    """The named model. It has only the fallbacks that were asked for or configured; one of those with room for it takes
    a prompt that is surely too long for the named model."""
    name = demand.request.model
    named = pool.get(name)
    if named is None:
        raise _unknown(name, demand, pool, "model")
    wanted = wish.fallbacks if wish.fallbacks is not None else routing.fallbacks.get(name, ())
    plan = dict.fromkeys([name, *(other for other in wanted if other in pool)])
    outs = {other: out for other in plan if (out := exclusion(demand, pool[other])) is not None}
    able = [other for other in plan if other not in outs]
    if name in outs and not (able and outs[name].constraint == "context"):
        raise outs[name].error
    chosen = pool[able[0]]
    reasons = {other: outs[other].error.message if other in outs else "another model was named" for other in pool}
    return Decision(
        model=chosen.entry.name,
        backend=chosen.backend,
        fallbacks=tuple(able[1:]),
        tier=chosen.entry.tier,
        strategy="pinned",
        strategy_version="1",
        score=assessment.score if assessment else None,
        task=assessment.task if assessment else None,
        factors=dict(assessment.factors) if assessment else {},
        eligible=tuple(able),
        excluded={other: reason for other, reason in reasons.items() if other not in able},
        propensity=1.0,
        expected_cost_microusd=chosen.expected_cost_microusd,
        baseline_cost_microusd=chosen.expected_cost_microusd,
    )


def _choose(
    demand: Demand,
    assessment: Assessment,
    candidates: Sequence[Candidate],
    routing: RoutingSettings,
    wish: Wish,
    circumstances: Circumstances,
) -> Decision:
    strategy = _strategy(assessment, routing, wish)
    if any(candidate.entry.name == wish.prefer for candidate in candidates):
        strategy = "preferred"
    chance = chances(strategy, assessment, candidates, circumstances.evidence, routing)
    if demand.limits.min_quality is not None:
        demand = replace(demand, chances=chance)
    outs = {candidate.entry.name: exclusion(demand, candidate) for candidate in candidates}
    eligible = [candidate for candidate in candidates if outs[candidate.entry.name] is None]
    aside = standing_aside(eligible)
    asleep = [candidate for candidate in eligible if candidate.entry.name in aside and not candidate.rests]
    eligible = [candidate for candidate in eligible if candidate.entry.name not in aside]
    excluded = {name: out for name, out in outs.items() if out is not None} | aside
    if not eligible:
        raise _nobody(excluded)

    def ordered(some: Sequence[Candidate]) -> tuple[list[Candidate], dict[str, Loss]]:
        loss = losses(some, chance, routing) if strategy in WEIGHING else {}
        return _order(strategy, some, assessment, routing, loss, circumstances.turn), loss

    ranked, loss = ordered(eligible)
    known = heads(strategy, assessment)
    if strategy == "cascade" and known:
        start = worthwhile(steps_of(ranked), chance, known, failure_price(eligible, routing))[0]
        ranked = _ranked(eligible, start.entry.tier)
    ranked.sort(key=lambda candidate: candidate.entry.name != wish.prefer)
    ranked, propensity, explored = _explored(ranked, routing.exploration, circumstances.draw)
    chosen, rest = ranked[0], _after(ranked, routing, wish)
    last = _after([chosen, *ordered(asleep)[0]], routing, wish) if asleep else []  # a wait is better than no answer
    steps = cascade_of([chosen, *rest], chance, known, routing) if strategy == "cascade" else ()
    outlook = assessment.outlook if strategy in WEIGHING else None
    return Decision(
        model=chosen.entry.name,
        backend=chosen.backend,
        fallbacks=tuple(candidate.entry.name for candidate in (*rest, *last)),
        tier=chosen.entry.tier,
        strategy=strategy,
        strategy_version=_version(strategy, steps_of(_ranked([chosen, *rest], TIERS[0])), assessment, routing),
        score=outlook.score if outlook else assessment.score,
        task=outlook.work if outlook else assessment.task,
        factors=dict(assessment.factors),
        eligible=tuple(sorted(candidate.entry.name for candidate in eligible)),
        excluded={name: out.error.message for name, out in excluded.items()},
        propensity=propensity,
        expected_cost_microusd=chosen.expected_cost_microusd,
        baseline_cost_microusd=_ranked(eligible, TIERS[-1])[0].expected_cost_microusd,
        cascade=steps,
        loss={name: each.explained() for name, each in loss.items()},
        explored=explored,
        work=work_of(assessment),
    )


def _as_priced(candidates: Sequence[Candidate], routing: RoutingSettings) -> Sequence[Candidate]:
    """With the node's costs that the settings go by. The basis keeps what was measured all the same."""
    if routing.node_costs == "measured":
        return candidates
    return [replace(candidate, node_factor=1.0) for candidate in candidates]


def _strategy(assessment: Assessment, routing: RoutingSettings, wish: Wish) -> str:
    """The strategy that really decides: without the learned classifier's word the score does, under its own name."""
    strategy = wish.strategy or routing.strategy
    own = assessment.strategy not in ("complexity", "abstain")
    broken = bool(assessment.warning) and assessment.outlook is None
    if strategy == "custom" and not own and not broken and assessment.strategy != "abstain":
        raise InvalidRequest("There is no strategy 'custom' here: the operator has set none.", "switchyard.strategy")
    if strategy in ("complexity", "custom") or (strategy in ("hybrid", "learned") and assessment.outlook is None):
        return assessment.strategy
    return strategy


def _order(
    strategy: str,
    eligible: Sequence[Candidate],
    assessment: Assessment,
    routing: RoutingSettings,
    loss: Mapping[str, Loss],
    turn: int,
) -> list[Candidate]:
    if loss:
        return by_loss(eligible, loss)
    cheapest = sorted(eligible, key=lambda candidate: (candidate.real_cost_microusd, candidate.entry.name))
    match strategy:
        case "cheapest":
            return cheapest
        case "fastest":  # what was not measured yet comes last
            return sorted(cheapest, key=lambda c: c.first_token_ms if c.first_token_ms is not None else math.inf)
        case "round_robin":
            circle = sorted(eligible, key=lambda candidate: candidate.entry.name)
            at = turn % len(circle)
            return circle[at:] + circle[:at]
        case "cascade":
            return _ranked(eligible, TIERS[0])
    return _ranked(eligible, tier_of(assessment.score, routing))


def _explored(ranked: list[Candidate], share: float, draw: float) -> tuple[list[Candidate], float, bool]:
    """With the probability `share` any of them, each as likely, comes first; how likely that was; whether by lot."""
    each = share / len(ranked)
    if draw >= share:
        return ranked, 1 - share + each, False
    drawn = ranked[min(len(ranked) - 1, int(draw / each))]
    rest = [candidate for candidate in ranked if candidate is not drawn]
    return [drawn, *rest], each + (1 - share if drawn is ranked[0] else 0.0), True


def _version(strategy: str, steps: Sequence[Candidate], assessment: Assessment, routing: RoutingSettings) -> str:
    """Names all that the choice depends on, so that logged decisions stay comparable."""
    outlook = assessment.outlook
    if strategy == "cascade":
        return gates_version(steps, outlook.version if outlook and outlook.heads else "", routing)
    if strategy in WEIGHING:
        parts = (outlook.version if outlook else "", assessment.strategy_version, routing.failure_price_microusd)
        more = (routing.failure_price_answers, routing.waiting_price_microusd_per_s, routing.switch_price)
        return "1-" + hashlib.sha256(repr((*parts, *more)).encode()).hexdigest()[:8]
    return assessment.strategy_version if strategy == assessment.strategy else "1"


def _after(ranked: Sequence[Candidate], routing: RoutingSettings, wish: Wish) -> list[Candidate]:
    """What follows the first: the caller's order, else the operator's, else the ranking's. Only who may answer."""
    first = ranked[0].entry.name
    order = wish.fallbacks if wish.fallbacks is not None else routing.fallbacks.get(first)
    if order is None:
        return list(ranked[1:])
    able = {candidate.entry.name: candidate for candidate in ranked[1:]}
    return [able[name] for name in dict.fromkeys(order) if name in able]


def _ranked(eligible: Sequence[Candidate], tier: str) -> list[Candidate]:
    """The wanted tier first, then stronger ones, then weaker ones, nearest first; within a tier the cheapest first."""
    wanted = TIERS.index(tier)

    def key(candidate: Candidate) -> tuple[bool, int, float, str]:
        step = TIERS.index(candidate.entry.tier) - wanted
        return step < 0, abs(step), candidate.real_cost_microusd, candidate.entry.name

    return sorted(eligible, key=key)


def _nobody(excluded: dict[str, Exclusion]) -> SwitchyardError:
    """Why no model is left. Models outside the caller's allow-list do not count, unless there are no others."""
    outs = [out for out in excluded.values() if out.constraint != "allow-list"]
    failed = Counter(out.constraint for out in outs)
    details = {"excluded": {name: out.error.message for name, out in excluded.items()}}
    if outs and failed["context"] == len(outs):
        return ContextLengthExceeded(
            "The prompt is longer than the context of every model that you may use; shorten the conversation.",
            "messages",
            None,
            details,
        )
    if outs and failed["capability"] == len(outs):
        missing = Counter(out.error.param for out in outs).most_common(1)[0][0]
        return UnsupportedFeature(
            f"No model that you may use supports what '{missing}' asks for; leave it out, or see GET /v1/models.",
            missing,
            None,
            details,
        )
    if not outs:
        return NoEligibleModel(
            "Your allow-list holds none of the models that run here; ask your operator for access."
            if excluded
            else "No model is configured; add one to `local_models` or set a provider's key.",
            "model",
            None,
            details,
        )
    tightest = failed.most_common(1)[0][0]
    return NoEligibleModel(
        f"No model meets all constraints of this request; the tightest is {tightest}, which excludes "
        f"{failed[tightest]} of {len(outs)}. Relax it or see GET /v1/models.",
        None,
        None,
        details,
    )
