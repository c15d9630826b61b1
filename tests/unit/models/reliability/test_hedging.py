from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

import pytest

from models.errors import StreamInterrupted, SwitchyardError, UpstreamFailed
from models.messages import Event, TextDelta, Usage, UsageReport
from models.reliability.hedging import Hedged
from models.reliability.retry_budget import RetryBudget
from models.reliability.settings import HedgeSettings, RetrySettings
from models.reliability.tally import Tally
from tests.unit.models.reliability.scripted import CALL, GOOD, REQUEST, Scripted, collect, failure

SPARE = replace(CALL, spare_attempts=1)
FIXED = HedgeSettings(mode="fixed", after_s=0.03)


class Case:
    def __init__(self, *scripts: object, settings: HedgeSettings = FIXED, burst: int = 10) -> None:
        self.inner, self.tally = Scripted(scripts), Tally()  # type: ignore[arg-type]
        budget = RetryBudget(lambda: RetrySettings(budget_burst=burst, budget_min_per_s=0, budget_share=0))
        self.model = Hedged(self.inner, ["m"], lambda: settings, budget, self.tally)


async def test_an_answer_in_time_is_alone() -> None:
    case = Case(GOOD)
    assert await collect(case.model, SPARE) == list(GOOD)
    assert len(case.inner.calls) == 1


async def test_the_second_attempt_wins_and_the_first_is_cancelled_and_accounted() -> None:
    case = Case((9.0,), (0.01, GOOD[0], 0.01, *GOOD[1:]))
    async with aclosing(case.model.stream(REQUEST, SPARE)) as stream:
        events = [await anext(stream)]
        await asyncio.sleep(0.005)
        assert case.inner.under_way == 1  # the loser is gone long before the answer ends
        events += [event async for event in stream]
    assert events == [
        GOOD[0],
        UsageReport(Usage(20, 0), estimated=True),
        GOOD[1],
        UsageReport(Usage(9 + 10, 2), estimated=True),
    ]
    counts = case.tally.snapshot()
    assert (counts["hedges"], counts["hedges_won"]) == ({"m": 1}, {"m": 1})
    assert [call.spare_attempts for call in case.inner.calls] == [0, 0]
    assert case.inner.calls[1].timeout_s < SPARE.timeout_s - 0.02


async def test_the_first_attempt_may_still_win() -> None:
    case = Case((0.06, *GOOD), (9.0,))
    events = await collect(case.model, SPARE)
    assert events[0] == GOOD[0] and events[-1] == UsageReport(Usage(19, 2), estimated=True)
    assert case.tally.snapshot()["hedges_won"] == {} and case.inner.under_way == 0


async def test_without_money_for_two_there_is_one() -> None:
    case = Case((0.06, *GOOD))
    assert await collect(case.model, CALL) == list(GOOD)
    assert len(case.inner.calls) == 1


async def test_without_budget_there_is_one() -> None:
    case = Case((0.06, *GOOD), burst=1)
    await collect(case.model, SPARE)
    await collect(case.model, SPARE)
    assert len(case.inner.calls) == 3 and case.tally.snapshot()["retries_over_budget"] == {"m": 1}


async def test_a_failure_before_the_delay_goes_out_at_once() -> None:
    case = Case((UpstreamFailed("down"),), GOOD)
    assert type(await failure(case.model, SPARE)) is UpstreamFailed
    assert len(case.inner.calls) == 1


def slow(error: SwitchyardError) -> SwitchyardError:
    error.abandoned = 1
    return error


async def test_a_failure_of_one_leaves_the_other() -> None:
    # The failed one cost nothing.
    case = Case((0.05, UpstreamFailed("down")), (0.05, *GOOD))
    assert await collect(case.model, SPARE) == list(GOOD)
    case = Case((0.06, *GOOD), (UpstreamFailed("down"),))
    assert await collect(case.model, SPARE) == list(GOOD)
    case = Case((0.05, slow(UpstreamFailed("slow"))), (0.05, *GOOD))
    assert (await collect(case.model, SPARE))[-1] == UsageReport(Usage(19, 2), estimated=True)


async def test_both_fail() -> None:
    case = Case((0.05, slow(UpstreamFailed("first"))), (0.05, slow(UpstreamFailed("second"))))
    error = await failure(case.model, SPARE)
    assert (error.message, error.abandoned) == ("first", 2)


async def test_an_answer_that_breaks_off_has_told_what_the_loser_cost() -> None:
    case = Case((9.0,), (GOOD[0], StreamInterrupted("cut")))
    events: list[Event] = []
    assert type(await failure(case.model, SPARE, into=events)) is StreamInterrupted
    assert events == [TextDelta("Hi"), UsageReport(Usage(20, 0), estimated=True)]


@pytest.mark.parametrize("after_s", [0.01, 0.05])
async def test_leaving_before_the_first_event_ends_both(after_s: float) -> None:
    case = Case((9.0,))
    before = asyncio.all_tasks()
    task = asyncio.create_task(collect(case.model, SPARE))
    await asyncio.sleep(after_s)
    began_s = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began_s < 5.0
    assert case.inner.under_way == 0 and asyncio.all_tasks() == before


async def test_closing_in_the_answer_ends_it() -> None:
    case = Case((9.0,), (GOOD[0], 9.0))
    before = asyncio.all_tasks()
    async with aclosing(case.model.stream(REQUEST, SPARE)) as events:
        await anext(events)
    assert case.inner.under_way == 0 and asyncio.all_tasks() == before


async def test_the_delay_can_follow_what_was_measured() -> None:
    case = Case((0.001, *GOOD), settings=HedgeSettings(mode="p95", after_s=9.0))
    for _ in range(20):
        await collect(case.model, SPARE)
    case.inner.scripts = [(9.0,), GOOD]
    case.inner.calls.clear()
    began_s = time.monotonic()
    await collect(case.model, SPARE)
    assert len(case.inner.calls) == 2 and time.monotonic() - began_s < 5.0
