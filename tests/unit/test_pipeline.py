"""The whole request path in one process: every stage real but the hops, the model simulated."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

import pytest

from models.base import Call, merged
from models.catalog import ModelEntry, NodePrice, Price
from models.errors import (
    BudgetExceeded,
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    NotCached,
    Overloaded,
    PermissionDenied,
    StreamInterrupted,
    SwitchyardError,
)
from models.messages import (
    ChatRequest,
    Event,
    Finish,
    ImagePart,
    Message,
    ReasoningDelta,
    ReasoningPart,
    Sampling,
    TextDelta,
    TextPart,
    ToolCallDelta,
    ToolChoice,
    Usage,
    fold,
)
from models.reliability.circuit_breaker import CircuitOpen
from models.simulated import SimulatedModel
from router.accounting.limits import Claim
from router.accounting.tenants import Tenants
from router.events import Principal, Record, RequestClosed, RequestOpened
from router.pipeline import Backend, Options, Pipeline, Stages
from router.ports import NO_USAGE, Assessment, CachedAnswer, CacheKey, Grant, Lookup, Terms, Ticket
from router.settings import ClassifierSettings, IngressSettings, RoutingSettings, TenantSettings
from router.strategies import STRATEGIES
from router.tokens import MAX_TOKENS_PER_IMAGE, output_tokens, prompt_tokens
from router.validation import check_priority, check_request
from router.work import Work

ME = Principal("acme")
PLAIN = Options()
_COMPLEXITY = STRATEGIES["complexity"](ClassifierSettings())


def entry(name: str, tier: str = "small", **changes: object) -> ModelEntry:
    node = NodePrice(usd_per_hour=Decimal(36), input_tokens_per_hour=36_000, output_tokens_per_hour=36_000)
    fields = dict(name=name, engine="simulated", tier=tier, context_tokens=4096, node_price=node)
    return ModelEntry(**{**fields, **changes})


@dataclass
class Local:
    """A model in this process, with the stream's state to look at."""

    model: SimulatedModel
    calls: int = 0
    closed: int = 0
    failures: list[SwitchyardError] = field(default_factory=list)
    asked: list[ChatRequest] = field(default_factory=list)

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Sequence[Event]]:
        self.calls += 1
        self.asked.append(request)
        if self.failures:
            raise self.failures.pop(0)
        try:
            async for batch in merged(self.model.stream(request, call)):
                yield batch
        finally:
            self.closed += 1

    async def complete(self, request: ChatRequest, call: Call) -> Sequence[Event]:
        return [event async for batch in self.stream(request, call) for event in batch]


class Classifier:
    async def assess(self, messages: Sequence[Message], domain: str | None = None) -> Assessment:
        return _COMPLEXITY.assess(messages, domain)


@dataclass
class Places:
    """Admission with a counter of what is out."""

    out: int = 0
    full: set[str] = field(default_factory=set)
    work: dict[str, Work] = field(default_factory=dict)
    sleeping: set[str] = field(default_factory=set)
    woken: list[str] = field(default_factory=list)
    done: list[Usage] = field(default_factory=list)

    async def admit(self, ticket: Ticket) -> Grant:
        await asyncio.sleep(0)
        if ticket.backend in self.full:
            raise Overloaded("full", None, 1.0)
        self.out += 1
        return Grant(ticket.request_id, ticket.backend, 0.0)

    def release(self, grant: Grant, usage: Usage = NO_USAGE) -> None:
        self.out -= 1
        self.done.append(usage)

    def recent_work(self) -> dict[str, Work]:
        return self.work

    def asleep(self) -> set[str]:
        return self.sleeping

    def wake(self, backend: str) -> None:
        self.woken.append(backend)


@dataclass
class Purse:
    """A budget with a counter of what is reserved."""

    left_microusd: int = 10**12
    reserved: dict[str, int] = field(default_factory=dict)

    async def reserve(self, reservation_id: str, claim: Claim) -> None:
        if claim.microusd > self.left_microusd - sum(self.reserved.values()):
            raise BudgetExceeded("the budget is spent")
        self.reserved[reservation_id] = claim.microusd

    def settle(self, reservation_id: str, microusd: int, tokens: int) -> None:
        assert microusd <= self.reserved.pop(reservation_id)
        self.left_microusd -= microusd


