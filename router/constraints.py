"""Who may answer a request at all. A constraint says why a candidate is out, as the error its caller would get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models.base import check_supported
from models.catalog import ModelEntry
from models.errors import ContextLengthExceeded, PermissionDenied, SwitchyardError, UnsupportedFeature
from models.messages import ChatRequest


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that is deployed. `expected_cost_microusd` is for this request."""

    entry: ModelEntry
    backend: str
    expected_cost_microusd: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of its model. `allowed_models` None: any. `input_tokens_at_least` bounds the prompt below."""

    request: ChatRequest
    allowed_models: tuple[str, ...] | None
    input_tokens_at_least: int


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


# The first that fails is the reason given.
CONSTRAINTS: dict[str, Constraint] = {
    "allow-list": allow_list,
    "capability": capability,
    "context": context_window,
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
