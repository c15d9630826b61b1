"""Further short answers of a model to the same question: one that knows says the same again (self-consistency, Wang et
al. 2022, https://arxiv.org/abs/2203.11171). They run beside the answer that is held back, and are paid with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from models.base import Call
from models.errors import SwitchyardError
from models.messages import ChatRequest, Completion, Event, Usage, UsageReport, fold
from router.ports import Ticket
from router.settings import GateSettings
from router.tokens import output_tokens

if TYPE_CHECKING:
    from router.pipeline import Backend
    from router.run import Run

LEAST_TEMPERATURE = 0.7
"""A greedy answer would only be repeated."""


def usage_of(
    events: Sequence[Event], expected_input_tokens: int, answer: Completion | None = None
) -> tuple[Usage, bool]:
    """What an answer took, and whether it is our count: of what was asked and of what came of it. answer: `events`
    folded, where that is done."""
    answer = answer or fold(events)
    counted = any(isinstance(event, UsageReport) for event in events)
    if counted and answer.finish_reason is not None:
        return answer.usage, answer.estimated
    usage = answer.usage if counted else Usage(expected_input_tokens)
    return replace(usage, output_tokens=max(usage.output_tokens, output_tokens(events))), True


@dataclass(slots=True)
class _Sample:
    events: list[Event] = field(default_factory=list)
    called: bool = False


class Samples:
    """`begin` them, `texts` waits for what they say, `stop` ends them, after which `usages` is what they took."""

    def __init__(self, run: Run, backend: Backend, gate: GateSettings) -> None:
        self._run, self._backend, self._gate = run, backend, gate
        self._samples: list[_Sample] = []
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, request: ChatRequest) -> None:
        """`request` is the question as the model gets it."""
        for number in range(self._gate.samples):
            sample = _Sample()
            self._samples.append(sample)
            self._tasks.append(asyncio.get_running_loop().create_task(self._one(sample, number, request)))

    async def texts(self) -> list[str]:
        """Of those that ended: one that fails has no say."""
        await asyncio.gather(*self._tasks)
        answers = [fold(sample.events) for sample in self._samples]
        return [answer.text for answer in answers if answer.finish_reason is not None]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def usages(self) -> list[Usage]:
        return [usage_of(sample.events, self._run.tokens.expected)[0] for sample in self._samples if sample.called]

    async def _one(self, sample: _Sample, number: int, request: ChatRequest) -> None:
        run, batcher = self._run, self._run.pipeline.stages.batcher
        name, org = f"{run.request_id}-{number + 1}", run.principal.org
        wait_s = min(run.settings.queue_timeout_s, run.time_left_s())
        try:
            grant = await batcher.admit(Ticket(name, self._backend.name, org, run.options.priority, wait_s))
        except SwitchyardError:
            return
        try:
            sample.called = True
            source = self._backend.port.stream(
                self._question(number, request), Call(name, org, run.time_left_s(), run.options.priority)
            )
            try:
                async for batch in source:
                    sample.events.extend(batch)
            finally:
                await source.aclose()  # type: ignore[attr-defined]
        except SwitchyardError:
            sample.called = bool(sample.events)  # before the first event it cost nothing
        finally:
            batcher.release(grant)

    def _question(self, number: int, request: ChatRequest) -> ChatRequest:
        sampling = request.sampling
        limit = min(self._gate.tokens, sampling.max_tokens or self._gate.tokens)
        seed = None if sampling.seed is None else sampling.seed + number + 1
        temperature = max(LEAST_TEMPERATURE, sampling.temperature or 0.0)
        changed = replace(sampling, max_tokens=limit, temperature=temperature, seed=seed, top_logprobs=None, n=1)
        return replace(request, sampling=changed)