@dataclass
class World:
    small: Local
    medium: Local
    places: Places
    purse: Purse
    records: list[Record]
    pipeline: Pipeline

    def closes(self) -> list[RequestClosed]:
        return [record for record in self.records if isinstance(record, RequestClosed)]

    def books_are_shut(self) -> None:
        """What must hold after every request, however it ended."""
        assert self.places.out == 0
        assert self.purse.reserved == {}
        assert self.pipeline.running == 0
        opened = [r.request_id for r in self.records if isinstance(r, RequestOpened)]
        closed = [r.request_id for r in self.closes()]
        assert len(set(closed)) == len(closed)
        assert set(opened) <= set(closed)
        for close in self.closes():
            assert math.isclose(sum(close.stage_ms.values()), close.total_ms, abs_tol=0.5)
            assert close.cost_microusd == sum(a.cost_microusd for a in close.attempts)


def make_world(settings: IngressSettings | None = None, **model: float) -> World:
    small, medium = entry("small-1"), entry("medium-1", "medium")
    locals_ = Local(SimulatedModel(small, **model)), Local(SimulatedModel(medium, seed=1, **model))
    places, purse, records = Places(), Purse(), []
    stages = Stages(
        {
            "SimulatedModel:small-1": Backend("SimulatedModel:small-1", locals_[0], (small,)),
            "SimulatedModel:medium-1": Backend("SimulatedModel:medium-1", locals_[1], (medium,)),
        },
        Classifier(),
        places,
        purse,
        sinks=[records.append],
    )
    settings = settings or IngressSettings()
    pipeline = Pipeline(stages, settings, Tenants((), settings, auth=False))
    return World(*locals_, places, purse, records, pipeline)


def ask(text: str = "hi there", model: str = "auto", **sampling: object) -> ChatRequest:
    return ChatRequest(model, (Message("user", (TextPart(text),)),), Sampling(**sampling))


async def unary(world: World, request: ChatRequest, options: Options = PLAIN, who: Principal = ME):
    async with world.pipeline.run(request, who, options, "test") as run:
        head = await run.begin(stream=False)
        completion = await run.completion()
    return head, completion


async def streamed(world: World, request: ChatRequest, options: Options = PLAIN):
    events: list[Event] = []
    async with world.pipeline.run(request, ME, options, "test") as run:
        head = await run.begin(stream=True)
        async for batch in run.batches():
            events.extend(batch)
    return head, events


async def test_an_easy_question_goes_to_the_small_model_and_leaves_a_receipt():
    world = make_world()
    head, completion = await unary(world, ask())
    assert (head.model, head.verdict) == ("small-1", "miss")
    assert completion.finish_reason == "stop"
    assert completion.usage.output_tokens == 64
    receipt = world.closes()[0]
    assert receipt.status == "ok"
    assert receipt.cost_microusd == 1000 * (completion.usage.input_tokens + 64)
    assert set(receipt.decision["eligible"]) == {"small-1", "medium-1"}
    assert receipt.decision["propensity"] == 1.0
    assert {"cache_exact", "classify", "decide", "reserve", "admit", "prefill"} <= set(receipt.stage_ms)
    world.books_are_shut()


async def test_unary_and_stream_say_the_same():
    world = make_world()
    _, completion = await unary(world, ask(), Options(cache="off"))
    _, events = await streamed(world, ask(), Options(cache="off"))
    assert fold(events) == completion
    assert [close.cache_verdict for close in world.closes()] == ["bypass", "bypass"]
    world.books_are_shut()


