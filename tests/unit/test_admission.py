from __future__ import annotations

import asyncio
import gc
from dataclasses import replace

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from models.errors import DeadlineExceeded, ModelNotFound, Overloaded, RateLimited
from router.admission import REUSABLE_S, UNKNOWN_RETRY_AFTER_S, WAKING_S, Admission
from router.ports import Grant, Ticket
from router.settings import BatcherSettings
from router.work import HALF_LIFE_S, SETTLED_S, Work

SETTINGS = BatcherSettings(max_queue=8, max_queue_per_tenant=4, lease_ttl_s=10)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def ticket(tenant: str = "a", priority: int = 0, timeout_s: float = 5.0, backend: str = "m") -> Ticket:
    return Ticket("r", backend, tenant, priority, timeout_s)


def admission(places: int = 1, clock: Clock | None = None) -> Admission:
    return Admission({"m": places}, SETTINGS, clock or Clock())


async def waiting(core: Admission, wish: Ticket, lease_id: str) -> asyncio.Task[Grant]:
    task = asyncio.create_task(core.admit(wish, lease_id))
    await asyncio.sleep(0)
    return task


async def granted_in_order(core: Admission, tasks: dict[str, asyncio.Task[Grant]], first: str) -> list[str]:
    """Release one after the other, and say who followed whom."""
    order, current = [], first
    while current:
        core.release([current])
        await asyncio.sleep(0)
        current = next((lease for lease, task in tasks.items() if task.done() and lease not in order), "")
        order += [current] if current else []
    return order


async def test_lower_priority_number_first_then_first_come_first_served() -> None:
    core = admission()
    await core.admit(ticket(), "0")
    wishes = {"late": 1, "first": 0, "second": 0, "urgent": -5}
    tasks = {lease: await waiting(core, ticket(priority=priority), lease) for lease, priority in wishes.items()}
    assert await granted_in_order(core, tasks, "0") == ["urgent", "first", "second", "late"]


async def test_tenants_take_turns_within_a_priority() -> None:
    core = admission()
    await core.admit(ticket(), "0")
    wishes = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "c1": "c", "b2": "b"}
    tasks = {lease: await waiting(core, ticket(tenant), lease) for lease, tenant in wishes.items()}
    assert await granted_in_order(core, tasks, "0") == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_a_backend_at_zero_has_the_places_of_one_replica_and_more_replicas_wake_who_waits() -> None:
    core = admission(places=2)
    tasks = [await waiting(core, ticket(str(i)), str(i)) for i in range(6)]
    assert [task.done() for task in tasks] == [True, True, False, False, False, False]
    core.set_replicas("m", 2)
    await asyncio.sleep(0)
    assert [task.done() for task in tasks] == [True] * 4 + [False] * 2
    core.set_replicas("m", 0)
    core.release(["0", "1"])
    await asyncio.sleep(0)
    assert not tasks[4].done(), "fewer replicas: the places of those that are gone are not given out again"
    core.release(["2", "3"])
    assert [(await task).queued_ms for task in tasks[4:]] == [0, 0]


async def test_deadline_while_waiting() -> None:
    core = admission()
    await core.admit(ticket(), "0")
    with pytest.raises(DeadlineExceeded):
        await core.admit(ticket(timeout_s=0.01), "1")
    core.release(["0"])
    assert core.snapshot()["m"].running == 0
    assert core.snapshot()["m"].refusals == {"deadline": 1}


