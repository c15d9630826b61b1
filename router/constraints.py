"""Who may answer a request at all. A constraint says why a candidate is out, as the error its caller would get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from models.base import check_supported
from models.catalog import LOCAL_ENGINES, ModelEntry
from models.errors import (
    ContextLengthExceeded,
    ModelUnavailable,
    NoEligibleModel,
    PermissionDenied,
    SwitchyardError,
    UnsupportedFeature,
)
from models.messages import ChatRequest


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that is deployed. The costs are for this request, at the price that is charged.

    node_factor: by which its node's time really costs more, as measured (`router.node_costs`); choices go by that.
    first_token_ms: what it was measured to take to the first token, at the 95th percentile; None: not measured. stale:
        that is of some time ago, so it is heeded where models are compared, and is no reason to leave this one out.
    switch_cost_microusd: what leaving the model that has the conversation costs; 0 for that model.
    rests: it could not be reached the last few times. asleep: none of its replicas runs; its first answer would wait
        for one.
    total_ms: the 95th percentile of the time to the end of an answer as long as this one may get; None: not measured of
        late, or nobody asks.
    """

    entry: ModelEntry
    backend: str
    expected_cost_microusd: int = 0
    first_token_ms: float | None = None
    switch_cost_microusd: int = 0
    rests: bool = False
    node_factor: float = 1.0
    total_ms: float | None = None
    asleep: bool = False
    stale: bool = False

    @property
    def real_cost_microusd(self) -> float:
        return self.expected_cost_microusd * self.node_factor

    @property
    def local(self) -> bool:
        """Whether prompts stay in this cluster."""
        return not self.entry.provider and self.entry.engine in LOCAL_ENGINES


