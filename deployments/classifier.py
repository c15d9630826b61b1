"""`ComplexityClassifier`: how hard is this question? Callable by itself, and the classifier of the pipeline.

`InlineClassifier` does the work wherever it is placed; the Serve deployment is a shell around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.autoscaling import autoscaling
from deployments.hop import call, method
from deployments.live_settings import LiveSettings
from deployments.served import check_heads
from models.messages import Message
from router.assessor import Assessor
from router.features import excerpt
from router.ports import Assessment
from router.settings import ClassifierSettings
from router.topology import Topology

NAME = "ComplexityClassifier"
THREAD_FROM_CHARS = 1_000
"""From here an assessment takes so long (about 3 ms) that a thread is cheaper than holding up the event loop."""


class InlineClassifier:
    """Fills `router.ports.ClassifierPort` in this process. `heads`: those of the models' entries, by model; the
    settings' stand before them."""

    def __init__(self, settings: ClassifierSettings, heads: Mapping[str, str] | None = None) -> None:
        self._heads = dict(heads or {})
        self.reconfigure(settings)

    def reconfigure(self, settings: ClassifierSettings) -> None:
        self._assessor = Assessor(settings.model_copy(update={"heads": {**self._heads, **settings.heads}}))

    @property
    def warning(self) -> str:
        """What it does without; empty when it is whole."""
        return self._assessor.warning

    async def assess(self, messages: Sequence[Message], domain: str | None = None) -> Assessment:
        part = excerpt(messages)
        if sum(len(message.text) for message in part) < THREAD_FROM_CHARS:
            return self._assessor.assess(part, domain)
        return await asyncio.to_thread(self._assessor.assess, part, domain)


class ComplexityClassifier:
    """The deployment. Its `user_config` is `ClassifierSettings`; without one the defaults hold. `models`: those that
    may be named in it."""

    def __init__(self, heads: Mapping[str, str], models: Sequence[str]) -> None:
        self._settings = LiveSettings(ClassifierSettings, lambda settings: check_heads(settings, models))
        self._classifier = InlineClassifier(ClassifierSettings(), heads)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        if settings := self._settings.accept(user_config):
            self._classifier.reconfigure(settings)

    async def assess(self, messages: Sequence[Message], domain: str | None = None) -> Assessment:
        return await self._classifier.assess(messages, domain)

    async def warning(self) -> str:
        return self._classifier.warning

    async def check_health(self) -> None:
        """Serve restarts the replica when this raises: one assessment of the whole way."""
        await self._classifier.assess((Message("user"),))


class ClassifierHandle:
    """Fills `router.ports.ClassifierPort` over a hop. Only the excerpt that decides anything is sent."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._assess = method(handle, "assess")

    async def assess(self, messages: Sequence[Message], domain: str | None = None) -> Assessment:
        assessment: Assessment = await call(self._assess, excerpt(messages), domain)
        return assessment


def classifier_deployment(topology: Topology) -> Application:
    scale = topology.classifier_scale
    bounds = serve.deployment(
        name=NAME,
        user_config={},
        # An assessment takes 2 ms: 64 at once are 130 ms of work, more would only wait in the replica.
        max_ongoing_requests=64,
        # Per caller. What waits longer than the pipeline is willing to is worth nothing: refused, it goes to a strong
        # model instead of waiting.
        max_queued_requests=256,
        # A quarter of what it takes: a second replica is there before requests queue.
        autoscaling_config=autoscaling(scale, 16),
        # A dead replica is noticed by its callers at once; this finds one that hangs.
        health_check_period_s=5,
        health_check_timeout_s=10,
        # The longest call takes milliseconds.
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=5,
        ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": scale.num_gpus},
    )
    return bounds(ComplexityClassifier).bind(topology.heads(), topology.model_names())