async def test_full_queue_is_503_and_a_full_share_is_429_with_advice_from_the_pace() -> None:
    clock = Clock()
    core = admission(clock=clock)
    await core.admit(ticket(), "0")
    tasks = [await waiting(core, ticket("a"), f"a{i}") for i in range(4)]
    with pytest.raises(RateLimited) as refused:
        await core.admit(ticket("a"), "x")
    assert refused.value.retry_after_s == UNKNOWN_RETRY_AFTER_S
    tasks += [await waiting(core, ticket(tenant), f"{tenant}{i}") for tenant in "bc" for i in range(2)]
    with pytest.raises(Overloaded):
        await core.admit(ticket("d"), "x")

    for lease in ("0", "a0", "b0"):  # one grant every 2 s, 5 left in the queue
        core.release([lease])
        clock.now_s += 2
    core.reconfigure(BatcherSettings(max_queue=5, max_queue_per_tenant=2))
    with pytest.raises(Overloaded) as full:
        await core.admit(ticket("d"), "x")
    assert full.value.retry_after_s == 5 * 3  # 2 intervals in 6 s
    with pytest.raises(RateLimited) as limited:
        await core.admit(ticket("a"), "x")
    assert limited.value.retry_after_s == 3 * 3 * 3  # three of its own, three tenants in turn
    assert core.snapshot()["m"].refusals == {"tenant_share": 2, "queue_full": 2}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_unknown_backend() -> None:
    with pytest.raises(ModelNotFound):
        await admission().admit(ticket(backend="nope"), "1")


async def test_who_left_is_dropped_at_once_and_never_granted() -> None:
    core = admission()
    await core.admit(ticket(), "0")
    leaver, stayer = await waiting(core, ticket(), "1"), await waiting(core, ticket(), "2")
    leaver.cancel()
    await asyncio.sleep(0)
    assert core.snapshot()["m"].queued == 1
    core.release(["0"])
    assert (await stayer).lease_id == "2"
    assert core.snapshot()["m"].refusals == {"left": 1}


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_grant_in_the_same_turn_as_the_cancellation_is_not_leaked(cancel_first: bool) -> None:
    core = admission()
    await core.admit(ticket(), "0")
    leaver, stayer = await waiting(core, ticket(), "1"), await waiting(core, ticket(), "2")
    moves = [leaver.cancel, lambda: core.release(["0"])]
    for move in moves if cancel_first else reversed(moves):
        move()
    assert (await stayer).lease_id == "2"
    assert leaver.cancelled()
    core.release(["2"])
    assert core.snapshot()["m"].running == 0


async def test_a_deadline_in_the_same_turn_as_the_cancellation_is_not_reported_as_unseen() -> None:
    seen: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    core = admission()
    await core.admit(ticket(), "0")
    leaver = await waiting(core, ticket(timeout_s=0), "1")
    waiter = core._backends["m"].waiting["1"]
    core._expire(core._backends["m"], waiter)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    del waiter, leaver
    gc.collect()
    assert seen == []


async def test_release_ends_a_wait_too_and_may_be_repeated() -> None:
    core = admission()
    await core.admit(ticket(), "0")
    task = await waiting(core, ticket(), "1")
    core.release(["1", "1", "unknown"])
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    core.release(["0"])
    core.release(["0"])
    load = core.snapshot()["m"]
    assert (load.running, load.queued) == (0, 0)


async def test_time_of_replicas_is_counted_at_work_and_in_all() -> None:
    clock = Clock()
    core = admission(places=4, clock=clock)
    core.set_replicas("m", 3)
    clock.now_s = 2
    core.tick()
    for lease in ("0", "1"):
        await core.admit(ticket(), lease)
    clock.now_s = 5
    core.tick()
    for lease in ("2", "3", "4"):
        await core.admit(ticket(), lease)
    core.set_replicas("m", 1)
    clock.now_s = 9 + SETTLED_S
    core.tick()
    load = core.snapshot()["m"]
    assert (load.replica_s, load.busy_s) == (3 * 5 + 1 * 4, 2 * 3 + 1 * 4)


async def test_a_place_that_was_kept_without_a_request_was_no_work() -> None:
    clock = Clock()
    core = admission(places=4, clock=clock)
    core.set_replicas("m", 2)
    for lease in ("0", "1"):
        await core.admit(ticket(), lease)
    clock.now_s = 3
    core.release(["0", "1"], {"0": 0.25, "1": 3600.0})  # no clock of a holder takes back what is counted
    clock.now_s = 10
    core.tick()
    assert core.snapshot()["m"].busy_s == 2.75
    core.renew({}, {"m": (700, 30), "elsewhere": (1, 1)})
    assert core.recent_work() == {"m": Work(2.75, 700, 30)}
    clock.now_s += HALF_LIFE_S
    core.tick()
    assert core.recent_work() == {"m": Work(1.375, 350, 15)}


