"""The request path, top to bottom: cache, classify, decide, reserve, admit, stream, and on every exit one close.

Pure asyncio over the ports of `router.ports`: the same code runs in the ingress replica, in tests and in replays.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

from models.catalog import ModelEntry
from models.errors import NotFound, SwitchyardError
from models.messages import ChatRequest
from router.accounting.prices import PriceBook
from router.accounting.tenants import Tenants
from router.candidates import candidates, expected_microusd
from router.coalescing import Asker, Flights
from router.constraints import Candidate
from router.events import Principal, Record, Sink, Stopwatch
from router.exact_cache import ExactCache
from router.experience import Experience
from router.few_shot import Embed
from router.fingerprint import Fingerprint, circle_of, fingerprint
from router.invalidation import Selection
from router.measured import Conversations, Latencies, Rests, conversation_of
from router.node_costs import NodeCosts
from router.policy import AUTO, NO_LIMITS, Circumstances, Decision, Limits, Wish, decide, work_of
from router.ports import (
    Assessment,
    BatcherPort,
    BudgetPort,
    CachedAnswer,
    CacheKey,
    CachePort,
    ClassifierPort,
    Followed,
    Lookup,
    ModelPort,
    Origin,
    PeersPort,
    Terms,
)
from router.prefix_marks import with_marks
from router.prompting import Change, Prompting
from router.run import Run
from router.settings import IngressSettings, Strategy
from router.shadow import Shadows
from router.tokens import PromptTokens, prompt_tokens
from router.trials import Course, Courses, Promoted, Trial, marked, propensity_over, tighter
from router.waking import among_awake

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Backend:
    """Where models run: one local deployment, or one provider with all its models."""

    name: str
    port: ModelPort
    entries: tuple[ModelEntry, ...]


CacheMode = Literal["on", "off", "refresh", "no-store", "only-if-cached"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may say besides the question (the `switchyard` object of a body).

    cache: `off` neither reads nor stores; `refresh` stores without reading; `no-store` reads without storing;
    `only-if-cached` reads and asks no model. max_age_s: how old a stored answer may be. delta: wrong answers from the
    cache per request that it puts up with; None: as configured. tags: of the answer, should it be stored, by which it
    can be forgotten. priority: lower goes first. strategy: how the model for `auto` is chosen, fallbacks: what is tried
    after the first model, in this order, cache_prefixes: whether long prefixes are marked for the provider's cache;
    None: as configured. trial: of a shadow, which only Switchyard itself asks for.
    """

    cache: CacheMode = "on"
    namespace: str = ""
    priority: int = 0
    deadline_s: float | None = None
    domain: str | None = None
    strategy: Strategy | None = None
    fallbacks: tuple[str, ...] | None = None
    limits: Limits = NO_LIMITS
    max_age_s: float | None = None
    delta: float | None = None
    tags: tuple[str, ...] = ()
    trial: Trial | None = None
    cache_prefixes: bool | None = None

    @property
    def wish(self) -> str:
        """What is asked of the model, which the caches take for a part of the question; empty: nothing."""
        wished = (self.limits, self.strategy, self.fallbacks)
        return "" if wished == (NO_LIMITS, None, None) else repr(wished)

    @property
    def terms(self) -> Terms:
        """What a stored answer has to meet. Where none will be kept, an audit would have nothing to compare."""
        return Terms(self.delta, audited=self.cache == "on")


@dataclass(slots=True)
class Stages:
    """The world as the pipeline sees it. Everything that may be behind a Serve hop is a port."""

    backends: Mapping[str, Backend]
    classifier: ClassifierPort
    batcher: BatcherPort
    budgets: BudgetPort
    semantic_cache: CachePort | None = None
    sinks: list[Sink] = field(default_factory=list)
    peers: PeersPort | None = None
    forget_older: Callable[[str, str], Awaitable[object]] | None = None
    """Has every ingress drop its own copy of an answer (its exact key), unless it is the one with this id."""
    promoted: Promoted = lambda _name, _version: None
    embed: Embed | None = None
    """Vectors of texts, of the cluster's encoder."""


