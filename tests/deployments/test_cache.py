"""The SemanticCache behind its handle, on a real Serve, called as an Ingress calls it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
import ray
from pydantic import SecretStr
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.cache import NAME, cache_deployments
from deployments.cache_handle import CacheHandle, rendezvous
from models.errors import ModelUnavailable
from models.messages import ChatRequest, Finish, Message, TextDelta, TextPart, Usage, UsageReport
from router.fingerprint import fingerprint
from router.invalidation import Selection
from router.outside import open_store
from router.ports import CachedAnswer, CacheKey
from router.settings import IngressSettings
from router.topology import Scale, Topology

APP, OUTSIDE_APP = "cache_test", "cache_outside_test"


def key(text: str, org: str = "acme") -> CacheKey:
    request = ChatRequest("auto", (Message("user", (TextPart(text),)),))
    found = fingerprint(request, org, "", IngressSettings())
    assert found is not None
    return found.key(IngressSettings())


NO_AUDIT = {"audit": 0}
"""Else one similar question in twenty is a miss."""


def answer(name: str = "a") -> CachedAnswer:
    events = (TextDelta("four minutes", 2), Finish("stop"), UsageReport(Usage(5, 2)))
    return CachedAnswer(name, "m", events, Usage(5, 2), 7, time.time(), 600.0)


@pytest.fixture(scope="module")
def handle(local_ray: None) -> Iterator[DeploymentHandle]:
    (app,) = cache_deployments(Topology(), "data")
    serve.run(app, name=APP, route_prefix=None)
    handle = serve.get_deployment_handle(NAME, APP)
    handle._init(_run_router_in_separate_loop=True)  # each test has a loop of its own
    handle.reconfigure.remote(NO_AUDIT).result()
    yield handle
    serve.delete(APP)


async def test_a_stored_answer_is_found_by_the_question_and_by_a_similar_one(handle: DeploymentHandle) -> None:
    far = CacheHandle([handle])
    asked, kept = key("How long do I boil an egg?"), answer()
    missed = await far.lookup(asked)
    assert missed.kind == "miss" and missed.embedding is not None and len(missed.embedding) == 384 * 4
    assert missed.encoder_ms > 0
    await far.store(asked, kept, missed.embedding)
    exact = await far.lookup(asked)
    assert (exact.kind, exact.answer, exact.encoder_ms) == ("hit-exact", kept, 0.0)
    similar = await far.lookup(key("how long do i boil an egg"))
    assert (similar.kind, similar.answer) == ("hit-semantic", kept)
    assert similar.similarity is not None and similar.similarity > 0.95
    assert (await far.lookup(key("How long do I not boil an egg?"))).kind == "miss"
    assert (await far.lookup(key("How long do I boil an egg?", "other"))).kind == "miss"


async def test_an_answer_stored_without_its_embedding_is_encoded_there(handle: DeploymentHandle) -> None:
    far = CacheHandle([handle])
    await far.store(key("Why is the sky blue?"), answer(), None)
    assert (await far.lookup(key("why is the sky blue?"))).kind == "hit-semantic"


async def test_one_bad_text_does_not_fail_those_beside_it(handle: DeploymentHandle) -> None:
    far = CacheHandle([handle])
    texts = ["A first fine text", "a lone surrogate \ud800", "word " * 1100, "A second fine text"]
    found = await asyncio.gather(*(far.lookup(key(text)) for text in texts))
    assert [lookup.embedding is not None for lookup in found] == [True, False, False, True]
    assert {lookup.kind for lookup in found} == {"miss"}


async def test_concurrent_lookups_are_encoded_in_batches(handle: DeploymentHandle) -> None:
    far = CacheHandle([handle])
    before = await handle.stats.remote()
    await asyncio.gather(*(far.lookup(key(f"Tell me about subject number {number}")) for number in range(16)))
    after = await handle.stats.remote()
    assert after["encoded"] - before["encoded"] == 16
    assert after["batches"] - before["batches"] <= 8


async def test_an_exact_hit_does_not_wait_for_the_encoder(handle: DeploymentHandle) -> None:
    far = CacheHandle([handle])
    await far.store(key("quick"), answer(), None)
    long = [asyncio.create_task(far.lookup(key(f"{number} " + "many words of text " * 45))) for number in range(32)]
    await asyncio.sleep(0.05)
    assert (await far.lookup(key("quick"))).kind == "hit-exact"
    assert not all(task.done() for task in long)
    await asyncio.gather(*long)


async def test_settings_change_without_a_restart(handle: DeploymentHandle) -> None:
    far = CacheHandle([handle])
    await far.store(key("Where is the airport?"), answer(), None)
    await handle.reconfigure.remote({**NO_AUDIT, "threshold": 1.0})
    try:
        assert (await far.lookup(key("where's the airport"))).kind == "miss"
    finally:
        await handle.reconfigure.remote(NO_AUDIT)
    assert (await far.lookup(key("where's the airport"))).kind == "hit-semantic"


async def test_a_killed_shard_is_an_error_of_ours_and_comes_back_empty(handle: DeploymentHandle) -> None:
    far = CacheHandle([handle])
    replica = next(a for a in ray.util.list_named_actors(all_namespaces=True) if f"{APP}#{NAME}#" in a["name"])
    ray.kill(ray.get_actor(**replica))
    async with asyncio.timeout(120):
        while True:  # the old one answers until its process is gone
            try:
                if (await far.lookup(key("How long do I boil an egg?"))).kind == "miss":
                    break
            except ModelUnavailable:
                await far.store(key("lost"), answer(), None)  # never fails
            await asyncio.sleep(0.2)


async def test_a_killed_shard_has_its_answers_again_from_a_store_outside(local_ray: None, redis_server: Any) -> None:
    url = redis_server.new_database()
    (app,) = cache_deployments(Topology(), "data", store_url=SecretStr(url))
    serve.run(app, name=OUTSIDE_APP, route_prefix=None)
    try:
        handle = serve.get_deployment_handle(NAME, OUTSIDE_APP)
        handle._init(_run_router_in_separate_loop=True)
        far, asked = CacheHandle([handle]), key("How long do I boil an egg?")
        assert await far.store(asked, answer(), None)
        await asyncio.sleep(1.0)  # what was stored later than that may be lost
        replica = next(a for a in ray.util.list_named_actors(all_namespaces=True) if f"{OUTSIDE_APP}#" in a["name"])
        ray.kill(ray.get_actor(**replica))
        async with asyncio.timeout(120):
            found = None
            while found is None:
                with suppress(ModelUnavailable):
                    found = (await far.lookup(key("how long do I boil an EGG"))).answer
                await asyncio.sleep(0.2)
        assert found.completion.text == "four minutes"
        assert (await far.lookup(key("How long do I boil an egg?", "globex"))).kind == "miss"
        assert (await far.invalidate(Selection("acme"), False)).count == 1
        with closing(open_store(url)) as store:
            assert not any(store.read(asked.tenant))
    finally:
        serve.delete(OUTSIDE_APP)


def test_shards_keep_their_tenants_when_one_is_added() -> None:
    three, four = [f"{NAME}:{shard}" for shard in range(3)], [f"{NAME}:{shard}" for shard in range(4)]
    tenants = [f"tenant-{number}" for number in range(2_000)]
    before, after = [rendezvous(t, three) for t in tenants], [rendezvous(t, four) for t in tenants]
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {four[3]} and 400 < len(moved) < 600
    assert all(600 < before.count(shard) < 740 for shard in three)


def test_the_topology_says_how_many_shards() -> None:
    assert cache_deployments(Topology(semantic_cache="off"), "data") == []
    assert len(cache_deployments(Topology(cache_scale=Scale(max_replicas=3)), "data")) == 3
