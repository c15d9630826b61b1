"""Who may run next on which backend: one queue per backend, in front of as many places as its replicas have.

A waiting request is a future in a queue; it is woken by the release that makes room for it, so nothing polls. Order:
lower `priority` first (a busy high priority can starve a lower one, that is its meaning); within a priority the
tenants take turns, one request each, so that a tenant's thousand requests delay another's first by one place only;
within a tenant first come, first served. Every operation is O(1), but for a binary search over the priorities in use.

A granted place is a lease. Its id is named by who asks, so that he can give up a request of which he does not know
whether it waits, runs or got lost: `release` ends it in every state. A lease that its holder neither releases nor
renews for `lease_ttl_s` ends by itself. The leases are not stored: after a restart they come back with the next
renewals. Until all holders had the time to renew (`lease_ttl_s / 2` from the start) only half of the places are given
out, so a restart puts at most 1.5 times the places on a backend, for no longer than its running requests take.

While at least half of a backend's places are free, holders may keep leases for `REUSABLE_S` and run further requests on
them: a quiet backend costs no hop before the first token. Each grant says so, and `reusable_s` to those who ask.
The price: when a crowd comes, half of the places may stand empty for `REUSABLE_S`, and who takes one up again in that
time goes before all who wait.
"""

from __future__ import annotations

import asyncio
import math
import time
from bisect import insort
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from models.errors import DeadlineExceeded, ModelNotFound, Overloaded, RateLimited, SwitchyardError
from router.ports import Grant, Ticket
from router.settings import BatcherSettings
from router.work import Work, WorkMeter

REUSABLE_S = 0.25
WAKING_S = 600.0
"""A replica that has not come up by then is not waited for, unless somebody asks for it again. As long as the longest
request would: large weights take minutes, and one that nobody waits for any more is stopped before it is there."""

UNKNOWN_RETRY_AFTER_S = 5.0
"""Advice while nothing is known of a backend's pace: it is cold or has just started."""


@dataclass(frozen=True, slots=True)
class BackendLoad:
    """One backend at one moment, for metrics and autoscaling. `grants`, `refusals` and `expired_leases` only grow.

    capacity: requests that may run now; half of the places while the start is cautious.
    refusals: by reason: `queue_full`, `tenant_share`, `deadline`, `left` (the client went away while it waited).
    replica_s, busy_s: replicas times seconds, of all and of those at work: what their nodes cost, and what of that was
    for requests. Counted with each `tick`, a second late (`router.work`); a place kept for the next request is no work.
    """

    replicas: int
    capacity: int
    running: int
    queued: int
    oldest_wait_s: float
    grants: int
    refusals: dict[str, int]
    expired_leases: int
    replica_s: float = 0.0
    busy_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Waiter:
    ticket: Ticket
    lease_id: str
    since_s: float
    granted: asyncio.Future[Grant]


