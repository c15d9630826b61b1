"""The choice of a model: constraints first, then the score's tier, then the price. Pure and deterministic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from models.catalog import TIERS
from models.errors import (
    ContextLengthExceeded,
    ModelNotFound,
    NoEligibleModel,
    SwitchyardError,
    UnsupportedFeature,
)
from models.messages import ChatRequest
from router.config import RoutingSettings
from router.constraints import Candidate, Demand, Exclusion, allow_list, exclusion
from router.ports import Assessment

__all__ = ["AUTO", "Candidate", "Decision", "decide", "tier_of"]

AUTO = "auto"
ABSTAINED = Assessment(1.0, "unknown", {}, "abstain")
"""Of a question that nothing assessed: the strong side is the safe one."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Which model answers, and everything needed to explain and to re-weigh that later.

    fallbacks: models to try in this order when `model` fails before its first token.
    tier: of `model`; the score's own tier may have had no eligible model.
    score, task: None for a named model that was not assessed.
    eligible: the models that could have been chosen; excluded: the others, each with the reason.
    propensity: probability with which `model` was chosen (1.0: this policy draws no lots).
    baseline_cost_microusd: expected cost of "always-strong", the cheapest eligible model of the strongest eligible
        tier, which is what a caller without a router would use. A named model is its own baseline: nothing was saved.
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


def decide(
    request: ChatRequest,
    assessment: Assessment | None,
    candidates: Sequence[Candidate],
    routing: RoutingSettings,
    allowed_models: tuple[str, ...] | None,
    input_tokens_at_least: int,
) -> Decision:
    """The model for `request`: the named one, or for `auto` the cheapest of the tier that the score asks for, else of
    the nearest stronger tier, else of the nearest weaker one. Without an assessment `auto` plays safe: the strongest.

    Raises `ModelNotFound`, `PermissionDenied`, `UnsupportedFeature`, `ContextLengthExceeded`, `NoEligibleModel`.
    """
    demand = Demand(request, allowed_models, input_tokens_at_least)
    if request.model == AUTO:
        return _choose(demand, assessment or ABSTAINED, candidates, routing)
    return _pin(demand, assessment, candidates)


def tier_of(score: float, routing: RoutingSettings) -> str:
    if score < routing.medium_from:
        return "small"
    return "medium" if score <= routing.large_above else "large"


def _pin(demand: Demand, assessment: Assessment | None, candidates: Sequence[Candidate]) -> Decision:
    name = demand.request.model
    named = next((candidate for candidate in candidates if candidate.entry.name == name), None)
    if named is None:
        usable = sorted(candidate.entry.name for candidate in candidates if allow_list(demand, candidate) is None)
        raise ModelNotFound(
            f"There is no model '{name}'; use '{AUTO}' or one of: {', '.join(usable) or '(none for this key)'}.",
            "model",
        )
    out = exclusion(demand, named)
    if out is not None:
        raise out.error
    return Decision(
        model=name,
        backend=named.backend,
        fallbacks=(),
        tier=named.entry.tier,
        strategy="pinned",
        strategy_version="1",
        score=assessment.score if assessment else None,
        task=assessment.task if assessment else None,
        factors=dict(assessment.factors) if assessment else {},
        eligible=(name,),
        excluded={c.entry.name: "another model was named" for c in candidates if c is not named},
        propensity=1.0,
        expected_cost_microusd=named.expected_cost_microusd,
        baseline_cost_microusd=named.expected_cost_microusd,
    )


def _choose(
    demand: Demand, assessment: Assessment, candidates: Sequence[Candidate], routing: RoutingSettings
) -> Decision:
    outs = {candidate.entry.name: exclusion(demand, candidate) for candidate in candidates}
    eligible = [candidate for candidate in candidates if outs[candidate.entry.name] is None]
    excluded = {name: out for name, out in outs.items() if out is not None}
    if not eligible:
        raise _nobody(excluded)
    ranked = _ranked(eligible, tier_of(assessment.score, routing))
    chosen = ranked[0]
    return Decision(
        model=chosen.entry.name,
        backend=chosen.backend,
        fallbacks=tuple(candidate.entry.name for candidate in ranked[1:]),
        tier=chosen.entry.tier,
        strategy=assessment.strategy,
        strategy_version=assessment.strategy_version,
        score=assessment.score,
        task=assessment.task,
        factors=dict(assessment.factors),
        eligible=tuple(sorted(candidate.entry.name for candidate in eligible)),
        excluded={name: out.error.message for name, out in excluded.items()},
        propensity=1.0,
        expected_cost_microusd=chosen.expected_cost_microusd,
        baseline_cost_microusd=_ranked(eligible, TIERS[-1])[0].expected_cost_microusd,
    )


def _ranked(eligible: Sequence[Candidate], tier: str) -> list[Candidate]:
    """The wanted tier first, then stronger ones, then weaker ones, nearest first; within a tier the cheapest first."""
    wanted = TIERS.index(tier)

    def key(candidate: Candidate) -> tuple[bool, int, int, str]:
        step = TIERS.index(candidate.entry.tier) - wanted
        return step < 0, abs(step), candidate.expected_cost_microusd, candidate.entry.name

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
