"""What every place does where a shard's answers outlive it: a folder, Redis, PostgreSQL, PostgreSQL with pgvector."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from models.messages import Finish, TextDelta
from router.invalidation import Selection
from router.sealing import Sealer
from tests.contract.answer_places import Place, answer, keep, key, unit


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
        rows = place.rows(key("a").tenant)
        assert rows and all(b"secret" not in row.body and b"question" not in row.body for row in rows)
        assert (await place.open(first)).held() == ["a"]


async def test_many_answers_are_there_again(place: Place) -> None:
    shard = await place.open()
    for number in range(1_000):
        shard.store.store(key(f"{number}"), answer(f"{number}"), unit(number))
    began_s = time.monotonic()
    again = await place.open()
    assert len(again.held()) == 1_000 and time.monotonic() - began_s < 20
