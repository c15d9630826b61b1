"""The holder's side of admission, over a real `Admission`. The handle between them stands in for Serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deployments.batcher import Batcher, Renewed
from deployments.batcher_handle import MOST_UNUSED_S, BatcherHandle
from models.messages import Usage
from router.admission import REUSABLE_S, Admission
from router.ports import Grant, Ticket
from router.settings import BatcherSettings
from router.work import SETTLED_S
from tests.unit.test_pipeline import ask, make_world, unary

TICKET = Ticket("r", "b", "org", 0, 5.0)


class Hop:
    """A Serve handle whose calls take a turn of the loop."""

    deployment_name = "Batcher"

    def __init__(self, core: Admission, name: str = "") -> None:
        self._core, self._name = core, name

    def options(self, method_name: str, **_: Any) -> Hop:
        return Hop(self._core, method_name)

    def remote(self, *args: Any) -> Hop:
        hop = Hop(self._core, self._name)
        hop._args = args
        return hop

    def cancel(self) -> None: ...

    def __await__(self):
        return self._run().__await__()

    async def _run(self) -> Any:
        await asyncio.sleep(0)
        match self._name:
            case "admit":
                return await self._core.admit(*self._args)
            case "release":
                return self._core.release(*self._args)
            case "reusable_s":
                return {name: self._core.reusable_s(name) for name in self._args[0]}
            case "wake":
                return self._core.wake(*self._args)
            case _:
                self._core.renew(*self._args)
                return Renewed(0.05, self._core.recent_work(), self._core.asleep())


@pytest.fixture
def core() -> Admission:
    made = Admission({"b": 4}, BatcherSettings())
    made.set_replicas("b", 1)
    return made


@pytest.fixture
async def holder(core: Admission) -> AsyncIterator[BatcherHandle]:
    made = BatcherHandle(Hop(core))  # type: ignore[arg-type]
    yield made
    await made.close()
    assert core.snapshot()["b"].running == 0, "all places come back"


async def running(core: Admission, wanted: int) -> None:
    for _ in range(500):
        if core.snapshot()["b"].running == wanted:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"not {wanted} running: {core.snapshot()['b']}")


async def test_requests_in_a_row_share_a_lease_for_as_long_as_they_follow_each_other(
    core: Admission, holder: BatcherHandle
) -> None:
    first = await holder.admit(TICKET)
    began_s = time.monotonic()
    while time.monotonic() < began_s + 4 * REUSABLE_S:
        holder.release(first)
        first = await holder.admit(TICKET)
        await asyncio.sleep(0.01)
    assert core.snapshot()["b"].grants <= 2, "a loop that is held up for long loses a lease"
    holder.release(first)
    await running(core, 0)
    assert holder._hearing is not None
    await holder._hearing  # nobody asks where nothing happens
    assert (await holder.admit(TICKET)).lease_id != first.lease_id


async def test_leases_are_given_back_when_others_want_the_places(core: Admission, holder: BatcherHandle) -> None:
    mine = [await holder.admit(TICKET) for _ in range(2)]
    holder.release(mine[0])
    for lease in "ab":  # of another holder
        await core.admit(TICKET, lease)
    for _ in range(4):  # one request after the other, on the one that is left
        holder.release(mine[1])
        mine[1] = await holder.admit(TICKET)
    await running(core, 3)
    holder.release(mine[1])
    await running(core, 2)
    core.release("ab")


async def test_a_lease_that_stood_unused_for_long_is_not_kept_again(core: Admission, holder: BatcherHandle) -> None:
    grant = await holder.admit(TICKET)
    holder._held[grant.lease_id].unused_s = MOST_UNUSED_S + 0.01
    holder.release(grant)
    assert (await holder.admit(TICKET)).lease_id != grant.lease_id


async def test_a_lease_runs_one_request_at_a_time_however_often_it_is_released(holder: BatcherHandle) -> None:
    first = await holder.admit(TICKET)
    holder.release(first)
    second = await holder.admit(TICKET)
    holder.release(first)  # which is over: the second runs on its lease now
    third = await holder.admit(TICKET)
    assert third.lease_id != second.lease_id
    for grant in (second, second, third, third):
        holder.release(grant)
    again = [await holder.admit(TICKET) for _ in range(3)]
    assert len({grant.lease_id for grant in again}) == 3
    for grant in again:
        holder.release(grant)


async def test_what_nobody_takes_up_is_given_back(core: Admission, holder: BatcherHandle) -> None:
    for grant in [await holder.admit(TICKET) for _ in range(4)]:
        holder.release(grant)
    await running(core, 0)


async def test_a_place_is_not_kept_while_one_of_ours_waits_for_one(core: Admission, holder: BatcherHandle) -> None:
    grants = [await holder.admit(TICKET) for _ in range(4)]
    waiting = asyncio.create_task(holder.admit(TICKET))
    for _ in range(20):
        await asyncio.sleep(0)
    assert core.snapshot()["b"].queued == 1
    holder.release(grants[0])  # whose lease could be kept
    async with asyncio.timeout(REUSABLE_S / 2):
        grants[0] = await waiting
    for grant in grants:
        holder.release(grant)


async def test_a_place_kept_for_too_long_is_passed_over_for_one_that_is_not(holder: BatcherHandle) -> None:
    early, late = await holder.admit(TICKET), await holder.admit(TICKET)
    holder.release(early)
    holder.release(late)
    holder._sweeping.cancel()  # it would come in time, but a busy loop may be late with it
    holder._held[early.lease_id].kept_at_s -= REUSABLE_S
    found = [await holder.admit(TICKET) for _ in range(2)]
    assert found[0].lease_id == late.lease_id and found[1].lease_id not in (early.lease_id, late.lease_id)


async def test_who_leaves_while_waiting_leaves_no_lease(core: Admission, holder: BatcherHandle) -> None:
    grants: list[Grant] = [await holder.admit(TICKET) for _ in range(4)]
    waiting = asyncio.create_task(holder.admit(TICKET))
    for _ in range(20):
        await asyncio.sleep(0)
    assert core.snapshot()["b"].queued == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    for grant in grants:
        holder.release(grant)
    await running(core, 0)


async def test_what_was_done_is_told_and_a_place_without_a_request_is_not_counted(core: Admission) -> None:
    holder = BatcherHandle(Hop(core))  # type: ignore[arg-type]
    for _ in range(3):
        grant = await holder.admit(TICKET)
        await asyncio.sleep(0.02)
        holder.release(grant, Usage(100, 7))
        holder.release(grant, Usage(100, 7))  # it is over
    await running(core, 0)
    await asyncio.sleep(0.1)
    assert (core.recent_work()["b"].input_tokens, core.recent_work()["b"].output_tokens) == (300, 21)
    assert holder.recent_work()["b"] == core.recent_work()["b"]
    await asyncio.sleep(SETTLED_S)
    core.tick()
    assert 0.06 <= core.snapshot()["b"].busy_s < REUSABLE_S, "three answers of 0.02 s, on a lease of 0.25 s"
    await holder.close()


async def test_a_holder_of_the_version_before_is_told_what_it_understands(core: Admission) -> None:
    batcher = object.__new__(Batcher)  # without Serve's controller
    batcher._admission = core
    assert await batcher.renew({"old": "b"}) == BatcherSettings().lease_ttl_s / 3
    assert isinstance(await batcher.renew({"new": "b"}, {}), Renewed)
    assert core.snapshot()["b"].running == 2


async def test_who_sleeps_is_known_before_the_first_request(core: Admission, holder: BatcherHandle) -> None:
    core.set_replicas("b", 0)
    holder.start()
    await asyncio.sleep(0.02)
    assert holder.asleep() == {"b"}


async def test_a_backend_without_a_replica_is_known_and_woken_once(core: Admission, holder: BatcherHandle) -> None:
    holder.release(await holder.admit(TICKET))
    assert holder.asleep() == set() and core.queued() == {"b": 0}
    core.set_replicas("b", 0)
    await asyncio.sleep(0.1)
    assert holder.asleep() == {"b"}
    for _ in range(3):
        holder.wake("b")
    assert len(holder._waking) == 1
    await asyncio.sleep(0.02)
    assert core.queued() == {"b": 1}, "as if a request waited"
    core.set_replicas("b", 1)
    assert core.queued() == {"b": 0}


async def test_from_the_question_to_the_autoscaler_and_back() -> None:
    world, small = make_world(), "SimulatedModel:small-1"
    core = Admission(dict.fromkeys(world.pipeline.stages.backends, 4), BatcherSettings())
    for name in world.pipeline.stages.backends:
        core.set_replicas(name, int(name != small))
    handle = world.pipeline.stages.batcher = BatcherHandle(Hop(core))  # type: ignore[arg-type]
    handle.start()
    await asyncio.sleep(0.02)
    assert (await unary(world, ask("easy")))[0].model == "medium-1"
    await asyncio.sleep(0.02)
    assert core.queued()[small] == 1, "for which Serve starts a replica"
    core.set_replicas(small, 1)
    await asyncio.sleep(0.1)
    assert (await unary(world, ask("as easy")))[0].model == "small-1"
    core.set_replicas(small, 0)
    assert core.queued()[small] == 0, "nobody has asked since"
    await handle.close()
    assert all(load.running == 0 for load in core.snapshot().values())
