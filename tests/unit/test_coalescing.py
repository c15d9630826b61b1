"""Identical questions at the same time: pipelines that share a cache, each with a simulated model of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from models.errors import BudgetExceeded, InvalidRequest, ModelUnavailable, StreamInterrupted, UpstreamFailed
from models.messages import Event, TextDelta
from router import coalescing
from router.coalescing import Asker, Claims, Flight, Flights
from router.events import Principal
from router.pipeline import Options, Pipeline
from router.ports import CachedAnswer, CacheKey, Followed, Lookup, Origin, Terms
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings, IngressSettings, TenantSettings
from tests.unit.test_pipeline import ME, World, ask, make_world


class Shard:
    """What the deployment does, without the encoder."""

    def __init__(self) -> None:
        self.held = SemanticStore(CacheSettings(), judge=lambda text, others: [])

    async def lookup(self, key: CacheKey, terms: Terms) -> Lookup:
        await asyncio.sleep(0)
        return self.held.lookup(key, None, terms)

    async def store(self, key: CacheKey, answer: CachedAnswer, embedding: bytes | None) -> bool:
        await asyncio.sleep(0)
        self.held.store(key, answer, embedding)
        return True

    async def release(self, key: CacheKey, claimant: str) -> None:
        self.held.release(key, claimant)


@dataclass
class Peers:
    name: str
    pipelines: dict[str, Pipeline]
    dead: set[str] = field(default_factory=set)
    follows: int = 0

    async def follow(self, leader: str, *wanted: Any) -> AsyncIterator[Followed]:
        self.follows += 1
        source = self.pipelines[leader].followed(*wanted)
        try:
            async for item in source:
                await asyncio.sleep(0)
                if leader in self.dead:
                    raise ModelUnavailable("gone")
                yield item
        finally:
            await source.aclose()


def replicas(count: int, settings: IngressSettings | None = None, **model: float) -> list[World]:
    shard, pipelines = Shard(), {}
    worlds = []
    for number in range(count):
        world = make_world(settings, **model)
        world.pipeline.stages.semantic_cache = shard
        world.pipeline.stages.peers = Peers(f"r{number}", pipelines)
        world.pipeline.name = f"r{number}"
        pipelines[f"r{number}"] = world.pipeline
        worlds.append(world)
    return worlds


async def read(world: World, request=None, options: Options | None = None, who: Principal = ME) -> list[Event]:
    events: list[Event] = []
    async with world.pipeline.run(request or ask(), who, options or Options(), "test") as run:
        await run.begin(stream=True)
        async for batch in run.batches():
            events.extend(batch)
    return events


def upstream(worlds: list[World]) -> int:
    return sum(world.small.calls + world.medium.calls for world in worlds)


async def under_way(world: World, events: int) -> None:
    """Wait until so many have come of the one answer that is on its way here."""
    for _ in range(10_000):
        if any(len(flight.events) >= events for flight in world.pipeline.flights._by_key.values()):
            return
        await asyncio.sleep(0.001)
    pytest.fail("no answer is under way")


def shut(worlds: list[World]) -> None:
    for world in worlds:
        world.books_are_shut()
        assert len(world.pipeline.flights) == 0


async def settled(worlds: list[World]) -> None:
    """Wait for what goes on behind the requests."""
    for world in worlds:
        while world.pipeline._background:
            await asyncio.wait(set(world.pipeline._background))


@pytest.mark.parametrize("count", [1, 3])
async def test_a_hundred_at_once_are_one_upstream_call_and_a_hundred_identical_streams(count: int) -> None:
    worlds = replicas(count, ttft_ms=20, tokens_per_s=2000)
    streams = await asyncio.gather(*(read(worlds[n % count]) for n in range(100)))
    assert upstream(worlds) == 1
    assert all(stream == streams[0] for stream in streams) and len(streams[0]) == 66
    closes = [close for world in worlds for close in world.closes()]
    assert len(closes) == 100 and {close.status for close in closes} == {"ok"}
    (leader,) = [close for close in closes if close.cache_verdict == "miss"]
    others = [close for close in closes if close is not leader]
    assert {close.cache_verdict for close in others} == {"coalesced"}
    assert {close.cached_from for close in others} == {leader.request_id}
    assert {(close.cost_microusd, close.saved_microusd) for close in others} == {(0, leader.cost_microusd)}
    # One stream for all readers of another replica.
    assert sum(world.pipeline.stages.peers.follows for world in worlds) == count - 1
    await settled(worlds)
    shut(worlds)
    shard = worlds[0].pipeline.stages.semantic_cache
    assert len(shard.held._claims) == 0


async def test_who_comes_late_gets_the_beginning_at_once_and_then_the_rest_as_it_comes() -> None:
    (world,) = replicas(1, tokens_per_s=300)
    first = asyncio.create_task(read(world))
    await under_way(world, 11)
    batches = []
    async with world.pipeline.run(ask(), ME, Options(), "test") as run:
        head = await run.begin(stream=True)
        async for batch in run.batches():
            batches.append(batch)
    assert head.verdict == "coalesced"
    assert len(batches[0]) > 10 and len(batches) > 10
    assert [event for batch in batches for event in batch] == await first
    shut([world])


async def test_another_tenant_or_namespace_or_who_wants_a_new_answer_does_not_read_along() -> None:
    (world,) = replicas(1, ttft_ms=20)
    others = [Options(cache="off"), Options(cache="refresh"), Options(namespace="b")]
    await asyncio.gather(
        read(world), read(world, who=Principal("other")), *(read(world, options=options) for options in others)
    )
    assert upstream([world]) == 5
    shut([world])


async def test_it_can_be_turned_off() -> None:
    worlds = replicas(2, IngressSettings(coalesce=False), ttft_ms=20)
    await asyncio.gather(read(worlds[0]), read(worlds[0]), read(worlds[1]))
    assert upstream(worlds) == 3
    await settled(worlds)
    shut(worlds)


@pytest.mark.parametrize("where", [0, 1])
async def test_the_work_goes_on_when_who_began_it_leaves_while_another_reads(where: int) -> None:
    worlds = replicas(2, ttft_ms=40, tokens_per_s=1000)
    leader = asyncio.create_task(read(worlds[0]))
    await asyncio.sleep(0.01)
    follower = asyncio.create_task(read(worlds[where]))
    await asyncio.sleep(0.01)
    leader.cancel()
    assert len(await follower) == 66
    await settled(worlds)
    assert upstream(worlds) == 1
    (paid,) = [close for world in worlds for close in world.closes() if close.cache_verdict == "miss"]
    assert (paid.status, paid.attempts[0].outcome) == ("cancelled", "ok") and paid.cost_microusd > 0
    assert worlds[0].pipeline.exact.peek(worlds[0].pipeline.fingerprint(ask(), ME, Options()).exact.exact)
    shut(worlds)


@pytest.mark.parametrize("where", [0, 1])
async def test_the_work_ends_when_the_last_reader_leaves(where: int) -> None:
    worlds = replicas(2, ttft_ms=5000)
    tasks = [asyncio.create_task(read(worlds[0]))]
    await asyncio.sleep(0.01)
    tasks.append(asyncio.create_task(read(worlds[where])))
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await settled(worlds)
    assert worlds[0].small.closed == upstream(worlds) == 1
    shut(worlds)


async def test_an_error_is_tried_again_by_one_and_then_shared() -> None:
    worlds = replicas(3, ttft_ms=10)
    for world in worlds:
        world.small.failures = [UpstreamFailed("no")] * 9
    request = ask(model="small-1")
    told = await asyncio.gather(*(read(worlds[n % 3], request) for n in range(12)), return_exceptions=True)
    assert all(isinstance(error, UpstreamFailed) for error in told)
    assert 2 <= upstream(worlds) <= 3  # who boards only the second flight forgives that one
    await settled(worlds)
    shut(worlds)


async def test_an_error_that_one_follower_overcomes_is_nobodys() -> None:
    (world,) = replicas(1, ttft_ms=10)
    world.small.failures = [UpstreamFailed("no")]
    told = await asyncio.gather(*(read(world, ask(model="small-1")) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(one, UpstreamFailed) for one in told) == 1
    assert [len(one) for one in told if isinstance(one, list)] == [66] * 4
    shut([world])


async def test_the_callers_own_mistake_is_shared_at_once() -> None:
    (world,) = replicas(1)
    world.small.failures = [InvalidRequest("no")]
    told = await asyncio.gather(*(read(world) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(error, InvalidRequest) for error in told) and upstream([world]) == 1
    shut([world])


@pytest.mark.parametrize("where", [0, 1])
async def test_an_empty_purse_is_its_owners_alone(where: int) -> None:
    worlds = replicas(2, ttft_ms=10)
    reserve = worlds[0].purse.reserve

    async def refused(*args: object) -> None:
        worlds[0].purse.reserve = reserve
        await asyncio.sleep(0.01)
        raise BudgetExceeded("spent")

    worlds[0].purse.reserve = refused
    poor = asyncio.create_task(read(worlds[0]))
    await asyncio.sleep(0.005)
    rich = asyncio.create_task(read(worlds[where], who=Principal("acme", key_id="rich")))
    with pytest.raises(BudgetExceeded):
        await poor
    assert len(await rich) == 66
    await settled(worlds)
    shut(worlds)


async def test_an_answer_that_breaks_off_breaks_off_for_all() -> None:
    worlds = replicas(2, failure_rate=1.0, fail_after_tokens=5, tokens_per_s=500)
    told = await asyncio.gather(*(read(worlds[n % 2]) for n in range(6)), return_exceptions=True)
    assert all(isinstance(error, StreamInterrupted) for error in told) and upstream(worlds) == 1
    await settled(worlds)
    shut(worlds)


async def test_a_replica_that_dies_leaves_its_followers_to_ask_themselves() -> None:
    worlds = replicas(2, ttft_ms=30)
    leader = asyncio.create_task(read(worlds[0]))
    await asyncio.sleep(0.005)
    worlds[1].pipeline.stages.peers.dead.add("r0")
    streams = await asyncio.gather(*(read(worlds[1]) for _ in range(4)))
    assert all(stream == streams[0] for stream in streams) and worlds[1].small.calls == 1
    await leader
    await settled(worlds)
    shut(worlds)


async def test_a_replica_that_dies_in_the_middle_breaks_the_answer_off() -> None:
    worlds = replicas(2, tokens_per_s=500)
    leader = asyncio.create_task(read(worlds[0]))
    await under_way(worlds[0], 1)
    follower = asyncio.create_task(read(worlds[1]))
    await under_way(worlds[1], 1)
    worlds[1].pipeline.stages.peers.dead.add("r0")
    with pytest.raises(StreamInterrupted):
        await follower
    await leader
    await settled(worlds)
    shut(worlds)


async def test_who_may_not_use_the_model_has_another_one_asked() -> None:
    confined = TenantSettings(models=("medium-1",))
    worlds = replicas(2, ttft_ms=10)
    leader = asyncio.create_task(read(worlds[0]))
    await asyncio.sleep(0.005)
    worlds[1].pipeline.reconfigure(IngressSettings(default_tenant=confined))
    await asyncio.gather(leader, read(worlds[1]))
    assert (worlds[0].small.calls, worlds[1].medium.calls) == (1, 1)
    assert worlds[1].closes()[0].cache_verdict == "miss"
    await settled(worlds)
    shut(worlds)


async def test_a_slow_reader_holds_nobody_up() -> None:
    (world,) = replicas(1, tokens_per_s=3000)
    async with world.pipeline.run(ask(), ME, Options(), "test") as slow:
        await slow.begin(stream=True)
        stream = slow.batches()
        await anext(stream)
        assert len(await read(world)) == 66
        assert world.small.closed == 1
        rest = [event async for batch in stream for event in batch]
    assert sum(isinstance(event, TextDelta) for event in rest) > 50
    shut([world])


async def test_a_leader_that_says_nothing_is_not_waited_for() -> None:
    class Silent:
        name = "r9"

        async def follow(self, leader: str, *wanted: Any) -> AsyncIterator[Followed]:
            await asyncio.sleep(60)
            yield []

    flights = Flights()
    flight = flights.mirror(Silent(), "r0", "key", Asker(), 0.01)
    with pytest.raises(ModelUnavailable):
        await flight.begun()
    await flight.over()
    assert not flight.asked and len(flights) == 0


async def test_a_flight_that_is_given_up_ends() -> None:
    flight = Flight()
    flight.start(asyncio.sleep(60))
    flight.stop()
    with pytest.raises(ModelUnavailable):
        await flight.begun()
    flight.begin(Origin("r", "m"), [])
    with pytest.raises(ModelUnavailable):
        await flight.more(0)


def test_claims_are_the_first_ones_until_they_are_released_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    claims = Claims(lambda: now[0])
    assert claims.claim("a", "r0") == claims.claim("a", "r1") == "r0"
    assert claims.holder("a", gone="r0") is None
    assert claims.claim("a", "r1", gone="r0") == "r1"
    claims.release("a", "r0")
    assert claims.holder("a") == "r1"
    now[0] = coalescing.CLAIM_S
    assert claims.holder("a") is None
    monkeypatch.setattr(coalescing, "MAX_CLAIMS", 2)
    for name in "bcde":
        claims.claim(name, "r0")
    assert len(claims) == 2
