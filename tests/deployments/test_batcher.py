"""The Batcher on a real cluster: a door and a simulated model around it, without the rest of the graph."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import cloudpickle, serve
from ray.serve.handle import DeploymentHandle

from deployments.autoscaling import autoscaling
from deployments.batcher import batcher_deployment
from deployments.batcher_handle import BatcherHandle
from models.base import Call
from models.catalog import ModelEntry
from models.errors import SwitchyardError
from models.messages import ChatRequest, Message, TextPart
from models.simulated import SimulatedModel
from router.admission import BackendLoad
from router.ports import Ticket
from router.settings import BatcherSettings
from router.topology import Scale

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers do not have this folder on their path

PLACES = 4
ENTRY = ModelEntry(name="sim", engine="simulated", tier="small", context_tokens=4096)
QUESTION = ChatRequest(model="sim", messages=(Message("user", (TextPart("Where is the station?"),)),))


class Model:
    """The simulated engine; it takes `ttft_ms` for an answer."""

    def __init__(self, ttft_ms: float) -> None:
        self._model = SimulatedModel(ENTRY, ttft_ms=ttft_ms, output_tokens=1)

    async def answer(self) -> int:
        return len([event async for event in self._model.stream(QUESTION, Call("r"))])


class Door:
    """What an Ingress does with a place: admit, run, release."""

    def __init__(self, batcher: DeploymentHandle, model: DeploymentHandle) -> None:
        self._batcher = BatcherHandle(batcher, restart_wait_s=60.0)  # however long a busy machine takes
        self._answer = model.options(method_name="answer")

    async def ask(self, ticket: Ticket) -> dict[str, Any]:
        """The outcome of one request, and how many seconds after the epoch it ended."""
        try:
            grant = await self._batcher.admit(ticket)
            try:
                await self._answer.remote()
            finally:
                self._batcher.release(grant)
        except SwitchyardError as error:
            return {"outcome": error.code, "retry_after_s": error.retry_after_s, "ended_s": time.time()}
        return {"outcome": "ok", "retry_after_s": None, "ended_s": time.time()}

    async def places_in_a_row(self, tickets: list[Ticket]) -> set[float]:
        """How long each waited, in ms rounded to 50."""
        waits = set()
        for ticket in tickets:
            grant = await self._batcher.admit(ticket)
            waits.add(round(grant.queued_ms / 50) * 50.0)
            self._batcher.release(grant)
        return waits

    async def burst(self, tickets: list[Ticket]) -> list[dict[str, Any]]:
        tasks = []
        for ticket in tickets:
            tasks.append(asyncio.create_task(self.ask(ticket)))
            await asyncio.sleep(0.002)  # so that they arrive in this order
        return list(await asyncio.gather(*tasks))

    async def leave(self, tickets: list[Ticket], after_s: float) -> None:
        """Clients that go away, at any stage of their requests."""
        tasks = []
        for ticket in tickets:
            tasks.append(asyncio.create_task(self.ask(ticket)))
            await asyncio.sleep(after_s / len(tickets))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def held(self) -> int:
        return len(self._batcher._held)


class Stack:
    """A deployed app, seen from the driver."""

    def __init__(self, app: str, scale: Scale, ttft_ms: float) -> None:
        model = serve.deployment(
            Model,
            name="Model",
            max_ongoing_requests=PLACES,
            autoscaling_config=autoscaling(scale, PLACES),
            graceful_shutdown_wait_loop_s=0.1,
            ray_actor_options={"num_cpus": 0.1},
        ).bind(ttft_ms)
        door = serve.deployment(Door, name="Door", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.1})
        serve.run(door.bind(batcher_deployment({"Model": PLACES}), model), name=app, route_prefix=None)
        self.app = app
        self.door = self._handle("Door")
        self.batcher = self._handle("Batcher")

    def _handle(self, name: str) -> DeploymentHandle:
        handle = serve.get_deployment_handle(name, self.app)
        handle._init(_run_router_in_separate_loop=True)  # each test has a loop of its own
        return handle

    async def load(self) -> BackendLoad:
        snapshot: dict[str, BackendLoad] = await self.batcher.snapshot.remote()
        return snapshot["Model"]

    async def until(self, timeout_s: float, **values: int) -> None:
        """Wait until the load has these values."""
        load = None
        try:
            async with asyncio.timeout(timeout_s):
                while load is None or any(getattr(load, name) != value for name, value in values.items()):
                    await asyncio.sleep(0.2)
                    load = await self.load()
        except TimeoutError:
            pytest.fail(f"not {values} within {timeout_s} s: {load}")


@pytest.fixture(scope="module")
def elastic(local_ray: None) -> Iterator[Stack]:
    scale = Scale(min_replicas=0, max_replicas=2, upscale_delay_s=0.5, downscale_delay_s=1.0)
    yield Stack("elastic", scale, ttft_ms=300)
    serve.delete("elastic")


@pytest.fixture(scope="module")
def fixed(local_ray: None) -> Iterator[Stack]:
    yield Stack("fixed", Scale(), ttft_ms=200)  # one replica
    serve.delete("fixed")


def tickets(count: int, tenant: str = "a", priority: int = 0, timeout_s: float = 60.0) -> list[Ticket]:
    return [Ticket(str(number), "Model", tenant, priority, timeout_s) for number in range(count)]


async def _all_ok(stack: Stack, wanted: list[Ticket]) -> None:
    answers = await stack.door.burst.remote(wanted)
    assert Counter(answer["outcome"] for answer in answers) == {"ok": len(wanted)}


async def test_a_model_scales_from_zero_to_one_to_two_and_back_without_losing_a_request(elastic: Stack) -> None:
    await elastic.until(90, replicas=0)
    first = asyncio.create_task(_all_ok(elastic, tickets(1)))
    await elastic.until(150, replicas=1)
    await first
    many = asyncio.create_task(_all_ok(elastic, tickets(100)))
    await elastic.until(150, replicas=2)
    await many
    await elastic.until(150, replicas=0)
    await elastic.until(10, running=0, queued=0, expired_leases=0)


async def test_a_quiet_backend_is_asked_for_a_place_now_and_then_only(fixed: Stack) -> None:
    await fixed.until(60, capacity=PLACES, running=0)
    before = await fixed.load()
    assert await fixed.door.places_in_a_row.remote(tickets(50)) == {0.0}, "none of them waited"
    assert 1 <= (await fixed.load()).grants - before.grants < 25
    await fixed.until(10, running=0, expired_leases=before.expired_leases)
    assert await fixed.door.held.remote() == 0


async def test_lower_priority_numbers_go_first(fixed: Stack) -> None:
    await fixed.until(60, capacity=PLACES)  # the cautious start is over
    ordinary, urgent = tickets(12), tickets(4, priority=-1)
    answers = await fixed.door.burst.remote(ordinary + urgent)
    ended_s = [answer["ended_s"] for answer in answers]
    assert max(ended_s[12:]) < min(ended_s[8:12]), "the urgent ones came last and overtook"


async def test_a_full_queue_is_503_and_a_full_share_429_with_retry_after(fixed: Stack) -> None:
    await fixed.until(60, capacity=PLACES)
    bounds = BatcherSettings(max_queue=3, max_queue_per_tenant=2)
    await fixed.batcher.reconfigure.remote(bounds.model_dump())
    try:
        answers = await fixed.door.burst.remote(tickets(7, "a") + tickets(2, "b"))
    finally:
        await fixed.batcher.reconfigure.remote(BatcherSettings().model_dump())
    assert [answer["outcome"] for answer in answers] == ["ok"] * 6 + ["rate_limited"] + ["ok", "overloaded"]
    assert all(answer["retry_after_s"] >= 1 for answer in answers if answer["outcome"] != "ok")
    await fixed.until(10, running=0, queued=0)


async def test_clients_that_leave_free_their_places_at_once(fixed: Stack) -> None:
    before = await fixed.load()
    await fixed.door.leave.remote(tickets(16), 0.15)
    await fixed.until(10, running=0, queued=0, expired_leases=before.expired_leases)
    assert await fixed.door.held.remote() == 0


async def test_a_killed_batcher_loses_no_request_and_no_place(fixed: Stack) -> None:
    await fixed.until(60, capacity=PLACES)
    running = asyncio.ensure_future(_ask(fixed, 40))
    async with asyncio.timeout(120):
        queued = 0
        while not queued:  # not 36: it works them off meanwhile
            await asyncio.sleep(0.02)
            queued = (await fixed.load()).queued
    kill_batcher(fixed.app)
    answers = await running
    assert Counter(answer["outcome"] for answer in answers) == {"ok": 40}
    await fixed.until(60, running=0, queued=0, replicas=1)
    assert await fixed.door.held.remote() == 0


async def _ask(stack: Stack, count: int) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = await stack.door.burst.remote(tickets(count))
    return answers


def kill_batcher(app: str) -> None:
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(f"SERVE_REPLICA::{app}#Batcher#"):
            ray.kill(ray.get_actor(**actor))
