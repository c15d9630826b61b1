from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from models.base import Call
from models.errors import DeadlineExceeded, StreamInterrupted, UpstreamFailed
from models.messages import Event, TextDelta
from models.reliability.settings import TimeoutSettings
from models.reliability.tally import Tally
from models.reliability.timeouts import TimeBound
from tests.unit.models.reliability.scripted import CALL, GOOD, REQUEST, Scripted, collect, failure

LIMITS = TimeoutSettings(first_event_s=0.05, stall_s=0.05)


def bound(*script: object, settings: TimeoutSettings = LIMITS) -> tuple[TimeBound, Scripted, Tally]:
    inner, tally = Scripted([script]), Tally()  # type: ignore[list-item]
    return TimeBound(inner, lambda: settings, tally), inner, tally


async def test_an_answer_in_time_passes_as_it_is() -> None:
    model, inner, _ = bound(0.02, *GOOD[:1], 0.02, *GOOD[1:], settings=TimeoutSettings())
    assert await collect(model) == list(GOOD)
    assert inner.calls[0].timeout_s == CALL.timeout_s


async def test_an_answer_that_does_not_begin() -> None:
    model, inner, tally = bound(9.0)
    error = await failure(model)
    assert type(error) is UpstreamFailed and error.retryable and error.abandoned == 1
    assert inner.under_way == 0 and tally.snapshot()["timeouts"] == {"first_event": 1}


async def test_an_answer_that_stalls_is_interrupted_and_never_retried() -> None:
    model, inner, tally = bound(*GOOD[:1], 9.0)
    events: list[Event] = []
    error = await failure(model, into=events)
    assert type(error) is StreamInterrupted and not error.retryable and error.abandoned == 0
    assert events == [TextDelta("Hi")] and inner.under_way == 0
    assert tally.snapshot()["timeouts"] == {"stall": 1}


@pytest.mark.parametrize(("steps", "abandoned"), [((9.0,), 1), ((*GOOD[:1], 9.0), 0)])
async def test_the_callers_deadline_holds_besides(steps: tuple[object, ...], abandoned: int) -> None:
    model, inner, tally = bound(*steps, settings=TimeoutSettings())
    error = await failure(model, Call("r", timeout_s=0.05))
    assert type(error) is DeadlineExceeded and error.abandoned == abandoned
    assert inner.under_way == 0 and tally.snapshot()["timeouts"] == {"total": 1}


async def test_the_operators_total_is_told_to_the_model() -> None:
    model, inner, _ = bound(*GOOD, settings=TimeoutSettings(total_s=0.5))
    await collect(model)
    assert inner.calls[0].timeout_s == 0.5


async def test_the_models_own_deadline_counts_as_given_up_too() -> None:
    model, _, _ = bound(DeadlineExceeded("late"))
    assert (await failure(model)).abandoned == 1


async def test_a_consumer_that_takes_its_time_is_not_the_providers_fault() -> None:
    model, _, _ = bound(*GOOD)
    async with aclosing(model.stream(REQUEST, CALL)) as events:
        async for _ in events:
            await asyncio.sleep(0.08)