async def test_the_same_question_is_replayed_event_for_event_and_costs_nothing():
    world = make_world()
    _, first = await streamed(world, ask())
    head, again = await streamed(world, ask())
    assert again == first
    assert head.verdict == "hit-exact"
    made, replayed = world.closes()
    assert replayed.cost_microusd == 0
    assert replayed.saved_microusd == made.cost_microusd > 0
    assert replayed.cached_from == made.request_id
    assert world.small.calls == 1
    world.books_are_shut()


async def test_another_tenant_gets_no_hit():
    world = make_world()
    await unary(world, ask())
    head, _ = await unary(world, ask(), who=Principal("other"))
    assert head.verdict == "miss"


@pytest.mark.parametrize(
    ("cache", "verdicts"),
    [("off", ["miss", "bypass"]), ("refresh", ["miss", "miss"]), ("no-store", ["miss", "hit-exact"])],
)
async def test_the_caller_can_go_past_the_cache(cache, verdicts):
    world = make_world()
    await unary(world, ask())
    await unary(world, ask(), Options(cache=cache))
    assert [close.cache_verdict for close in world.closes()] == verdicts


async def test_what_must_not_be_stored_is_not():
    world = make_world()
    await unary(world, ask(), Options(cache="no-store"))
    assert (await unary(world, ask()))[0].verdict == "miss"


async def test_who_wants_a_stored_answer_only_gets_one_or_an_error_and_asks_no_model():
    world = make_world()
    with pytest.raises(NotCached) as refused:
        await unary(world, ask(), Options(cache="only-if-cached"))
    assert refused.value.http_status == 504 and world.small.calls == 0
    await unary(world, ask())
    head, _ = await unary(world, ask(), Options(cache="only-if-cached"))
    assert (head.verdict, world.small.calls) == ("hit-exact", 1)
    world.books_are_shut()


async def test_an_answer_may_be_too_old_for_a_caller():
    world = make_world()
    await unary(world, ask())
    assert (await unary(world, ask(), Options(max_age_s=60)))[0].verdict == "hit-exact"
    assert (await unary(world, ask(), Options(max_age_s=0)))[0].verdict == "miss"


@pytest.mark.parametrize(
    ("text", "org", "ttl_s"),
    [
        ("Who wrote Faust?", "acme", 3600.0),
        ("What is the latest news?", "acme", 300.0),
        ("Who wrote Faust?", "brief", 60.0),
        ("What is the latest news?", "brief", 60.0),
        ("Who wrote Faust?", "never", None),
    ],
)
async def test_how_long_an_answer_is_kept_depends_on_whose_and_what_it_is(text, org, ttl_s):
    tenants = {"brief": TenantSettings(cache_ttl_s=60.0), "never": TenantSettings(cache_ttl_s=0)}
    world = make_world(IngressSettings(tenants=tenants))
    who = Principal(org)
    await unary(world, ask(text), who=who)
    kept = world.pipeline.exact.get(world.pipeline.fingerprint(ask(text), who, PLAIN).exact.exact)
    assert (kept and kept.ttl_s) == ttl_s


async def test_an_answer_cut_by_the_operators_limit_is_not_kept_one_cut_by_the_callers_is():
    world = make_world(IngressSettings(default_max_output_tokens=8))
    await unary(world, ask())
    head, completion = await unary(world, ask())
    assert (head.verdict, completion.finish_reason) == ("miss", "length")
    await unary(world, ask(max_tokens=5))
    head, _ = await unary(world, ask(max_tokens=5))
    assert head.verdict == "hit-exact"


async def test_leaving_a_stream_stops_the_model_and_pays_for_what_came():
    world = make_world(tokens_per_s=200.0)
    async with world.pipeline.run(ask(), ME, Options(), "test") as run:
        await run.begin(stream=True)
        async for batch in run.batches():
            assert any(isinstance(event, TextDelta) for event in batch)
            break
    assert world.small.closed == 1
    receipt = world.closes()[0]
    assert (receipt.status, receipt.estimated) == ("cancelled", True)
    assert 0 < receipt.cost_microusd < 64_000
    head, _ = await unary(world, ask())
    assert head.verdict == "miss"  # half an answer is not kept
    world.books_are_shut()


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelling_while_the_model_thinks_closes_everything(stream):
    world = make_world(ttft_ms=5000)
    task = asyncio.create_task(streamed(world, ask()) if stream else unary(world, ask()))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.closes()[0].status == "cancelled"
    assert world.closes()[0].cost_microusd > 0
    assert world.small.closed == 1
    world.books_are_shut()


