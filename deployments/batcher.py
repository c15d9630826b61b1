"""The Batcher: admission for the whole cluster in one replica, and its port in each Ingress.

It is control plane only: it says who may run, tokens never pass through it. A backend has the name of its Serve
deployment in the same app, or of what would be one if it were not placed inline.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle

from deployments.autoscaling import ControllerLink
from deployments.hop import call, method
from deployments.live_settings import LiveSettings
from models.errors import DeadlineExceeded, ModelUnavailable, Overloaded, SwitchyardError
from models.messages import Usage
from router.admission import Admission, BackendLoad
from router.ports import NO_USAGE, Grant, Ticket
from router.settings import BatcherSettings
from router.work import Work

TICK_S = 0.5
"""How often leases are checked and the queues are reported to the autoscaler."""

STALLED_S = 10.0
HOP_MARGIN_S = 2.0
"""What a holder allows the hop beyond a ticket's own time-out, which the Batcher's clock measures."""

RETRY_S = 0.2
WAKE_AGAIN_S = 5.0
"""How often a holder asks for the same backend to be woken."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """Within how many seconds a holder is to renew its leases again, what each backend did of late, for all, and which
    have no replica."""

    pause_s: float
    work: dict[str, Work]
    asleep: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Meter:
    """Replica-seconds of each backend, of all and of those at work, since the Batcher of this name started."""

    name: str
    seconds: dict[str, tuple[float, float]]


class Batcher:
    """Serve shell of `router.admission.Admission`."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, places_per_replica: Mapping[str, int], inline_places: Mapping[str, int]
    ) -> None:
        self._settings = LiveSettings(BatcherSettings)
        self._admission = Admission({**places_per_replica, **inline_places}, BatcherSettings())
        for name in inline_places:
            self._admission.set_replicas(name, 1)
        self._admission.recover()
        self._link = ControllerLink(places_per_replica, self._admission.set_replicas)
        self._meter = uuid.uuid4().hex
        self._ticked_s = time.monotonic()
        self._ticking = asyncio.create_task(self._tick())

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        if settings := self._settings.accept(user_config):
            self._admission.reconfigure(settings)

    async def admit(self, ticket: Ticket, lease_id: str) -> Grant:
        return await self._admission.admit(ticket, lease_id)

    async def release(self, lease_ids: Sequence[str], unused_s: Mapping[str, float] = {}) -> None:
        self._admission.release(lease_ids, unused_s)

    async def renew(
        self, leases: Mapping[str, str], done: Mapping[str, tuple[int, int]] | None = None
    ) -> Renewed | float:
        """Take all leases (id -> backend) that a holder has, and the tokens of its requests that have ended. A holder
        that says nothing of these is of the version before, which lives on while it drains, and knows the pause only.
        """
        self._admission.renew(leases, done or {})
        if done is None:
            return self._admission.lease_ttl_s / 3
        return Renewed(self._admission.lease_ttl_s / 3, self._admission.recent_work(), self._admission.asleep())

    async def wake(self, backend: str) -> None:
        self._admission.wake(backend)

    async def node_time(self) -> Meter:
        loads = self._admission.snapshot()
        return Meter(self._meter, {name: (load.replica_s, load.busy_s) for name, load in loads.items()})

    async def snapshot(self) -> dict[str, BackendLoad]:
        return self._admission.snapshot()

    async def check_health(self) -> None:
        if self._ticking.done() or time.monotonic() - self._ticked_s > STALLED_S or not self._link.alive:
            raise ModelUnavailable("The Batcher stopped following its leases or replicas; it will be replaced.")

    async def _tick(self) -> None:
        while True:
            self._admission.tick()
            self._link.report(self._admission.queued())
            self._ticked_s = time.monotonic()
            await asyncio.sleep(TICK_S)


def batcher_deployment(
    places_per_replica: Mapping[str, int], inline_places: Mapping[str, int] | None = None
) -> Application:
    """The Batcher of a cluster with these backends: Serve deployment's name -> requests one replica runs at a time.

    inline_places: of backends that are no deployments, by name, what they run at a time in all.
    """
    deployment = serve.deployment(
        name="Batcher",
        num_replicas=1,
        user_config=BatcherSettings().model_dump(),
        # Every waiting request of the cluster is an open call here; the real bounds are BatcherSettings' queues.
        max_ongoing_requests=100_000,
        # What an Ingress keeps while there is no Batcher. More would only meet the new one all at once.
        max_queued_requests=1_000,
        # All traffic depends on this replica, and the check costs microseconds: a dead one is noticed early.
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        # A leaving Batcher has nothing to finish: who waits asks the next one, leases come back with the renewals.
        # A long drain would only leave two of them granting the same places.
        graceful_shutdown_timeout_s=1.0,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": 0.1},
    )(Batcher)
    return deployment.bind(dict(places_per_replica), dict(inline_places or {}))


