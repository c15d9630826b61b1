"""What every place does where a shard's answers outlive it: a folder, Redis, PostgreSQL, PostgreSQL with pgvector."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import pytest_asyncio

from deployments.cache_disk import CacheDisk
from deployments.cache_outside import CacheOutside
from models.errors import ModelUnavailable
from models.messages import Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage, UsageReport
from router import outside
from router.fingerprint import partition
from router.invalidation import Selection
from router.outside import OutsideLog, Row, check_url, open_store
from router.ports import CachedAnswer, CacheKey
from router.sealing import NO_SEALER, Sealer
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings
from router.verifier import Judgement

OUTSIDE = ("redis", "postgresql", "pgvector")
EVENTS = (
    ReasoningDelta("hm", "signed"),
    TextDelta("ja — “yes” \U0001f600 \ud800 \0", 3),
    ToolCallDelta(0, "id", "name", '{"a": 1}'),
    Finish("stop"),
    UsageReport(Usage(1, 2, 3), True),
)


def key(name: str, org: str = "acme", namespace: str = "") -> CacheKey:
    tenant = partition(org, namespace)
    return CacheKey(tenant, f"{name.encode().hex():0>64}", f"{tenant} scope", f"question {name}")


def answer(name: str, **changes: Any) -> CachedAnswer:
    now_s = time.time()
    return replace(CachedAnswer(name, "m", EVENTS, Usage(1, 2), 5, now_s, 3600.0, ("tag",), now_s), **changes)


def unit(seed: int, width: int = 32) -> bytes:
    vector = np.random.default_rng(seed).standard_normal(width)
    return (vector / np.linalg.norm(vector)).astype("<f4").tobytes()


class Shard:
    """A shard's memory, and what it writes down beside."""

    def __init__(self, opened: Callable[[SemanticStore], CacheDisk | CacheOutside], max_bytes: int = 10**8) -> None:
        settings = CacheSettings(audit=0, max_bytes=max_bytes, ttl_s=1e6)
        self.store = SemanticStore(settings, judge=lambda text, others: [Judgement(1.0) for _ in others])
        self.beside = opened(self.store)

    async def forget(self, selection: Selection, embedding: bytes | None = None) -> None:
        """As `SemanticCache` does."""
        await self.beside.restored()
        self.store.invalidate(selection, embedding, dry_run=False)
        await self.beside.forgotten(selection, embedding)

    def held(self) -> list[str]:
        return sorted(record.answer.answer_id for record in self.store.records(self.store.entry_ids()))


class Place:
    """Where answers are kept. `open` is a new process; at most one is open unless it says otherwise."""

    def __init__(self, kind: str, folder: Path, url: str, server: Any) -> None:
        self.kind, self.folder, self.url, self.server = kind, folder, url, server
        self.shards: list[Shard] = []

    async def open(
        self,
        sealer: Sealer = NO_SEALER,
        mine: Callable[[str], bool] = lambda tenant: True,
        beside: bool = False,
        **settings: Any,
    ) -> Shard:
        if not beside:
            await self.close()

        def opened(store: SemanticStore) -> CacheDisk | CacheOutside:
            if self.kind == "folder":
                return CacheDisk(store, self.folder, sealer)
            return CacheOutside(store, OutsideLog(open_store(self.url), sealer), mine)

        self.shards.append(Shard(opened, **settings))
        await self.shards[-1].beside.restored()
        return self.shards[-1]

    async def close(self) -> None:
        for shard in self.shards:
            await shard.beside.close()
        self.shards.clear()


@pytest_asyncio.fixture(params=["folder", *OUTSIDE])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    names = {"redis": "redis_server", "postgresql": "postgres", "pgvector": "vector_postgres"}
    server: Any = request.getfixturevalue(names[request.param]) if request.param in names else None
    url = "" if server is None else server.new_database(*(["vector"] if request.param == "pgvector" else []))
    place = Place(request.param, tmp_path / "cache", url, server)
    yield place
    await place.close()


only_outside = pytest.mark.parametrize("place", OUTSIDE, indirect=True)


def keep(shard: Shard, *names: str, org: str = "acme", namespace: str = "", **changes: Any) -> None:
    for name in names:
        shard.store.store(key(name, org, namespace), answer(name, **changes), unit(ord(name[0])))