async def test_a_dead_replica_is_tried_once_more_then_the_next_model_answers():
    world = make_world()
    world.small.failures = [ModelUnavailable("gone")]
    head, _ = await unary(world, ask("one"))
    assert head.model == "small-1"
    world.small.failures = [ModelUnavailable("gone"), ModelUnavailable("gone")]
    head, _ = await unary(world, ask("two"))
    assert head.model == "medium-1"
    assert [a.outcome for a in world.closes()[1].attempts] == ["model_unavailable", "model_unavailable", "ok"]
    world.books_are_shut()


async def test_an_open_breaker_is_not_asked_twice():
    world = make_world()
    world.small.failures = [CircuitOpen("it failed too often")]
    head, _ = await unary(world, ask("one"))
    assert head.model == "medium-1"
    assert [a.outcome for a in world.closes()[0].attempts] == ["model_unavailable", "ok"]


async def test_a_full_queue_spills_to_the_next_model_but_a_named_model_is_not_swapped():
    world = make_world()
    world.places.full = {"SimulatedModel:small-1"}
    head, _ = await unary(world, ask())
    assert head.model == "medium-1"
    with pytest.raises(Overloaded):
        await unary(world, ask(model="small-1"))
    assert [c.status for c in world.closes()] == ["ok", "error"]
    world.books_are_shut()


async def test_the_callers_own_mistake_is_not_retried():
    world = make_world()
    world.small.failures = [InvalidRequest("no")]
    with pytest.raises(InvalidRequest):
        await unary(world, ask())
    assert world.small.calls == 1
    assert world.medium.calls == 0
    world.books_are_shut()


async def test_a_stream_that_breaks_off_says_so_and_is_not_kept():
    world = make_world(failure_rate=1.0, fail_after_tokens=5)
    with pytest.raises(StreamInterrupted):
        await streamed(world, ask())
    assert world.closes()[0].error_code == "stream_interrupted"
    assert world.medium.calls == 0
    assert world.closes()[0].cost_microusd > 0  # the five tokens were made
    world.books_are_shut()


async def test_the_deadline_holds_before_and_after_the_first_token():
    world = make_world(ttft_ms=5000)
    with pytest.raises(DeadlineExceeded):
        await unary(world, ask(), Options(deadline_s=0.02))
    world = make_world(tokens_per_s=20.0)
    with pytest.raises(DeadlineExceeded):
        await streamed(world, ask(), Options(deadline_s=0.1))
    assert world.closes()[0].error_code == "deadline_exceeded"
    world.books_are_shut()


async def test_an_empty_purse_refuses_before_the_model_is_called():
    world = make_world()
    world.purse.left_microusd = 10
    with pytest.raises(BudgetExceeded):
        await unary(world, ask())
    assert world.small.calls == 0
    assert world.closes()[0].error_code == "budget_exceeded"
    world.books_are_shut()


async def test_unknown_models_and_models_not_allowed_are_refused():
    world = make_world(IngressSettings(tenants={"acme": TenantSettings(models=("medium-1",))}))
    with pytest.raises(ModelNotFound):
        await unary(world, ask(model="gpt-9"))
    head, _ = await unary(world, ask())
    assert head.model == "medium-1"
    assert "small-1" in world.closes()[1].decision["excluded"]


async def test_without_a_classifier_the_strong_side_answers():
    class Down:
        async def assess(self, messages: Sequence[Message], domain: str | None = None) -> Assessment:
            raise ModelUnavailable("down")

    world = make_world()
    world.pipeline.stages.classifier = Down()
    head, _ = await unary(world, ask())
    assert head.model == "medium-1"
    assert world.closes()[0].degraded == ("classifier",)