class _Lane:
    """The waiters of one priority: tenants in turn, each with its own first come, first served queue."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, OrderedDict[str, _Waiter]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def push(self, waiter: _Waiter) -> None:
        self._tenants.setdefault(waiter.ticket.tenant, OrderedDict())[waiter.lease_id] = waiter

    def pop(self) -> _Waiter:
        tenant, queue = self._tenants.popitem(last=False)
        _, waiter = queue.popitem(last=False)
        if queue:
            self._tenants[tenant] = queue  # to the end: the others' turn
        return waiter

    def remove(self, waiter: _Waiter) -> None:
        queue = self._tenants[waiter.ticket.tenant]
        del queue[waiter.lease_id]
        if not queue:
            del self._tenants[waiter.ticket.tenant]

    def oldest_s(self) -> float:
        return min(next(iter(queue.values())).since_s for queue in self._tenants.values())


@dataclass(slots=True)
class _Backend:
    """The queue and the books of one backend. `places` is what one replica runs at a time; told: whether anybody has
    said how many replicas there are."""

    name: str
    places: int
    work: WorkMeter
    replicas: int = 0
    told: bool = False
    woken_until_s: float = -math.inf
    running: int = 0
    grants: int = 0
    expired_leases: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    tenant_queued: Counter[str] = field(default_factory=Counter)
    waiting: dict[str, _Waiter] = field(default_factory=dict)
    lanes: dict[int, _Lane] = field(default_factory=dict)
    priorities: list[int] = field(default_factory=list)
    departures_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    @property
    def capacity(self) -> int:
        """A backend at zero replicas has the places of one: its first grant is what wakes it."""
        return self.places * max(1, self.replicas)

    def push(self, waiter: _Waiter) -> None:
        priority = waiter.ticket.priority
        if priority not in self.lanes:
            self.lanes[priority] = _Lane()
            insort(self.priorities, priority)
        self.lanes[priority].push(waiter)
        self.waiting[waiter.lease_id] = waiter
        self.tenant_queued[waiter.ticket.tenant] += 1

    def pop(self) -> _Waiter:
        priority = self.priorities[0]
        waiter = self.lanes[priority].pop()
        self._left(waiter, priority)
        return waiter

    def remove(self, waiter: _Waiter) -> None:
        priority = waiter.ticket.priority
        self.lanes[priority].remove(waiter)
        self._left(waiter, priority)

    def _left(self, waiter: _Waiter, priority: int) -> None:
        tenant = waiter.ticket.tenant
        del self.waiting[waiter.lease_id]
        if not self.waiting:
            self.departures_s.clear()
        self.tenant_queued[tenant] -= 1
        if not self.tenant_queued[tenant]:
            del self.tenant_queued[tenant]
        if not self.lanes[priority]:
            del self.lanes[priority]
            self.priorities.remove(priority)

    def retry_after_s(self, ahead: int, now_s: float) -> float:
        """When `ahead` waiting requests will have got a place, by the pace since the queue was last empty; 1 to 60."""
        if len(self.departures_s) < 2:
            return UNKNOWN_RETRY_AFTER_S
        per_grant_s = (now_s - self.departures_s[0]) / (len(self.departures_s) - 1)
        return float(min(60, max(1, math.ceil(ahead * per_grant_s))))


@dataclass(slots=True)
class _Lease:
    backend: _Backend
    renewed_s: float


class Admission:
    """The queues of all backends, on one event loop. The owner calls `tick` about once a second.

    places_per_replica: backend name -> how many requests one replica of it runs at a time.
    """

    def __init__(
        self,
        places_per_replica: Mapping[str, int],
        settings: BatcherSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backends = {name: _Backend(name, n, WorkMeter(clock())) for name, n in places_per_replica.items()}
        self._settings = settings
        self._clock = clock
        self._cautious_until_s = -math.inf
        # Ordered by the time of the last renewal, so that expiry only ever looks at the front.
        self._leases: OrderedDict[str, _Lease] = OrderedDict()
        self._queued_in: dict[str, _Backend] = {}

    @property
    def lease_ttl_s(self) -> float:
        return self._settings.lease_ttl_s

    def recover(self) -> None:
        """Start cautiously: an earlier instance may have granted places whose holders have not renewed here yet."""
        self._cautious_until_s = self._clock() + self._settings.lease_ttl_s / 2

    async def admit(self, ticket: Ticket, lease_id: str) -> Grant:
        """Wait for a place and lease it as `lease_id`, which must be new. Cancelling this leaves the queue.

        Raises `ModelNotFound`, `RateLimited` (the tenant's share of the queue is taken), `Overloaded` (the queue is
        full) or `DeadlineExceeded` (no place within the ticket's `timeout_s`).
        """
        backend = self._backends.get(ticket.backend)
        if backend is None:
            raise ModelNotFound(f"'{ticket.backend}' is no backend of this cluster; see GET /v1/models.")
        now_s = self._clock()
        if not backend.waiting and backend.running < self._open_places(backend, now_s):
            return self._grant(backend, lease_id, now_s, now_s)
        self._refuse_if_full(backend, ticket, now_s)
        loop = asyncio.get_running_loop()
        backend.push(waiter := _Waiter(ticket, lease_id, now_s, loop.create_future()))
        self._queued_in[lease_id] = backend
        deadline = loop.call_later(max(0.0, ticket.timeout_s), self._expire, backend, waiter)
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            # Also when the place was granted in the same turn of the loop: nobody is left to take it.
            self.release((lease_id,))
            if not waiter.granted.cancelled():
                waiter.granted.exception()  # looked at, so that asyncio does not report a deadline that nobody awaits
            raise
        finally:
            deadline.cancel()

    def release(self, lease_ids: Iterable[str], unused_s: Mapping[str, float] = {}) -> None:
        """End leases, or leave the queue if they still wait. Unknown ids are ignored, so it may be repeated.

        unused_s: for how long leases were kept without a request, where they were.
        """
        for lease_id in lease_ids:
            lease = self._leases.pop(lease_id, None)
            if lease is not None:
                self._count(lease.backend, -1, max(0.0, unused_s.get(lease_id, 0.0)))
                self._pump(lease.backend)
            elif (backend := self._queued_in.get(lease_id)) is not None:
                waiter = backend.waiting[lease_id]
                self._dequeue(backend, waiter, "left")
                waiter.granted.cancel()

    def renew(self, leases: Mapping[str, str], done: Mapping[str, tuple[int, int]] = {}) -> None:
        """Extend leases (id -> backend). Those unknown here were granted by an earlier instance and are taken over.

        done: by backend, input and output tokens of the holder's requests that have ended since the last time.
        """
        now_s = self._clock()
        for name, tokens in done.items():
            if (worked := self._backends.get(name)) is not None:
                worked.work.done(*tokens)
        for lease_id, name in leases.items():
            lease = self._leases.get(lease_id)
            if lease is not None:
                lease.renewed_s = now_s
                self._leases.move_to_end(lease_id)
            elif (backend := self._backends.get(name)) is not None:
                self._leases[lease_id] = _Lease(backend, now_s)
                self._count(backend, 1)

    def set_replicas(self, name: str, replicas: int) -> None:
        """Tell how many replicas run. Fewer than before takes no place away, it only delays the next grants."""
        backend = self._backends[name]
        backend.work.changed(self._clock(), replicas=replicas - backend.replicas)
        backend.replicas, backend.told = replicas, True
        if replicas:
            backend.woken_until_s = -math.inf
        self._pump(backend)

    def reconfigure(self, settings: BatcherSettings) -> None:
        """New bounds hold for the next request; who waits already keeps his place."""
        self._settings = settings

    def tick(self) -> None:
        """End the leases of holders that are gone, and the caution after a start; count the time since the last."""
        now_s = self._clock()
        for backend in self._backends.values():
            backend.work.count(now_s)
        expired_before_s = now_s - self._settings.lease_ttl_s
        while self._leases:
            lease_id, lease = next(iter(self._leases.items()))
            if lease.renewed_s > expired_before_s:
                break
            lease.backend.expired_leases += 1
            self.release((lease_id,))
        for backend in self._backends.values():
            self._pump(backend)

    def snapshot(self) -> dict[str, BackendLoad]:
        now_s = self._clock()
        return {
            name: BackendLoad(
                replicas=backend.replicas,
                capacity=self._open_places(backend, now_s),
                running=backend.running,
                queued=len(backend.waiting),
                oldest_wait_s=max((now_s - lane.oldest_s() for lane in backend.lanes.values()), default=0.0),
                grants=backend.grants,
                refusals=dict(backend.refusals),
                expired_leases=backend.expired_leases,
                replica_s=backend.work.replica_s,
                busy_s=backend.work.busy_s,
            )
            for name, backend in self._backends.items()
        }

    def recent_work(self) -> dict[str, Work]:
        """What the replicas of each backend did of late."""
        return {name: backend.work.recent for name, backend in self._backends.items()}

    def reusable_s(self, name: str) -> float:
        """For how long from now leases of this backend may be reused."""
        if (backend := self._backends.get(name)) is None or backend.waiting:
            return 0.0
        return REUSABLE_S if 2 * backend.running <= self._open_places(backend, self._clock()) else 0.0

    def wake(self, name: str) -> None:
        """As if a request waited for it, until a replica runs, for `WAKING_S` at most; nothing where one does."""
        if (backend := self._backends.get(name)) is not None and not backend.replicas:
            backend.woken_until_s = self._clock() + WAKING_S

    def asleep(self) -> frozenset[str]:
        """The backends without a replica. Of those that nobody has told of yet, after a start, that is not known."""
        return frozenset(name for name, backend in self._backends.items() if backend.told and not backend.replicas)

    def queued(self) -> dict[str, int]:
        """Waiting requests by backend, and one where a replica is to be started."""
        now_s, backends = self._clock(), self._backends.items()
        return {name: max(len(backend.waiting), int(now_s < backend.woken_until_s)) for name, backend in backends}

    # ---- the moves -------------------------------------------------------------------------------------------------

    def _count(self, backend: _Backend, by: int, ago_s: float = 0.0) -> None:
        backend.running += by
        backend.work.changed(self._clock() - ago_s, by)

    def _open_places(self, backend: _Backend, now_s: float) -> int:
        capacity = backend.capacity
        return capacity if now_s >= self._cautious_until_s else math.ceil(capacity / 2)

    def _grant(self, backend: _Backend, lease_id: str, since_s: float, now_s: float) -> Grant:
        self._count(backend, 1)
        backend.grants += 1
        self._leases[lease_id] = _Lease(backend, now_s)
        return Grant(lease_id, backend.name, (now_s - since_s) * 1000, self.reusable_s(backend.name))

    def _pump(self, backend: _Backend) -> None:
        """Hand free places to those whose turn it is."""
        if not backend.waiting:
            return
        now_s = self._clock()
        open_places = self._open_places(backend, now_s)
        while backend.waiting and backend.running < open_places:
            waiter = backend.pop()
            del self._queued_in[waiter.lease_id]
            if waiter.granted.done():  # its task was cancelled and has not run yet
                backend.refusals["left"] += 1
            else:
                if backend.waiting:
                    backend.departures_s.append(now_s)
                waiter.granted.set_result(self._grant(backend, waiter.lease_id, waiter.since_s, now_s))

    def _refuse_if_full(self, backend: _Backend, ticket: Ticket, now_s: float) -> None:
        own = backend.tenant_queued.get(ticket.tenant, 0)
        if own >= self._settings.max_queue_per_tenant:
            backend.refusals["tenant_share"] += 1
            ahead = own * max(1, len(backend.tenant_queued))  # in each round every tenant has one turn
            raise RateLimited(
                f"You have {own} requests waiting for '{backend.name}', as many as allowed; send fewer at a time.",
                None,
                backend.retry_after_s(ahead, now_s),
            )
        if len(backend.waiting) >= self._settings.max_queue:
            backend.refusals["queue_full"] += 1
            raise Overloaded(
                f"The queue for '{backend.name}' is full; try again later.",
                None,
                backend.retry_after_s(len(backend.waiting), now_s),
            )

    def _expire(self, backend: _Backend, waiter: _Waiter) -> None:
        if not waiter.granted.done():
            self._dequeue(backend, waiter, "deadline")
            waiter.granted.set_exception(_too_late(waiter.ticket))

    def _dequeue(self, backend: _Backend, waiter: _Waiter, reason: str) -> None:
        backend.remove(waiter)
        del self._queued_in[waiter.lease_id]
        backend.refusals[reason] += 1


def _too_late(ticket: Ticket) -> SwitchyardError:
    return DeadlineExceeded(
        f"No place on '{ticket.backend}' became free within {ticket.timeout_s:g} s; "
        "allow more time, try later or choose another model.",
    )
