"""`Ledger`: the books of `router.accounting.books` as a deployment of one replica, and the way to it from others.

It lives where its files are: on a cluster of several nodes pin it (a label or a resource of the node with the data
folder, in `ray_actor_options`), and a journal on another node is delivered by the processes of that node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.hop import call, method
from deployments.live_settings import LiveSettings
from models.errors import DeadlineExceeded, ModelUnavailable
from router.accounting.alerts import Alert
from router.accounting.analyst import Outlook
from router.accounting.anomalies import Anomaly
from router.accounting.audit import Verdict
from router.accounting.balances import LeaseAnswer, LeaseAsk, Standing
from router.accounting.books import Books
from router.accounting.directory import Changes
from router.accounting.experiment_store import ArmTally
from router.accounting.feedback import Feedback
from router.accounting.forecast import Forecast
from router.accounting.limits import Limit
from router.accounting.node_time import NodeHour, Reading
from router.accounting.registrar import Act, Done
from router.accounting.store import LEDGER_FILE, PostgresStore, SQLiteStore
from router.accounting.usage_sql import UsageQuery
from router.collecting import Collector
from router.events import Actor
from router.experience import Lessons
from router.settings import LedgerSettings

LOCK_WAIT_S = 120.0
LEASE_TIMEOUT_S = 2.0
INGEST_TIMEOUT_S = 30.0
READ_TIMEOUT_S = 30.0
AUDIT_TIMEOUT_S = 300.0
NO_URL = SecretStr("")
NONE: Mapping[str, SecretStr] = {}


def journal_folder(data_dir: str | Path) -> Path:
    """Where the journals of this node's processes are."""
    return Path(data_dir) / "journal"


@serve.deployment(
    name="Ledger",
    num_replicas=1,
    user_config={},
    max_ongoing_requests=4096,  # receipts that wait; deliveries and leases must pass beside them
    max_queued_requests=4096,
    graceful_shutdown_timeout_s=15,
    graceful_shutdown_wait_loop_s=0.5,
    health_check_period_s=5,
    health_check_timeout_s=30,
    ray_actor_options={"num_cpus": 0.1},
)
class Ledger:
    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, data_dir: str, url: SecretStr = NO_URL, secrets: Mapping[str, SecretStr] = NONE
    ) -> None:
        """Waits for an older replica, which a roll-out lets run on for a while, to let go of the database: a file in
        the data folder, or PostgreSQL at `url`. secrets: of alert channels."""
        folder = Path(data_dir)
        self._settings = LiveSettings(LedgerSettings)
        self._where = "PostgreSQL" if url.get_secret_value() else str(folder / LEDGER_FILE)

        def store() -> SQLiteStore | PostgresStore:
            where = url.get_secret_value()
            return PostgresStore(where, LOCK_WAIT_S) if where else SQLiteStore(folder / LEDGER_FILE, LOCK_WAIT_S)

        known = {name: secret.get_secret_value() for name, secret in secrets.items()}
        self._books = await Books.open(store, journal_folder(folder), known)
        await self._books.sweep()
        Collector().settled()
        self._sweeper = asyncio.create_task(self._books.run())
        self._watching = asyncio.create_task(self._books.watch.run())

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        if settings := self._settings.accept(user_config):
            self._books.watch.settings = settings.alerts
            self._books.retention = settings.retention

    async def ingest(self, holder: str, chunk: bytes) -> int:
        return await self._books.ingest(holder, chunk)

    async def retire(self, holder: str) -> None:
        await self._books.retire(holder)

    async def receipt(self, org: str, request_id: str, wait_s: float) -> dict[str, Any] | None:
        return await self._books.receipt(org, request_id, wait_s)

    async def usage(self, query: UsageQuery) -> list[dict[str, Any]]:
        return await self._books.usage(query)

    async def outlook(self, org: str | None) -> Outlook:
        return await self._books.outlook(org)

    async def forecast(self, org: str | None, days: int) -> Forecast | None:
        return await self._books.forecast(org, days)

    async def anomalies(self, org: str | None, step: str, since_unix_ms: int, until_unix_ms: int) -> list[Anomaly]:
        return await self._books.anomalies(org, step, since_unix_ms, until_unix_ms)

    async def judged(self, org: str) -> list[tuple[str, str, int, float]]:
        return await self._books.judged(org)

    async def alerts(self, org: str | None, limit: int) -> list[dict[str, Any]]:
        return await self._books.alerts(org, limit)

    async def tell(self, alert: Alert) -> bool:
        return await self._books.watch.tell(alert)

    async def requests_of(self, org: str, user: str) -> list[str]:
        return await self._books.requests_of(org, user)

    async def forget_user(self, org: str, user: str, ids: Sequence[str]) -> None:
        await self._books.forget_user(org, user, ids)

    async def forget_org(self, org: str) -> int:
        return await self._books.forget_org(org)

    async def facts(self) -> dict[str, Any]:
        return {**await self._books.facts(), "where": self._where}

    async def keep_feedback(self, given: Feedback) -> None:
        await self._books.keep_feedback(given)

    async def feedback(self, org: str, by: str) -> list[dict[str, Any]]:
        return await self._books.feedback(org, by)

    async def share(self, lessons: Lessons) -> Lessons:
        return await self._books.share(lessons)

    async def take_node_time(self, readings: Sequence[Reading]) -> None:
        await self._books.take_node_time(readings)

    async def node_hours(self, since_unix_ms: int, until_unix_ms: int, step_ms: int) -> list[NodeHour]:
        return await self._books.node_hours(since_unix_ms, until_unix_ms, step_ms)

    async def experiment(self, name: str, version: str) -> list[ArmTally]:
        return await self._books.experiment(name, version)

    async def lease(self, ask: LeaseAsk) -> LeaseAnswer:
        return await self._books.lease(ask)

    async def standings(self, limits: Sequence[Limit]) -> list[Standing]:
        return await self._books.standings(limits)

    async def administer(self, act: Act, actor: Actor, detail: dict[str, Any]) -> Done:
        return await self._books.registrar.do(act, actor, detail)

    async def changes(self, incarnation: str, version: int, wait_s: float) -> Changes:
        return await self._books.registrar.changes(incarnation, version, wait_s)

    async def audit_page(self, org: str | None, after: str, limit: int) -> list[dict[str, Any]]:
        return await self._books.registrar.audit_page(org, after, limit)

    async def audit_verdict(self, expected_head: str | None, org: str | None) -> Verdict:
        return await self._books.registrar.audit_verdict(expected_head, org)

    async def counts(self) -> dict[str, int]:
        """`router.accounting.books.Counts` by name."""
        return asdict(self._books.counts)

    async def check_health(self) -> None:
        """Unhealthy when nothing gets written any more or nobody looks after orphaned journals any more."""
        if self._sweeper.done() or self._watching.done():
            raise ModelUnavailable("The ledger's sweeper or look-out has stopped; this replica is to be replaced.")
        async with asyncio.timeout(20):
            await self._books.check()

    async def __del__(self) -> None:
        sweeper = getattr(self, "_sweeper", None)
        if sweeper is None:
            return
        tasks = {sweeper, self._watching}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._books.close()


