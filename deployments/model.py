"""The Serve shell that every model runs in, and how the Ingress calls it.

`InlineModel` does the work wherever it is placed. `TransformersModel:<name>` and `SimulatedModel:<name>` are that class
as deployments. `LLMServer:<name>` and `CloudModel:<name>` have the same methods, so `ModelHandle` calls all of them.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle

from deployments import hop
from deployments.autoscaling import autoscaling
from models.base import Call, ChatModel, merged
from models.messages import ChatRequest, Event
from models.registry import resolve_source
from models.simulated import SimulatedModel as SimulatedChatModel
from models.transformers_engine import TransformersChatModel
from router.topology import LocalModel, Scale

DRAIN_S = 660.0
"""How long a replica that leaves may finish its streams: the longest request (600 s) and a minute."""


class InlineModel:
    """Fills `router.ports.ModelPort` around a `ChatModel` of this process."""

    def __init__(self, model: ChatModel) -> None:
        self._model = model

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[list[Event]]:
        async with aclosing(merged(self._model.stream(request, call))) as batches:  # type: ignore[type-var]
            async for batch in batches:
                yield batch

    async def complete(self, request: ChatRequest, call: Call) -> list[Event]:
        async with aclosing(self._model.stream(request, call)) as events:  # type: ignore[type-var]
            return [event async for event in events]

    async def count_tokens(self, request: ChatRequest, call: Call) -> int | None:
        """How long `request` is for this model; None where it does not say."""
        counter = getattr(self._model, "count_tokens", None)
        return None if counter is None else await counter(request, call)

    async def check_health(self) -> None:
        """Raises `ModelUnavailable` when no request can be served; Serve then replaces the replica."""
        await self._model.check_health()


class ModelHandle:
    """Fills `router.ports.ModelPort` over a hop. `name` is the backend's."""

    def __init__(self, handle: DeploymentHandle, name: str) -> None:
        self.name = name
        self._stream = hop.method(handle, "stream", stream=True)
        self._complete = hop.method(handle, "complete")
        self._count_tokens = hop.method(handle, "count_tokens")

    def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[list[Event]]:
        return hop.stream(self._stream, request, call)

    async def complete(self, request: ChatRequest, call: Call) -> list[Event]:
        events: list[Event] = await hop.call(self._complete, request, call)
        return events

    async def count_tokens(self, request: ChatRequest, call: Call) -> int | None:
        counted: int | None = await hop.call(self._count_tokens, request, call)
        return counted


class TransformersModel(InlineModel):
    """The deployment. Its replica is ready when the weights are loaded and a first token was made."""

    async def __init__(self, model: LocalModel, data_dir: str) -> None:  # type: ignore[misc]  # Serve awaits it
        def load() -> ChatModel:
            entry = model.resolve()
            engine_args: dict[str, Any] = model.engine_args
            return TransformersChatModel(entry, resolve_source(entry, Path(data_dir)), **engine_args)

        super().__init__(await asyncio.to_thread(load))  # takes seconds to minutes: Serve's own calls go on meanwhile


class SimulatedModel(InlineModel):
    """The deployment."""

    def __init__(self, model: LocalModel) -> None:
        engine_args: dict[str, Any] = model.engine_args
        super().__init__(SimulatedChatModel(model.resolve(), **engine_args))


def transformers_deployment(model: LocalModel, data_dir: str) -> Application:
    """`TransformersModel:<name>`. Raises ValueError for a device or `engine_args` that the engine does not have."""
    _check_engine_args(model, TransformersChatModel)
    if model.device == "gpu":
        raise ValueError(f"model '{model.name}': the transformers engine runs on the CPU; set `engine: vllm` for a GPU")
    shell = model_deployment(TransformersModel, model.name, model.scale, model.resolve().max_batch)
    return shell.bind(model, data_dir)


def simulated_deployment(model: LocalModel, data_dir: str) -> Application:
    """`SimulatedModel:<name>`. It needs no `data_dir`. Raises ValueError for `engine_args` it does not have."""
    _check_engine_args(model, SimulatedChatModel)
    return model_deployment(SimulatedModel, model.name, model.scale, model.resolve().max_batch).bind(model)


def model_deployment(shell: type[InlineModel], name: str, scale: Scale, places: int) -> Deployment:
    """`<shell>:<name>`, of which each replica works on `places` requests at once."""
    return serve.deployment(
        name=f"{shell.__name__}:{name}",
        ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": scale.num_gpus},
        **serving_options(scale, places),
    )(shell)


def serving_options(scale: Scale, places: int) -> dict[str, Any]:
    """How every model is queued for, scaled, watched and drained, whatever its engine: options of `serve.deployment`.
    Each replica works on `places` requests at once."""
    return dict(
        # The Batcher lets as many through as there are places. A few more are let in, to wait in the engine itself: a
        # place can be granted anew a moment before its last request has left the replica.
        max_ongoing_requests=places + max(2, places // 8),
        # Per caller: what the Batcher may have granted while all replicas are being replaced, and not more.
        max_queued_requests=places * scale.max_replicas,
        autoscaling_config=autoscaling(scale, places),
        # A replica that died is noticed by its callers at once; this finds an engine that stopped inside a live one.
        health_check_period_s=5,
        # A busy engine holds the interpreter for tens of milliseconds, a machine that swaps for seconds.
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=0.5,
    )


def _check_engine_args(model: LocalModel, engine: Callable[..., ChatModel]) -> None:
    known = set(inspect.signature(engine).parameters) - {"entry", "folder"}
    if unknown := set(model.engine_args) - known:
        raise ValueError(
            f"model '{model.name}': its engine has no {', '.join(sorted(unknown))}; `engine_args` may hold "
            f"{', '.join(sorted(known))}"
        )
