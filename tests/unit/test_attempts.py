"""What follows a first attempt: the gate of a cascade, and the models that are tried after one that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.openai.chat_schema import parse_chat
from models.base import Call, Capabilities
from models.errors import (
    BudgetExceeded,
    ContentRefused,
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    PermissionDenied,
    RateLimited,
    StreamInterrupted,
    SwitchyardError,
    UpstreamFailed,
)
from models.messages import ChatRequest, Event, Finish, TextDelta, TokenLogprob, Usage, UsageReport
from router.accounting.tenants import Tenants
from router.events import Record, RequestClosed, RequestOpened
from router.measured import RESTS_S, Rests
from router.pipeline import Backend, Options, Pipeline, Stages
from router.settings import GateSettings, IngressSettings, RoutingSettings, TenantSettings
from router.tokens import prompt_tokens
from tests.unit.test_pipeline import ME, Classifier, Places, Purse, World, ask, entry, streamed, unary

GATE = GateSettings(tokens=4, min_mean_logprob=-0.1)
CASCADE = RoutingSettings(strategy="cascade", gate=GATE)
ANYBODY = TenantSettings()
SURE, UNSURE = -0.01, -1.0


@dataclass
class Scripted:
    """A model that says what it is told to: an error instead of an event is raised."""

    name: str
    logprob: float = SURE
    words: int = 8
    script: list[Event | SwitchyardError] | None = None
    pause_s: float = 0.0
    varies: bool = False
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[ChatRequest] = field(default_factory=list)
    sent: int = 0
    open: int = 0

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Sequence[Event]]:
        self.asked.append(request)
        self.begun.set()
        self.open += 1
        try:
            for event in self.script if self.script is not None else self._answer(request):
                await asyncio.sleep(self.pause_s)
                if isinstance(event, SwitchyardError):
                    raise event
                self.sent += isinstance(event, TextDelta)
                yield [event]
        finally:
            self.open -= 1

    async def complete(self, request: ChatRequest, call: Call) -> Sequence[Event]:
        return [event async for batch in self.stream(request, call) for event in batch]

    def _answer(self, request: ChatRequest) -> list[Event | SwitchyardError]:
        shown = request.sampling.top_logprobs is not None
        said: list[Event | SwitchyardError] = []
        for number in range(self.words):
            text = f"{self.name}{number}{'x' * len(self.asked) if self.varies else ''} "
            said.append(TextDelta(text, 1, (TokenLogprob(text, self.logprob),) if shown else ()))
        return [*said, Finish("stop"), UsageReport(Usage(10, self.words))]


@dataclass
class Three:
    small: Scripted
    medium: Scripted
    large: Scripted
    world: World

    @property
    def close(self) -> RequestClosed:
        return self.world.closes()[-1]

    def outcomes(self) -> list[tuple[str, str]]:
        return [(attempt.model, attempt.outcome) for attempt in self.close.attempts]

    def books_are_shut(self) -> None:
        self.world.books_are_shut()
        assert self.small.open == self.medium.open == self.large.open == 0
        opened = {r.request_id: r for r in self.world.records if isinstance(r, RequestOpened)}
        for close in self.world.closes():
            if close.request_id in opened:
                assert close.cost_microusd <= opened[close.request_id].reserved_microusd


def three(routing: RoutingSettings = CASCADE, tenant: TenantSettings = ANYBODY) -> Three:
    can = Capabilities(logprobs=True)
    entries = [entry(f"{tier}-1", tier, capabilities=can) for tier in ("small", "medium", "large")]
    models = [Scripted(each.name) for each in entries]
    places, purse, records = Places(), Purse(), list[Record]()
    backends = {each.name: Backend(each.name, model, (each,)) for each, model in zip(entries, models, strict=True)}
    stages = Stages(backends, Classifier(), places, purse, sinks=[records.append])
    configured = IngressSettings(routing=routing, default_tenant=tenant)
    pipeline = Pipeline(stages, configured, Tenants((), configured, auth=False))
    return Three(*models, World(models[0], models[1], places, purse, records, pipeline))


def text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


# ---- the gate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_sure_answer_of_the_cheapest_model_is_given_out_whole(stream: bool) -> None:
    it = three()
    if stream:
        head, events = await streamed(it.world, ask())
        assert text(events) == "".join(f"small-1{n} " for n in range(8))
        assert not any(event.logprobs for event in events if isinstance(event, TextDelta)), "they were the gate's"
    else:
        head, completion = await unary(it.world, ask())
        assert (completion.text.split()[-1], completion.logprobs) == ("small-17", ())
    assert (head.model, it.close.model) == ("small-1", "small-1")
    assert it.close.decision is not None
    assert (it.close.decision["strategy"], it.close.decision["cascade"]) == (
        "cascade",
        ("small-1", "medium-1", "large-1"),
    )
    (attempt,) = it.close.attempts
    assert attempt.gate == {
        "verdict": "release",
        "reason": "sure",
        "tokens": 4,
        "mean_logprob": SURE,
        "mean_entropy": None,
        "agreement": None,
    }
    assert it.small.asked[0].sampling.top_logprobs == 0
    it.books_are_shut()


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unsure_answer_is_dropped_within_k_tokens_paid_and_shown(stream: bool) -> None:
    it = three()
    it.small.logprob, it.small.words = UNSURE, 500
    if stream:
        head, events = await streamed(it.world, ask())
        assert text(events).startswith("medium-10 ")
    else:
        head, completion = await unary(it.world, ask())
        assert completion.text.startswith("medium-10 ")
        assert completion.usage == Usage(10, 8), "the answer's own tokens, not the discarded ones"
    assert head.model == "medium-1"
    assert it.outcomes() == [("small-1", "escalated"), ("medium-1", "ok")]
    dropped, given = it.close.attempts
    assert dropped.output_tokens <= GATE.tokens and it.small.sent <= GATE.tokens + 1
    assert dropped.gate is not None and dropped.gate["reason"] == "unsure"
    assert dropped.cost_microusd == 1000 * (dropped.input_tokens + dropped.output_tokens) > 0
    assert it.close.cost_microusd == dropped.cost_microusd + given.cost_microusd
    assert (it.close.usage, it.close.model) == (Usage(10, 8), "medium-1")
    it.books_are_shut()


async def test_it_goes_on_through_all_tiers_and_the_last_is_not_judged() -> None:
    it = three()
    it.small.logprob = it.medium.logprob = it.large.logprob = UNSURE
    head, _ = await streamed(it.world, ask())
    assert it.outcomes() == [("small-1", "escalated"), ("medium-1", "escalated"), ("large-1", "ok")]
    assert head.model == "large-1"
    assert it.close.attempts[-1].gate is None
    assert it.large.asked[0].sampling.top_logprobs is None
    it.books_are_shut()


async def test_each_model_may_have_a_gate_of_its_own() -> None:
    routing = RoutingSettings(strategy="cascade", gate=GATE, gates={"medium-1": GateSettings(min_mean_logprob=-2.0)})
    it = three(routing)
    it.small.logprob = it.medium.logprob = UNSURE
    await streamed(it.world, ask())
    assert it.outcomes() == [("small-1", "escalated"), ("medium-1", "ok")]
    assert it.close.attempts[-1].gate is not None and it.close.attempts[-1].gate["tokens"] == 4


async def test_the_wait_at_the_gate_is_shown_and_belongs_to_the_model() -> None:
    it = three()
    it.small.pause_s = 0.02
    await streamed(it.world, ask())
    assert it.close.stage_ms["gate"] >= 40  # three further tokens
    assert it.close.ttft_ms is not None and it.close.attempts[0].ttft_ms is not None
    assert it.close.ttft_ms > it.close.attempts[0].ttft_ms + 40, "TTFT is when the client may see it"
    assert it.close.overhead_ms < 40


async def test_a_caller_who_asks_for_logprobs_gets_them() -> None:
    it = three()
    _, events = await streamed(it.world, ask(top_logprobs=2))
    assert it.small.asked[0].sampling.top_logprobs == 2
    assert all(event.logprobs for event in events if isinstance(event, TextDelta))


async def test_the_likeliest_tokens_are_asked_for_where_the_gate_looks_at_them() -> None:
    it = three(CASCADE.model_copy(update={"gate": GATE.model_copy(update={"max_mean_entropy": 1.0})}))
    await streamed(it.world, ask())
    assert it.small.asked[0].sampling.top_logprobs == 5


async def test_a_model_without_logprobs_is_not_asked_for_them() -> None:
    it = three()
    mute = it.world.pipeline.entries["small-1"].model_copy(update={"capabilities": Capabilities()})
    it.world.pipeline.entries["small-1"] = mute
    await streamed(it.world, ask())
    assert it.small.asked[0].sampling.top_logprobs is None
    assert it.close.attempts[0].gate is not None and it.close.attempts[0].gate["reason"] == "unjudged"


async def test_the_cache_keeps_the_answer_that_was_given_out() -> None:
    it = three()
    it.small.logprob = UNSURE
    _, first = await streamed(it.world, ask())
    head, again = await streamed(it.world, ask())
    assert (head.verdict, again) == ("hit-exact", first)
    made, replayed = it.world.closes()
    assert replayed.saved_microusd == made.cost_microusd, "what was discarded is saved too"
    assert len(it.small.asked) == 1


@pytest.mark.parametrize(
    "failure",
    [
        ModelUnavailable("down"),
        UpstreamFailed("broken"),
        RateLimited("busy"),
        BudgetExceeded("spent"),
        ContextLengthExceeded("its tokenizer is another one"),
    ],
)
async def test_when_no_stronger_model_answers_the_unsure_answer_is_better_than_none(failure: SwitchyardError) -> None:
    it = three()
    it.small.logprob = UNSURE
    if isinstance(failure, BudgetExceeded):
        dear = it.world.pipeline.entries["medium-1"].model_copy(update={"max_output_tokens": 4000})
        it.world.pipeline.entries |= {"medium-1": dear, "large-1": dear.model_copy(update={"name": "large-1"})}
        it.world.pipeline.entries["small-1"] = dear.model_copy(
            update={"name": "small-1", "tier": "small", "max_output_tokens": 20}
        )
        it.world.purse.left_microusd = 200_000
    else:
        it.medium.script = it.large.script = [failure]
    head, events = await streamed(it.world, ask())
    assert head.model == "small-1" and text(events).startswith("small-10 ")
    assert it.outcomes()[0] == ("small-1", "escalated")
    assert it.outcomes()[-1] == ("small-1", "ok")
    assert it.close.attempts[-1].gate is None
    it.books_are_shut()


@pytest.mark.parametrize("end", [[StreamInterrupted("broke off")], []])
async def test_an_answer_that_breaks_off_at_the_gate_is_nobodys_yet(end: list[Event | SwitchyardError]) -> None:
    it = three()
    it.small.script = [TextDelta("half", 1), *end]
    head, events = await streamed(it.world, ask())
    assert head.model == "medium-1" and "half" not in text(events)
    assert it.outcomes() == [("small-1", "stream_interrupted"), ("medium-1", "ok")]
    assert it.close.attempts[0].cost_microusd > 0, "its token was made"
    it.books_are_shut()


async def test_an_answer_that_breaks_off_after_the_gate_is_not_silently_another_models() -> None:
    it = three()
    said = [TextDelta("w ", 1, (TokenLogprob("w ", SURE),))] * 5
    it.small.script = [*said, StreamInterrupted("broke off")]
    with pytest.raises(StreamInterrupted):
        await streamed(it.world, ask())
    assert it.outcomes() == [("small-1", "stream_interrupted")]
    assert it.medium.asked == []
    it.books_are_shut()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("where", ["small", "medium"])
async def test_leaving_at_the_gate_or_while_it_goes_on_stops_the_model_that_works(stream: bool, where: str) -> None:
    it = three()
    it.small.logprob = SURE if where == "small" else UNSURE
    getattr(it, where).pause_s = 5.0
    task = asyncio.create_task(streamed(it.world, ask()) if stream else unary(it.world, ask()))
    await getattr(it, where).begun.wait()
    await asyncio.sleep(0.01)
    assert getattr(it, where).open == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert it.close.status == "cancelled"
    assert it.outcomes()[-1] == (f"{where}-1", "cancelled")
    it.books_are_shut()


async def test_the_reservation_in_the_books_covers_every_step() -> None:
    it = three()
    it.small.logprob = it.medium.logprob = UNSURE
    await streamed(it.world, ask(max_tokens=10))
    opened = [record for record in it.world.records if isinstance(record, RequestOpened)]
    one_answer = 1000 * (prompt_tokens(ask()).at_most + 10)
    costs = [attempt.cost_microusd for attempt in it.close.attempts]
    assert [record.model for record in opened] == ["small-1", "medium-1", "large-1"]
    assert [record.reserved_microusd for record in opened] == [sum(costs[:n]) + one_answer for n in range(3)]
    it.books_are_shut()


async def test_the_books_know_of_no_request_for_which_nothing_is_set_aside() -> None:
    """Whoever dies before that has no part of the budget, so it must not be counted for one."""
    it = three()
    it.world.purse.left_microusd = 0
    with pytest.raises(BudgetExceeded):
        await unary(it.world, ask())
    assert it.close.error_code == "budget_exceeded" and it.close.cost_microusd == 0
    assert not any(isinstance(record, RequestOpened) for record in it.world.records)


# ---- self-consistency ----------------------------------------------------------------------------------------------

SAMPLED = CASCADE.model_copy(update={"gate": GATE.model_copy(update={"samples": 2})})


@pytest.mark.parametrize("stream", [True, False])
async def test_a_model_that_says_the_same_again_is_believed_and_all_of_it_is_paid(stream: bool) -> None:
    it = three(SAMPLED)
    head, _ = await (streamed(it.world, ask(temperature=0, seed=7)) if stream else unary(it.world, ask(temperature=0)))
    assert head.model == "small-1"
    first, *others = sorted(it.small.asked, key=lambda asked: asked.sampling.temperature or 0)
    assert first.sampling.temperature == 0 and len(others) == 2
    for other in others:
        sampling = other.sampling
        assert (sampling.max_tokens, sampling.temperature, sampling.top_logprobs) == (GATE.tokens, 0.7, None)
    assert not stream or len({asked.sampling.seed for asked in it.small.asked}) == 3
    (attempt,) = it.close.attempts
    assert attempt.gate is not None and attempt.gate["agreement"] == 1.0
    assert (attempt.input_tokens, attempt.output_tokens) == (30, 24), "of the answer and of both samples"
    assert attempt.cost_microusd == it.close.cost_microusd == 1000 * 54
    assert it.close.usage == Usage(10, 8)
    it.books_are_shut()


async def test_a_model_that_says_something_else_each_time_is_not() -> None:
    it = three(SAMPLED)
    it.small.varies = True
    head, _ = await streamed(it.world, ask())
    assert head.model == "medium-1", "which is judged too: the large one stands behind it"
    assert it.close.attempts[0].gate is not None
    assert it.close.attempts[0].gate["reason"] == "disagreement"
    assert len(it.medium.asked) == 3
    it.books_are_shut()


async def test_samples_end_with_the_answer_and_with_the_caller() -> None:
    it = three(SAMPLED)
    it.small.logprob = UNSURE
    it.small.pause_s = 0.01
    await streamed(it.world, ask("one"))
    assert it.outcomes()[0] == ("small-1", "escalated")
    it.books_are_shut()
    it.small.pause_s = 5.0
    task = asyncio.create_task(streamed(it.world, ask("two")))
    await asyncio.sleep(0.02)
    assert it.small.open == 3
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert it.outcomes() == [("small-1", "cancelled")]
    it.books_are_shut()


# ---- the choice of the strategy ------------------------------------------------------------------------------------


async def test_a_model_out_of_reach_is_no_candidate_until_it_may_be_tried_again() -> None:
    it = three(RoutingSettings(strategy="complexity"))
    now_s = 0.0
    it.world.pipeline.rests = Rests(lambda: now_s)
    it.small.script = [ModelUnavailable("the provider is down")]

    async def asked() -> list[str]:
        await unary(it.world, ask(f"hi {len(it.world.records)}"))
        return [model for model, _ in it.outcomes()]

    assert await asked() == ["small-1", "small-1", "medium-1"], "its replica may have died: another one is tried"
    assert await asked() == ["small-1", "small-1", "medium-1"]
    assert await asked() == ["medium-1"]
    assert it.close.decision is not None and "could not be reached" in it.close.decision["excluded"]["small-1"]
    now_s += RESTS_S
    assert await asked() == ["small-1", "small-1", "medium-1"]
    assert await asked() == ["medium-1"]
    now_s += RESTS_S
    it.small.script = None
    assert await asked() == ["small-1"] == await asked()
    it.small.script = [ModelUnavailable("again")]
    assert await asked() == ["small-1", "small-1", "medium-1"], "what it answered ended the count"
    it.books_are_shut()


@pytest.mark.parametrize(("status", "rests"), [(401, True), (403, False)])
async def test_what_a_provider_refuses_one_request_is_not_out_of_reach_for_all(status: int, rests: bool) -> None:
    it = three(RoutingSettings(strategy="complexity"))
    it.small.script = [ModelUnavailable("refused", None, None, {"provider_status": status})]
    for number in range(6):
        await unary(it.world, ask(f"hi {number}"))
    assert it.world.pipeline.rests.rests("small-1") is rests
    it.books_are_shut()


async def test_a_model_that_is_back_does_not_rest_for_what_was_before() -> None:
    it = three(RoutingSettings(strategy="complexity"))
    now_s = 0.0
    it.world.pipeline.rests = Rests(lambda: now_s)
    it.small.script = [ModelUnavailable("down for a second")]
    it.medium.pause_s = 0.02
    slow = [asyncio.create_task(streamed(it.world, ask(f"slow {number}"))) for number in range(3)]
    await asyncio.sleep(0.05)
    assert it.world.pipeline.rests.rests("small-1") and not any(task.done() for task in slow)
    now_s += RESTS_S
    it.small.script = None
    await unary(it.world, ask("one"))
    assert it.outcomes() == [("small-1", "ok")]
    await asyncio.gather(*slow)
    await unary(it.world, ask("two"))
    assert it.outcomes() == [("small-1", "ok")]


async def test_failures_an_hour_apart_are_not_in_a_row() -> None:
    it = three(RoutingSettings(strategy="complexity"))
    now_s = 0.0
    it.world.pipeline.rests = Rests(lambda: now_s)
    it.small.script = [ModelUnavailable("now and then")]
    for number in range(3):
        now_s += 3600.0
        await unary(it.world, ask(f"hi {number}"))
        assert it.outcomes()[0][0] == "small-1"


async def test_the_strategy_is_the_callers_or_the_configured_one() -> None:
    it = three(RoutingSettings(gate=GATE))
    it.small.logprob = UNSURE
    await streamed(it.world, ask("one"))
    assert it.close.decision is not None and it.close.decision["strategy"] == "complexity"
    assert it.outcomes() == [("small-1", "ok")]
    await streamed(it.world, ask("two"), Options(strategy="cascade"))
    assert it.close.decision is not None and it.close.decision["strategy"] == "cascade"
    told = await it.world.pipeline.explain(ask("three"), ME, Options(strategy="cascade"))
    assert told["decision"]["cascade"] == ("small-1", "medium-1", "large-1")  # type: ignore[index]
    it = three()
    await streamed(it.world, ask("four"), Options(strategy="complexity"))
    assert it.close.decision is not None and it.close.decision["cascade"] == ()


async def test_a_cascade_needs_no_classifier() -> None:
    class Down:
        async def assess(self, messages: object, domain: str | None = None) -> object:
            raise ModelUnavailable("down")

    it = three()
    it.world.pipeline.stages.classifier = Down()  # type: ignore[assignment]
    head, _ = await streamed(it.world, ask())
    assert head.model == "small-1"


def test_a_body_says_what_is_wished_for() -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "?"}]}
    plain = parse_chat(body).options
    assert (plain.strategy, plain.fallbacks) == (None, None)
    wished = parse_chat({**body, "switchyard": {"strategy": "cascade", "fallbacks": []}}).options
    assert (wished.strategy, wished.fallbacks) == ("cascade", ())
    for wrong in ({"strategy": "dice"}, {"fallbacks": ["m"] * 9}):
        with pytest.raises(InvalidRequest):
            parse_chat({**body, "switchyard": wrong})


async def test_a_strategy_beside_a_named_model_is_refused() -> None:
    with pytest.raises(InvalidRequest) as raised:
        await streamed(three().world, ask(model="small-1"), Options(strategy="cascade"))
    assert raised.value.param == "switchyard.strategy"


# ---- fallbacks -----------------------------------------------------------------------------------------------------


async def test_the_configured_order_holds_and_a_named_model_has_only_configured_fallbacks() -> None:
    it = three(RoutingSettings(fallbacks={"small-1": ("large-1",), "medium-1": ()}))
    it.small.script = it.medium.script = [UpstreamFailed("no")]
    head, _ = await streamed(it.world, ask("one"))
    assert it.outcomes() == [("small-1", "upstream_failed"), ("large-1", "ok")]
    head, _ = await unary(it.world, ask("two", model="small-1"))
    assert head.model == "large-1" and it.close.requested_model == "small-1"
    assert it.close.decision is not None and it.close.decision["strategy"] == "pinned"
    for named in ("medium-1", "large-1"):
        getattr(it, named[:-2]).script = [UpstreamFailed("no")]
        with pytest.raises(UpstreamFailed):
            await unary(it.world, ask("three", model=named))
        assert len(it.outcomes()) == 1
    it.books_are_shut()


async def test_an_answer_of_a_fallback_is_not_kept_for_who_names_the_model() -> None:
    it = three(RoutingSettings())
    it.small.script = [UpstreamFailed("no")]
    await unary(it.world, ask(model="small-1"), Options(fallbacks=("medium-1",)))
    it.small.script = None
    head, _ = await unary(it.world, ask(model="small-1"))
    assert (head.model, head.verdict) == ("small-1", "miss")


async def test_the_caller_may_name_the_fallbacks_within_what_it_may_use() -> None:
    it = three(RoutingSettings(), TenantSettings(models=("small-1", "medium-1")))
    it.small.script = [UpstreamFailed("no")]
    await unary(it.world, ask(model="small-1"), Options(fallbacks=("small-1", "medium-1", "medium-1")))
    assert it.outcomes() == [("small-1", "upstream_failed"), ("medium-1", "ok")]
    with pytest.raises(UpstreamFailed):
        await unary(it.world, ask("nobody else"), Options(fallbacks=()))
    with pytest.raises(PermissionDenied) as raised:
        await unary(it.world, ask(), Options(fallbacks=("large-1",)))
    assert raised.value.param == "switchyard.fallbacks"
    with pytest.raises(ModelNotFound) as unknown:
        await unary(it.world, ask(), Options(fallbacks=("gpt-9",)))
    assert unknown.value.param == "switchyard.fallbacks"
    it.books_are_shut()


async def test_a_prompt_too_long_for_the_named_model_goes_to_a_fallback_with_room() -> None:
    it = three(RoutingSettings())
    roomy = it.world.pipeline.entries["large-1"].model_copy(update={"context_tokens": 100_000})
    it.world.pipeline.entries["large-1"] = roomy
    long = ask("word " * 20_000, model="small-1")
    with pytest.raises(ContextLengthExceeded):
        await unary(it.world, long)
    head, _ = await unary(it.world, long, Options(fallbacks=("medium-1", "large-1")))
    assert head.model == "large-1"
    assert it.close.decision is not None and "takes 4096" in it.close.decision["excluded"]["small-1"]
    it.small.script = [ContextLengthExceeded("the tokenizer says so")]
    head, _ = await unary(it.world, ask(model="small-1"), Options(fallbacks=("medium-1", "large-1")))
    assert it.outcomes() == [("small-1", "context_length_exceeded"), ("large-1", "ok")]
    it.books_are_shut()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_content_filter_before_any_text_falls_to_the_next_model_when_configured(stream: bool) -> None:
    async def answer(it: Three) -> str:
        if stream:
            return text((await streamed(it.world, ask()))[1])
        return (await unary(it.world, ask()))[1].text

    filtered: list[Event | SwitchyardError] = [Finish("content_filter"), UsageReport(Usage(10, 0))]
    it = three(RoutingSettings())
    it.small.script = filtered
    assert await answer(it) == ""
    assert (it.close.finish_reason, len(it.close.attempts)) == ("content_filter", 1)
    it = three(RoutingSettings(content_filter_falls_back=True))
    it.small.script = filtered
    assert (await answer(it)).startswith("medium-10 ")
    assert it.outcomes() == [("small-1", "content_filter"), ("medium-1", "ok")]
    assert [bool(attempt.gate) for attempt in it.close.attempts] == [True, False]
    assert it.close.attempts[0].cost_microusd == 10_000
    it.books_are_shut()
    it.medium.script = it.large.script = filtered
    it.small.script = filtered
    it.world.pipeline.exact.reconfigure(it.world.pipeline.settings.exact_cache)
    head, completion = await unary(it.world, ask("all of them"))
    assert (head.model, completion.finish_reason) == ("large-1", "content_filter"), "the last one's word holds"
    it.books_are_shut()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_that_a_filter_refuses_falls_to_the_next_model_when_configured(stream: bool) -> None:
    async def answer(it: Three) -> str:
        if stream:
            return text((await streamed(it.world, ask()))[1])
        return (await unary(it.world, ask()))[1].text

    refused: list[Event | SwitchyardError] = [ContentRefused("not this")]
    it = three(RoutingSettings())
    it.small.script = refused
    with pytest.raises(ContentRefused):
        await answer(it)
    assert it.outcomes() == [("small-1", "content_filter")]
    it.books_are_shut()
    it = three(FILTERED if stream else RoutingSettings(content_filter_falls_back=True))
    it.small.script = refused
    assert (await answer(it)).startswith("medium-10 ")
    assert it.outcomes() == [("small-1", "content_filter"), ("medium-1", "ok")]
    first = it.close.attempts[0]
    assert first.estimated and first.cost_microusd == 1000 * first.input_tokens > 0, "the prompt may have been billed"
    it.small.script = it.medium.script = it.large.script = refused
    it.world.pipeline.exact.reconfigure(it.world.pipeline.settings.exact_cache)
    with pytest.raises(ContentRefused):  # the last one's word holds
        await unary(it.world, ask("all of them"))
    assert [outcome for _, outcome in it.outcomes()] == ["content_filter"] * 3
    it.books_are_shut()


async def test_prompts_that_a_provider_may_have_taken_are_paid() -> None:
    it = three(RoutingSettings())
    late = UpstreamFailed("no answer in time")
    late.abandoned = 1
    it.small.script = [late]
    await streamed(it.world, ask())
    assert it.outcomes() == [("small-1", "upstream_failed"), ("medium-1", "ok")]
    failed = it.close.attempts[0]
    assert (failed.estimated, failed.output_tokens) == (True, 0)
    assert failed.cost_microusd == 1000 * failed.input_tokens > 0
    it.books_are_shut()


# ---- whatever happens ----------------------------------------------------------------------------------------------

FILTERED = CASCADE.model_copy(update={"content_filter_falls_back": True})
errors = st.sampled_from(
    [
        ModelUnavailable,
        Overloaded,
        UpstreamFailed,
        StreamInterrupted,
        InvalidRequest,
        ContentRefused,
        ContextLengthExceeded,
        ValueError,
    ]
)
events = st.one_of(
    st.builds(
        lambda logprob, shown: TextDelta("w ", 1, (TokenLogprob("w ", logprob),) if shown else ()),
        st.sampled_from([SURE, UNSURE]),
        st.booleans(),
    ),
    st.builds(Finish, st.sampled_from(["stop", "length", "content_filter"])),
    errors.map(lambda kind: kind("boom")),
)
scripts = st.lists(events, max_size=8)


class _Raising(Scripted):
    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Sequence[Event]]:
        self.asked.append(request)
        self.open += 1
        try:
            for event in self.script or []:
                await asyncio.sleep(0)
                if isinstance(event, Exception):
                    raise event
                yield [event]
        finally:
            self.open -= 1


@settings(max_examples=150)
@given(
    st.tuples(scripts, scripts, scripts),
    st.sampled_from(
        [CASCADE, SAMPLED, RoutingSettings(), CASCADE.model_copy(update={"content_filter_falls_back": True})]
    ),
    st.booleans(),
    st.integers(1, 40),
    st.integers(0, 60) | st.just(10**9),
)
def test_there_is_one_close_and_the_books_are_equal_whatever_the_models_do(
    said: tuple[list[object], ...], routing: RoutingSettings, stream: bool, leaves_after: int, thousands_left: int
) -> None:
    async def one() -> None:
        it = three(routing)
        for name, script in zip(("small", "medium", "large"), said, strict=True):
            model = _Raising(f"{name}-1", script=script)  # type: ignore[arg-type]
            setattr(it, name, model)
            backend = it.world.pipeline._backend_of[f"{name}-1"]
            it.world.pipeline._backend_of[f"{name}-1"] = replace(backend, port=model)
        it.world.purse.left_microusd = thousands_left * 1000
        task = asyncio.create_task(
            streamed(it.world, ask(max_tokens=8)) if stream else unary(it.world, ask(max_tokens=8))
        )
        for _ in range(leaves_after):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        (close,) = it.world.closes()
        it.books_are_shut()
        assert close.cost_microusd == thousands_left * 1000 - it.world.purse.left_microusd
        answered = [attempt.outcome for attempt in close.attempts].count("ok")
        # Who leaves once the model has ended has left a whole answer: the attempt is settled by then.
        assert answered == 1 if close.status == "ok" else answered <= (close.status == "cancelled")

    asyncio.run(one())