async def test_a_lease_ends_by_itself_unless_renewed() -> None:
    clock = Clock()
    core = admission(places=2, clock=clock)
    await core.admit(ticket(), "kept")
    await core.admit(ticket(), "lost")
    task = await waiting(core, ticket(), "next")
    clock.now_s = 9
    core.renew({"kept": "m"})
    core.tick()
    assert not task.done()
    clock.now_s = 10
    core.tick()
    assert (await task).queued_ms == 10_000
    load = core.snapshot()["m"]
    assert (load.running, load.expired_leases) == (2, 1)


async def test_a_restart_takes_over_what_is_renewed_and_gives_out_half_until_then() -> None:
    clock = Clock()
    core = admission(places=4, clock=clock)
    core.recover()
    tasks = [await waiting(core, ticket(), str(i)) for i in range(3)]
    assert [task.done() for task in tasks] == [True, True, False]
    assert core.snapshot()["m"].capacity == 2
    core.renew({"old-1": "m", "old-2": "m", "old-3": "m", "of-a-removed-backend": "gone"})
    assert core.snapshot()["m"].running == 5
    clock.now_s = SETTINGS.lease_ttl_s / 2
    core.tick()
    await asyncio.sleep(0)
    assert not tasks[2].done(), "the places are taken by those of before"
    core.release(["old-1", "old-2"])
    assert (await tasks[2]).lease_id == "2"


async def test_a_place_may_be_reused_only_while_half_of_them_are_free() -> None:
    core = admission(places=4)
    grants = [await core.admit(ticket(), lease) for lease in "abcd"]
    assert [grant.reusable_s for grant in grants] == [REUSABLE_S, REUSABLE_S, 0, 0]
    task = await waiting(core, ticket(), "e")
    core.release(["a"])
    assert (await task).reusable_s == 0
    core.release(["b", "c", "d"])
    assert (await core.admit(ticket(), "f")).reusable_s == REUSABLE_S


async def test_snapshot_of_a_waiting_queue() -> None:
    clock = Clock()
    core = admission(clock=clock)
    await core.admit(ticket(), "0")
    tasks = []
    for tenant in "ab":
        clock.now_s += 3
        tasks.append(await waiting(core, ticket(tenant, priority=len(tasks)), tenant))
    load = core.snapshot()["m"]
    assert (load.replicas, load.capacity, load.running, load.queued, load.oldest_wait_s) == (0, 1, 1, 2, 3)
    assert core.queued() == {"m": 2}
    core.release(["0", "a"])
    await asyncio.gather(*tasks)
    assert core.snapshot()["m"].grants == 3


