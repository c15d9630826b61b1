"""What is known of each model when one is chosen for a request: what it would cost, how long it takes, how it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.catalog import ModelEntry
from models.messages import ChatRequest, Usage
from router.constraints import Candidate, Limits
from router.settings import RoutingSettings
from router.tokens import PromptTokens

if TYPE_CHECKING:
    from router.pipeline import Pipeline


def candidates(
    pipeline: Pipeline,
    request: ChatRequest,
    tokens: PromptTokens,
    last: str | None,
    routing: RoutingSettings,
    limits: Limits,
) -> list[Candidate]:
    """One for each model of the configuration. last: which had the conversation's last turn."""

    asleep = pipeline.stages.batcher.asleep()

    def candidate(entry: ModelEntry) -> Candidate:
        name, total_ms = entry.name, None
        backend = pipeline.backend_of(name).name
        if limits.max_latency_ms is not None:  # no other asks for it, and it takes 0.1 ms
            total_ms = pipeline.latencies.total_ms(name, _longest(pipeline, entry, request))
        return Candidate(
            entry,
            backend,
            expected_microusd(pipeline, entry, request, tokens),
            pipeline.latencies.first_token_ms(name),
            _switch(pipeline, entry, last, tokens, routing),
            pipeline.rests.rests(name),
            pipeline.node_costs.factor(name),
            total_ms,
            routing.asleep == "avoid" and backend in asleep,
            limits.max_ttft_ms is not None and pipeline.latencies.stale(name),
        )

    return [candidate(entry) for entry in pipeline.entries.values()]


def expected_microusd(pipeline: Pipeline, entry: ModelEntry, request: ChatRequest, tokens: PromptTokens) -> int:
    """What an answer of this model would be charged, if it gets as long as it may and no cache of a provider is read or
    written."""
    return pipeline.prices.cost_microusd(entry.name, Usage(tokens.expected, _longest(pipeline, entry, request)))


def _longest(pipeline: Pipeline, entry: ModelEntry, request: ChatRequest) -> int:
    """In tokens, of all choices together."""
    return pipeline.max_output_tokens(entry, request) * request.sampling.n


def _switch(
    pipeline: Pipeline, entry: ModelEntry, last: str | None, tokens: PromptTokens, routing: RoutingSettings
) -> int:
    """What `entry` has to read again that the conversation's model may still have in its cache."""
    if last is None or last == entry.name or last not in pipeline.entries:
        return 0
    return round(routing.switch_price * pipeline.prices.cost_microusd(entry.name, Usage(tokens.expected)))
