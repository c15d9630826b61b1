"""Answers outside the cluster: when the store is gone, hangs, or holds what others wrote."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import replace

import psycopg
import pytest

from models.errors import ModelUnavailable
from router import outside
from router.invalidation import Selection
from router.outside import ACTS, OutsideLog, Row, check_url, open_store
from router.packed_answer import PackedAnswer
from router.sealing import Sealer
from tests.contract.answer_places import OUTSIDE, Place, answer, keep, key, unit

only_outside = pytest.mark.parametrize("place", OUTSIDE, indirect=True)


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
async def test_questions_that_another_encoder_read_are_read_anew(place: Place) -> None:
    keep(await place.open(), "a", "b")
    assert (await place.open()).held() == ["a", "b"] and not place.encoded
    shard = await place.open(encoder="maxi")
    assert shard.held() == ["a", "b"] and sorted(place.encoded) == ["question a", "question b"]
    similar = shard.store.lookup(replace(key("z"), scope=key("a").scope), unit(len("question a"), 64))
    assert similar.kind == "hit-semantic"
    await shard.forget(Selection("acme", question="?", similarity=0.99), unit(ord("a")))  # which says nothing here
    assert shard.held() == ["a", "b"]


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
    late, rows = time.time() + 1000, {row.exact: row for row in place.rows(key("a").tenant)}
    mine = rows[key("a").exact]
    moved = [replace(mine, tenant="5:other/", expires_unix_s=late), replace(mine, exact="e" * 64, expires_unix_s=late)]
    plain = replace(rows[key("b").exact], tenant="5:other/", expires_unix_s=late)
    junk = [Row("5:other/", f"{number:064d}", late, body) for number, body in enumerate((b"", b"junk", b"\x93sy1" * 9))]
    with closing(open_store(place.url)) as store:
        store.put([*moved, plain, *junk])
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
        assert shard.held() == ["a", "b", "c"] and time.monotonic() - began_s < 0.5
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


async def test_what_waits_is_bounded_and_what_was_forgotten_has_room_when_there_is_none_for_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outside, "MAX_PENDING", 3)
    monkeypatch.setattr(outside, "MAX_WAITING", 5)
    log = OutsideLog(open_store("redis://127.0.0.1:1/0"))
    for name in "aabcde":
        log.kept(key(name), PackedAnswer.of(answer(name)), None)
    assert log.dropped == 2
    log.gone(key("a"))
    log.gone(key("z"))
    records = log.take()
    with pytest.raises(ModelUnavailable):
        log.write(records)
    log.kept(key("z"), PackedAnswer.of(answer("z")), None)  # asked again since
    log.give_back(records)
    assert [type(record).__name__ for record in log.take()] == ["Stored", "Gone", "Stored"]
    assert log.dropped == 3
    for name in "abcdefg":
        log.gone(key(name))
    assert (len(log.take()), log.dropped) == (5, 5)
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
    shard.store.store(replace(key("none"), scope=None, text=""), answer("none"))
    await place.close()
    with closing(open_store(place.url)) as store:
        store.put(
            [Row(key("wide").tenant, key("wide").exact, time.time() + 100, b"", unit(1, 64))]
        )  # another encoder's
        near = [row.exact for rows in store.near(key("a").tenant, unit(7), 0.99) for row in rows]
    assert set(near) == {key(name).exact for name in ("7", "wide", "none")}
    await (await place.open(Sealer([os.urandom(32)]))).forget(Selection("acme"))
    keep(place.shards[0], "a")
    await place.close()
    with psycopg.connect(place.url) as connection:
        count = "SELECT count(*), count(embedding) FROM switchyard_cached_answers WHERE tenant <> 'acts'"
        assert connection.execute(count).fetchone() == (1, 0)


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
    with closing(open_store(place.url)) as store:
        tenants = [tenant for tenant in store.tenants() if tenant != ACTS]
        exacts = {row.exact for tenant in tenants for rows in store.read(tenant) for row in rows}
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
