"""Who reads whose answer along: askers that differ in time, urgency, rights and wishes, and what ends a flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from models.base import Call
from models.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    InternalError,
    NoEligibleModel,
    NotFound,
    Overloaded,
    UpstreamFailed,
)
from models.messages import ChatRequest, Event
from router.constraints import Limits
from router.events import Principal, Record, RequestClosed
from router.invalidation import Selection
from router.pipeline import Options
from router.ports import CachedAnswer, CacheKey, Followed, Grant, Lookup, Terms, Ticket
from router.settings import IngressSettings, TenantSettings
from tests.unit.test_coalescing import read, replicas, settled, shut, upstream
from tests.unit.test_pipeline import ME, World, ask

HURRIED = Options(deadline_s=0.08)


async def outcome(work: Any) -> Any:
    """What it returns, or the error that it raises."""
    (told,) = await asyncio.gather(work, return_exceptions=True)
    return told


def punctual(world: World) -> None:
    """Have the model keep to the time of its call, as the real ones do."""
    inner = world.small.stream

    async def stream(request: ChatRequest, call: Call) -> AsyncIterator[Sequence[Event]]:
        try:
            async with asyncio.timeout(call.timeout_s):
                async for batch in inner(request, call):
                    yield batch
        except TimeoutError:
            raise DeadlineExceeded("late") from None

    world.small.stream = stream  # type: ignore[method-assign]


# ---- time and urgency ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("ttft_ms", [20, 200])
async def test_nobody_is_bound_to_the_shorter_deadline_of_another(where: int, ttft_ms: float) -> None:
    worlds = replicas(2, ttft_ms=ttft_ms, tokens_per_s=300)
    for world in worlds:
        punctual(world)
    hurried = asyncio.create_task(outcome(read(worlds[0], options=HURRIED)))
    await asyncio.sleep(0.01)
    patient = await read(worlds[where])
    assert len(patient) == 66 and isinstance(await hurried, DeadlineExceeded)
    assert upstream(worlds) == 2
    await settled(worlds)
    shut(worlds)


async def test_who_has_less_time_reads_along() -> None:
    (world,) = replicas(1, ttft_ms=20)
    first = asyncio.create_task(read(world))
    await asyncio.sleep(0.005)
    assert await read(world, options=Options(deadline_s=60)) == await first
    assert upstream([world]) == 1


async def test_an_answer_that_was_too_late_before_it_began_is_asked_for_again() -> None:
    (world,) = replicas(1, ttft_ms=5)
    inner = world.places.admit

    async def late(ticket: Ticket) -> Grant:
        world.places.admit = inner  # type: ignore[method-assign]
        await asyncio.sleep(0.02)
        raise DeadlineExceeded("late")

    world.places.admit = late  # type: ignore[method-assign]
    first = asyncio.create_task(outcome(read(world)))
    await asyncio.sleep(0.005)
    assert len(await read(world)) == 66 and isinstance(await first, DeadlineExceeded)
    shut([world])


@pytest.mark.parametrize("where", [0, 1])
async def test_an_urgent_request_does_not_wait_at_the_place_of_one_that_is_not(where: int) -> None:
    worlds = replicas(2)
    turn = asyncio.Event()
    for world in worlds:
        inner = world.places.admit

        async def admit(ticket: Ticket, inner: Any = inner) -> Grant:
            if ticket.priority > 0:
                await turn.wait()  # a busy backend
            return await inner(ticket)

        world.places.admit = admit  # type: ignore[method-assign]
    line = asyncio.create_task(read(worlds[0], options=Options(priority=1000)))
    await asyncio.sleep(0.01)
    assert len(await read(worlds[where])) == 66
    turn.set()
    assert len(await line) == 66
    await settled(worlds)
    shut(worlds)


async def test_one_that_is_not_urgent_reads_an_urgent_answer_along_and_any_once_it_has_begun() -> None:
    (world,) = replicas(1, tokens_per_s=1000)
    first = asyncio.create_task(read(world, options=Options(priority=5)))
    await asyncio.sleep(0.02)
    assert await read(world, options=Options(priority=9)) == await read(world) == await first
    assert upstream([world]) == 1


# ---- rights and wishes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wish",
    [
        {"limits": Limits(min_quality=0.01)},
        {"limits": Limits(local_only=True)},
        {"limits": Limits(max_cost_microusd=10**9)},
        {"strategy": "cheapest"},
        {"fallbacks": ("medium-1",)},
    ],
)
async def test_a_wish_is_a_part_of_the_question_for_what_is_made_and_for_what_is_stored(wish: dict[str, Any]) -> None:
    (world,) = replicas(1, ttft_ms=20)
    await asyncio.gather(read(world), read(world, options=Options(**wish)), read(world, options=Options(**wish)))
    assert upstream([world]) == 2
    assert {close.cache_verdict for close in world.closes()} == {"miss", "coalesced"}
    await read(world, options=Options(**wish))
    assert world.closes()[-1].cache_verdict == "hit-exact" and upstream([world]) == 2
    shut([world])


async def test_no_stored_answer_gets_around_a_limit_that_no_model_meets() -> None:
    (world,) = replicas(1)
    await read(world)
    assert isinstance(await outcome(read(world, options=Options(limits=Limits(region="eu")))), NoEligibleModel)


async def test_a_tenant_that_keeps_no_answers_shares_none() -> None:
    (world,) = replicas(1, IngressSettings(default_tenant=TenantSettings(cache_ttl_s=0)), ttft_ms=20)
    await asyncio.gather(*(read(world) for _ in range(3)))
    assert upstream([world]) == 3 and {close.cache_verdict for close in world.closes()} == {"miss"}
    shut([world])


async def test_those_with_the_same_fallbacks_read_the_fallback_along() -> None:
    worlds = replicas(2, ttft_ms=10)
    for world in worlds:
        world.small.failures = [UpstreamFailed("no")] * 99
    named, options = ask(model="small-1"), Options(fallbacks=("medium-1",))
    streams = await asyncio.gather(*(read(worlds[n % 2], named, options) for n in range(20)))
    assert all(stream == streams[0] for stream in streams)
    assert (sum(world.small.calls for world in worlds), sum(world.medium.calls for world in worlds)) == (1, 1)
    await settled(worlds)
    shut(worlds)


@pytest.mark.parametrize("count", [1, 2])
async def test_those_who_may_not_read_an_answer_read_one_of_their_own(count: int) -> None:
    worlds = replicas(count, ttft_ms=30)
    for world in worlds:
        allowed = world.pipeline.tenants.allowed_models
        world.pipeline.tenants.allowed_models = lambda who, allowed=allowed: (
            ("medium-1",) if who.key_id == "confined" else allowed(who)
        )
    first = asyncio.create_task(read(worlds[0]))
    await asyncio.sleep(0.01)
    confined = Principal("acme", key_id="confined")
    streams = await asyncio.gather(*(read(worlds[n % count], who=confined) for n in range(20)))
    assert all(stream == streams[0] for stream in streams) and streams[0] != await first
    assert (sum(world.small.calls for world in worlds), sum(world.medium.calls for world in worlds)) == (1, 1)
    await settled(worlds)
    shut(worlds)
    assert len(worlds[0].pipeline.stages.semantic_cache.held._claims) == 0


# ---- errors that are one request's own -----------------------------------------------------------------------------


def looks_counted(world: World) -> list[int]:
    shard, looks = world.pipeline.stages.semantic_cache, [0]
    inner = shard.lookup

    async def lookup(key: CacheKey, terms: Terms) -> Lookup:
        looks[0] += 1
        await asyncio.sleep(0.002)
        return await inner(key, terms)

    shard.lookup = lookup
    return looks


async def test_an_empty_purse_is_told_at_once_to_all_who_pay_from_it() -> None:
    (world,) = replicas(1)
    world.purse.left_microusd = 0
    looks = looks_counted(world)
    told = await asyncio.gather(*(read(world) for _ in range(100)), return_exceptions=True)
    assert {type(each) for each in told} == {BudgetExceeded} and looks[0] <= 100
    await settled([world])
    shut([world])


async def test_refusals_of_many_keys_take_each_of_them_few_tries() -> None:
    (world,) = replicas(1)
    world.purse.left_microusd = 0
    looks, asked = looks_counted(world), 0
    inner = world.purse.reserve

    async def reserve(*args: Any) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        await inner(*args)

    world.purse.reserve = reserve  # type: ignore[method-assign]
    who = [Principal("acme", key_id=str(number)) for number in range(100)]
    told = await asyncio.gather(*(read(world, who=each) for each in who), return_exceptions=True)
    assert {type(each) for each in told} == {BudgetExceeded}
    assert looks[0] <= 100 and asked <= 100
    await settled([world])
    shut([world])


async def test_a_purse_that_is_empty_after_a_first_try_is_its_owners_alone() -> None:
    (world,) = replicas(1, ttft_ms=10)
    world.small.failures = [UpstreamFailed("no")]
    inner, tries = world.purse.reserve, 0

    async def reserve(*args: Any) -> None:
        nonlocal tries
        tries += 1
        if tries == 2:
            raise BudgetExceeded("spent")
        await inner(*args)

    world.purse.reserve = reserve  # type: ignore[method-assign]
    poor = asyncio.create_task(outcome(read(world, who=Principal("acme", key_id="poor"))))
    await asyncio.sleep(0.005)
    assert len(await read(world)) == 66 and isinstance(await poor, BudgetExceeded)
    shut([world])


# ---- other processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [Overloaded("full", None, 1.0), InternalError("failed"), DeadlineExceeded("late"), NotFound("gone")]
)
async def test_what_fails_on_the_way_to_another_process_is_no_word_on_the_answer(error: Exception) -> None:
    worlds = replicas(2, ttft_ms=60)
    leader = asyncio.create_task(read(worlds[0]))
    await asyncio.sleep(0.01)

    async def follow(*wanted: Any) -> AsyncIterator[Followed]:
        raise error
        yield []

    worlds[1].pipeline.stages.peers.follow = follow
    streams = await asyncio.gather(*(read(worlds[1]) for _ in range(3)))
    assert all(len(stream) == 66 for stream in streams) and worlds[1].small.calls == 1
    await leader
    await settled(worlds)
    shut(worlds)


async def test_those_whose_leaders_were_lost_twice_still_ask_once() -> None:
    worlds = replicas(2, ttft_ms=30)
    shard, world = worlds[0].pipeline.stages.semantic_cache, worlds[1]

    async def follow(*wanted: Any) -> AsyncIterator[Followed]:
        await asyncio.sleep(0.005)
        raise NotFound("gone")
        yield []

    world.pipeline.stages.peers.follow = follow
    key = world.pipeline.fingerprint(ask(), ME, Options()).exact.flight
    shard.held._claims.claim(key, "r0")
    claim, others = shard.held._claims.claim, ["r2"]

    def faster(key: str, process: str, gone: str = "") -> str:
        return claim(key, others.pop() if gone == "r0" and others else process, gone)

    shard.held._claims.claim = faster
    streams = await asyncio.gather(*(read(world) for _ in range(30)))
    assert all(len(stream) == 66 for stream in streams) and world.small.calls == 1
    await settled(worlds)
    shut(worlds)


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_claim_ends_with_the_answer_whether_or_not_that_arrives(arrives: bool) -> None:
    worlds = replicas(2)
    shard = worlds[0].pipeline.stages.semantic_cache
    if not arrives:

        async def store(*answer: Any) -> bool:
            return False

        shard.store = store
    await read(worlds[0])
    await settled(worlds)
    assert len(shard.held._claims) == 0


async def test_a_stored_answer_of_another_process_is_not_too_old_for_who_reads_it() -> None:
    worlds = replicas(2)
    shard = worlds[0].pipeline.stages.semantic_cache

    async def store(key: CacheKey, answer: CachedAnswer, embedding: bytes | None) -> bool:
        return True  # it is still on its way

    shard.store = store
    await read(worlds[0])
    await settled(worlds)
    await asyncio.sleep(0.05)
    await asyncio.gather(*(read(worlds[1], options=Options(max_age_s=0.01)) for _ in range(3)))
    assert worlds[1].small.calls == 1
    await settled(worlds)
    shut(worlds)


async def test_who_leaves_during_the_look_up_has_nothing_claimed() -> None:
    worlds = replicas(2, ttft_ms=10)
    shard = worlds[0].pipeline.stages.semantic_cache
    inner, claimed = shard.lookup, asyncio.Event()

    async def slow(key: CacheKey, terms: Terms) -> Lookup:
        found = await inner(key, terms)
        claimed.set()
        await asyncio.sleep(1)
        return found

    shard.lookup = slow
    leaving = asyncio.create_task(read(worlds[0]))
    await claimed.wait()
    leaving.cancel()
    await asyncio.wait({leaving})
    await settled(worlds)
    assert len(shard.held._claims) == 0
    shut(worlds)


# ---- the end -------------------------------------------------------------------------------------------------------


async def test_a_slow_reader_of_its_own_answer_holds_no_place_and_no_money_and_keeps_nothing_from_the_cache() -> None:
    (world,) = replicas(1, tokens_per_s=3000)
    async with world.pipeline.run(ask(), ME, Options(), "test") as slow:
        await slow.begin(stream=True)
        stream = slow.batches()
        await anext(stream)
        await asyncio.wait_for(slow.boarding.over(), 30)
        assert (world.small.closed, world.places.out, world.purse.reserved) == (1, 0, {})
        await read(world)
        assert world.closes()[-1].cache_verdict == "hit-exact" and len(world.pipeline.flights) == 0
        rest = [event async for batch in stream for event in batch]
    close = world.closes()[-1]
    assert len(rest) > 50 and (close.status, close.attempts[0].outcome) == ("ok", "ok")
    assert close.usage.output_tokens == 64 and not close.estimated and close.cost_microusd > 0
    shut([world])


async def test_what_was_forgotten_while_it_was_made_is_not_read_along_or_stored() -> None:
    worlds = replicas(2, ttft_ms=50)
    before = asyncio.create_task(read(worlds[0]))
    await asyncio.sleep(0.01)
    worlds[0].pipeline.stages.semantic_cache.held.invalidate(Selection("acme"), dry_run=False)
    for world in worlds:
        world.pipeline.forget(Selection("acme"))
    await asyncio.sleep(0.002)
    after = asyncio.create_task(read(worlds[0]))
    await before
    await after
    assert upstream(worlds) == 2
    await settled(worlds)
    await read(worlds[1])
    assert worlds[1].closes()[-1].cached_from == worlds[0].closes()[-1].request_id
    shut(worlds)


async def test_what_was_forgotten_on_its_way_to_the_shared_cache_does_not_come_back() -> None:
    (world,) = replicas(1)
    shard, sent = world.pipeline.stages.semantic_cache, asyncio.Event()
    inner = shard.store

    async def store(*answer: Any) -> bool:
        await sent.wait()
        return await inner(*answer)

    shard.store = store
    await read(world)
    shard.held.invalidate(Selection("acme"), dry_run=False)
    world.pipeline.forget(Selection("acme"))
    sent.set()
    await settled([world])
    await read(world)
    assert world.closes()[-1].cache_verdict == "miss" and len(shard.held._claims) == 0


async def test_a_close_that_cannot_be_written_leaves_no_flight_behind() -> None:
    (world,) = replicas(1)

    def full(record: Record) -> None:
        if isinstance(record, RequestClosed):
            raise OSError(28, "No space left on device")

    world.pipeline.stages.sinks.insert(0, full)
    assert len(await read(world)) == 66
    await settled([world])
    shut([world])  # the sinks after it are told, and nobody is waited for
    assert upstream([world]) == 1


async def test_a_close_that_fails_itself_leaves_no_flight_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    (world,) = replicas(1, tokens_per_s=100)

    def broken(*args: object) -> None:
        raise RuntimeError("no receipt")

    monkeypatch.setattr("router.receipts.closed", broken)
    with pytest.raises(RuntimeError):
        async with world.pipeline.run(ask(), ME, replace(Options()), "test") as run:
            await run.begin(stream=True)
    assert len(world.pipeline.flights) == 0