async def test_a_slow_or_broken_shared_cache_is_a_miss():
    class Stuck:
        async def lookup(self, key, terms):
            await asyncio.sleep(60)

        async def store(self, key, answer, embedding):
            raise ModelUnavailable("down")

    world = make_world(IngressSettings(cache_timeout_s=0.02))
    world.pipeline.stages.semantic_cache = Stuck()
    head, _ = await unary(world, ask())
    assert head.verdict == "miss"
    assert world.closes()[0].degraded == ("semantic_cache",)


async def test_a_model_that_sleeps_is_woken_while_another_answers():
    world = make_world()
    small, medium = "SimulatedModel:small-1", "SimulatedModel:medium-1"
    world.places.sleeping = {small}
    told = await world.pipeline.explain(ask(), ME, Options())
    assert told["decision"]["model"] == "medium-1" and told["decision"]["wakes"] == "small-1"
    assert world.places.woken == []
    head, _ = await unary(world, ask())
    assert head.model == "medium-1" and world.places.woken == [small]
    decision = world.closes()[-1].decision
    assert "No replica of model 'small-1' runs" in decision["excluded"]["small-1"]
    assert list(decision["eligible"]) == ["medium-1"] and decision["wakes"] == "small-1"
    head, _ = await unary(world, ask("and by name", model="small-1"))
    assert head.model == "small-1"
    world.places.sleeping = {medium}  # which nobody would have chosen
    head, _ = await unary(world, ask("an easy one"))
    assert head.model == "small-1" and world.places.woken == [small]
    world.places.sleeping = {small, medium}  # a wait is better than no answer
    head, _ = await unary(world, ask("another easy one"))
    assert head.model == "small-1" and world.places.woken == [small]


async def test_a_cascade_wakes_the_step_that_sleeps():
    world = make_world(IngressSettings(routing=RoutingSettings(strategy="cascade")))
    world.places.sleeping = {"SimulatedModel:medium-1"}
    head, _ = await unary(world, ask())
    assert head.model == "small-1" and world.places.woken == ["SimulatedModel:medium-1"]
    assert world.closes()[-1].decision["cascade"] == ("small-1",)


async def test_a_model_that_sleeps_is_waited_for_where_all_that_run_fail():
    world = make_world()
    world.places.sleeping = {"SimulatedModel:small-1"}
    world.medium.failures = [ModelUnavailable("down"), ModelUnavailable("down")]
    head, _ = await unary(world, ask())
    assert head.model == "small-1"
    assert [attempt.model for attempt in world.closes()[-1].attempts] == ["medium-1", "medium-1", "small-1"]
    world.medium.failures = [ModelUnavailable("down"), ModelUnavailable("down")]
    with pytest.raises(ModelUnavailable):
        await unary(world, ask("another"), Options(fallbacks=()))
    world.books_are_shut()


async def test_who_cannot_pay_for_an_answer_wakes_nobody():
    world = make_world()
    world.places.sleeping, world.purse.left_microusd = {"SimulatedModel:small-1"}, 0
    with pytest.raises(BudgetExceeded):
        await unary(world, ask())
    assert world.places.woken == []


async def test_who_can_pay_only_for_a_model_that_sleeps_waits_for_it():
    prices = {"medium-1": Price(version="1", input=Decimal(10**6), output=Decimal(10**6))}
    world = make_world(IngressSettings(prices=prices))
    world.places.sleeping, world.purse.left_microusd = {"SimulatedModel:small-1"}, 10**7
    head, _ = await unary(world, ask(max_tokens=64))
    assert head.model == "small-1"
    world.books_are_shut()


async def test_nobody_is_woken_by_lot():
    world = make_world(IngressSettings(routing=RoutingSettings(exploration=1.0)))
    world.places.sleeping = {"SimulatedModel:medium-1"}
    for number in range(20):
        await unary(world, ask(f"number {number}", max_tokens=1))
    assert world.places.woken == []