@dataclass(frozen=True, slots=True)
class Limits:
    """What the caller, or the operator, demands of the model; None: nothing.

    min_quality: least chance of a good answer, in [0, 1]. max_ttft_ms, max_latency_ms: until the first token and until
    the end of the answer, measured, at the 95th percentile.
    """

    min_quality: float | None = None
    max_cost_microusd: int | None = None
    max_ttft_ms: float | None = None
    region: str | None = None
    local_only: bool = False
    max_latency_ms: float | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of its model. `allowed_models` None: any. `input_tokens_at_least` bounds the prompt below.
    `chances` of a good answer, by model, are there where `limits.min_quality` needs them."""

    request: ChatRequest
    allowed_models: tuple[str, ...] | None
    input_tokens_at_least: int
    limits: Limits = NO_LIMITS
    chances: Mapping[str, float] = field(default_factory=dict)


Constraint = Callable[[Demand, Candidate], SwitchyardError | None]


def allow_list(demand: Demand, candidate: Candidate) -> SwitchyardError | None:
    name = candidate.entry.name
    if demand.allowed_models is None or name in demand.allowed_models:
        return None
    return PermissionDenied(f"This key may not use model '{name}'; GET /v1/models lists the ones it may.", "model")


def capability(demand: Demand, candidate: Candidate) -> SwitchyardError | None:
    try:
        check_supported(demand.request, candidate.entry.capabilities, candidate.entry.name)
    except UnsupportedFeature as error:
        return error
    return None


def context_window(demand: Demand, candidate: Candidate) -> SwitchyardError | None:
    """Only what is certain: the bound is a lower one, and one token at least must remain for the answer. The engine,
    which has the tokenizer, checks exactly."""
    window = candidate.entry.context_tokens
    if demand.input_tokens_at_least < window:
        return None
    return ContextLengthExceeded(
        f"The prompt has at least {demand.input_tokens_at_least} tokens and model '{candidate.entry.name}' takes "
        f"{window} with the answer; shorten the conversation or choose a model with a larger context.",
        "messages",
    )


def local_only(demand: Demand, candidate: Candidate) -> SwitchyardError | None:
    if not demand.limits.local_only or candidate.local:
        return None
    return NoEligibleModel(
        f"Model '{candidate.entry.name}' runs at a provider and 'local_only' was asked for.", "switchyard.local_only"
    )


def region(demand: Demand, candidate: Candidate) -> SwitchyardError | None:
    wanted, there = demand.limits.region, candidate.entry.region
    if wanted is None or wanted == there:
        return None
    return NoEligibleModel(
        f"Model '{candidate.entry.name}' runs in {there or 'no region that anybody has named'}, not in '{wanted}'.",
        "switchyard.region",
    )


def max_cost(demand: Demand, candidate: Candidate) -> SwitchyardError | None:
    limit, cost = demand.limits.max_cost_microusd, candidate.expected_cost_microusd
    if limit is None or cost <= limit:
        return None
    return NoEligibleModel(
        f"An answer of model '{candidate.entry.name}' may cost {cost} micro-USD and at most {limit} were "
        f"allowed; fewer "
        "'max_tokens' cost less.",
        "switchyard.max_cost_microusd",
    )


def max_ttft(demand: Demand, candidate: Candidate) -> SwitchyardError | None:
    limit, measured = demand.limits.max_ttft_ms, candidate.first_token_ms
    if limit is None or measured is None or candidate.stale or measured <= limit:
        return None
    return NoEligibleModel(
        f"Model '{candidate.entry.name}' takes {measured:.0f} ms to its first token (95th percentile, measured) and at "
        f"most {limit:.0f} were allowed.",
        "switchyard.max_ttft_ms",
    )


def max_latency(demand: Demand, candidate: Candidate) -> SwitchyardError | None:
    limit, measured = demand.limits.max_latency_ms, candidate.total_ms
    if limit is None or measured is None or measured <= limit:
        return None
    return NoEligibleModel(
        f"Model '{candidate.entry.name}' takes {measured:.0f} ms to the end of such an answer (95th percentile, "
        f"measured) and at most {limit:.0f} were allowed; fewer 'max_tokens' take less.",
        "switchyard.max_latency_ms",
    )


def min_quality(demand: Demand, candidate: Candidate) -> SwitchyardError | None:
    least, name = demand.limits.min_quality, candidate.entry.name
    chance = demand.chances.get(name)
    if least is None or chance is None or chance >= least:
        return None
    return NoEligibleModel(
        f"Model '{name}' is expected to answer this well with probability {chance:.2f}, and {least:.2f} was asked for.",
        "switchyard.min_quality",
    )


# The first that fails is the reason given.
CONSTRAINTS: dict[str, Constraint] = {
    "allow-list": allow_list,
    "capability": capability,
    "context": context_window,
    "local_only": local_only,
    "region": region,
    "max_cost_microusd": max_cost,
    "max_ttft_ms": max_ttft,
    "max_latency_ms": max_latency,
    "min_quality": min_quality,
}


@dataclass(frozen=True, slots=True)
class Exclusion:
    constraint: str
    error: SwitchyardError


def exclusion(demand: Demand, candidate: Candidate) -> Exclusion | None:
    """The first constraint that `candidate` fails, None when it may answer."""
    for name, constraint in CONSTRAINTS.items():
        error = constraint(demand, candidate)
        if error is not None:
            return Exclusion(name, error)
    return None


def standing_aside(eligible: Sequence[Candidate]) -> dict[str, Exclusion]:
    """Those that could not be reached of late, or are asleep, are out, as long as others are left: a try, or a wait, is
    better than no answer."""
    if all(candidate.rests or candidate.asleep for candidate in eligible):
        return {}
    outs = {}
    for candidate in eligible:
        name = candidate.entry.name
        if candidate.rests:
            error = f"Model '{name}' could not be reached the last few times; it is tried again in seconds."
            outs[name] = Exclusion("healthy", ModelUnavailable(error))
        elif candidate.asleep:
            error = (
                f"No replica of model '{name}' runs; one is started where it would have been chosen, and waited for "
                "where all others fail."
            )
            outs[name] = Exclusion("awake", ModelUnavailable(error))
    return outs