class Pipeline:
    """One per ingress replica. `settings` may be replaced at any time; a running request keeps those it began with."""

    def __init__(self, stages: Stages, settings: IngressSettings, tenants: Tenants) -> None:
        self.stages = stages
        self.tenants = tenants
        self.exact = ExactCache(settings.exact_cache)
        self.entries = {entry.name: entry for backend in stages.backends.values() for entry in backend.entries}
        self.running = 0
        self.flights = Flights()
        self.name = stages.peers.name if stages.peers is not None else ""
        self.latencies, self.rests = Latencies(), Rests()
        self.models_alone = {name: b.entries[0].name for name, b in stages.backends.items() if len(b.entries) == 1}
        self.node_costs = NodeCosts(self.models_alone)
        self.conversations = Conversations()
        self.experience = Experience()
        self.shadows = Shadows(self)
        self._prompting = Prompting(stages.embed, settings.cache_timeout_s)
        self._turn = 0
        self._background: set[asyncio.Task[Any]] = set()
        self._backend_of = {e.name: b for b in stages.backends.values() for e in b.entries}
        self.reconfigure(settings)

    def reconfigure(self, settings: IngressSettings) -> None:
        self.settings = settings
        self.prices = PriceBook(self.entries.values(), settings.prices, settings.node_prices)
        self.courses = Courses(settings.routing, self.stages.promoted)
        self.exact.reconfigure(settings.exact_cache)
        self.tenants.reconfigure(settings)

    def run(
        self, request: ChatRequest, principal: Principal, options: Options, door: str, watch: Stopwatch | None = None
    ) -> Run:
        """A request on its way; use it as an async context manager. Nothing happens before `Run.begin`.

        `watch` runs since the request arrived at the `door`; None: it arrives now.
        """
        return Run(self, request, principal, options, door, watch or Stopwatch(time.perf_counter))

    def backend_of(self, model: str) -> Backend:
        return self._backend_of[model]

    def emit(self, record: Record) -> None:
        """Tell all sinks. Raises what one of them raises: a request whose books cannot be opened is not begun."""
        for sink in self.stages.sinks:
            sink(record)

    def emit_close(self, record: Record) -> None:
        """Tell all sinks that a request is over. What one cannot take must not disturb the others, nor the answer: the
        open record is there, and the ledger closes it at its worst case when this process has gone."""
        self._turn += 1
        self.latencies(record)
        self.experience(record)
        for sink in self.stages.sinks:
            try:
                sink(record)
            except Exception as error:  # without its text, which may hold what was asked
                log.error("the close of request %s was not written (%s)", record.request_id, type(error).__name__)

    def may_use(self, principal: Principal, model: str) -> bool:
        """Whether an answer of `model`, made earlier, may be given now: the model is still served, and allowed."""
        allowed = self.tenants.allowed_models(principal)
        return model in self.entries and (allowed is None or model in allowed)

    # ---- the stages, each with what happens when it fails ----------------------------------------------------------

    def fingerprint(self, request: ChatRequest, principal: Principal, options: Options) -> Fingerprint | None:
        """Under what an answer may be found; None when this request goes past the caches."""
        if options.cache == "off":
            return None
        allowed = self.tenants.allowed_models(principal)
        circle = "" if allowed is None else circle_of(allowed)
        return fingerprint(request, principal.org, options.namespace, self.settings, options.wish, circle)

    async def lookup(self, key: CacheKey, terms: Terms, degraded: list[str]) -> Lookup:
        """The shared cache's word. A cache that is slow or down is a miss, not an error."""
        cache = self.stages.semantic_cache
        if cache is None or not self.settings.semantic_cache:
            return Lookup("miss")
        found = await _within(self.settings.cache_timeout_s, cache.lookup(key, terms), "semantic_cache", degraded)
        return found or Lookup("miss")

    async def assess(self, request: ChatRequest, options: Options, degraded: list[str]) -> Assessment | None:
        """How hard the question is; None for a named model. With no classifier the strong side is safe."""
        if request.model != AUTO:
            return None
        assessed = await _within(
            self.settings.cache_timeout_s,
            self.stages.classifier.assess(request.messages, options.domain),
            "classifier",
            degraded,
        )
        if assessed is not None and assessed.warning:
            degraded.append("learned_classifier")
        return assessed or Assessment(score=1.0, task="unknown", strategy="abstain")

    def assess_early(
        self, request: ChatRequest, options: Options, degraded: list[str]
    ) -> asyncio.Task[Assessment | None] | None:
        """`assess` begun beside the look into the shared cache; None where there is nothing to do at the same time."""
        if request.model != AUTO or self.stages.semantic_cache is None or not self.settings.semantic_cache:
            return None
        return self._spawn(self.assess(request, options, degraded))

    async def question(self, request: ChatRequest, principal: Principal) -> tuple[ChatRequest, tuple[Change, ...]]:
        """As it is put to models, and what of it the tenant's settings have changed."""
        settings = self.settings.tenants.get(principal.org, self.settings.default_tenant).prompt
        return await self._prompting.changed(request, settings) if settings.changes else (request, ())

    def for_model(
        self, question: ChatRequest, model: str, principal: Principal, options: Options
    ) -> tuple[ChatRequest, tuple[Change, ...]]:
        """The same, as it is put to this one."""
        mine = self.settings.tenants.get(principal.org, self.settings.default_tenant).prompt.cache_prefixes
        wanted = mine if options.cache_prefixes is None else options.cache_prefixes
        return with_marks(question, self.entries[model]) if wanted else (question, ())

    def course(self, request: ChatRequest, principal: Principal, options: Options) -> Course:
        """Under which settings `decide` is to choose: by the time, and by the experiment that it takes part in."""
        free = request.model == AUTO and options.strategy is None
        conversation = conversation_of(request, principal) if self.settings.routing.experiments else None
        course = self.courses.of(principal, request.user, conversation, free, time.time())
        return course if options.trial is None else replace(course, trial=options.trial)

    def decide(
        self,
        request: ChatRequest,
        principal: Principal,
        assessment: Assessment | None,
        tokens: PromptTokens,
        options: Options,
        course: Course,
    ) -> Decision:
        """The model and its fallbacks. Raises what `policy.decide` raises."""
        self.node_costs.take(self.stages.batcher.recent_work(), self.prices)
        last = self.conversations.last_model(conversation_of(request, principal))
        allowed = self.tenants.allowed_models(principal)
        evidence = self.experience.of(principal.org, work_of(assessment), self.entries)
        circumstances = Circumstances(self._turn, _lot(), evidence)

        def under(course: Course, circumstances: Circumstances) -> Decision:
            routing = course.routing
            limits = tighter(options.limits, routing.limits) if request.model == AUTO else options.limits
            known = candidates(self, request, tokens, last, routing, limits)
            wish = Wish(options.strategy, options.fallbacks, limits, course.prefer)

            def choose(known: Sequence[Candidate], circumstances: Circumstances) -> Decision:
                return decide(request, assessment, known, routing, allowed, tokens.at_least, wish, circumstances)

            auto = request.model == AUTO
            return among_awake(known, circumstances, choose) if auto else choose(known, circumstances)

        decision = under(course, circumstances)
        if course.trial is None or options.trial is not None:
            return marked(decision, course, None)
        sober = replace(circumstances, draw=1.0)
        arms = self.courses.others(course)
        return marked(decision, course, propensity_over(decision, arms, lambda arm: under(arm, sober)))

    def max_output_tokens(self, entry: ModelEntry, request: ChatRequest) -> int:
        """How long the answer may get: the caller's limit, else the operator's, within the model's own."""
        wanted = request.sampling.max_tokens or self.settings.default_max_output_tokens
        return min(wanted, entry.max_output_tokens or entry.context_tokens)

    def remembered(self) -> tuple[dict[str, int], dict[str, int]]:
        """What decisions go by besides the request, and what of it had to be forgotten; in entries, by what it is."""
        each: dict[str, Conversations | Experience]
        each = {"conversations": self.conversations, "experience": self.experience}
        return {name: len(kept) for name, kept in each.items()}, {name: kept.evicted for name, kept in each.items()}

    def keep(self, key: CacheKey, answer: CachedAnswer, embedding: bytes | None, refreshes: bool = False) -> None:
        """Store an answer here at once and in the shared cache in the background."""
        self.exact.put(key, answer)
        self._spawn(self._share(key, answer, embedding, refreshes))

    async def _share(self, key: CacheKey, answer: CachedAnswer, embedding: bytes | None, refreshes: bool) -> None:
        cache = self.stages.semantic_cache
        if cache is not None and self.settings.semantic_cache and not await cache.store(key, answer, embedding):
            await cache.release(key, self.name)
        if refreshes and self.stages.forget_older is not None:
            await self.stages.forget_older(key.exact, answer.answer_id)  # they now find the new one in the shared cache

    async def followed(self, key: str, time_left_s: float, priority: int) -> AsyncIterator[Followed]:
        """An answer that this process has on its way, or has just had, for another process (`Flights.followed`)."""
        flight, exact = self.flights.find(key), key.partition(":")[0]
        asker = Asker(deadline=asyncio.get_running_loop().time() + time_left_s, priority=priority)
        if flight is not None and not flight.leader and flight.carries(asker):
            async with aclosing(self.flights.followed(flight)) as items:  # type: ignore[type-var]
                async for item in items:
                    yield item
        elif (answer := self.exact.get(exact)) is not None:
            yield []
            yield Origin(answer.answer_id, answer.model, answer.created_at_unix_s)
            yield list(answer.events)
        else:
            raise NotFound("This is not answered here any more; ask again.")

    def release(self, key: CacheKey) -> None:
        """The question that this process had claimed is answered here no more, and nothing is stored."""
        if (cache := self.stages.semantic_cache) is not None:
            self._spawn(cache.release(key, self.name))

    def forget(self, selection: Selection, exacts: Sequence[str] = ()) -> None:
        """Drop the own copies of the answers that are meant; nobody joins one of them that is on its way."""
        self.exact.invalidate(selection, exacts)
        self.flights.forget(selection)

    def see_through(self, work: Coroutine[Any, Any, None]) -> None:
        """Bring to its end what others wait for although the request that began it has left."""
        self._spawn(work)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # looked at: who needs the result has it, and what could not be kept is a later miss

    async def explain(self, request: ChatRequest, principal: Principal, options: Options) -> dict[str, object]:
        """What would happen to this request, as plain JSON values. Nothing is executed, stored or charged."""
        degraded: list[str] = []
        question, changes = await self.question(request, principal)
        tokens = prompt_tokens(question)
        found = self.fingerprint(request, principal, options)
        key = found.key(self.settings) if found else None
        cached = key is not None and options.cache not in ("off", "refresh") and self.exact.peek(key.exact)
        assessment = await self.assess(request, options, degraded)
        course = self.course(request, principal, options)
        decision = self.decide(request, principal, assessment, tokens, options, course)
        return {
            "decision": asdict(decision),
            "exact_cache": "bypass" if key is None else "hit" if cached else "miss",
            "semantic_cache": "eligible" if key is not None and key.scope else "bypass",
            "input_tokens_estimated": tokens.expected,
            "expected_cost_microusd": {
                entry.name: expected_microusd(self, entry, request, tokens)
                for entry in self.entries.values()
                if self.may_use(principal, entry.name)
            },
            "node_costs": self.node_costs.explained(),
            "prompt_changes": [*changes, *self.for_model(question, decision.model, principal, options)[1]],
            "degraded": degraded,
        }


def _lot() -> float:
    """In [0, 1). Of the operating system: `random` would be one more import."""
    return int.from_bytes(os.urandom(6), "big") / 2**48


async def _within(timeout_s: float, work: Awaitable[T], stage: str, degraded: list[str]) -> T | None:
    """The result of `work`, or None (and `stage` among the degraded) when it fails or takes too long."""
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except (SwitchyardError, TimeoutError):
        degraded.append(stage)
        return None
