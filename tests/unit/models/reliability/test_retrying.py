from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

import pytest

from models.base import Call
from models.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelUnavailable,
    RateLimited,
    StreamInterrupted,
    SwitchyardError,
    UpstreamFailed,
)
from models.messages import Event, TextDelta, Usage, UsageReport
from models.reliability.circuit_breaker import CircuitOpen
from models.reliability.retry_budget import RetryBudget
from models.reliability.retrying import Retrying
from models.reliability.settings import RetrySettings
from models.reliability.tally import Tally
from tests.unit.models.reliability.scripted import CALL, GOOD, REQUEST, Clock, Scripted, collect, failure

QUICK = RetrySettings(base_s=0.01, max_backoff_s=0.02)


class Case:
    def __init__(self, *scripts: object, settings: RetrySettings = QUICK, random: float = 1.0) -> None:
        self.inner, self.tally = Scripted(scripts), Tally()  # type: ignore[arg-type]
        self.budget = RetryBudget(lambda: settings, Clock())
        self.model = Retrying(self.inner, lambda: settings, self.budget, self.tally, lambda: random)


def refusal(status: int) -> ModelUnavailable:
    return ModelUnavailable("no", None, None, {"provider_status": status})


@pytest.mark.parametrize(
    "error", [UpstreamFailed("down"), ModelUnavailable("refused"), RateLimited("slow"), RateLimited("slow", None, 0.01)]
)
async def test_what_passes_is_tried_again(error: SwitchyardError) -> None:
    case = Case((error,), GOOD)
    assert await collect(case.model) == list(GOOD)
    assert len(case.inner.calls) == 2 and case.tally.snapshot()["retries"] == {"m": 1}
    assert 0 < case.inner.calls[1].timeout_s < CALL.timeout_s


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("no"),
        ContextLengthExceeded("long"),
        refusal(401),
        refusal(404),
        CircuitOpen("open", None, 0.01),
        RateLimited("slow", None, 60.0),
    ],
)
async def test_what_would_fail_again_is_not(error: SwitchyardError) -> None:
    case = Case((error,), GOOD)
    assert await failure(case.model) is error
    assert len(case.inner.calls) == 1


async def test_a_retry_after_that_does_not_fit_goes_out_with_the_error() -> None:
    case = Case((RateLimited("slow", None, 3.0),), GOOD)
    began_s = time.monotonic()
    error = await failure(case.model, Call("r", timeout_s=1.0))
    assert (error.retry_after_s, len(case.inner.calls)) == (3.0, 1)
    assert time.monotonic() - began_s < 0.5


async def test_after_the_first_event_nothing_is_retried() -> None:
    case = Case((TextDelta("Hi"), StreamInterrupted("cut")), GOOD)
    events: list[Event] = []
    assert type(await failure(case.model, into=events)) is StreamInterrupted
    assert events == [TextDelta("Hi")] and len(case.inner.calls) == 1
    # Not even what would be retryable.
    case = Case((TextDelta("Hi"), UpstreamFailed("cut")), GOOD)
    assert type(await failure(case.model)) is UpstreamFailed and len(case.inner.calls) == 1


async def test_attempts_are_bounded() -> None:
    case = Case((UpstreamFailed("down"),))
    await failure(case.model)
    assert len(case.inner.calls) == 3


@pytest.mark.parametrize(("random", "expected_s"), [(0.0, 0.0), (0.5, 0.01 / 2 + 0.02 / 2), (0.99, 0.0297)])
async def test_the_wait_is_drawn_from_zero_to_twice_the_last_limit(random: float, expected_s: float) -> None:
    case = Case((UpstreamFailed("down"),), random=random)
    slept: list[float] = []
    sleep, here = asyncio.sleep, asyncio.current_task()

    async def recorded(delay_s: float) -> None:
        if asyncio.current_task() is not here:  # of an engine that some earlier test left running in this process
            return await sleep(delay_s)
        slept.append(delay_s)
        await sleep(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "sleep", recorded)
        await failure(case.model)
    assert sum(slept) == pytest.approx(expected_s)


async def test_under_a_storm_retries_are_a_tenth_of_the_requests() -> None:
    settings = QUICK.model_copy(update={"budget_burst": 5, "max_attempts": 10, "base_s": 1e-6})
    case = Case((UpstreamFailed("down"),), settings=settings)
    for _ in range(200):
        await failure(case.model)
    retries = len(case.inner.calls) - 200
    assert 20 <= retries <= 5 + 0.1 * 200
    assert case.tally.snapshot()["retries_over_budget"] == {"m": 200}


async def test_an_empty_budget_gives_the_first_error_at_once() -> None:
    settings = QUICK.model_copy(update={"budget_burst": 1, "budget_share": 0.0, "base_s": 30.0, "max_backoff_s": 30.0})
    case = Case((UpstreamFailed("down"),), settings=settings, random=0.0)
    await failure(case.model)
    assert len(case.inner.calls) == 2
    slow = Case((UpstreamFailed("down"),), settings=settings, random=0.1)
    slow.budget.spend()
    began_s = time.monotonic()
    assert type(await failure(slow.model)) is UpstreamFailed
    assert time.monotonic() - began_s < 5.0 and len(slow.inner.calls) == 1


def test_the_budget_refills_with_requests_and_slowly_with_time() -> None:
    clock = Clock()
    budget = RetryBudget(lambda: RetrySettings(budget_burst=2, budget_share=0.1, budget_min_per_s=0.5), clock)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(10):
        budget.earn()
    assert [budget.spend() for _ in range(2)] == [True, False]
    clock.now_s += 2.0
    assert [budget.spend() for _ in range(2)] == [True, False]
    clock.now_s += 3600.0
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def given_up() -> UpstreamFailed:
    error = UpstreamFailed("slow")
    error.abandoned = 1
    return error


async def test_an_attempt_that_was_given_up_is_not_repeated_without_money() -> None:
    case = Case((given_up(),), GOOD)
    assert (await failure(case.model)).abandoned == 1
    assert len(case.inner.calls) == 1


async def test_what_a_given_up_attempt_may_have_cost_is_in_the_usage() -> None:
    case = Case((given_up(),), (UpstreamFailed("free"),), GOOD)
    events = await collect(case.model, replace(CALL, spare_attempts=1))
    assert [call.spare_attempts for call in case.inner.calls] == [1, 0, 0]
    # The early one is for the books, should the answer break off: 10 tokens of prompt, twice.
    assert events == [
        TextDelta("Hi"),
        UsageReport(Usage(20, 0), estimated=True),
        GOOD[1],
        UsageReport(Usage(9 + 10, 2), estimated=True),
    ]


async def test_the_error_says_how_many_were_given_up_in_all() -> None:
    case = Case((given_up(),), (given_up(),), (UpstreamFailed("down"),))
    assert (await failure(case.model, replace(CALL, spare_attempts=2))).abandoned == 2


async def test_leaving_during_the_wait_ends_at_once_and_leaves_nothing() -> None:
    settings = RetrySettings(base_s=60.0, max_backoff_s=60.0)
    case = Case((UpstreamFailed("down"),), settings=settings, random=0.05)
    before = asyncio.all_tasks()
    task = asyncio.create_task(collect(case.model))
    await asyncio.sleep(0.05)
    began_s = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began_s < 2.0
    assert asyncio.all_tasks() == before and case.inner.under_way == 0


async def test_closing_the_iterator_closes_the_models() -> None:
    case = Case((*GOOD[:1], 60.0))
    async with aclosing(case.model.stream(REQUEST, CALL)) as events:
        await anext(events)
        assert case.inner.under_way == 1
    assert case.inner.under_way == 0
