"""Every fault x every adapter x every stack of wrappers: a right answer or a right error, in time, and nothing left."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from models.base import Call, ChatModel
from models.catalog import ModelEntry
from models.errors import (
    ContentRefused,
    DeadlineExceeded,
    InvalidRequest,
    ModelUnavailable,
    RateLimited,
    StreamInterrupted,
    SwitchyardError,
    UpstreamFailed,
)
from models.messages import ChatRequest, Event, Finish, Message, Sampling, TextDelta, TextPart, Usage, UsageReport, fold
from models.reliability.circuit_breaker import CircuitBroken
from models.reliability.hedging import Hedged
from models.reliability.key_rotation import KeyRotation
from models.reliability.plausible_usage import PlausibleUsage
from models.reliability.retry_budget import RetryBudget
from models.reliability.retrying import Retrying
from models.reliability.settings import HedgeSettings, ReliabilitySettings, RetrySettings, TimeoutSettings
from models.reliability.stack import ReliableModel
from models.reliability.tally import Tally
from models.reliability.timeouts import TimeBound
from tests.contract.fault_server import DIALECTS, Dialect, FaultServer, fault_server

ENTRIES = [ModelEntry(name="m", engine="simulated", context_tokens=1024)]
LIMIT_S = 0.75
"""Of an attempt's silence, where the provider hangs. The caller's own time is twice as long."""

SLACK_S = 4.0
"""For a machine with other things to do. A hang is without end."""

NUMBERS = itertools.count(1)

ENDLESS = ReliabilitySettings(
    timeouts=TimeoutSettings(first_event_s=600, stall_s=600),
    retries=RetrySettings(base_s=60, max_backoff_s=60, max_wait_s=60),
)
PERSISTENT = ENDLESS.model_copy(
    update={"retries": RetrySettings(base_s=0.01, max_backoff_s=0.02, max_wait_s=1, budget_burst=1000)}
)
HURRIED = PERSISTENT.model_copy(update={"timeouts": TimeoutSettings(first_event_s=LIMIT_S, stall_s=LIMIT_S)})


# ---- what may go wrong ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """`errors` are right for it. `passes` names who gets a right answer out of a provider that then does well: whoever
    retries, or has another key, or retries with money for a second prompt. `begun`: after the first event."""

    name: str
    errors: tuple[type[SwitchyardError], ...]
    passes: frozenset[str] = frozenset()
    begun: bool = False


RETRY, KEY, SPARE = frozenset({"retry"}), frozenset({"key"}), frozenset({"spare"})
QUICK = [
    Fault("hang_up", (UpstreamFailed, ModelUnavailable), RETRY),
    Fault("400", (InvalidRequest,)),
    Fault("filtered", (ContentRefused,)),
    Fault("401", (ModelUnavailable,), KEY),
    Fault("404", (ModelUnavailable,)),
    Fault("429", (RateLimited,), RETRY | KEY),
    Fault("429_soon", (RateLimited,), RETRY | KEY),
    Fault("429_late", (RateLimited,), KEY),
    Fault("500", (UpstreamFailed,), RETRY),
    Fault("503", (UpstreamFailed,), RETRY),
    Fault("529", (UpstreamFailed,), RETRY),
    Fault("cut_early", (UpstreamFailed,), RETRY),
    Fault("ended_early", (UpstreamFailed,), RETRY),
    Fault("malformed_early", (UpstreamFailed,), RETRY),
    Fault("error_early", (UpstreamFailed,), RETRY),
    Fault("cut", (StreamInterrupted,), begun=True),
    Fault("ended", (StreamInterrupted,), begun=True),
    Fault("malformed", (StreamInterrupted,), begun=True),
    Fault("error", (StreamInterrupted,), begun=True),
]
SLOW = [
    Fault("silence", (UpstreamFailed, DeadlineExceeded), SPARE),
    Fault("head_only", (UpstreamFailed, DeadlineExceeded), SPARE),
    Fault("stall", (StreamInterrupted, DeadlineExceeded), begun=True),
]
WRONG_USAGE = ["usage_negative", "usage_huge", "usage_words", "usage_null"]


# ---- who meets it --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """Wrappers around adapters (the same endpoint with two keys). `has`: by what it gets a right answer after a fault.
    `requests`: the most that one of its streams may send."""

    name: str
    build: Callable[[Sequence[ChatModel], ReliabilitySettings], ChatModel]
    has: frozenset[str] = frozenset()
    requests: int = 1
    spare_attempts: int = 0
    hedges: bool = False


def reliable(models: Sequence[ChatModel], settings: ReliabilitySettings) -> ReliableModel:
    return ReliableModel("acme", models, ENTRIES, settings)


def hedged(settings: ReliabilitySettings) -> ReliabilitySettings:
    return settings.model_copy(update={"hedging": HedgeSettings(mode="fixed", after_s=0.05)})


def budget(settings: ReliabilitySettings) -> RetryBudget:
    return RetryBudget(lambda: settings.retries)


STACKS = [
    Stack("bare", lambda models, _: models[0]),
    Stack("PlausibleUsage", lambda models, _: PlausibleUsage(models[0], ENTRIES, Tally())),
    Stack("TimeBound", lambda models, s: TimeBound(models[0], lambda: s.timeouts, Tally())),
    Stack("CircuitBroken", lambda models, s: CircuitBroken(models[0], ["m"], lambda: s.breaker, Tally())),
    Stack("KeyRotation", lambda models, s: KeyRotation(models, "acme", lambda: s.keys, Tally()), KEY, 2),
    Stack("Retrying", lambda models, s: Retrying(models[0], lambda: s.retries, budget(s), Tally()), RETRY, 3),
    Stack(
        "Hedged",
        lambda models, s: Hedged(models[0], ["m"], lambda: hedged(s).hedging, budget(s), Tally()),
        requests=2,
        spare_attempts=1,
        hedges=True,
    ),
    Stack("all", lambda models, s: reliable(models[:1], s), RETRY, 3),
    Stack("all, with money to spare", lambda models, s: reliable(models[:1], s), RETRY | SPARE, 3, 2),
    Stack("all, two keys", reliable, RETRY | KEY, 6),
    Stack("all, hedged", lambda models, s: reliable(models, hedged(s)), RETRY | KEY | SPARE, 12, 2, True),
]


@dataclass
class World:
    """One provider and two adapters for it, for all the cases of a dialect."""

    server: FaultServer
    models: list[ChatModel]

    def left_over(self) -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks() - self.server.tasks


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=DIALECTS, ids=lambda dialect: dialect.name)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    dialect: Dialect = request.param
    async with fault_server(dialect) as server:
        models = [dialect.model(server.url, key) for key in ("sk-secret-one", "sk-secret-two")]
        yield World(server, models)
        for model in models:
            await model.close()


@dataclass
class Outcome:
    events: list[Event]
    error: BaseException | None
    took_s: float
    requests: int
    usage: Usage

    @property
    def text(self) -> str:
        return fold(self.events).text

    @property
    def is_right_answer(self) -> bool:
        completion = fold(self.events)
        paid = completion.usage
        whole = paid == self.usage and not completion.estimated
        # On top of it the prompts of attempts that were given up.
        more = completion.estimated and paid.input_tokens > 9 and paid.output_tokens == 2
        return self.error is None and (completion.text, completion.finish_reason) == ("Hé", "stop") and (whole or more)


def question(plan: str, number: int) -> ChatRequest:
    return ChatRequest("m", (Message("user", (TextPart(f"plan={plan}#{number}"),)),), Sampling(max_tokens=16))


async def outcome(
    world: World, stack: Stack, plan: str, settings: ReliabilitySettings = PERSISTENT, timeout_s: float = 20.0
) -> Outcome:
    number, events, error = next(NUMBERS), list[Event](), None
    call = Call(f"r{number}", timeout_s=timeout_s, spare_attempts=stack.spare_attempts)
    began_s = time.monotonic()
    try:
        async with (
            asyncio.timeout(timeout_s + SLACK_S),
            aclosing(stack.build(world.models, settings).stream(question(plan, number), call)) as stream,
        ):
            async for event in stream:
                events.append(event)
    except (SwitchyardError, TimeoutError) as caught:
        error = caught
    return Outcome(events, error, time.monotonic() - began_s, world.server.requests[number], world.server.dialect.usage)


def complaint(fault: Fault, stack: Stack, recovers: bool, found: Outcome) -> str | None:
    """What is wrong about how a stack met a fault; None: nothing."""
    may_answer = recovers and (stack.hedges or bool(fault.passes & stack.has))
    must_answer = may_answer and not stack.hedges
    if fault in SLOW and not must_answer and not found.events:
        # On a busy machine what stalls in its answer may be late before it begins.
        return None if isinstance(found.error, UpstreamFailed | DeadlineExceeded) else f"{found.error}"
    if not 1 - (fault in SLOW) <= found.requests <= (stack.requests if not fault.begun else 1 + stack.hedges):
        return f"{found.requests} requests"
    if found.error is None:
        return None if may_answer and found.is_right_answer else f"answered {found.events}"
    if must_answer or not isinstance(found.error, fault.errors):
        return f"{type(found.error).__name__} {found.error}"
    if found.text != ("Hé" if fault.begun else ""):
        return f"gave out {found.text!r}"
    return "handed on what the provider wrote" if "secret" in str(found.error) else None


async def nothing_left(world: World, before: set[asyncio.Task[Any]]) -> None:
    """Within a second of the last case no request is under way at the provider, and no task of ours is left."""
    for _ in range(100):
        if not (world.server.busy or world.left_over() - before):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{world.server.busy} requests at the provider, {world.left_over() - before} here")


# ---- the table -----------------------------------------------------------------------------------------------------


async def problems(
    world: World,
    cases: Sequence[tuple[Stack, Fault, bool]],
    settings: ReliabilitySettings,
    timeout_s: float,
    at_once: int,
) -> dict[str, str]:
    """What is wrong, by case."""
    wrong: dict[str, str] = {}
    places = asyncio.Semaphore(at_once)

    async def case(stack: Stack, fault: Fault, recovers: bool) -> None:
        plan = f"{fault.name},good" if recovers else fault.name
        async with places:
            found = await outcome(world, stack, plan, settings, timeout_s)
        if problem := complaint(fault, stack, recovers, found):
            wrong[f"{stack.name}: {plan}"] = problem

    before = world.left_over()
    await asyncio.gather(*(case(*each) for each in cases))
    await nothing_left(world, before)
    return wrong


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_provider_that_fails_at_once(world: World, stack: Stack) -> None:
    cases = [(stack, fault, recovers) for fault in QUICK for recovers in (False, True)]
    assert await problems(world, cases, PERSISTENT, timeout_s=20.0, at_once=3) == {}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_provider_that_hangs(world: World) -> None:
    cases = [(stack, fault, recovers) for stack in STACKS for fault in SLOW for recovers in (False, True)]
    # Who must get an answer out of it gets the time for it, also on a machine that is busy.
    answered = [(stack, fault, recovers) for stack, fault, recovers in cases if recovers and fault.passes & stack.has]
    others = [case for case in cases if case not in answered]
    assert await problems(world, others, HURRIED, timeout_s=2 * LIMIT_S, at_once=16) == {}
    assert await problems(world, answered, HURRIED, timeout_s=20.0, at_once=2) == {}


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_good_provider_is_left_alone(world: World, stack: Stack) -> None:
    found = await outcome(world, stack, "good")
    assert found.error is None
    if not stack.hedges:
        assert found.events[-1] == UsageReport(world.server.dialect.usage)
        assert found.requests == 1
    assert found.is_right_answer


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_count_that_cannot_be_spoils_no_answer(world: World, stack: Stack) -> None:
    checks = stack.name.startswith("all") or stack.name == "PlausibleUsage"
    for plan in WRONG_USAGE:
        found = await outcome(world, stack, plan)
        if plan == "usage_words" and isinstance(found.error, StreamInterrupted | UpstreamFailed):
            continue  # an adapter that cannot read it at all takes it for a broken stream
        completion = fold(found.events)
        assert found.error is None and (completion.text, completion.finish_reason) == ("Hé", "stop")
        if checks:
            assert completion.estimated or completion.usage.output_tokens in (1, 2), plan
            assert 0 < completion.usage.input_tokens < 100 and 0 < completion.usage.output_tokens < 100, plan


# ---- leaving -------------------------------------------------------------------------------------------------------

MOMENTS = {"before the first byte": "silence", "in the wait for a retry": "429_soon", "in the answer": "stall"}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.asyncio(loop_scope="module")
async def test_whoever_leaves_is_gone_at_the_provider_within_a_second(world: World, moment: str) -> None:
    before = world.left_over()
    for stack in STACKS:
        number = next(NUMBERS)
        call = Call(f"r{number}", timeout_s=60.0, spare_attempts=stack.spare_attempts)
        model = stack.build(world.models, ENDLESS)
        task = asyncio.create_task(_collected(model.stream(question(MOMENTS[moment], number), call)))
        async with asyncio.timeout(30.0):
            while not world.server.requests[number]:  # noqa: ASYNC110 - the server's side of a socket
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        began_s = time.monotonic()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await nothing_left(world, before)
        assert time.monotonic() - began_s < 5.0


# ---- where nobody listens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_a_refused_connection(dialect: Dialect, stack: Stack) -> None:
    models = [dialect.model("http://127.0.0.1:9", key) for key in ("one", "two")]
    model = stack.build(models, PERSISTENT)
    with pytest.raises(ModelUnavailable):
        await _collected(model.stream(question("good", 0), Call("r", timeout_s=5.0)))
    for each in models:
        await each.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_provider_that_comes_back_is_found_by_a_retry(world: World) -> None:
    """The port is refused at first, and then there is somebody."""
    placeholder = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = placeholder.sockets[0].getsockname()[1]
    placeholder.close()
    await placeholder.wait_closed()
    adapter = world.server.dialect.model(f"http://127.0.0.1:{port}")
    patient = RetrySettings(base_s=0.5, max_attempts=5)
    model = Retrying(adapter, lambda: patient, RetryBudget(lambda: patient), Tally(), lambda: 1.0)
    task = asyncio.create_task(_collected(model.stream(question("good", next(NUMBERS)), Call("r", timeout_s=10.0))))
    await asyncio.sleep(0.1)
    server = await asyncio.start_server(world.server.serve, "127.0.0.1", port)
    assert TextDelta("Hé") in await task and Finish("stop") in await task
    server.close()
    await adapter.close()


async def _collected(stream: AsyncIterator[Event]) -> list[Event]:
    async with aclosing(stream) as events:  # type: ignore[type-var]
        return [event async for event in events]
