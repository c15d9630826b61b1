"""One request on its way through the pipeline, from the first look into the cache to the one close it always gets."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from models.base import Call
from models.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    ModelUnavailable,
    StreamInterrupted,
    SwitchyardError,
    UpstreamFailed,
)
from models.messages import ChatRequest, Completion, Event, Usage, UsageReport, fold
from router import receipts
from router.events import Attempt, Principal, Status, Stopwatch, Verdict
from router.fingerprint import Fingerprint
from router.policy import Decision
from router.ports import Assessment, CachedAnswer, CacheKey, Grant, Lookup, Ticket
from router.tokens import PromptTokens, output_tokens, prompt_tokens

if TYPE_CHECKING:
    from router.pipeline import Options, Pipeline

MODEL_STAGES = frozenset({"prefill", "stream"})
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


@dataclass(slots=True)
class _Live:
    """The attempt that is under way."""

    model: str
    backend: str
    reservation_id: str
    started_ms: float
    unary: bool
    grant: Grant | None = None
    called: bool = False
    source: AsyncIterator[Sequence[Event]] | None = None
    ttft_ms: float | None = None


class Run:
    """`async with pipeline.run(...) as run:`, in it `await run.begin(...)`, then `run.batches()` or `run.completion()`.

    Leaving the block, however it is left, stops the model, gives the place back, settles the money, stores a complete
    answer and emits exactly one `RequestClosed`.
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
        self.options, self.door = options, door
        self.settings, self.prices = pipeline.settings, pipeline.prices
        self.watch = watch
        self.opened_at_unix_ms = int(time.time() * 1000)
        limit_s = min(options.deadline_s or self.settings.request_timeout_s, self.settings.request_timeout_s)
        self.deadline = asyncio.get_running_loop().time() + limit_s
        self.key: CacheKey | None = None
        self.verdict: Verdict = "bypass"
        self.decision: Decision | None = None
        self.answer: CachedAnswer | None = None
        self.events: list[Event] = []
        self.attempts: list[Attempt] = []
        self.degraded: list[str] = []
        self.cost_microusd = 0
        self.similarity: float | None = None
        self._asked: Fingerprint | None = None
        self._embedding: bytes | None = None
        self.tokens = PromptTokens(0, 0, 0)
        self._encoder_ms = 0.0
        self._unsure: list[str] = []
        self._assessing: asyncio.Task[Assessment | None] | None = None
        self._live: _Live | None = None
        self._batch: Sequence[Event] = ()
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
        self.pipeline.running -= 1
        if self._assessing is not None:
            self._assessing.cancel()
        try:
            if self._live is not None and self._live.source is not None:
                await self._live.source.aclose()  # type: ignore[attr-defined]
        finally:
            self._close(error)

    # ---- beginning -------------------------------------------------------------------------------------------------

    async def begin(self, stream: bool) -> Head:
        """Everything up to the first batch of the answer. Raises `SwitchyardError` with nothing sent yet."""
        if not self._replay_own():
            try:
                async with asyncio.timeout_at(self.deadline):
                    if not await self._replay_shared():
                        await self._generate(stream)
            except TimeoutError:
                raise self._too_late() from None
        self.ttft_ms = self.watch.elapsed_ms
        return Head(
            self.request_id,
            self.model or "",
            self.verdict,
            self.decision.expected_cost_microusd if self.decision else 0,
            self.overhead_ms,
            self._encoder_ms,
        )

    def _replay_own(self) -> bool:
        """Answer from this process's cache, if it has the answer to this very question."""
        pipeline = self.pipeline
        self.watch.enter("cache_exact")
        self._asked = pipeline.fingerprint(self.request, self.principal, self.options)
        if self._asked is None:
            return False
        self.verdict = "miss"
        if self.options.cache == "refresh":
            return False
        answer = pipeline.exact.get(self._asked.exact.exact)
        return answer is not None and self._replay(Lookup("hit-exact", answer))

    async def _replay_shared(self) -> bool:
        """Answer from the cache of all, which also knows similar questions."""
        pipeline, asked = self.pipeline, self._asked
        if asked is None:
            return False
        self.watch.enter("cache_semantic")
        self.key = asked.key(self.settings)
        if self.options.cache == "refresh":
            return False
        # Beside it, since most questions are new ones. The answer of a hit does not wait for it.
        self._assessing = pipeline.assess_early(self.request, self.options, self._unsure)
        found = await pipeline.lookup(self.key, self.degraded)
        self.watch.split("cache_semantic", "encode", found.encoder_ms)
        self._embedding, self._encoder_ms = found.embedding, found.encoder_ms
        if not self._replay(found):
            return False
        if found.kind == "hit-exact" and found.answer is not None:
            pipeline.exact.put(self.key.exact, found.answer)
        return True

    def _replay(self, found: Lookup) -> bool:
        if found.answer is None or found.kind == "miss":
            return False
        if not self.pipeline.may_use(self.principal, found.answer.model):
            return False
        self.answer, self.verdict, self.similarity = found.answer, found.kind, found.similarity
        self._arrive(found.answer.events)
        return True

    async def _generate(self, stream: bool) -> None:
        pipeline = self.pipeline
        self.tokens = prompt_tokens(self.request)
        self.watch.enter("classify")
        assessment = await (self._assessing or pipeline.assess(self.request, self.options, self._unsure))
        self.degraded += self._unsure
        self.watch.enter("decide")
        self.decision = pipeline.decide(self.request, self.principal, assessment, self.tokens)
        plan = [self.decision.model, *self.decision.fallbacks]
        pipeline.emit(receipts.opened(self, self.decision.model, max(map(self._worst_case, plan))))
        while True:
            model = plan.pop(0)
            try:
                return await self._attempt(model, stream)
            except SwitchyardError as error:
                self._end_attempt(error.code, 0)
                plan = self._rest_of(plan, model, error)
                if not plan:
                    raise

    def _rest_of(self, plan: list[str], model: str, error: SwitchyardError) -> list[str]:
        """The models worth trying after `model` failed with `error` before its first byte."""
        if isinstance(error, ContextLengthExceeded):
            room = self.pipeline.entries[model].context_tokens
            return [other for other in plan if self.pipeline.entries[other].context_tokens > room]
        if not error.retryable:
            return []
        if isinstance(error, ModelUnavailable) and not any(a.model == model for a in self.attempts[:-1]):
            return [model, *plan]  # its replica died: another one, or its successor, may take it
        return plan

    async def _attempt(self, model: str, stream: bool) -> None:
        """One try at one model, up to its first batch."""
        pipeline, principal = self.pipeline, self.principal
        backend, entry = pipeline.backend_of(model), pipeline.entries[model]
        self.watch.enter("reserve")
        unary = not stream and entry.price is None  # a provider's tokens are counted as they come
        live = _Live(model, backend.name, f"{self.request_id}/{len(self.attempts)}", self.watch.elapsed_ms, unary)
        await pipeline.stages.budgets.reserve(principal.org, live.reservation_id, self._worst_case(model))
        self._live = live
        self.watch.enter("admit")
        wait_s = min(self.settings.queue_timeout_s, self._time_left_s())
        live.grant = await pipeline.stages.batcher.admit(
            Ticket(self.request_id, backend.name, principal.org, self.options.priority, wait_s)
        )
        self.watch.enter("prefill")
        call = Call(self.request_id, principal.org, self._time_left_s(), self.options.priority)
        request = self._for_model(model)
        live.called = True
        if unary:
            self._arrive(await backend.port.complete(request, call))
        else:
            live.source = backend.port.stream(request, call)
            try:
                self._arrive(await anext(live.source))
            except StopAsyncIteration:
                raise UpstreamFailed(f"Model '{model}' ended without an answer; send the request again.") from None
        live.ttft_ms = self.watch.elapsed_ms - live.started_ms

    def _for_model(self, model: str) -> ChatRequest:
        """The question as the model gets it, never with more output than was reserved for it."""
        limit = self.pipeline.max_output_tokens(self.pipeline.entries[model], self.request)
        return replace(self.request, model=model, sampling=replace(self.request.sampling, max_tokens=limit))

    def _arrive(self, batch: Sequence[Event]) -> None:
        self._batch = batch
        self.events.extend(batch)

    # ---- the answer ------------------------------------------------------------------------------------------------

    async def batches(self) -> AsyncIterator[Sequence[Event]]:
        """The answer as it comes. Raises `SwitchyardError` when it breaks off: nothing is retried by then."""
        self.watch.enter("stream")
        source = self._live.source if self._live else None
        while True:
            yield self._batch
            if source is None:
                break
            try:
                async with asyncio.timeout_at(self.deadline):
                    self._arrive(await anext(source))
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise self._too_late() from None
        self._finish()

    async def completion(self) -> Completion:
        """The whole answer. Raises what `batches` raises."""
        if self._live is None or self._live.source is None:  # all of it is here
            self.watch.enter("stream")
            self._finish()
        else:
            async with aclosing(self.batches()) as batches:  # type: ignore[type-var]
                async for _ in batches:
                    pass
        return self.folded

    def _finish(self) -> None:
        self._folded = self.answer.completion if self.answer else fold(self.events)
        if self._folded.finish_reason is None:
            raise StreamInterrupted("The model's answer broke off; what came is incomplete. Send the request again.")
        self._finished = True

    def fail(self, error: SwitchyardError) -> None:
        """Close as failed although the block is left in peace: the door has told the client inside the stream."""
        self._failure = error

    # ---- the close -------------------------------------------------------------------------------------------------

    def _close(self, error: BaseException | None) -> None:
        """Settle, store and report. Synchronous, so that a cancelled request is closed like any other."""
        now_unix_ms = int(time.time() * 1000)
        self.watch.enter("close")
        status, code = self._status(error or self._failure)
        completion = self.folded
        usage, estimated = self._usage(completion)
        if self._live is not None:
            cost = self._cost(usage)
            self._end_attempt("ok" if status == "ok" else code or status, cost)
        if status == "ok" and self.answer is None:
            self._store(completion, usage, now_unix_ms)
        self.watch.enter("end")
        self.pipeline.emit_close(receipts.closed(self, status, code, completion, usage, estimated, now_unix_ms))

    def _status(self, error: BaseException | None) -> tuple[Status, str | None]:
        if isinstance(error, SwitchyardError):
            return "error", error.code
        if isinstance(error, Exception):
            return "error", "internal_error"
        if error is not None or not self._finished:
            return "cancelled", None
        return "ok", None

    def _usage(self, completion: Completion) -> tuple[Usage, bool]:
        """The engine's count, else ours: of a broken-off answer what was asked and what came of it."""
        if self.answer is not None:
            return self.answer.usage, False
        if any(isinstance(event, UsageReport) for event in self.events):
            return completion.usage, completion.estimated
        if self._live is None or not self._live.called:
            return Usage(), True
        return Usage(self.tokens.expected, output_tokens(self.events)), True

    def _cost(self, usage: Usage) -> int:
        """Micro-USD of the attempt that is under way. A unary one that was left before its end is charged its worst
        case, since only the engine knows how far it had come."""
        assert self._live is not None
        if self._live.unary and self._live.called and not self.events:
            return self._worst_case(self._live.model)
        return self.prices.cost_microusd(self._live.model, usage)

    def _worst_case(self, model: str) -> int:
        entry = self.pipeline.entries[model]
        output = self.pipeline.max_output_tokens(entry, self.request) * self.request.sampling.n
        return self.prices.worst_case_microusd(model, min(self.tokens.at_most, entry.context_tokens), output)

    def _end_attempt(self, outcome: str, cost_microusd: int) -> None:
        live, self._live = self._live, None
        if live is None:
            return
        if live.grant is not None:
            self.pipeline.stages.batcher.release(live.grant)
        self.pipeline.stages.budgets.settle(self.principal.org, live.reservation_id, cost_microusd)
        self.cost_microusd += cost_microusd
        self.attempts.append(
            Attempt(
                live.model,
                live.backend,
                outcome,
                round(live.grant.queued_ms, 3) if live.grant else 0.0,
                live.ttft_ms,
                self.watch.elapsed_ms - live.started_ms,
                cost_microusd,
            )
        )

    def _store(self, completion: Completion, usage: Usage, now_unix_ms: int) -> None:
        """Keep a complete answer: ended by itself or, for the identical question only, at the caller's limit."""
        key, reason = self.key, completion.finish_reason
        at_limit = reason == "length" and self.request.sampling.max_tokens is not None
        if key is None or not (reason in ("stop", "tool_calls") or at_limit):
            return
        if not (completion.text or completion.tool_calls):
            return
        answer = CachedAnswer(
            self.request_id,
            self.model or "",
            tuple(self.events),
            usage,
            self.cost_microusd,
            now_unix_ms / 1000,
            self.settings.exact_cache.ttl_s,
        )
        refreshes = self.options.cache == "refresh"
        self.pipeline.keep(key if not at_limit else key.exact_only(), answer, self._embedding, refreshes)

    # ---- small answers ---------------------------------------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        """Of the answer so far; the engine's own count once it has come."""
        return self._usage(self.folded)[0]

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
        if self.attempts:
            return self.attempts[-1].model
        return self.decision.model if self.decision else None

    @property
    def overhead_ms(self) -> float:
        model_ms = sum(self.watch.stage_ms.get(stage, 0.0) for stage in MODEL_STAGES)
        if self.watch.stage in MODEL_STAGES:
            model_ms += self.watch.current_ms
        return self.watch.elapsed_ms - model_ms

    def _time_left_s(self) -> float:
        return max(0.001, self.deadline - asyncio.get_running_loop().time())

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            "The deadline passed before the answer was complete; allow more time ('deadline_s') or fewer tokens."
        )


def new_request_id() -> str:
    """`req_`, 48 bits of Unix time in ms, 80 random bits, in hex: sortable, not guessable (after RFC 9562's UUIDv7)."""
    return f"req_{int(time.time() * 1000):012x}{os.urandom(10).hex()}"