@dataclass(slots=True)
class _Held:
    """A lease of this holder, and the grant that runs on it. It may be reused until `until_s` (monotonic clock).

    kept_at_s: since when nothing runs on it, where that is so. unused_s: for how long nothing did before.
    """

    grant: Grant
    until_s: float
    kept_at_s: float | None = None
    unused_s: float = 0.0

    def taken_up(self) -> None:
        if self.kept_at_s is not None:
            self.unused_s += time.monotonic() - self.kept_at_s
            self.kept_at_s = None


class BatcherHandle:
    """`router.ports.BatcherPort` over the Batcher's handle; one per Ingress replica, used on its event loop.

    The leases live here: they are renewed in the background, and a Batcher that comes up anew learns them before this
    holder asks it for more. While none answers, `admit` retries for `restart_wait_s`, then raises `Overloaded`.
    A lease that may be reused is kept after its request for the next one, which is then admitted without a hop (and
    is not among the Batcher's `grants`). The Batcher is told for how long nothing ran on it, and what was done on all.
    """

    def __init__(self, handle: DeploymentHandle, restart_wait_s: float = 10.0) -> None:
        self._admit = method(handle, "admit")
        self._release = method(handle, "release")
        self._renew = method(handle, "renew")
        self._node_time = method(handle, "node_time")
        self._wake = method(handle, "wake")
        self._restart_wait_s = restart_wait_s
        self._holder = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._held: dict[str, _Held] = {}
        self._kept: dict[str, dict[str, None]] = defaultdict(dict)  # by backend: of those held, the ones without work
        self._asking: Counter[str] = Counter()
        self._sweeping: asyncio.TimerHandle | None = None
        self._ended: dict[str, float] = {}  # with the seconds for which nothing ran on them
        self._done: Counter[tuple[str, int]] = Counter()  # tokens by backend, of the input (0) and of the output (1)
        self._recent: Mapping[str, Work] = {}
        self._asleep: Set[str] = frozenset()
        self._waking: dict[str, asyncio.Task[None]] = {}
        # Releases and renewals go out one after the other, else a renewal could bring back a lease released meanwhile.
        self._order = asyncio.Lock()
        self._answers = asyncio.Event()
        self._renew_now = asyncio.Event()
        self._renewing: asyncio.Task[None] | None = None
        self._releasing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to renew, and with that to hear of the backends before the first request needs it."""
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._keep_renewing())

    async def admit(self, ticket: Ticket) -> Grant:
        self.start()
        due_s = time.monotonic() + ticket.timeout_s
        give_up_s: float | None = None
        while True:
            if (kept := self._reuse(ticket.backend)) is not None:
                return kept
            try:
                return await self._ask(ticket)
            except ModelUnavailable:
                now_s = time.monotonic()
                give_up_s = give_up_s or now_s + self._restart_wait_s
                await self._wait_for_an_answer(give_up_s - now_s)
                ticket = replace(ticket, timeout_s=max(0.0, due_s - time.monotonic()))

    async def node_time(self) -> Meter:
        """Raises `ModelUnavailable` or `TimeoutError`."""
        async with asyncio.timeout(HOP_MARGIN_S):
            meter: Meter = await call(self._node_time)
        return meter

    def recent_work(self) -> Mapping[str, Work]:
        return self._recent

    def asleep(self) -> Set[str]:
        return self._asleep

    def wake(self, backend: str) -> None:
        if backend not in self._waking:
            self._waking[backend] = asyncio.create_task(self._send_wake(backend))

    async def _send_wake(self, backend: str) -> None:
        try:
            with suppress(SwitchyardError):  # whoever needs it next will ask again
                await call(self._wake, backend)
            await asyncio.sleep(WAKE_AGAIN_S)
        finally:
            del self._waking[backend]

    def release(self, grant: Grant, usage: Usage = NO_USAGE) -> None:
        held = self._held.get(grant.lease_id)
        if held is None or held.grant is not grant or grant.lease_id in self._kept[grant.backend]:
            return  # given back before, and maybe another's by now
        self._done[grant.backend, 0] += usage.input_tokens
        self._done[grant.backend, 1] += usage.output_tokens
        if held.until_s <= time.monotonic() or self._asking[grant.backend]:
            self._drop(grant.lease_id)  # also when one of ours waits there: it is to have its turn
            return
        self._kept[grant.backend][grant.lease_id] = None
        held.kept_at_s = time.monotonic()
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(held.until_s - time.monotonic(), self._sweep)

    async def close(self) -> None:
        """Stop renewing and give back what is still held."""
        if self._renewing is not None:
            self._renewing.cancel()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for waking in list(self._waking.values()):
            waking.cancel()
        self._kept.clear()
        for lease_id in list(self._held):
            self._drop(lease_id)
        if self._releasing is not None:
            await self._releasing

    def _reuse(self, backend: str) -> Grant | None:
        """The place that the last request left, if it may still be taken."""
        kept, now_s = self._kept[backend], time.monotonic()
        while kept:
            lease_id, _ = kept.popitem()
            held = self._held[lease_id]
            if held.until_s > now_s:
                held.taken_up()
                held.grant = Grant(lease_id, backend, 0.0)
                return held.grant
            self._drop(lease_id)
        return None

    def _sweep(self) -> None:
        """Give back what has waited too long for its next request, and come again when the next will have."""
        now_s = time.monotonic()
        for kept in self._kept.values():
            for lease_id in [lease_id for lease_id in kept if self._held[lease_id].until_s <= now_s]:
                del kept[lease_id]
                self._drop(lease_id)
        due_s = min((self._held[lease_id].until_s for kept in self._kept.values() for lease_id in kept), default=None)
        loop = asyncio.get_running_loop()
        self._sweeping = None if due_s is None else loop.call_later(due_s - now_s, self._sweep)

    def _drop(self, lease_id: str) -> None:
        held = self._held.pop(lease_id)
        held.taken_up()
        self._give_back(lease_id, held.unused_s)

    async def _ask(self, ticket: Ticket) -> Grant:
        lease_id = f"{self._holder}-{next(self._numbers)}"
        self._asking[ticket.backend] += 1
        try:
            async with asyncio.timeout(ticket.timeout_s + HOP_MARGIN_S):
                grant: Grant = await call(self._admit, ticket, lease_id)
        except TimeoutError:
            self._give_back(lease_id)
            raise DeadlineExceeded(
                f"No place on '{ticket.backend}' within {ticket.timeout_s:g} s; try later."
            ) from None
        except (asyncio.CancelledError, ModelUnavailable):
            self._give_back(lease_id)  # whether it waits there, was granted or never arrived is not known here
            raise
        finally:
            self._asking[ticket.backend] -= 1
        self._held[lease_id] = _Held(grant, time.monotonic() + grant.reusable_s)
        return grant

    async def _wait_for_an_answer(self, timeout_s: float) -> None:
        self._answers.clear()
        self._renew_now.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._answers.wait()
        except TimeoutError:
            raise Overloaded("Admission is restarting; try again.", None, self._restart_wait_s) from None

    def _give_back(self, lease_id: str, unused_s: float = 0.0) -> None:
        self._ended[lease_id] = unused_s
        if self._releasing is None or self._releasing.done():
            self._releasing = asyncio.create_task(self._ship())

    async def _ship(self) -> None:
        """One hop for all that ended in one turn of the loop, the next for all that ended during it."""
        while self._ended:
            async with self._order:
                ended, self._ended = self._ended, {}
                with suppress(
                    SwitchyardError
                ):  # a new Batcher never hears of them, an unreachable one lets them expire
                    await call(self._release, list(ended), {lease: s for lease, s in ended.items() if s})

    async def _keep_renewing(self) -> None:
        while True:
            done, self._done = self._done, Counter()
            try:
                async with self._order:
                    leases = {lease_id: held.grant.backend for lease_id, held in self._held.items()}
                    renewed = await call(self._renew, leases, _by_backend(done))
                pause_s, self._recent, self._asleep = renewed.pause_s, renewed.work, renewed.asleep
                self._answers.set()
            except SwitchyardError:
                self._done.update(done)
                self._answers.clear()
                pause_s = RETRY_S
            self._renew_now.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._renew_now.wait()


def _by_backend(done: Mapping[tuple[str, int], int]) -> dict[str, tuple[int, int]]:
    """Input and output tokens of each."""
    return {name: (done.get((name, 0), 0), done.get((name, 1), 0)) for name in {name for name, _ in done}}