async def test_an_operator_may_have_requests_wait_for_a_model_that_sleeps():
    world = make_world(IngressSettings(routing=RoutingSettings(asleep="wait")))
    world.places.sleeping = {"SimulatedModel:small-1"}
    head, _ = await unary(world, ask())
    assert head.model == "small-1" and world.places.woken == []


async def test_explain_does_nothing_but_explain():
    world = make_world()
    told = await world.pipeline.explain(ask(), ME, Options())
    assert told["decision"]["model"] == "small-1"
    assert told["exact_cache"] == "miss"
    assert set(told["expected_cost_microusd"]) == {"small-1", "medium-1"}
    assert world.records == []
    assert world.small.calls == 0
    await unary(world, ask())
    assert (await world.pipeline.explain(ask(), ME, Options()))["exact_cache"] == "hit"


async def test_settings_change_between_two_requests():
    world = make_world()
    hard_as_steel = world.pipeline.settings.routing.model_copy(update={"medium_from": 0.0, "large_above": 1.0})
    world.pipeline.reconfigure(world.pipeline.settings.model_copy(update={"routing": hard_as_steel}))
    head, _ = await unary(world, ask())
    assert head.model == "medium-1"


async def test_many_at_once_all_end_and_all_are_counted():
    world = make_world(tokens_per_s=5000.0)
    requests = [replace(ask(f"question {n}"), user=str(n)) for n in range(50)]
    tasks = [asyncio.create_task(streamed(world, request)) for request in requests]
    for task in tasks[::5]:
        asyncio.get_running_loop().call_later(0.004, task.cancel)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(world.closes()) == 50
    world.books_are_shut()


async def test_when_the_books_cannot_be_opened_no_model_is_called():
    world = make_world()

    def full(record: Record) -> None:
        if isinstance(record, RequestOpened):
            raise Overloaded("the disk is full")

    world.pipeline.stages.sinks.insert(0, full)
    with pytest.raises(Overloaded):
        await unary(world, ask())
    assert world.small.calls == world.medium.calls == 0
    world.books_are_shut()


async def test_a_close_that_cannot_be_written_disturbs_nobody():
    world = make_world(tokens_per_s=200.0)

    def full(record: Record) -> None:
        if isinstance(record, RequestClosed):
            raise Overloaded("the disk is full")

    world.pipeline.stages.sinks.insert(0, full)
    _, completion = await unary(world, ask(max_tokens=4))
    assert completion.usage.output_tokens == 4
    async with world.pipeline.run(ask("another"), ME, PLAIN, "test") as run:
        await run.begin(stream=True)
    assert world.small.closed == 2
    world.books_are_shut()


async def test_a_prompt_that_one_model_has_no_room_for_goes_to_one_that_has():
    world = make_world()
    world.small.failures = [ContextLengthExceeded("too long for small-1")]
    with pytest.raises(ContextLengthExceeded):  # both have the same room, so nothing else is tried
        await unary(world, ask("one"))
    assert world.medium.calls == 0
    roomy = world.pipeline.entries["medium-1"].model_copy(update={"context_tokens": 100_000})
    world.pipeline.entries["medium-1"] = roomy
    world.small.failures = [ContextLengthExceeded("too long for small-1")]
    head, _ = await unary(world, ask("two"))
    assert head.model == "medium-1"
    world.books_are_shut()


async def test_an_answer_of_a_model_no_longer_allowed_is_not_replayed():
    world = make_world()
    await unary(world, ask())
    only_medium = IngressSettings(tenants={"acme": TenantSettings(models=("medium-1",))})
    world.pipeline.reconfigure(only_medium)
    head, _ = await unary(world, ask())
    assert (head.model, head.verdict) == ("medium-1", "miss")
    with pytest.raises(PermissionDenied):
        await unary(world, ask(model="small-1"))


