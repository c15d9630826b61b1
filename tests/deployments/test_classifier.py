"""`ComplexityClassifier` on a real cluster, called as the pipeline calls it and by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.classifier import NAME, ClassifierHandle, InlineClassifier, classifier_deployment
from models.errors import ModelUnavailable
from models.messages import Message, TextPart
from router.settings import ClassifierSettings
from router.topology import Scale, Topology

APP = "classifier-test"
HARD = "Debug this Python script step by step and prove that it ends.\n```\nwhile x > 0: x = f(x)\n```"


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", (TextPart(text),)),)


CONVERSATIONS = [
    (),
    user("hi"),
    user(HARD),
    user("证明这个定理。逐步分析。"),
    user("word " * 200_000),
    (*user(HARD), Message("assistant", (TextPart("x" * 50_000),)), *user("and now?")),
]


@pytest.fixture(scope="module")
def handle(local_ray: None) -> Iterator[DeploymentHandle]:
    topology = Topology(classifier_scale=Scale(num_cpus=0.1))
    serve.run(classifier_deployment(topology), name=APP, route_prefix=None)
    handle = serve.get_deployment_handle(NAME, APP)
    handle._init(_run_router_in_separate_loop=True)  # each test has a loop of its own
    yield handle
    serve.delete(APP)


async def test_behind_a_hop_and_inline_it_says_the_same(handle: DeploymentHandle) -> None:
    far, near = ClassifierHandle(handle), InlineClassifier(ClassifierSettings())
    for messages in CONVERSATIONS:
        assert await far.assess(messages) == await near.assess(messages)


async def test_it_can_be_called_by_itself(handle: DeploymentHandle) -> None:
    assessed = await handle.assess.remote(user(HARD))
    assert assessed.task == "code" and assessed.score > 0.6


async def test_settings_change_without_a_restart(handle: DeploymentHandle) -> None:
    far = ClassifierHandle(handle)
    before = await far.assess(user("Is this estoppel?"), "law")
    settings = ClassifierSettings(keywords={"law": ("estoppel",)})
    await handle.reconfigure.remote(settings.model_dump())
    try:
        after = await far.assess(user("Is this estoppel?"), "law")
    finally:
        await handle.reconfigure.remote(ClassifierSettings().model_dump())
    assert after.score > before.score
    assert after.strategy_version != before.strategy_version
    assert await far.assess(user("Is this estoppel?"), "law") == before


async def test_long_prompts_do_not_hold_up_short_ones(handle: DeploymentHandle) -> None:
    far = ClassifierHandle(handle)
    flood = [asyncio.create_task(far.assess(CONVERSATIONS[4])) for _ in range(50)]
    began_s = time.perf_counter()
    await far.assess(user("hi"))
    short_s = time.perf_counter() - began_s
    await asyncio.gather(*flood)
    assert short_s < 3.0


async def test_a_killed_replica_is_an_error_of_ours_and_then_replaced(handle: DeploymentHandle) -> None:
    far = ClassifierHandle(handle)
    replica = next(a for a in ray.util.list_named_actors(all_namespaces=True) if f"{APP}#{NAME}#" in a["name"])
    ray.kill(ray.get_actor(**replica))
    async with asyncio.timeout(120):
        while True:
            try:
                assert (await far.assess(user("hi"))).task == "chat"
                break
            except ModelUnavailable:
                await asyncio.sleep(0.2)
