"""Money for more attempts at a provider than the one that answers: set aside before, and charged as far as is known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from models.errors import StreamInterrupted, SwitchyardError, UpstreamFailed
from models.messages import Event, Finish, TextDelta, Usage, UsageReport
from models.reliability.hedging import Hedged
from models.reliability.retry_budget import RetryBudget
from models.reliability.settings import HedgeSettings, RetrySettings
from models.reliability.tally import Tally
from router.events import RequestOpened
from router.settings import IngressSettings
from router.tokens import prompt_tokens
from tests.unit.models.reliability.scripted import GOOD, Scripted
from tests.unit.test_pipeline import ME, PLAIN, World, ask, make_world

QUESTION = ask("x" * 400, model="small-1", max_tokens=10)
PROMPT = prompt_tokens(QUESTION).expected
PRICE = 1000
"""Micro-USD per token of the world's models."""


def world_of(scripts: Sequence[Sequence[object]], spare: int = 1) -> tuple[World, Scripted]:
    world, inner = make_world(IngressSettings(spare_attempts={"small-1": spare} if spare else {})), Scripted(scripts)  # type: ignore[arg-type]
    hedging = HedgeSettings(mode="fixed", after_s=0.02)
    world.small.model = Hedged(inner, ["small-1"], lambda: hedging, RetryBudget(RetrySettings), Tally())  # type: ignore[assignment]
    return world, inner


async def run(world: World, leave_after_s: float | None = None) -> list[Event]:
    async with world.pipeline.run(QUESTION, ME, PLAIN, "test") as run:
        if leave_after_s is None:
            await run.begin(stream=True)
            return [event async for batch in run.batches() for event in batch]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run.begin(stream=True), leave_after_s)
    return []


@pytest.mark.parametrize(("spare", "times"), [(0, 1), (1, 2), (2, 3)])
async def test_the_worst_case_is_set_aside_for_each(spare: int, times: int) -> None:
    world, inner = world_of([GOOD], spare)
    await run(world)
    opened = next(record for record in world.records if isinstance(record, RequestOpened))
    assert opened.reserved_microusd == times * PRICE * (prompt_tokens(QUESTION).at_most + 10)
    assert world.closes()[0].cost_microusd == PRICE * 11
    assert inner.calls[0].spare_attempts == 0 if spare else True
    world.books_are_shut()


async def test_a_hedge_that_wins_is_paid_with_the_prompt_of_the_loser() -> None:
    world, _ = world_of([(9.0,), GOOD])
    await run(world)
    close = world.closes()[0]
    assert (close.usage, close.estimated) == (Usage(9 + 100, 2), True)
    assert close.cost_microusd == PRICE * 111
    world.books_are_shut()


async def test_an_answer_that_breaks_off_after_a_hedge_is_charged_with_both_prompts() -> None:
    world, _ = world_of([(9.0,), (TextDelta("Hello Wo"), 0.01, StreamInterrupted("cut"))])
    with pytest.raises(StreamInterrupted):
        await run(world)
    assert world.closes()[0].cost_microusd == PRICE * (2 * 100 + 2)
    world.books_are_shut()


async def test_what_a_provider_said_early_holds_for_an_answer_that_breaks_off() -> None:
    early = UsageReport(Usage(123, 1, cached_input_tokens=5), estimated=True)
    world, _ = world_of([(TextDelta("Hello Wo"), early, TextDelta("rld."), 0.01, StreamInterrupted("cut"))], spare=0)
    with pytest.raises(StreamInterrupted):
        await run(world)
    close = world.closes()[0]
    assert (close.usage, close.estimated) == (Usage(123, 3, cached_input_tokens=5), True)
    world.books_are_shut()


async def test_whoever_leaves_before_it_began_is_charged_with_all_that_may_be_under_way() -> None:
    world, inner = world_of([(9.0,)])
    await run(world, leave_after_s=0.1)
    assert inner.under_way == 0
    assert world.closes()[0].cost_microusd == PRICE * 2 * PROMPT
    world.books_are_shut()


async def test_attempts_that_were_given_up_are_charged_though_all_failed() -> None:
    def slow() -> SwitchyardError:
        error = UpstreamFailed("slow")
        error.abandoned = 1
        return error

    world, _ = world_of([(0.05, slow()), (0.05, slow())])
    with pytest.raises(UpstreamFailed):
        await run(world)
    assert world.closes()[0].cost_microusd == PRICE * 2 * PROMPT
    world.books_are_shut()


async def test_a_good_answer_is_told_to_the_caller_as_it_is() -> None:
    world, _ = world_of([GOOD], spare=0)
    assert await run(world) == [TextDelta("Hi"), Finish("stop"), UsageReport(Usage(9, 2))]
