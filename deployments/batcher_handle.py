"""The Batcher's port in each Ingress: its leases, and how they are renewed, reused and given back."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, replace

from ray.serve.handle import DeploymentHandle

from deployments.batcher import Meter
from deployments.hop import call, method
from models.errors import DeadlineExceeded, ModelUnavailable, Overloaded, SwitchyardError
from models.messages import Usage
from router.admission import REUSABLE_S
from router.ports import NO_USAGE, Grant, Ticket
from router.work import SETTLED_S, Work

HOP_MARGIN_S = 2.0
"""What a holder allows the hop beyond a ticket's own time-out, which the Batcher's clock measures."""

RETRY_S = 0.2
WAKE_AGAIN_S = 5.0
"""How often a holder asks for the same backend to be woken."""

SWEEP_EVERY_S = 0.02
HEAR_EVERY_S = 0.6 * REUSABLE_S
MOST_UNUSED_S = SETTLED_S / 2
"""A lease that has stood unused for longer is not kept: the Batcher is told of that at its end, and counts the time by
then."""


@dataclass(slots=True)
class _Held:
    """A lease of this holder, and the grant that runs on it.

    kept_at_s: since when nothing runs on it, where that is so. unused_s: for how long nothing did before.
    """

    grant: Grant
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
    While a backend is quiet, a lease is kept after its request for the next one, which is then admitted without a hop
    (and is not among the Batcher's `grants`). Whether it is quiet, each grant says; where requests follow each other
    without one, the Batcher is asked for all of them at once. It is told for how long nothing ran on a lease, and what
    was done on all.
    """

    def __init__(self, handle: DeploymentHandle, restart_wait_s: float = 10.0) -> None:
        self._admit = method(handle, "admit")
        self._release = method(handle, "release")
        self._renew = method(handle, "renew")
        self._reusable_s = method(handle, "reusable_s")
        self._node_time = method(handle, "node_time")
        self._wake = method(handle, "wake")
        self._restart_wait_s = restart_wait_s
        self._holder = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._held: dict[str, _Held] = {}
        self._kept: dict[str, dict[str, None]] = defaultdict(dict)  # by backend: of those held, the ones without work
        self._keep_until_s: dict[str, float] = defaultdict(float)  # by backend: when it was last said to be quiet
        self._used: Counter[str] = Counter()  # requests by backend that have ended since that was asked
        self._hearing: asyncio.Task[None] | None = None
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
        self._used[grant.backend] += 1
        if self._hearing is None or self._hearing.done():
            self._hearing = asyncio.create_task(self._keep_hearing())
        now_s = time.monotonic()
        if held.unused_s > MOST_UNUSED_S or self._keep_until_s[grant.backend] <= now_s:
            self._drop(grant.lease_id)
            return
        self._kept[grant.backend][grant.lease_id] = None
        held.kept_at_s = now_s
        if self._sweeping is None:
            self._sweep()

    async def close(self) -> None:
        """Stop renewing and give back what is still held."""
        if self._renewing is not None:
            self._renewing.cancel()
        if self._hearing is not None:
            self._hearing.cancel()
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
            if self._kept_until_s(lease_id) <= now_s:
                self._drop(lease_id)
                continue
            held = self._held[lease_id]
            held.taken_up()
            held.grant = Grant(lease_id, backend, 0.0)
            return held.grant
        return None

    def _kept_until_s(self, lease_id: str) -> float:
        held = self._held[lease_id]
        assert held.kept_at_s is not None
        return min(held.kept_at_s + REUSABLE_S, self._keep_until_s[held.grant.backend])

    def _sweep(self) -> None:
        """Give back what has waited too long for its next request, and come again when the next will have."""
        now_s = time.monotonic()
        due_s = math.inf
        for kept in self._kept.values():
            for lease_id in list(kept):
                until_s = self._kept_until_s(lease_id)
                if until_s > now_s:
                    due_s = min(due_s, until_s)
                else:
                    del kept[lease_id]
                    self._drop(lease_id)
        again = None
        if due_s < math.inf:
            again = asyncio.get_running_loop().call_later(max(due_s - now_s, SWEEP_EVERY_S), self._sweep)
        self._sweeping = again

    async def _keep_hearing(self) -> None:
        """Whether leases may still be kept, of backends where requests follow each other; until none do."""
        while self._used:
            await asyncio.sleep(HEAR_EVERY_S)
            used, self._used = self._used, Counter()
            if busy := [name for name, times in used.items() if times > 1]:
                with suppress(SwitchyardError, TimeoutError):  # what was said before soon ends by itself
                    async with asyncio.timeout(HOP_MARGIN_S):
                        for name, reusable_s in (await call(self._reusable_s, busy)).items():
                            self._hear(name, reusable_s)

    def _hear(self, backend: str, reusable_s: float) -> None:
        """The Batcher's word on leases of `backend`. Where others want its places, none is kept."""
        self._keep_until_s[backend] = time.monotonic() + reusable_s
        if not reusable_s:
            kept, self._kept[backend] = self._kept[backend], {}
            for lease_id in kept:
                self._drop(lease_id)

    def _drop(self, lease_id: str) -> None:
        held = self._held.pop(lease_id)
        held.taken_up()
        self._give_back(lease_id, held.unused_s)

    async def _ask(self, ticket: Ticket) -> Grant:
        lease_id = f"{self._holder}-{next(self._numbers)}"
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
        self._held[lease_id] = _Held(grant)
        self._hear(ticket.backend, grant.reusable_s)
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