async def test_the_model_never_gets_more_output_than_was_reserved():
    world = make_world(IngressSettings(tenants={}))
    capped = world.pipeline.entries["small-1"].model_copy(update={"max_output_tokens": 7})
    world.pipeline.entries["small-1"] = capped
    _, completion = await unary(world, ask(max_tokens=100_000, model="small-1"))
    assert completion.usage.output_tokens == 7


def test_what_broke_off_is_counted_by_its_length_when_nobody_counted_it():
    events = [TextDelta("x" * 40), ReasoningDelta("y" * 40), ToolCallDelta(0, "id", "f", "z" * 39)]
    assert output_tokens(events) == 30
    assert output_tokens([TextDelta("a", 9)]) == 9


def test_the_worst_case_counts_bytes_images_and_earlier_reasoning():
    plain = prompt_tokens(ask("hi")).at_most
    assert prompt_tokens(ask("日本")).at_most == plain - 2 + 6
    parts = (TextPart("hi"), ReasoningPart("r" * 100), *(ImagePart("data:image/png;base64,A"),) * 3)
    rich = prompt_tokens(ChatRequest("auto", (Message("user", parts),)))
    assert rich.at_most == plain + 100 + 3 * MAX_TOKENS_PER_IMAGE


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"messages": ()}, InvalidRequest),
        ({"sampling": Sampling(max_tokens=-5)}, InvalidRequest),
        ({"sampling": Sampling(n=17)}, InvalidRequest),
        ({"sampling": Sampling(stop=("",))}, InvalidRequest),
        ({"tool_choice": ToolChoice("required")}, InvalidRequest),
        ({"messages": (Message("user", (TextPart("\ud800"),)),)}, InvalidRequest),
        ({"messages": (Message("tool", (TextPart("x"),)),)}, InvalidRequest),
    ],
)
def test_a_typed_question_is_checked_like_a_body(change, error):
    check_request(ask())
    with pytest.raises(error):
        check_request(replace(ask(), **change))


def test_only_an_admin_goes_before_everybody_else():
    check_priority(5, ME)
    check_priority(-5, Principal("acme", scopes=frozenset({"infer", "admin"})))
    with pytest.raises(PermissionDenied):
        check_priority(-5, ME)


class SharedCache:
    """A shared cache with one answer, or none."""

    def __init__(self, answer: CachedAnswer | None = None) -> None:
        self.answer = answer

    async def lookup(self, key: CacheKey, terms: Terms) -> Lookup:
        await asyncio.sleep(0.005)
        return Lookup("hit-semantic", self.answer, 0.97) if self.answer else Lookup("miss")

    async def store(self, key: CacheKey, answer: CachedAnswer, embedding: bytes | None) -> bool:
        return True


class BrokenClassifier:
    async def assess(self, messages: Sequence[Message], domain: str | None = None) -> Assessment:
        raise ModelUnavailable("gone")


@pytest.mark.parametrize("hit", [True, False])
async def test_only_who_needed_the_classifier_was_degraded_by_its_failure(hit: bool) -> None:
    answer = CachedAnswer("req_0", "small-1", (TextDelta("yes", 1), Finish("stop")), Usage(1, 1), 1, time.time(), 60.0)
    world = make_world()
    world.pipeline.stages.classifier = BrokenClassifier()
    world.pipeline.stages.semantic_cache = SharedCache(answer if hit else None)
    await unary(world, ask())
    (close,) = world.closes()
    assert close.cache_verdict == ("hit-semantic" if hit else "miss")
    assert close.degraded == (() if hit else ("classifier",))
    world.books_are_shut()


async def test_an_answer_of_a_model_that_may_not_be_used_any_more_is_no_hit() -> None:
    world = make_world()
    await unary(world, ask())
    world.pipeline.reconfigure(IngressSettings(default_tenant=TenantSettings(models=("medium-1",))))
    await unary(world, ask())
    first, second = world.closes()
    assert (first.model, second.model, second.cache_verdict) == ("small-1", "medium-1", "miss")
    await unary(world, ask())
    assert world.closes()[-1].cache_verdict == "hit-exact", "the new answer took the place of the old"
    world.books_are_shut()
