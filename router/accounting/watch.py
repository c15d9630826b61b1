"""The ledger's look-out: compares budgets, forecasts and the last hour with what is usual, and sees that who is to be
told is told: once, again and again until a channel takes it, and written down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from models.errors import SwitchyardError
from router.accounting.alert_channels import Channels, NotDelivered
from router.accounting.alerts import (
    Alert,
    AlertStore,
    Delivery,
    Told,
    anomaly_alert,
    budget_alerts,
    database_alert,
    forecast_alert,
)
from router.accounting.directory import Policy
from router.accounting.limits import Account, Limit
from router.accounting.usage_sql import UsageQuery
from router.settings import AlertChannel, AlertSettings

if TYPE_CHECKING:
    from router.accounting.books import Books

logger = logging.getLogger(__name__)

PAUSES_S = (10, 60, 300, 1_800, 7_200, 21_600)
"""Before each further attempt. After the last one a delivery has failed."""
TICK_S = 2.0
FORECAST_EVERY_S = 600.0
ANOMALIES_EVERY_S = 300.0
MAX_PENDING = 1_000
_HOUR_MS = 3_600_000
_DIMENSIONS = (("team", "team"), ("key", "key_id"), ("model", "model"))


class Watch:
    """write: runs work in the thread that writes to the database. Everything else is asked of `books`."""

    def __init__(
        self,
        books: Books,
        store: AlertStore,
        write: Callable[[Callable[[], Any]], Awaitable[Any]],
        secrets: Mapping[str, str],
    ) -> None:
        self.settings = AlertSettings()
        self._books, self._store, self._write = books, store, write
        self._channels = Channels(secrets)
        self._pending: dict[tuple[str, str], Told] = {}
        self._unsaved: set[tuple[str, str]] = set()
        self._known: dict[tuple[str, str], None] = {}
        self._loaded = False
        self._down_since_unix_ms: int | None = None
        self._looked_s: dict[str, float] = {}
        self.counts = {"alerts_sent": 0, "alerts_failed": 0}

    async def run(self) -> None:
        """Look and tell for ever."""
        while True:
            try:
                await self.look()
                await self.deliver()
            except Exception:
                logger.exception("alerts could not be looked after; it is tried again")
            await asyncio.sleep(TICK_S)

    # ---- looking ---------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Everything that is due to be looked at."""
        if not self.settings.channels or not await self._database_answers():
            return
        if self._is_due("budgets", self.settings.every_s):
            await self._look_at_budgets()
        if self.settings.forecast and self._is_due("forecast", FORECAST_EVERY_S):
            await self._look_ahead()
        if self.settings.anomalies and self._is_due("anomalies", ANOMALIES_EVERY_S):
            await self._look_at_the_last_hours()

    async def _database_answers(self) -> bool:
        now = _now_unix_ms()
        try:
            if not self._loaded:
                self._pending |= {(t.alert.org, t.alert.key): t for t in await self._write(self._due)}
                self._loaded = True
            await self._write(self._due_none)
        except Exception as error:
            if self._down_since_unix_ms is None:
                self._down_since_unix_ms = now
                logger.error("the ledger's database does not answer (%s)", type(error).__name__)
            elif now - self._down_since_unix_ms >= self.settings.database_down_s * 1000:
                await self.tell(database_alert(self._down_since_unix_ms, now))
            return False
        self._down_since_unix_ms = None
        return True

    def _due(self) -> list[Told]:
        return self._store.due(MAX_PENDING)

    def _due_none(self) -> None:
        self._store.due(1)

    async def _look_at_budgets(self) -> None:
        limits = self.limits()
        standings = await self._books.standings(limits)
        for limit, standing in zip(limits, standings, strict=True):
            for alert in budget_alerts(limit, standing, self.settings.budget_thresholds, _now_unix_ms()):
                await self.tell(alert)

    async def _look_ahead(self) -> None:
        for limit in self.limits():
            narrowed = [(name, value) for name, field in _DIMENSIONS if (value := getattr(limit.account, field))]
            if limit.account.span != "month" or len(narrowed) > 1:
                continue
            outlook = await self._books.outlook(limit.account.org, tuple(narrowed))
            if alert := forecast_alert(limit, outlook, _now_unix_ms()):
                await self.tell(alert)

    async def _look_at_the_last_hours(self) -> None:
        now = _now_unix_ms()
        since = now // _HOUR_MS * _HOUR_MS - _HOUR_MS
        for row in await self._books.usage(UsageQuery(None, since, now, ("org",))):
            for anomaly in await self._books.anomalies(row["org"], "hour", since, now):
                await self.tell(anomaly_alert(row["org"], anomaly, now))

    def limits(self) -> list[Limit]:
        """Of money: the policies, and what the ingresses asked leases for (the configuration's budgets among them)."""
        found: dict[Account, Limit] = {}
        for policy in self._books.registrar.directory.all(Policy):
            if policy.removed_at_unix_ms is None and policy.unit == "microusd":
                account = Account(policy.org, policy.unit, policy.span, policy.team, policy.key_id, policy.model)
                found[account] = Limit(account, policy.amount, policy.hard)
        for account, (amount, _) in self._books.asked_for.items():
            if account not in found or amount < found[account].amount:
                found[account] = Limit(account, amount)
        return list(found.values())

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = time.monotonic()
        if now_s - self._looked_s.get(what, -1e9) < every_s:
            return False
        self._looked_s[what] = now_s
        return True

    # ---- telling ---------------------------------------------------------------------------------------------------

    async def tell(self, alert: Alert) -> bool:
        """Begin to tell; False: it was told before, or nobody is to be told. What the database cannot take now is told
        all the same, and written down when it can."""
        key = (alert.org, alert.key)
        channels = [each.name for each in self.settings.channels if each.takes(alert.org, alert.kind)]
        if not channels or key in self._pending or key in self._known or len(self._pending) >= MAX_PENDING:
            return False
        told = Told(alert, {name: Delivery(due_unix_ms=alert.at_unix_ms) for name in channels})
        self._known[key] = None
        if len(self._known) > 10 * MAX_PENDING:
            del self._known[next(iter(self._known))]
        try:
            if not await self._write(lambda: self._store.add(told)):
                return False
        except Exception:
            self._unsaved.add(key)
        self._pending[key] = told
        return True

    async def deliver(self) -> None:
        """Whatever is due, each channel by itself."""
        await self._save_unsaved()
        now = _now_unix_ms()
        due = [told for told in self._pending.values() if (at := told.due_unix_ms) is not None and at <= now]
        if due:
            await asyncio.gather(*(self._deliver(told, now) for told in due[:16]))
        for key in [
            key for key, told in self._pending.items() if told.due_unix_ms is None and key not in self._unsaved
        ]:
            del self._pending[key]

    async def _deliver(self, told: Told, now: int) -> None:
        by_name = {channel.name: channel for channel in self.settings.channels}
        for name, delivery in told.deliveries.items():
            if delivery.state == "due" and delivery.due_unix_ms <= now:
                await self._attempt(by_name.get(name), told.alert, delivery)
        try:
            await self._write(lambda: self._store.save(told))
        except Exception:
            self._unsaved.add((told.alert.org, told.alert.key))

    async def _attempt(self, channel: AlertChannel | None, alert: Alert, delivery: Delivery) -> None:
        delivery.attempts += 1
        try:
            if channel is None:
                raise NotDelivered("the channel is not in the configuration any more", again=False)
            await asyncio.to_thread(self._channels.send, channel, alert)
        except NotDelivered as error:
            delivery.error = error.why
            if error.again and delivery.attempts <= len(PAUSES_S):
                delivery.due_unix_ms = _now_unix_ms() + PAUSES_S[delivery.attempts - 1] * 1000
                return
            delivery.state = "failed"
            self.counts["alerts_failed"] += 1
            logger.error("alert '%s' could not be delivered by its channel: %s", alert.kind, error.why)
            return
        delivery.state, delivery.error = "sent", ""
        self.counts["alerts_sent"] += 1

    async def _save_unsaved(self) -> None:
        for key in list(self._unsaved):
            told = self._pending.get(key)
            try:
                if told is not None and not await self._write(lambda told=told: self._store.add(told)):  # type: ignore[misc]
                    await self._write(lambda told=told: self._store.save(told))  # type: ignore[misc]
            except Exception as error:
                if isinstance(error, SwitchyardError):
                    raise
                return  # the database is still away
            self._unsaved.discard(key)


def _now_unix_ms() -> int:
    return int(time.time() * 1000)
