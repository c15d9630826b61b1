from __future__ import annotations

import asyncio
import pickle
from contextlib import aclosing
from dataclasses import replace

import pytest

from models.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    RateLimited,
    StreamInterrupted,
    SwitchyardError,
    UpstreamFailed,
)
from models.messages import TextDelta
from models.reliability.circuit_breaker import CircuitBroken, CircuitOpen
from models.reliability.settings import BreakerSettings
from models.reliability.tally import Tally
from tests.unit.models.reliability.scripted import CALL, GOOD, REQUEST, Clock, Scripted, collect, failure

SETTINGS = BreakerSettings(window_s=10, min_requests=4, failure_share=0.5, cooldown_s=5, max_cooldown_s=15)


class Case:
    def __init__(self, *scripts: object, settings: BreakerSettings = SETTINGS) -> None:
        self.inner, self.tally, self.clock = Scripted(scripts), Tally(), Clock()  # type: ignore[arg-type]
        self.model = CircuitBroken(self.inner, ["m", "other"], lambda: settings, self.tally, self.clock)

    def then(self, *script: object) -> None:
        """What every attempt does from now on."""
        self.inner.scripts = [script]  # type: ignore[list-item]

    async def fail(self, times: int, error: SwitchyardError | None = None) -> SwitchyardError:
        self.then(error or UpstreamFailed("down"))
        return [await failure(self.model) for _ in range(times)][-1]

    async def succeed(self, times: int) -> None:
        self.then(*GOOD)
        for _ in range(times):
            await collect(self.model)

    @property
    def state(self) -> str:
        return self.model.states()["m"]


@pytest.mark.parametrize(
    "error", [UpstreamFailed("5xx"), ModelUnavailable("refused"), StreamInterrupted("cut"), UpstreamFailed("silent")]
)
async def test_it_opens_at_its_share_of_failures_and_sends_nothing_then(error: SwitchyardError) -> None:
    case = Case()
    await case.succeed(2)
    await case.fail(1, error)
    assert case.state == "closed"
    await case.fail(1, error)
    assert case.state == "open" and len(case.inner.calls) == 4
    refused = await failure(case.model)
    assert type(refused) is CircuitOpen and isinstance(refused, ModelUnavailable)
    assert refused.retry_after_s == 5.0 and refused.code == "model_unavailable"
    assert refused.message.endswith(f"The last failure: {error.message}")
    assert len(case.inner.calls) == 4
    assert case.tally.snapshot()["breaker_opened"] == {"m": 1}
    assert case.tally.snapshot()["breaker_refused"] == {"m": 1}


async def test_few_requests_say_nothing() -> None:
    case = Case()
    await case.fail(3)
    assert case.state == "closed"


async def test_old_failures_are_forgotten() -> None:
    case = Case()
    await case.fail(3)
    case.clock.now_s += 10
    await case.fail(3)
    assert case.state == "closed"
    case.clock.now_s += 5
    await case.fail(1)
    assert case.state == "open"


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("no"),
        ContextLengthExceeded("long"),
        RateLimited("slow", None, 30.0),
        DeadlineExceeded("late"),
        ModelUnavailable("refused access", None, None, {"provider_status": 403}),
    ],
)
async def test_a_callers_fault_or_a_rate_limit_is_no_failure(error: SwitchyardError) -> None:
    case = Case()
    await case.fail(20, error)
    assert case.state == "closed"


async def test_silence_until_a_long_deadline_is_a_failure() -> None:
    case = Case()
    for _ in range(4):
        stream = case.model.stream(REQUEST, CALL)
        case.then(0.01, DeadlineExceeded("late"))
        async with aclosing(stream) as events:
            task = asyncio.create_task(anext(events))
            await asyncio.sleep(0)
            case.clock.now_s += SETTINGS.slow_s
            with pytest.raises(DeadlineExceeded):
                await task
        case.clock.now_s -= SETTINGS.slow_s
    assert case.state == "open"


async def test_a_probe_that_begins_to_answer_closes_it() -> None:
    case = Case()
    await case.fail(4)
    case.clock.now_s += 5
    assert case.state == "half-open"
    case.then(*GOOD)
    async with aclosing(case.model.stream(REQUEST, CALL)) as probe:
        await anext(probe)
        assert case.state == "closed"  # others need not wait for the end of a long answer
        assert await collect(case.model) == list(GOOD)


async def test_only_so_many_probes_at_a_time() -> None:
    case = Case()
    await case.fail(4)
    case.clock.now_s += 5
    case.then(9.0)
    probe = asyncio.create_task(collect(case.model))
    await asyncio.sleep(0)
    refused = await failure(case.model)
    assert type(refused) is CircuitOpen and refused.retry_after_s == 1.0
    assert len(case.inner.calls) == 5
    # A probe that is left says nothing, and another one may go.
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    assert case.state == "half-open" and case.inner.under_way == 0
    await case.succeed(1)
    assert case.state == "closed"


@pytest.mark.parametrize("error", [InvalidRequest("no"), RateLimited("slow")])
async def test_a_probe_that_says_nothing_makes_room_for_another(error: SwitchyardError) -> None:
    case = Case()
    await case.fail(4)
    case.clock.now_s += 5
    await case.fail(1, error)
    assert case.state == "half-open"
    await case.succeed(1)
    assert case.state == "closed"


async def test_the_cooldown_grows_up_to_its_bound_and_begins_anew_after_a_success() -> None:
    case = Case()
    error = await case.fail(4)
    waits = []
    for _ in range(4):
        error = await failure(case.model)
        waits.append(error.retry_after_s)
        case.clock.now_s += error.retry_after_s or 0
        await case.fail(1)
    assert waits == [5.0, 10.0, 15.0, 15.0]
    case.clock.now_s += 15
    await case.succeed(1)
    await case.fail(4)
    assert (await failure(case.model)).retry_after_s == 5.0


async def test_an_answer_that_began_before_says_nothing_about_now() -> None:
    case = Case((TextDelta("Hi"), 0.01, StreamInterrupted("cut")))
    old = [case.model.stream(REQUEST, CALL) for _ in range(4)]
    for stream in old:
        await anext(stream)
    await case.fail(4)
    case.clock.now_s += 5
    await case.succeed(1)
    for stream in old:
        with pytest.raises(StreamInterrupted):
            await anext(stream)
    assert case.state == "closed"


async def test_each_model_has_its_own() -> None:
    case = Case()
    await case.fail(4)
    case.then(*GOOD)
    assert await collect(case.model, request=replace(REQUEST, model="other")) == list(GOOD)
    await case.model.check_health()
    case.then(UpstreamFailed("down"))
    for _ in range(3):
        with pytest.raises(UpstreamFailed):
            await collect(case.model, request=replace(REQUEST, model="other"))
    with pytest.raises(CircuitOpen) as unhealthy:
        await case.model.check_health()
    assert unhealthy.value.retry_after_s == 5.0
    case.then(ModelNotFound("which?"))
    for _ in range(9):
        with pytest.raises(ModelNotFound):
            await collect(case.model, request=replace(REQUEST, model="unknown"))
    assert case.model.states().keys() == {"m", "other"}


async def test_it_can_be_off() -> None:
    case = Case(settings=SETTINGS.model_copy(update={"enabled": False}))
    await case.fail(20)
    assert case.state == "closed" and not case.tally.snapshot()["breaker_opened"]


def test_its_refusal_crosses_a_hop() -> None:
    again = pickle.loads(pickle.dumps(CircuitOpen("open", None, 3.0)))
    assert type(again) is CircuitOpen and again.retry_after_s == 3.0
