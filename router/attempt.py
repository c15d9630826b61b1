"""One try of a run at one model: money set aside, a place, the call, the first tokens judged, and one settlement."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from models.base import Call
from models.catalog import LOCAL_ENGINES
from models.errors import StreamInterrupted, SwitchyardError, UpstreamFailed
from models.messages import ChatRequest, Completion, Event, Finish, Usage, fold
from router.accounting.limits import Claim
from router.archive.lines import BATCH_DOOR
from router.cascade import Judgement, consistent, judge, without_logprobs
from router.events import Attempt
from router.ports import Grant, Ticket
from router.samples import Samples, usage_of
from router.settings import GateSettings

if TYPE_CHECKING:
    from router.run import Run


ENTROPY_OF = 5
"""So many of the likeliest tokens are asked for where a gate looks at the entropy: what all servers give."""


class LiveAttempt:
    """Made by a `Run`, which calls `reserve`, `admit`, `call` and `convinces` in this order, `more` until the end, and
    after `reserve` exactly once `settle`, whatever happened; `stop` before it ends the work in the engine.

    gate: by what the first tokens are judged; None: the first piece of the answer is good enough.
    filter_escalates: a content filter that ends the answer before its first text is no answer.
    """

    def __init__(self, run: Run, model: str, stream: bool, gate: GateSettings | None, filter_escalates: bool) -> None:
        self.run, self.model = run, model
        self.entry, self._backend = run.pipeline.entries[model], run.pipeline.backend_of(model)
        self.events: list[Event] = []
        self.judgement: Judgement | None = None
        self._folded: tuple[int, Completion] | None = None
        self._gate, self._filter_escalates = gate, filter_escalates
        self._spare_attempts = run.settings.spare_attempts.get(model, 0)
        # A provider's tokens are counted as they come, and a gate that says no does not wait for the rest.
        self._unary = not stream and self.entry.price is None and gate is None
        self._own_logprobs = (
            gate is not None and self.entry.capabilities.logprobs and run.request.sampling.top_logprobs is None
        )
        self._reservation_id = f"{run.request_id}/{len(run.attempts)}"
        self._started_ms = run.watch.elapsed_ms
        self._grant: Grant | None = None
        self._called = False
        self._source: AsyncIterator[Sequence[Event]] | None = None
        self._ttft_ms: float | None = None
        self._samples = Samples(run, self._backend, gate) if gate is not None and gate.samples else None
        self.worst_case_microusd = worst_case_microusd(run, model, gate)

    async def reserve(self) -> None:
        """Set the worst case aside. Raises `BudgetExceeded` or `RateLimited`; there is nothing to settle then."""
        run = self.run
        longest = run.pipeline.max_output_tokens(self.entry, run.request) * run.request.sampling.n
        claim = Claim(run.principal, self.model, self.worst_case_microusd, run.tokens.expected + longest)
        await run.pipeline.stages.budgets.reserve(self._reservation_id, claim)

    async def admit(self) -> None:
        run = self.run
        wait_s = min(run.settings.queue_timeout_s, run.time_left_s())
        self._grant = await run.pipeline.stages.batcher.admit(
            Ticket(run.request_id, self._backend.name, run.principal.org, run.options.priority, wait_s)
        )

    async def call(self) -> None:
        """Ask the model; returns with the first batch, or with the whole answer."""
        run = self.run
        call = Call(run.request_id, run.principal.org, run.time_left_s(), run.options.priority, self._spare_attempts)
        request = self._question()
        self._called = True
        if self._samples is not None:
            self._samples.begin(request)
        if self._unary:
            self.events.extend(await self._backend.port.complete(request, call))
        else:
            self._source = self._backend.port.stream(request, call)
            if await self._pull() is None:
                raise UpstreamFailed(f"Model '{self.model}' ended without an answer; send the request again.")
        self._ttft_ms = run.watch.elapsed_ms - self._started_ms

    async def convinces(self) -> bool:
        """Hold the answer back until it is judged: whether it may be given out. Raises `StreamInterrupted` when it ends
        without an end before that: nobody has seen anything of it."""
        if self._gate is None and not self._filter_escalates:
            return True
        self.run.watch.enter("gate")
        while True:
            self.judgement = judge(self.events, self.run.request, self._gate, self._filter_escalates)
            if self.judgement.verdict != "wait":
                break
            if await self._pull() is None:
                raise StreamInterrupted(f"Model '{self.model}' broke off its answer; send the request again.")
        if self._samples is not None and self._gate is not None and self.judgement.verdict == "release":
            self.judgement = consistent(self.judgement, self.events, await self._samples.texts(), self._gate)
        if self.judgement.verdict == "escalate":
            if any(isinstance(event, Finish) for event in self.events):
                while await self._pull() is not None:
                    pass  # it has ended: its count is on the way
            return False
        if self._own_logprobs:
            self.events[:] = without_logprobs(self.events)
            self._folded = None
        return True

    async def more(self) -> Sequence[Event] | None:
        """The next batch; None at the end."""
        batch = await self._pull()
        if batch is None or not self._own_logprobs:
            return batch
        bare = without_logprobs(batch)
        self.events[-len(batch) :] = bare
        self._folded = None
        return bare

    async def stop(self) -> None:
        """End the work in the engine. Does nothing when it is at its end."""
        try:
            if self._samples is not None:
                await self._samples.stop()
        finally:
            if self._source is not None:
                await self._source.aclose()  # type: ignore[attr-defined]

    def settle(self, outcome: str, error: SwitchyardError | None = None) -> Attempt:
        """Give the place back and settle the money. `error` is what it raised: before the first event that costs
        nothing, but for prompts that a provider may have taken."""
        run = self.run
        usage, estimated, cost_microusd = self._bill(error)
        for sample in self._samples.usages() if self._samples is not None else ():
            usage, cost_microusd = usage + sample, cost_microusd + self._cost_microusd(sample)
        if self._grant is not None:
            run.pipeline.stages.batcher.release(self._grant, usage)
        tokens = usage.input_tokens + usage.output_tokens
        run.pipeline.stages.budgets.settle(self._reservation_id, cost_microusd, tokens)
        return Attempt(
            self.model,
            self._backend.name,
            outcome,
            round(self._grant.queued_ms, 3) if self._grant else 0.0,
            self._ttft_ms,
            run.watch.elapsed_ms - self._started_ms,
            cost_microusd,
            usage.input_tokens,
            usage.output_tokens,
            estimated,
            asdict(self.judgement) if self.judgement and self.judgement.reason != "begun" else None,
            self._unary,
        )

    @property
    def outcome(self) -> str:
        """Of an answer that must not be given out."""
        filtered = self.judgement is not None and self.judgement.reason == "content_filter"
        return "content_filter" if filtered else "escalated"

    @property
    def completion(self) -> Completion:
        """The answer as far as it has come. Folded once, since a long one takes a millisecond."""
        if self._folded is None or self._folded[0] != len(self.events):
            self._folded = len(self.events), fold(self.events)
        return self._folded[1]

    def usage(self) -> tuple[Usage, bool]:
        """Of the answer, as far as it has come, and whether it is our count."""
        # Left before it began: nobody says how many attempts were under way by then.
        asked = 1 if self.events else 1 + self._spare_attempts
        if not self._called:
            return Usage(), True
        return usage_of(self.events, asked * self.run.tokens.expected, self.completion)

    def _bill(self, error: SwitchyardError | None) -> tuple[Usage, bool, int]:
        """What the answer took, whether that is our count, and its cost, without samples."""
        run = self.run
        if error is not None and not self.events:
            usage = Usage(error.abandoned * run.tokens.expected)
            return usage, error.abandoned > 0, self._cost_microusd(usage)
        usage, estimated = self.usage()
        # A whole answer that was left before its end: only the engine knows how far it had come.
        left = self._unary and self._called and not self.events
        if left:
            return usage, estimated, worst_case_microusd(run, self.model)
        return usage, estimated, self._cost_microusd(usage)

    def _cost_microusd(self, usage: Usage) -> int:
        """A local model works on a line of a batch when it has nothing else to do. A provider is asked as by anybody,
        and takes its ordinary price."""
        idle = self.run.door == BATCH_DOOR and self.entry.engine in LOCAL_ENGINES
        return self.run.prices.cost_microusd(self.model, usage, batch=idle)

    async def _pull(self) -> Sequence[Event] | None:
        if self._source is None:
            return None
        try:
            batch = await anext(self._source)
        except StopAsyncIteration:
            return None
        self.events.extend(batch)
        return batch

    def _question(self) -> ChatRequest:
        """As the model gets it: never with more output than was reserved for it, and with what the gate needs."""
        request = self.run.question
        sampling = replace(
            request.sampling, max_tokens=self.run.pipeline.max_output_tokens(self.entry, self.run.request)
        )
        if self._own_logprobs and self._gate is not None:
            top = 0 if self._gate.max_mean_entropy is None else ENTROPY_OF
            sampling = replace(sampling, top_logprobs=top)
        made, told = self.run.pipeline.for_model(request, self.model, self.run.principal, self.run.options)
        self.run.changes += told
        return replace(made, model=self.model, sampling=sampling)


def worst_case_microusd(run: Run, model: str, gate: GateSettings | None = None) -> int:
    """The most that one answer of `model` can cost, with the further attempts that money is set aside for, and with the
    samples that a gate compares it with."""
    entry = run.pipeline.entries[model]
    longest = run.pipeline.max_output_tokens(entry, run.request)
    prompt = min(run.tokens.at_most, entry.context_tokens)
    attempts = 1 + run.settings.spare_attempts.get(model, 0)
    worst = attempts * run.prices.worst_case_microusd(model, prompt, longest * run.request.sampling.n)
    if gate is not None and gate.samples:
        worst += gate.samples * run.prices.worst_case_microusd(model, prompt, min(longest, gate.tokens))
    return worst