class AdmissionMachine(RuleBasedStateMachine):
    """Any sequence of arrivals, cancellations, releases, expiries and replica counts, beside a model of the rules."""

    @initialize(places=st.integers(1, 3))
    def start(self, places: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.places, self.replicas = places, 0
        wide = BatcherSettings(max_queue=30, max_queue_per_tenant=30, lease_ttl_s=10)
        self.core = Admission({"m": places}, wide, self.clock)
        self.waiting: dict[str, tuple[Ticket, asyncio.Task[Grant]]] = {}
        self.held: dict[str, float] = {}
        self.count = 0

    def settle(self) -> None:
        """Let the loop run, and check who was granted a place: only the first of his tenant and priority."""

        async def turns() -> None:
            for _ in range(3):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        skipped: dict[tuple[int, str], str] = {}
        granted: list[int] = []
        for lease_id, (wish, task) in list(self.waiting.items()):  # in order of arrival
            queue = (wish.priority, wish.tenant)
            if task.done():
                assert queue not in skipped, f"{lease_id} overtook {skipped[queue]}"
                assert task.result().lease_id == lease_id
                del self.waiting[lease_id]
                self.held[lease_id] = self.clock.now_s
                granted.append(wish.priority)
            else:
                skipped[queue] = lease_id
        if granted:
            assert len(self.held) <= self.places * max(1, self.replicas), "more grants than places"
            assert max(granted) <= min((priority for priority, _ in skipped), default=max(granted)), "priority"

    @rule(tenant=st.sampled_from("abc"), priority=st.integers(-1, 1))
    def arrive(self, tenant: str, priority: int) -> None:
        if len(self.waiting) < 30:
            self.count += 1
            wish = replace(ticket(tenant, priority), timeout_s=1e6)
            task = self.loop.create_task(self.core.admit(wish, str(self.count)))
            self.waiting[str(self.count)] = (wish, task)
            self.settle()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), at_once=st.booleans())
    def leave(self, data: st.DataObject, at_once: bool) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.waiting)))
        _, task = self.waiting.pop(lease_id)
        task.cancel()
        if at_once and self.held:  # a place becomes free before the cancelled task has run
            self.core.release([self.held.popitem()[0]])
        self.settle()
        assert task.cancelled()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), again=st.booleans())
    def finish(self, data: st.DataObject, again: bool) -> None:
        lease_ids = data.draw(st.lists(st.sampled_from(sorted(self.held)), min_size=1, unique=True))
        for lease_id in lease_ids:
            del self.held[lease_id]
        self.core.release(lease_ids * (2 if again else 1))
        self.settle()

    @rule(replicas=st.integers(0, 3))
    def scale(self, replicas: int) -> None:
        self.replicas = replicas
        self.core.set_replicas("m", replicas)
        self.settle()

    @rule(seconds=st.integers(1, 8), data=st.data())
    def time_passes(self, seconds: int, data: st.DataObject) -> None:
        renewed = data.draw(st.sets(st.sampled_from(sorted(self.held)))) if self.held else set()
        for lease_id in renewed:
            self.held[lease_id] = self.clock.now_s
        self.core.renew(dict.fromkeys(renewed, "m"))
        self.clock.now_s += seconds
        self.held = {lease: since_s for lease, since_s in self.held.items() if since_s > self.clock.now_s - 10}
        self.core.tick()
        self.settle()

    @invariant()
    def the_books_agree(self) -> None:
        load = self.core.snapshot()["m"]
        capacity = self.places * max(1, self.replicas)
        assert (load.running, load.queued, load.capacity) == (len(self.held), len(self.waiting), capacity)
        assert not self.waiting or load.running >= capacity, "someone waits beside a free place"

    def teardown(self) -> None:
        while self.held:
            self.core.release([self.held.popitem()[0]])
            self.settle()
        assert not self.waiting, "a waiter was lost"
        load = self.core.snapshot()["m"]
        assert (load.running, load.queued) == (0, 0)
        self.loop.close()


AdmissionMachine.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=40)
TestAdmissionMachine = AdmissionMachine.TestCase


def test_who_is_to_wake_up_is_not_asked_for_without_end() -> None:
    clock = Clock()
    core = admission(clock=clock)
    core.set_replicas("m", 0)
    core.wake("m")
    core.wake("nobody")
    assert core.asleep() == {"m"} and core.queued() == {"m": 1}
    clock.now_s += 300.0  # large weights
    assert core.queued() == {"m": 1}
    clock.now_s += WAKING_S
    assert core.queued() == {"m": 0}
    core.wake("m")
    core.set_replicas("m", 1)
    assert core.asleep() == set() and core.queued() == {"m": 0}


def test_who_has_woken_may_fall_asleep_again() -> None:
    core = admission()
    core.set_replicas("m", 0)
    core.wake("m")
    core.set_replicas("m", 1)
    core.wake("m")  # by somebody who has not heard of it
    core.set_replicas("m", 0)
    assert core.asleep() == {"m"} and core.queued() == {"m": 0}


def test_after_a_start_nobody_is_asleep_before_it_is_known() -> None:
    core = Admission({"m": 1, "other": 1}, SETTINGS)
    assert core.asleep() == set()
    core.set_replicas("m", 0)
    assert core.asleep() == {"m"}