# ---- all of them ---------------------------------------------------------------------------------------------------


async def test_what_was_kept_is_there_again_as_it_was_and_found_by_meaning(place: Place) -> None:
    shard = await place.open()
    made = answer("a")
    shard.store.store(key("a"), made, unit(1))
    shard.store.store(replace(key("b"), scope=None, text=""), answer("b"))
    again = await place.open()
    assert again.held() == ["a", "b"] and again.store.stats()["restored"] == 2
    found = again.store.exact(key("a"))
    assert found is not None and found.answer == made
    similar = again.store.lookup(replace(key("z"), scope=key("a").scope), unit(1))
    assert (similar.kind, similar.answer) == ("hit-semantic", made)


async def test_what_was_forgotten_replaced_disliked_or_is_over_does_not_come_back(place: Place) -> None:
    shard = await place.open()
    keep(shard, *"abcd")
    keep(shard, "e", ttl_s=0.001)
    await place.open()
    shard = place.shards[-1]
    assert shard.held() == ["a", "b", "c", "d"]
    shard.store.store(key("c"), answer("newer"), unit(3))
    shard.store.judge("acme", "b", "ann", 0)
    await shard.forget(Selection("acme", answer_id="a"))
    again = await place.open()
    assert again.held() == ["d", "newer"]
    await again.forget(Selection("acme"))
    assert (await place.open()).held() == []


async def test_what_had_to_go_from_memory_is_forgotten_with_the_rest(place: Place) -> None:
    shard = await place.open(max_bytes=6_000)
    keep(shard, *"abcdefghij")
    assert 0 < len(shard.held()) < 10
    await shard.forget(Selection("acme", tag="tag"))
    assert (await place.open()).held() == []


async def test_partitions_stay_apart_whatever_they_are_called(place: Place) -> None:
    shard = await place.open()
    names = ["", "wiki", "a/b", "x:y", "\0", "\ud800", "%_*", "🙂" * 100, "partitions", "answers:4:acme/"]
    for number, name in enumerate(names):
        shard.store.store(key("a", namespace=name), answer(f"{number}"), unit(number))
    shard.store.store(key("a", "other"), answer("other"), unit(1))
    again = await place.open()
    for number, name in enumerate(names):
        found = again.store.exact(key("a", namespace=name))
        assert found is not None and found.answer is not None and found.answer.answer_id == f"{number}"
    await again.forget(Selection("acme", namespace="a/b"))
    await again.forget(Selection("acm"))
    assert len((await place.open()).held()) == len(names)
    await place.shards[-1].forget(Selection("acme"))
    assert (await place.open()).held() == ["other"]


async def test_with_a_key_nothing_is_read_without_it(place: Place) -> None:
    first, second = Sealer([os.urandom(32)]), Sealer([os.urandom(32)])
    keep(await place.open(first), "a", events=(TextDelta("a secret answer", 3), Finish("stop")))
    assert (await place.open(second)).held() == []
    if place.kind != "folder":  # where a log that does not open is set aside
        assert (await place.open()).held() == []
        assert place.shards[0].store.stats()["log_torn"] == 1
        await place.close()
        rows = [row for rows in open_store(place.url).read(key("a").tenant) for row in rows]
        assert rows and all(b"secret" not in row.body and b"question" not in row.body for row in rows)
        assert (await place.open(first)).held() == ["a"]


async def test_many_answers_are_there_again(place: Place) -> None:
    shard = await place.open()
    for number in range(1_000):
        shard.store.store(key(f"{number}"), answer(f"{number}"), unit(number))
    began_s = time.monotonic()
    again = await place.open()
    assert len(again.held()) == 1_000 and time.monotonic() - began_s < 20


# ---- those outside -------------------------------------------------------------------------------------------------


@only_outside
async def test_a_shard_takes_only_what_is_its_own_and_another_one_the_rest(place: Place) -> None:
    shard = await place.open()
    keep(shard, "a", "b")
    keep(shard, "c", org="other")
    others = await place.open(mine=lambda tenant: tenant.startswith("5:other"))
    assert others.held() == ["c"]
    await others.forget(Selection("acme"))  # of which it has nothing
    assert (await place.open(mine=lambda tenant: tenant.startswith("4:acme"))).held() == ["a", "b"]


