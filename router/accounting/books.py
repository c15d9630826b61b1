"""The ledger itself: one process that takes in everybody's journals, answers for receipts and sums, and leases budgets.

All database work is in two threads (one writes, one reads); what is decided at once is decided in memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from models.errors import Overloaded
from router import receipts
from router.accounting import journal
from router.accounting.alerts import ALERT_DAYS
from router.accounting.analyst import Analyst, Outlook
from router.accounting.anomalies import Anomaly
from router.accounting.balances import Balances, LeaseAnswer, LeaseAsk, Standing
from router.accounting.budget import LEASE_VALID_S
from router.accounting.directory import Org
from router.accounting.experiment_store import ArmTally
from router.accounting.feedback import Feedback
from router.accounting.forecast import Forecast
from router.accounting.limits import SLICE_MS, SLICES, Account, Limit, period_of, period_span_unix_ms, slice_name
from router.accounting.node_time import NodeHour, Reading
from router.accounting.registrar import Registrar
from router.accounting.shipper import take_in_orphans
from router.accounting.store import Accepted, OpenRequest, Store
from router.accounting.usage_sql import DAY_MS, UsageQuery
from router.accounting.watch import Watch
from router.events import as_json
from router.experience import Lessons
from router.settings import LEAST_RETENTION_DAYS, RetentionSettings

T = TypeVar("T")
logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 3.0
ABANDONED_AFTER_S = 3600.0
"""An open request of a process that cannot be seen from here (another node's) counts as abandoned after this long."""
_SILENT_HOLDER_S = 3 * LEASE_VALID_S
RETAIN_EVERY_S = 3600.0
ASKED_FOR_S = 600.0
"""A budget that nobody asked a lease of for so long is not there any more, or nothing is spent of it."""
_DROPPED_AT_ONCE, _FORGOTTEN_AT_ONCE = 500, 10_000
_MAX_WAITERS = 1024
_MAX_READS = {"receipt": 2 * _MAX_WAITERS, "usage": 16, "audit": 16}
"""How many of each may wait for the thread that reads. A sum may take seconds, a receipt takes microseconds."""


@dataclass(slots=True)
class Counts:
    """Since this process began. `torn`: lines that a crash cut short. `rejected`: records that are not ours, set aside
    in the database. `waits_refused`: receipts answered at once since too many others were being waited for.
    `reads_refused`: receipts and sums not looked up since too many others were."""

    records: int = 0
    torn: int = 0
    rejected: int = 0
    abandoned: int = 0
    waits_refused: int = 0
    reads_refused: int = 0
    alerts_sent: int = 0
    alerts_failed: int = 0


class Books:
    """Use `await Books.open(...)`. `journals` is the folder of this node's journals.

    `ingest` and `retire` may come twice, out of order and from several shippers: the books end up the same.
    """

    def __init__(
        self, store: Store, journals: Path, writer: ThreadPoolExecutor, secrets: Mapping[str, str] | None = None
    ) -> None:
        self._store, self._journals, self._writer = store, journals, writer
        self._reader = ThreadPoolExecutor(1, "ledger-read")
        self._waiters: dict[tuple[str, str], list[asyncio.Future[None]]] = {}
        self._waiting = 0
        self._reading: Counter[str] = Counter()
        self._heard_s: dict[str, float] = {}
        self._balances = Balances(_now_unix_ms())
        self._booking = asyncio.Lock()  # what is loaded from the database must not be booked again
        self._counts = Counts()
        self.analyst = Analyst(store.usage)
        self.retention = RetentionSettings()
        self.asked_for: dict[Account, tuple[int, float]] = {}
        """Budgets that some ingress asked leases of -> their amount, and when that was."""
        self.watch = Watch(self, store.alerts, self._write, secrets or {})
        self.registrar = Registrar(store.directory, self._write, lambda work: self._read("audit", work))

    @classmethod
    async def open(
        cls, make_store: Callable[[], Store], journals: Path, secrets: Mapping[str, str] | None = None
    ) -> Books:
        """Make the store (which may wait for its lock) and load the balances; off the event loop. secrets: of alert
        channels, by the environment's names for them."""
        writer = ThreadPoolExecutor(1, "ledger-write")
        loop = asyncio.get_running_loop()
        books = cls(await loop.run_in_executor(writer, make_store), journals, writer, secrets)
        await books._load()
        await books.registrar.load()
        return books

    @property
    def retention(self) -> RetentionSettings:
        return self._retention

    @retention.setter
    def retention(self, settings: RetentionSettings) -> None:
        """The next sweep keeps to it."""
        self._retention, self._retained_s = settings, -RETAIN_EVERY_S

    # ---- what is written -------------------------------------------------------------------------------------------

    async def ingest(self, holder: str, chunk: bytes) -> int:
        """Take in lines of `holder`'s journal. Returns how many records were new; they are in the database then."""
        records, torn = await self._write(lambda: journal.decode(chunk))
        if torn:
            self._counts.torn += torn
            logger.warning("journal %s: %d lines were cut short by a crash and are skipped", holder, torn)
        return await self._take(holder, records)

    async def retire(self, holder: str) -> None:
        """`holder` is gone and its whole journal is in: close what it left open, end its leases."""
        await self._abandon(await self._write(lambda: self._store.open_requests(holder=holder)))
        await self._drop_leases(holder)

    async def sweep(self) -> None:
        """Take in the journals that nobody owns any more, and give up on what has not been heard of for long."""
        await take_in_orphans(self._journals, self)
        here = journal.names(self._journals)
        now_s = time.monotonic()
        for holder in [h for h, at_s in self._heard_s.items() if now_s - at_s > _SILENT_HOLDER_S and h not in here]:
            await self._drop_leases(holder)
        before = _now_unix_ms() - int(ABANDONED_AFTER_S * 1000)
        stale = await self._write(lambda: self._store.open_requests(before_unix_ms=before))
        await self._abandon([request for request in stale if request.holder not in here])
        self._balances.advance(_now_unix_ms())
        self.asked_for = {each: asked for each, asked in self.asked_for.items() if now_s - asked[1] < ASKED_FOR_S}
        if now_s - self._retained_s >= RETAIN_EVERY_S:
            self._retained_s = now_s
            await self.retain(_now_unix_ms())
        await self._write(lambda: self._store.drop_minutes(slice_name(_now_unix_ms() // SLICE_MS - 2 * SLICES)))

    async def retain(self, now_unix_ms: int) -> int:
        """Drop the requests that have had their time, a few at a time, and old alerts. Returns how many requests."""
        dropped, keeping = 0, self._store.retention
        await self._write(partial(self._store.alerts.drop, now_unix_ms - ALERT_DAYS * DAY_MS))
        for org in await self._write(keeping.orgs):
            if (before := self._kept_since(org, now_unix_ms)) is None:
                continue
            while count := await self._write(partial(keeping.drop_requests, org, before, _DROPPED_AT_ONCE)):
                dropped += count
            while await self._write(partial(keeping.merge_users, org, before)):
                pass
        return dropped

    def _kept_since(self, org: str, now_unix_ms: int) -> int | None:
        """Requests of an org that were opened before then go; None: none do."""
        ends = [now_unix_ms - days * DAY_MS] if (days := self.retention.days_of(org)) is not None else []
        found = self.registrar.directory.find(Org, org)
        if found is not None and found.erased_at_unix_ms is not None:
            ends.append(min(found.erased_at_unix_ms, now_unix_ms - LEAST_RETENTION_DAYS * DAY_MS))
        return max(ends, default=None)

    async def requests_of(self, org: str, user: str) -> list[str]:
        """Some requests that came in so far and still name a user; none is left when there are none."""
        return await self._write(partial(self._store.retention.requests_of, org, user, _FORGOTTEN_AT_ONCE))

    async def forget_user(self, org: str, user: str, ids: Sequence[str]) -> None:
        """See `RetentionStore.forget_user`."""
        await self._write(partial(self._store.retention.forget_user, org, user, ids))
        await self._write(self._store.retention.scrub)

    async def forget_org(self, org: str) -> int:
        """All requests of an org that came in so far, and how many they were. What was spent stays known, and the bare
        rows of the last days, until `retain` drops them."""
        count, keeping = 0, self._store.retention
        before = _now_unix_ms() - LEAST_RETENTION_DAYS * DAY_MS
        while done := await self._write(partial(keeping.drop_requests, org, before, _DROPPED_AT_ONCE)):
            count += done
        while done := await self._write(partial(keeping.forget_requests, org, _DROPPED_AT_ONCE)):
            count += done
        await self._write(partial(keeping.forget_users, org))
        await self._write(keeping.scrub)
        async with self._booking:
            self._balances.forget()
        return count

    async def facts(self) -> dict[str, Any]:
        """See `RetentionStore.facts`; and for how long requests stay."""
        found = await self._write(self._store.retention.facts)
        return {**found, "retention": self.retention.model_dump()}

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            try:
                await self.sweep()
            except Exception:
                logger.exception("the ledger could not take in orphaned journals; it tries again")
            await asyncio.sleep(SWEEP_EVERY_S)

    # ---- what is asked ---------------------------------------------------------------------------------------------

    async def receipt(self, org: str, request_id: str, wait_s: float) -> dict[str, Any] | None:
        """The close record. Waits up to `wait_s` for one that is still on its way from its journal.

        Raises `Overloaded`, as `usage` does.
        """
        key = (org, request_id)
        if self._waiting >= _MAX_WAITERS:
            self._counts.waits_refused += 1
            wait_s = 0
        arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(key, []).append(arrival)
        self._waiting += 1
        try:
            found = await self._read("receipt", lambda: self._store.receipt(org, request_id))
            if found is None and wait_s > 0:
                await asyncio.wait({arrival}, timeout=wait_s)
                if arrival.done():
                    found = await self._read("receipt", lambda: self._store.receipt(org, request_id))
            return found
        finally:
            self._waiting -= 1
            others = self._waiters[key]
            others.remove(arrival)
            if not others:
                del self._waiters[key]

    async def usage(self, query: UsageQuery) -> list[dict[str, Any]]:
        """See `Store.usage`."""
        return await self._read("usage", lambda: self._store.usage(query))

    async def outlook(self, org: str | None, groups: tuple[tuple[str, str], ...] = ()) -> Outlook:
        return await self._read("usage", lambda: self.analyst.outlook(org, _now_unix_ms(), groups))

    async def forecast(self, org: str | None, days: int) -> Forecast | None:
        return await self._read("usage", lambda: self.analyst.forecast(org, days, _now_unix_ms()))

    async def anomalies(self, org: str | None, step: str, since_unix_ms: int, until_unix_ms: int) -> list[Anomaly]:
        return await self._read("usage", lambda: self.analyst.anomalies(org, step, since_unix_ms, until_unix_ms))

    async def judged(self, org: str) -> list[tuple[str, str, int, float]]:
        """See `FeedbackStore.by_work`."""
        return await self._read("usage", lambda: self._store.feedback.by_work(org))

    async def alerts(self, org: str | None, limit: int) -> list[dict[str, Any]]:
        """See `AlertStore.page`."""
        return await self._read("usage", lambda: self._store.alerts.page(org, limit))

    async def keep_feedback(self, given: Feedback) -> None:
        await self._write(lambda: self._store.feedback.save(given))

    async def feedback(self, org: str, by: str) -> list[dict[str, Any]]:
        """See `FeedbackStore.summary`."""
        return await self._read("usage", lambda: self._store.feedback.summary(org, by))

    async def share(self, lessons: Lessons) -> Lessons:
        """See `ExperienceStore.share`."""
        return await self._write(lambda: self._store.experience.share(lessons, _now_unix_ms()))

    async def take_node_time(self, readings: Sequence[Reading]) -> None:
        """See `NodeTimeStore.take`."""
        await self._write(lambda: self._store.node_time.take(readings, _now_unix_ms()))

    async def node_hours(self, since_unix_ms: int, until_unix_ms: int, step_ms: int) -> list[NodeHour]:
        """See `NodeTimeStore.hours`."""
        return await self._read("usage", lambda: self._store.node_time.hours(since_unix_ms, until_unix_ms, step_ms))

    async def experiment(self, name: str, version: str) -> list[ArmTally]:
        """See `ExperimentStore.tallies`."""
        return await self._read("usage", lambda: self._store.experiments.tallies(name, version))

    async def lease(self, ask: LeaseAsk) -> LeaseAnswer:
        """Decided in memory; what is granted is written down before it is told, so no crash can grant it twice."""
        self._heard_s[ask.holder] = time.monotonic()
        if ask.account.unit == "microusd" and (ask.account in self.asked_for or len(self.asked_for) < _MAX_WAITERS):
            self.asked_for[ask.account] = ask.limit, time.monotonic()
        await self._know(ask.account, ask.period)
        lease, answer = self._balances.lease(ask)
        if lease is not None:
            await self._write(lambda: self._store.save_lease(lease))
        return answer

    async def standings(self, limits: Sequence[Limit]) -> list[Standing]:
        """How each of them stands in the period that is now."""
        standings, now = [], _now_unix_ms()
        for limit in limits:
            period = period_of(limit.account.span, now)
            await self._know(limit.account, period)
            standings.append(self._balances.standing(limit.account, period, limit.amount))
        return standings

    @property
    def counts(self) -> Counts:
        return replace(self._counts, rejected=self._store.rejected, **self.watch.counts)

    async def check(self) -> None:
        """Returns once the thread that writes has. The other may be busy with somebody's sums; a new process would not
        answer them sooner."""
        await self._write(lambda: None)

    async def close(self) -> None:
        """Finish what is being written and let go of the files."""
        await asyncio.to_thread(self._reader.shutdown)
        await self._write(self._store.close)
        await asyncio.to_thread(self._writer.shutdown)

    # ---- within ----------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        self._heard_s = dict.fromkeys(await self._write(self._store.lease_holders), time.monotonic())

    async def _know(self, account: Account, period: str) -> None:
        """Have its balance in memory."""
        self._balances.advance(_now_unix_ms())
        if self._balances.knows(account, period):
            return
        async with self._booking:
            if self._balances.knows(account, period):
                return
            since, until = period_span_unix_ms(account.span, period)
            leases = await self._write(lambda: self._store.leases(account, period))
            spent = []
            if account.unit == "microusd":
                spent = await self._write(lambda: self._store.spent(account, since, until))
            self._balances.load(account, period, spent, leases)

    async def _take(self, holder: str, records: Sequence[dict[str, Any]]) -> int:
        # Shielded: what is in the database must be in the balances too, even if the caller has left meanwhile.
        return await asyncio.shield(asyncio.create_task(self._take_whole(holder, records)))

    async def _take_whole(self, holder: str, records: Sequence[dict[str, Any]]) -> int:
        async with self._booking:
            try:
                accepted = await self._write(lambda: self._store.ingest(holder, records))
            except Exception:
                self._balances.forget()  # it may be in the database all the same, and will not be new next time
                raise
            for entry in accepted:
                self._book(entry)
        self._counts.records += len(accepted)
        return len(accepted)

    def _book(self, entry: Accepted) -> None:
        if entry.by_model:
            self._balances.book(
                entry.org, entry.team, entry.key_id, entry.opened_at_unix_ms, entry.holder, entry.by_model
            )
        if entry.kind == "close":
            for waiter in self._waiters.get((entry.org, entry.request_id), ()):
                if not waiter.done():
                    waiter.set_result(None)

    async def _abandon(self, requests: Sequence[OpenRequest]) -> None:
        for request in requests:
            close = as_json(receipts.abandoned(request, _now_unix_ms()))
            self._counts.abandoned += await self._take(request.holder, [close])

    async def _drop_leases(self, holder: str) -> None:
        self._heard_s.pop(holder, None)
        await self._write(lambda: self._store.drop_leases(holder))
        self._balances.drop(holder)

    async def _write(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    async def _read(self, kind: str, work: Callable[[], T]) -> T:
        """Whoever leaves while it waits leaves the queue too."""
        if self._reading[kind] >= _MAX_READS[kind]:
            self._counts.reads_refused += 1
            raise Overloaded("Too many questions to the books wait already; try again.", None, 1.0)
        self._reading[kind] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, work)
        finally:
            self._reading[kind] -= 1


def _now_unix_ms() -> int:
    return int(time.time() * 1000)
