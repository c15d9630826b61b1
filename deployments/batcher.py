"""The Batcher: admission for the whole cluster in one replica. `deployments.batcher_handle` is its port in an Ingress.

It is control plane only: it says who may run, tokens never pass through it. A backend has the name of its Serve
deployment in the same app, or of what would be one if it were not placed inline.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.deployment import Application

from deployments.autoscaling import ControllerLink
from deployments.live_settings import LiveSettings
from models.errors import ModelUnavailable
from router.admission import Admission, BackendLoad
from router.ports import Grant, Ticket
from router.settings import BatcherSettings
from router.work import Work

TICK_S = 0.5
"""How often leases are checked and the queues are reported to the autoscaler."""

STALLED_S = 10.0


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

    async def reusable_s(self, backends: Sequence[str]) -> dict[str, float]:
        """Of these backends: for how long from now leases may be kept for the next request; 0: not at all."""
        return {name: self._admission.reusable_s(name) for name in backends}

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