@only_outside
async def test_what_another_cluster_filed_is_forgotten_too(place: Place) -> None:
    here, there = await place.open(), await place.open(beside=True)
    for number in range(40):
        there.store.store(key(f"{number}"), answer(f"{number}", tags=("odd",) * (number % 2)), unit(number))
    there.store.store(key("5", "other"), answer("other", tags=("odd",)), unit(5))
    await there.beside.forgotten(Selection("nobody"), None)
    await here.forget(Selection("acme", tag="odd", answer_id="7"))
    await here.forget(Selection("acme", question="?", similarity=0.999), unit(4))
    await here.forget(Selection("acme", question="?", tag="none", similarity=-1.0), unit(6))
    assert set((await place.open()).held()) == {*map(str, range(40)), "other"} - {"4", "7"}
    await place.shards[-1].forget(Selection("acme", tag="odd"))
    assert set((await place.open()).held()) == {*map(str, range(0, 40, 2)), "other"} - {"4"}


@only_outside
async def test_what_was_planted_or_moved_is_not_read_and_hurts_nothing(place: Place) -> None:
    sealer = Sealer([os.urandom(32)])
    keep(await place.open(sealer), "a")
    keep(await place.open(beside=True), "b")
    await place.close()
    store, acme, late = open_store(place.url), key("a").tenant, time.time() + 1000
    rows = {row.exact: row for rows in store.read(acme) for row in rows}
    mine = rows[key("a").exact]
    moved = [replace(mine, tenant="5:other/", expires_unix_s=late), replace(mine, exact="e" * 64, expires_unix_s=late)]
    plain = replace(rows[key("b").exact], tenant="5:other/", expires_unix_s=late)
    junk = [Row("5:other/", f"{number:064d}", late, body) for number, body in enumerate((b"", b"junk", b"\x93sy1" * 9))]
    store.put([*moved, plain, *junk])
    store.close()
    assert (await place.open(sealer)).held() == ["a"]  # what is not sealed is not believed where there is a key
    assert place.shards[0].store.stats()["log_torn"] == 7
    assert (await place.open()).held() == ["b"]


@only_outside
async def test_a_store_that_is_gone_is_a_cache_in_memory_and_has_what_waited_when_it_is_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.cache_outside.RETRY_S", (0.1,))
    monkeypatch.setattr("deployments.cache_outside.RESTORED_S", 0.3)
    shard = await place.open()
    keep(shard, "a", "b")
    await shard.beside.forgotten(Selection("nobody"), None)
    place.server.kill()
    try:
        began_s = time.monotonic()
        keep(shard, "c")
        assert shard.held() == ["a", "b", "c"] and time.monotonic() - began_s < 0.1
        with pytest.raises(ModelUnavailable, match="cache_store"):
            await shard.forget(Selection("acme", answer_id="a"))
        assert shard.held() == ["b", "c"]
        blind = await place.open(beside=True)  # starts without it
        keep(blind, "d")
        assert blind.held() == ["d"] and time.monotonic() - began_s < 10
    finally:
        place.server.restart()
    await _soon(lambda: set(blind.held()) >= {"b", "d"})
    await _soon(lambda: _holds(place, {"b", "c", "d"}))
    assert blind.held() in (["b", "d"], ["b", "c", "d"], ["a", "b", "d"], ["a", "b", "c", "d"])


@only_outside
async def test_a_store_that_hangs_holds_nobody_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.outside_redis.TIMEOUT_S", 0.5)
    monkeypatch.setattr("router.outside_postgres.STATEMENT_TIMEOUT_MS", 500)
    monkeypatch.setattr("deployments.cache_outside.CLOSE_S", 0.5)
    shard = await place.open()
    keep(shard, "a")
    await shard.beside.forgotten(Selection("nobody"), None)
    blocked = await _hung(place)
    began_s, longest_s = time.monotonic(), 0.0
    try:
        keep(shard, "b")
        while time.monotonic() - began_s < 1.5:
            turn_s = time.monotonic()
            await asyncio.sleep(0.01)
            assert shard.store.exact(key("a")) is not None
            longest_s = max(longest_s, time.monotonic() - turn_s)
        with pytest.raises(ModelUnavailable):
            await shard.forget(Selection("acme", answer_id="a"))
    finally:
        await blocked()
    assert longest_s < 0.4
    await _soon(lambda: _holds(place, {"b"}))


