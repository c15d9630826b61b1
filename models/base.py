"""The one interface that every engine and provider adapter fills, and how its events travel in batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, fields
from typing import Protocol

from models.errors import UnsupportedFeature
from models.messages import ChatRequest, Event


@dataclass(frozen=True, slots=True)
class Call:
    """What a model needs to know of the request besides the question. `timeout_s` is the time left at the moment of
    the call (clocks differ between machines). `tenant` is opaque and only separates callers. `spare_attempts` is for
    how many more attempts than one, each as dear, money has been set aside."""

    request_id: str
    tenant: str = ""
    timeout_s: float = 600.0
    priority: int = 0
    spare_attempts: int = 0


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a model accepts. What is not set is refused with 400, never dropped. `prefill`: a last message of the
    assistant's, which the answer goes on with."""

    tools: bool = False
    images: bool = False
    json_object: bool = False
    json_schema: bool = False
    logprobs: bool = False
    reasoning: bool = False
    multiple_choices: bool = False
    seed: bool = True
    penalties: bool = False
    temperature: bool = True
    top_k: bool = False
    thinking_budget: bool = False
    prefill: bool = False
    logit_bias: bool = False
    verbosity: bool = False

    def beyond(self, able: Capabilities) -> list[str]:
        """The names of those that `able` is without."""
        names = (field.name for field in fields(self))
        return [name for name in names if getattr(self, name) and not getattr(able, name)]


class ChatModel(Protocol):
    """One model. `stream` yields events as they come and ends with `Finish` and then `UsageReport`.

    Closing the iterator (or cancelling the task that drives it) stops the work in the engine or at the provider.
    Errors are `models.errors` only. A `stream` that raises before its first event has charged nothing, unless the
    error's `abandoned` says otherwise. An earlier `UsageReport`, of what is known so far, may come after the first
    event, for an answer that breaks off.
    """

    def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]: ...

    async def check_health(self) -> None:
        """Raise `ModelUnavailable` when no request can be served."""

    async def close(self) -> None: ...


def check_supported(request: ChatRequest, capabilities: Capabilities, model: str) -> None:
    """Raise `UnsupportedFeature` naming the first thing in `request` that `model` cannot do."""
    sampling = request.sampling
    response_format = request.response_format.kind if request.response_format else "text"
    thinking = request.thinking.mode if request.thinking else "default"
    asked = {
        "tools": ("tools", bool(request.tools) or any(m.tool_calls or m.role == "tool" for m in request.messages)),
        "images": ("messages", request.has_images),
        "json_object": ("response_format", response_format == "json_object"),
        "json_schema": ("response_format", response_format == "json_schema"),
        "logprobs": ("logprobs", sampling.top_logprobs is not None),
        "reasoning": (
            "reasoning_effort" if request.reasoning_effort else "thinking",
            request.reasoning_effort not in (None, "none") or thinking == "adaptive",
        ),
        "multiple_choices": ("n", sampling.n > 1),
        "seed": ("seed", sampling.seed is not None),
        "penalties": ("presence_penalty", bool(sampling.presence_penalty or sampling.frequency_penalty)),
        "top_k": ("top_k", sampling.top_k is not None),
        "thinking_budget": ("thinking.budget_tokens", thinking == "budget"),
        "prefill": ("messages", request.prefill),
        "logit_bias": ("logit_bias", bool(sampling.logit_bias)),
        "verbosity": ("verbosity", request.verbosity is not None),
        # Reasoning models refuse any other than the default of both, which is 1.
        "temperature": ("temperature", sampling.temperature not in (None, 1) or sampling.top_p not in (None, 1)),
    }
    for feature, (param, wanted) in asked.items():
        if wanted and not getattr(capabilities, feature):
            raise UnsupportedFeature(
                f"Model '{model}' does not support {feature.replace('_', ' ')}; "
                f"leave out '{param}' or choose a model that GET /v1/models lists with it.",
                param,
            )


async def merged(events: AsyncIterator[Event]) -> AsyncIterator[list[Event]]:
    """Batches of `events`: the first at once, later ones merged only while the consumer is busy with the last batch.

    A busy consumer is a send in flight, so nothing ever waits for a batch to fill. Closing this closes `events`.
    """
    pending: list[Event] = []
    arrived = asyncio.Event()

    async def pull() -> None:
        async with aclosing(events) as source:  # type: ignore[type-var]
            async for event in source:
                pending.append(event)
                arrived.set()

    puller = asyncio.create_task(pull())
    puller.add_done_callback(lambda _: arrived.set())
    try:
        while True:
            await arrived.wait()
            arrived.clear()
            if pending:
                batch = pending.copy()
                pending.clear()
                yield batch
            elif puller.done():
                puller.result()  # raises what the source raised
                return
            if puller.done():
                arrived.set()
    finally:
        puller.cancel()
        await asyncio.wait({puller})
        if not puller.cancelled():
            puller.exception()  # mark it as seen: it was raised above, or the consumer left