class LedgerHandle:
    """The Ledger as other deployments see it: `router.ports.LedgerPort`, the shipper's inbox and the budgets' lease.

    Everything raises `models.errors` only.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._ingest = method(handle, "ingest")
        self._retire = method(handle, "retire")
        self._receipt = method(handle, "receipt")
        self._usage = method(handle, "usage")
        self._outlook = method(handle, "outlook")
        self._forecast = method(handle, "forecast")
        self._anomalies = method(handle, "anomalies")
        self._judged = method(handle, "judged")
        self._alerts = method(handle, "alerts")
        self._tell = method(handle, "tell")
        self._requests_of = method(handle, "requests_of")
        self._forget_user, self._forget_org = method(handle, "forget_user"), method(handle, "forget_org")
        self._facts = method(handle, "facts")
        self._keep_feedback = method(handle, "keep_feedback")
        self._feedback = method(handle, "feedback")
        self._share = method(handle, "share")
        self._take_node_time, self._node_hours = method(handle, "take_node_time"), method(handle, "node_hours")
        self._experiment = method(handle, "experiment")
        self._lease = method(handle, "lease")
        self._standings = method(handle, "standings")
        self._administer = method(handle, "administer")
        self._changes = method(handle, "changes")
        self._audit_page = method(handle, "audit_page")
        self._audit_verdict = method(handle, "audit_verdict")

    async def ingest(self, holder: str, chunk: bytes) -> int:
        return await _within(INGEST_TIMEOUT_S, self._ingest, holder, chunk)

    async def retire(self, holder: str) -> None:
        await _within(INGEST_TIMEOUT_S, self._retire, holder)

    async def receipt(self, org: str, request_id: str, wait_s: float) -> dict[str, Any] | None:
        return await _within(READ_TIMEOUT_S + wait_s, self._receipt, org, request_id, wait_s)

    async def usage(self, query: UsageQuery) -> list[dict[str, Any]]:
        return await _within(READ_TIMEOUT_S, self._usage, query)

    async def outlook(self, org: str | None) -> Outlook:
        return await _within(READ_TIMEOUT_S, self._outlook, org)

    async def forecast(self, org: str | None, days: int) -> Forecast | None:
        return await _within(READ_TIMEOUT_S, self._forecast, org, days)

    async def anomalies(self, org: str | None, step: str, since_unix_ms: int, until_unix_ms: int) -> list[Anomaly]:
        return await _within(READ_TIMEOUT_S, self._anomalies, org, step, since_unix_ms, until_unix_ms)

    async def judged(self, org: str) -> list[tuple[str, str, int, float]]:
        return await _within(READ_TIMEOUT_S, self._judged, org)

    async def alerts(self, org: str | None, limit: int) -> list[dict[str, Any]]:
        return await _within(READ_TIMEOUT_S, self._alerts, org, limit)

    async def tell(self, alert: Alert) -> bool:
        return await _within(READ_TIMEOUT_S, self._tell, alert)

    async def requests_of(self, org: str, user: str) -> list[str]:
        return await _within(READ_TIMEOUT_S, self._requests_of, org, user)

    async def forget_user(self, org: str, user: str, ids: Sequence[str]) -> None:
        await _within(AUDIT_TIMEOUT_S, self._forget_user, org, user, ids)

    async def forget_org(self, org: str) -> int:
        return await _within(AUDIT_TIMEOUT_S, self._forget_org, org)

    async def facts(self) -> dict[str, Any]:
        return await _within(READ_TIMEOUT_S, self._facts)

    async def keep_feedback(self, given: Feedback) -> None:
        await _within(INGEST_TIMEOUT_S, self._keep_feedback, given)

    async def feedback(self, org: str, by: str) -> list[dict[str, Any]]:
        return await _within(READ_TIMEOUT_S, self._feedback, org, by)

    async def share(self, lessons: Lessons) -> Lessons:
        answer: Lessons = await _within(INGEST_TIMEOUT_S, self._share, lessons)
        return answer

    async def take_node_time(self, readings: Sequence[Reading]) -> None:
        await _within(INGEST_TIMEOUT_S, self._take_node_time, readings)

    async def node_hours(self, since_unix_ms: int, until_unix_ms: int, step_ms: int) -> list[NodeHour]:
        found: list[NodeHour] = await _within(READ_TIMEOUT_S, self._node_hours, since_unix_ms, until_unix_ms, step_ms)
        return found

    async def experiment(self, name: str, version: str) -> list[ArmTally]:
        found: list[ArmTally] = await _within(READ_TIMEOUT_S, self._experiment, name, version)
        return found

    async def lease(self, ask: LeaseAsk) -> LeaseAnswer:
        return await _within(LEASE_TIMEOUT_S, self._lease, ask)

    async def standings(self, limits: Sequence[Limit]) -> list[Standing]:
        return await _within(READ_TIMEOUT_S, self._standings, limits)

    async def administer(self, act: Act, actor: Actor, detail: dict[str, Any]) -> Done:
        """Raises what the act raises, too."""
        return await _within(READ_TIMEOUT_S, self._administer, act, actor, detail)

    async def changes(self, incarnation: str, version: int, wait_s: float) -> Changes:
        return await _within(LEASE_TIMEOUT_S + wait_s, self._changes, incarnation, version, wait_s)

    async def audit_page(self, org: str | None, after: str, limit: int) -> list[dict[str, Any]]:
        return await _within(READ_TIMEOUT_S, self._audit_page, org, after, limit)

    async def audit_verdict(self, expected_head: str | None, org: str | None) -> Verdict:
        return await _within(AUDIT_TIMEOUT_S, self._audit_verdict, expected_head, org)


async def _within(timeout_s: float, method: DeploymentHandle, *args: Any) -> Any:
    """A handle by itself waits for as long as there is no replica."""
    try:
        async with asyncio.timeout(timeout_s):
            return await call(method, *args)
    except TimeoutError:
        raise DeadlineExceeded("The ledger did not answer in time; try again.", None, 1.0) from None


def ledger_deployment(data_dir: str, url: SecretStr = NO_URL, secrets: Mapping[str, SecretStr] = NONE) -> Application:
    """The bound app. `data_dir` is on the node that the Ledger runs on; `url` is of a PostgreSQL database, instead of a
    file there. secrets: of alert channels, by the environment's names for them."""
    return Ledger.bind(data_dir, url, secrets)  # type: ignore[attr-defined]  # the decorator makes a Deployment of it
