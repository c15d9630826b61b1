"""One request on its way through the pipeline, from the first look into the cache to the one close it always gets."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from models.errors import DeadlineExceeded, StreamInterrupted, SwitchyardError
from models.messages import ChatRequest, Completion, Event, Usage, fold
from router import receipts
from router.attempt import LiveAttempt
from router.boarding import Boarding
from router.events import Attempt, Principal, Status, Stopwatch, Verdict
from router.experience import OVERRIDE
from router.measured import conversation_of
from router.plan import Plan
from router.policy import AUTO, Decision
from router.ports import Assessment, CachedAnswer
from router.recall import Recall
from router.samples import usage_of
from router.tokens import PromptTokens, prompt_tokens

if TYPE_CHECKING:
    from router.pipeline import Options, Pipeline
    from router.trials import Trial

MODEL_STAGES = frozenset({"coalesce", "prefill", "gate", "stream"})
"""Time in these is the model's (and the client's reading), all other time is Switchyard's own."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is known when the answer begins."""

    request_id: str
    model: str
    verdict: Verdict
    expected_cost_microusd: int
    overhead_ms: float
    encoder_ms: float


class Run:
    """`async with pipeline.run(...) as run:`, in it `await run.begin(...)`, then `run.batches()` or `run.completion()`.

    When the model has ended its answer, its place is given back, the money settled and the answer stored. Leaving the
    block, however it is left, stops a model that has not, and emits exactly one `RequestClosed`. While other requests
    read the same answer the model goes on, and that is done when its answer is whole, or when they have left too.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        request: ChatRequest,
        principal: Principal,
        options: Options,
        door: str,
        watch: Stopwatch,
    ) -> None:
        self.request_id = new_request_id()
        self.pipeline, self.request, self.principal = pipeline, request, principal
        self.question = request  # as models get it
        self.changes: tuple[dict[str, Any], ...] = ()
        self.options, self.door = options, door
        self.settings, self.prices = pipeline.settings, pipeline.prices
        self.watch = watch
        self.opened_at_unix_ms = int(time.time() * 1000)
        limit_s = min(options.deadline_s or self.settings.request_timeout_s, self.settings.request_timeout_s)
        self.deadline = asyncio.get_running_loop().time() + limit_s
        self.recall = Recall(self)
        self.decision: Decision | None = None
        self.trial: Trial | None = None
        self.events: Sequence[Event] = ()
        self.attempts: list[Attempt] = []
        self.degraded: list[str] = []
        self.cost_microusd = 0
        self.tokens = PromptTokens(0, 0, 0)
        self._unsure: list[str] = []
        self._assessing: asyncio.Task[Assessment | None] | None = None
        self._live: LiveAttempt | None = None
        self.asked = False  # a model, or the queue before it: what fails then is not this request's own
        self._landed: tuple[Usage, bool] | None = None
        self.boarding = Boarding(self)
        self._finished = False
        self._folded: Completion | None = None
        self._failure: SwitchyardError | None = None
        self.ttft_ms: float | None = None

    async def __aenter__(self) -> Self:
        self.pipeline.running += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.boarding.leave():
            self.pipeline.see_through(self._end(error))  # others read on: it is closed when the answer is there
        else:
            await self._end(error)

    async def _end(self, error: BaseException | None) -> None:
        try:
            await self.boarding.over()
        finally:
            self.pipeline.running -= 1
            if self._assessing is not None:
                self._assessing.cancel()
            try:
                self._close(error)
            finally:
                self.boarding.close()

    # ---- beginning -------------------------------------------------------------------------------------------------

    async def begin(self, stream: bool) -> Head:
        """Everything up to the first batch of the answer. Raises `SwitchyardError` with nothing sent yet."""
        if not self.recall.own():
            try:
                async with asyncio.timeout_at(self.deadline):
                    await self.boarding.board(stream)
            except TimeoutError:
                raise self._too_late() from None
        self._take_up()
        self.ttft_ms = self.watch.elapsed_ms
        return Head(
            self.request_id,
            self.model or "",
            self.recall.verdict,
            self.decision.expected_cost_microusd if self.decision else 0,
            self.overhead_ms,
            self.recall.encoder_ms,
        )

    def _take_up(self) -> None:
        """The answer has begun, or is there."""
        flight = self.boarding.flight
        if self.answer is not None:
            self.events = self.answer.events
        elif flight is not None:
            self.events = flight.events
            if self.boarding.follows:
                self.recall.verdict = "coalesced"

    def assess_early(self) -> None:
        """Beside the look-up, since most questions are new ones. The answer of a hit does not wait for it."""
        if self._assessing is None and self.recall.reads_shared:
            self._assessing = self.pipeline.assess_early(self.request, self.options, self._unsure)

    async def generate(self, stream: bool) -> LiveAttempt:
        """Have a model answer: returns when its answer may be given out."""
        pipeline, self.asked = self.pipeline, False
        self.watch.enter("prompt")
        self.question, self.changes = await pipeline.question(self.request, self.principal)
        self.tokens = prompt_tokens(self.question)
        self.watch.enter("classify")
        assessment = await (self._assessing or pipeline.assess(self.request, self.options, self._unsure))
        self.degraded += self._unsure
        self.watch.enter("decide")
        course = pipeline.course(self.request, self.principal, self.options)
        self.trial = course.trial
        self.decision = pipeline.decide(self.request, self.principal, assessment, self.tokens, self.options, course)
        plan = Plan(self.decision, pipeline.entries, course.routing)
        while True:
            model = plan.next()
            live = LiveAttempt(self, model, stream, plan.gate(model), plan.filter_escalates())
            try:
                if await self._attempt(live):
                    return live
            except SwitchyardError as error:
                plan.failed(model, error, bool(live.events))
                await self._end_attempt(error.code, error)
                if not plan.left:
                    raise
            else:
                if live.outcome == "escalated":
                    plan.escalate(model)
                await self._end_attempt(live.outcome)

    async def _attempt(self, live: LiveAttempt) -> bool:
        """One try at one model, up to where its answer may be given out; False: it must not be."""
        self.watch.enter("reserve")
        self.asked = False
        await live.reserve()
        self._live, self.events, self.asked = live, live.events, True
        # What is set aside by now, and no more: whoever dies here is counted for it, and others may have the rest.
        self.pipeline.emit(receipts.opened(self, live.model, self.cost_microusd + live.worst_case_microusd))
        self._wake()
        self.watch.enter("admit")
        await live.admit()
        self.watch.enter("prefill")
        await live.call()
        return await live.convinces()

    def _wake(self) -> None:
        """Not before there is money for an answer: who has none is not to keep nodes running."""
        if self.decision is not None and self.decision.wakes is not None and not self.attempts:
            self.pipeline.stages.batcher.wake(self.pipeline.backend_of(self.decision.wakes).name)

    # ---- the answer ------------------------------------------------------------------------------------------------

    async def batches(self) -> AsyncIterator[Sequence[Event]]:
        """The answer as it comes. Raises `SwitchyardError` when it breaks off: nothing is retried by then."""
        self.watch.enter("stream")
        flight, seen = self.boarding.flight, 0
        if flight is None:
            yield tuple(self.events)
        while flight is not None:
            try:
                async with asyncio.timeout_at(self.deadline):
                    batch = await flight.more(seen)
            except TimeoutError:
                raise self._too_late() from None
            if batch is None:
                break
            seen += len(batch)
            yield batch
        self._finish()

    async def completion(self) -> Completion:
        """The whole answer. Raises what `batches` raises."""
        async with aclosing(self.batches()) as batches:  # type: ignore[type-var]
            async for _ in batches:
                pass
        return self.folded

    def _finish(self) -> None:
        self._folded = self.answer.completion if self.answer else self.folded
        if self._folded.finish_reason is None:
            raise StreamInterrupted("The model's answer broke off; what came is incomplete. Send the request again.")
        self._finished = True

    def fail(self, error: SwitchyardError) -> None:
        """Close as failed although the block is left in peace: the door has told the client inside the stream."""
        self._failure = error

    # ---- the answer's own end --------------------------------------------------------------------------------------

    async def land(self, error: Exception | None) -> None:
        """The model has said all, or failed: stop it, give its place back, settle and store, whether or not anybody has
        read it to the end. Does nothing where that is done."""
        live = self._live
        if live is None:
            return
        await live.stop()
        completion, self._landed = live.completion, live.usage()
        self._folded = completion
        if error is not None:
            self._book(self._status(error)[1] or "")
        elif completion.finish_reason is None:
            self._book(StreamInterrupted.code)
        else:
            self._book("ok")
            usage, now_unix_ms = self._landed[0], int(time.time() * 1000)
            self.recall.keep(self.model or "", self.events, completion, usage, now_unix_ms)

    # ---- the close -------------------------------------------------------------------------------------------------

    def _close(self, error: BaseException | None) -> None:
        """Settle, store and report. Synchronous, so that a cancelled request is closed like any other."""
        now_unix_ms = int(time.time() * 1000)
        self.watch.enter("close")
        status, code = self._status(error or self._failure)
        completion = self.folded
        usage, estimated = self._usage()
        if self._live is not None:  # stopped before its end
            self._book(code or status)
        if status == "ok" and self.model is not None:
            self._remember(self.model)
            self.pipeline.shadows.follow(self)
        self.watch.enter("end")
        self.pipeline.emit_close(receipts.closed(self, status, code, completion, usage, estimated, now_unix_ms))

    def _remember(self, model: str) -> None:
        """Whose conversation it is now. Who names a model where `auto` had chosen another was not content with that."""
        conversation, pipeline = conversation_of(self.request, self.principal), self.pipeline
        chosen = pipeline.conversations.last_choice(conversation)
        if self.request.model != AUTO and chosen is not None and chosen[0] != model:
            pipeline.experience.learn(self.principal.org, chosen[1], chosen[0], False, OVERRIDE)
        work = self.decision.work if self.decision and self.request.model == AUTO else None
        pipeline.conversations.answered(conversation, model, work)

    def _status(self, error: BaseException | None) -> tuple[Status, str | None]:
        if isinstance(error, SwitchyardError):
            return "error", error.code
        if isinstance(error, Exception):
            return "error", "internal_error"
        if error is not None or not self._finished:
            return "cancelled", None
        return "ok", None

    def _usage(self) -> tuple[Usage, bool]:
        if self.answer is not None:
            return self.answer.usage, False
        if self._landed is not None:
            return self._landed
        if self._live is not None:
            return self._live.usage()
        if self.boarding.follows:
            return usage_of(self.events, prompt_tokens(self.question).expected)
        return Usage(), True

    async def stop(self) -> None:
        """End the work in the engine, if there is any."""
        if self._live is not None:
            await self._live.stop()

    async def _end_attempt(self, outcome: str, error: SwitchyardError | None = None) -> None:
        """Stop the model and settle; another one is tried after it."""
        if self._live is not None:
            await self._live.stop()
            self._book(outcome, error)
            self.events = ()

    def _book(self, outcome: str, error: SwitchyardError | None = None) -> None:
        live, self._live = self._live, None
        assert live is not None
        attempt = live.settle(outcome, error)
        self.cost_microusd += attempt.cost_microusd
        self.attempts.append(attempt)
        self.pipeline.rests.attempted(attempt, error)

    # ---- small answers ---------------------------------------------------------------------------------------------

    @property
    def answer(self) -> CachedAnswer | None:
        """The stored answer that is replayed."""
        return self.recall.answer

    @property
    def usage(self) -> Usage:
        """Of the answer so far; the engine's own count once it has come."""
        return self._usage()[0]

    @property
    def folded(self) -> Completion:
        """The answer so far."""
        return self._folded or fold(self.events)

    @property
    def model(self) -> str | None:
        """Who answered, or was about to."""
        if self.answer is not None:
            return self.answer.model
        if self._live is not None:
            return self._live.model
        if self.boarding.origin is not None:
            return self.boarding.origin.model
        if self.attempts:
            return self.attempts[-1].model
        return self.decision.model if self.decision else None

    @property
    def overhead_ms(self) -> float:
        model_ms = sum(self.watch.stage_ms.get(stage, 0.0) for stage in MODEL_STAGES)
        if self.watch.stage in MODEL_STAGES:
            model_ms += self.watch.current_ms
        return self.watch.elapsed_ms - model_ms

    def time_left_s(self) -> float:
        return max(0.001, self.deadline - asyncio.get_running_loop().time())

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            "The deadline passed before the answer was complete; allow more time ('deadline_s') or fewer tokens."
        )


def new_request_id() -> str:
    """`req_`, 48 bits of Unix time in ms, 80 random bits, in hex: sortable, not guessable (after RFC 9562's UUIDv7)."""
    return f"req_{int(time.time() * 1000):012x}{os.urandom(10).hex()}"