async def test_what_waits_is_bounded_and_what_was_forgotten_is_never_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "MAX_PENDING", 3)
    log = OutsideLog(open_store("redis://127.0.0.1:1/0"))
    for name in "aabcde":
        log.kept(key(name), answer(name), None)
    assert log.dropped == 2
    log.gone(key("a"))
    log.gone(key("z"))
    records = log.take()
    with pytest.raises(ModelUnavailable):
        log.write(records)
    log.kept(key("z"), answer("z"), None)  # asked again since
    log.give_back(records)
    assert [type(record).__name__ for record in log.take()] == ["Kept", "Gone", "Kept"]
    assert log.dropped == 3
    log.close()


@pytest.mark.parametrize("url", ["", "redis", "http://x", "mysql://x/y", "redis:/x"])
def test_what_is_no_address_of_a_store_is_said_at_the_start(url: str) -> None:
    with pytest.raises(ValueError, match="redis://"):
        check_url(url)


@pytest.mark.parametrize("place", ["pgvector"], indirect=True)
async def test_pgvector_finds_what_is_near_without_the_rest_and_has_nothing_where_answers_are_sealed(
    place: Place,
) -> None:
    shard = await place.open()
    for number in range(50):
        shard.store.store(key(f"{number}"), answer(f"{number}"), unit(number))
    shard.store.store(key("wide"), answer("wide"), unit(1, 64))
    shard.store.store(replace(key("none"), scope=None, text=""), answer("none"))
    await place.close()
    store = open_store(place.url)
    near = [row.exact for rows in store.near(key("a").tenant, unit(7), 0.99) for row in rows]
    assert set(near) == {key(name).exact for name in ("7", "wide", "none")}
    store.close()
    await (await place.open(Sealer([os.urandom(32)]))).forget(Selection("acme"))
    keep(place.shards[0], "a")
    await place.close()
    with psycopg.connect(place.url) as connection:
        assert connection.execute("SELECT count(*), count(embedding) FROM switchyard_cached_answers").fetchone() == (
            1,
            0,
        )


@pytest.mark.parametrize("place", ["postgresql", "pgvector"], indirect=True)
async def test_what_is_over_goes_from_the_table(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.outside_postgres.PURGE_EVERY_S", -1.0)
    shard = await place.open()
    keep(shard, "a", ttl_s=0.01)
    keep(shard, "b")
    await asyncio.sleep(0.05)
    await shard.beside.forgotten(Selection("nobody"), None)
    with psycopg.connect(place.url) as connection:
        assert connection.execute("SELECT count(*) FROM switchyard_cached_answers").fetchone() == (1,)


@pytest.mark.parametrize("place", ["redis"], indirect=True)
async def test_redis_keeps_nothing_of_a_partition_whose_answers_are_over(place: Place) -> None:
    import redis

    shard = await place.open()
    keep(shard, "a", ttl_s=0.3)
    keep(shard, "b", org="other", ttl_s=0.3)
    await shard.beside.forgotten(Selection("nobody"), None)
    with redis.Redis.from_url(place.url) as client:
        assert client.dbsize() == 5
        await asyncio.sleep(0.5)
        keep(shard, "c", org="third")
        await shard.beside.forgotten(Selection("nobody"), None)
        assert client.dbsize() == 3 and client.zcard("switchyard:cache:partitions") == 1


def _holds(place: Place, names: set[str]) -> bool:
    store = open_store(place.url)
    try:
        exacts = {row.exact for tenant in store.tenants() for rows in store.read(tenant) for row in rows}
    finally:
        store.close()
    return exacts == {key(name).exact for name in names}


async def _soon(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_s
        await asyncio.sleep(0.1)


async def _hung(place: Place) -> Callable[[], Awaitable[None]]:
    """Has the store accept all and answer nothing, until what this gives is called."""
    if place.kind == "redis":
        place.server.stop()

        async def go_on() -> None:
            place.server.go_on()

        return go_on
    connection = await psycopg.AsyncConnection.connect(place.url)
    await connection.execute("LOCK TABLE switchyard_cached_answers IN ACCESS EXCLUSIVE MODE")

    async def end() -> None:
        with suppress(psycopg.Error):
            await connection.rollback()
        await connection.close()

    return end
