"""Budgets and limits that hold over all processes at once, without a common door to wait at: a process's side.

The ledger hands each process leases: the right to use a part of a limit. Requests reserve their worst case from the
leases of their process and settle what they really took. The bound: at every moment

    used, as far as the books know it  +  for each holder: what it may still use or has used unknown to the books

is at most the limit, so reservations are never refused late and never overshoot, whatever crashes, is late, lost or
repeated. What is outside: a cost above its own worst case; requests that ran already when a limit was first set; and
requests under way at the turn of a day or month, which count in the one they came in. While the ledger is away, money
is spent out of leases only; of a limit per minute or of concurrency every process goes on with its equal share.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from models.errors import BudgetExceeded, Overloaded, RateLimited, SwitchyardError
from router.accounting.balances import LeaseAnswer, LeaseAsk
from router.accounting.limits import Account, Claim, Limit, is_over, iso, neighbours, period_of, period_span_unix_ms
from router.events import Principal

RENEW_EVERY_S = 2.0
LEASE_VALID_S = 600.0
"""So long a holder spends without word from the ledger; the ledger waits three times as long before it takes the lease
of a holder that it cannot see dead."""
_WANT_REQUESTS = 16  # a refill is for so many worst cases, so that few requests wait for one
_TELL_EVERY_S = 60.0
_RETRY_AFTER_S = 1.0
_REFUSED_FOR_S = 0.25
_UNKNOWN = -1

LeaseCall = Callable[[LeaseAsk], Awaitable[LeaseAnswer]]


class Limits(Protocol):
    """What the limits are, as of now."""

    def door_limits(self, claim: Claim) -> Sequence[Limit]:
        """Those that a request falls under when it comes in."""

    def limits_of(self, claim: Claim) -> Sequence[Limit]:
        """Those that a try at a model falls under."""

    def limit_of(self, account: Account) -> int | None:
        """How much of an account there is, None: it is not limited (any more)."""


@dataclass(slots=True)
class _Holding:
    """One period of an account in this process."""

    account: Account
    period: str
    limit: int
    authority: int = 0
    settled: int = 0
    reserved: int = 0
    busiest: int = 0  # the most that was reserved at once, and what was settled, since the last renewal
    told: int = 0  # the authority that the ledger is known to have in its books
    told_at_s: float = 0.0
    retry_at_s: float = 0.0
    refused: tuple[float, int, LeaseAnswer] | None = None  # until when, from which need on, with which answer
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def free(self) -> int:
        return self.authority - self.settled - self.reserved

    def give_back(self, keep: int = 0) -> None:
        self.authority -= max(0, self.free - keep)

    def release(self, reserved: int, used: int) -> None:
        self.reserved -= reserved
        self.settled += used
        self.busiest += used


class Budgets:
    """The limits as one process sees them. Fills `router.ports.BudgetPort`.

    lease: asks the ledger. holder: this process's name, which must be its journal's.
    """

    def __init__(
        self,
        holder: str,
        limits: Limits,
        lease: LeaseCall,
        unix_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._holder, self._limits, self._lease = holder, limits, lease
        self._unix_s, self._monotonic_s = unix_s, monotonic_s
        self._holdings: dict[tuple[Account, str], _Holding] = {}
        self._reservations: dict[str, list[tuple[_Holding, int]]] = {}
        self._sequence = time.time_ns()
        self._holders = 1  # that share limits with this one, as the ledger last said

    async def reserve(self, reservation_id: str, claim: Claim) -> None:
        """Set the worst case aside, under every limit that the claim falls under: at once out of this process's leases,
        else after a call of the ledger for each.

        Raises `BudgetExceeded`, `RateLimited`, or `Overloaded` when the ledger cannot be asked; nothing is set aside
        then. Each reservation needs its own id.
        """
        if limits := self._limits.limits_of(claim):
            self._reservations[reservation_id] = await self._take_all(limits, claim)

    def settle(self, reservation_id: str, microusd: int, tokens: int) -> None:
        """Turn a reservation into what it really took. A second call does nothing."""
        for holding, reserved in self._reservations.pop(reservation_id, ()):
            used = {"microusd": microusd, "tokens": tokens, "requests": 1}.get(holding.account.unit, 0)
            holding.release(reserved, used)

    async def enter(self, principal: Principal) -> None:
        """Count one request at the door. Raises `RateLimited`."""
        claim = Claim(principal, "", 0, 0)
        if limits := self._limits.door_limits(claim):
            for holding, amount in await self._take_all(limits, claim):
                holding.release(amount, amount)

    async def renew(self) -> None:
        """Give back what was not needed of late, and say that this process is alive."""
        now_unix_ms, away = self._now_unix_ms(), False
        for key, holding in list(self._holdings.items()):
            span = holding.account.span
            past = holding.period != period_of(span, now_unix_ms)
            over = past or self._limits.limit_of(holding.account) is None
            async with holding.lock:
                holding.give_back(0 if over else holding.busiest)
                holding.busiest = holding.reserved
                try:
                    if not away:
                        await self._tell(holding)
                except SwitchyardError:
                    away = True  # the next round tells all of it again
                done = is_over(span, holding.period, now_unix_ms) if span == "minute" else over
                if done and not holding.reserved and (holding.told == holding.authority or span == "minute"):
                    self._holdings.pop(key, None)

    async def run(self) -> None:
        """Renew for ever."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            await self.renew()

    async def close(self) -> None:
        """Give everything back that no request under way holds."""
        for holding in list(self._holdings.values()):  # a request that still comes in may add one meanwhile
            async with holding.lock:
                holding.give_back()
                # Where this fails it comes back when the ledger sees this process's journal ownerless.
                with suppress(SwitchyardError):
                    await self._tell(holding)

    async def _take_all(self, limits: Sequence[Limit], claim: Claim) -> list[tuple[_Holding, int]]:
        taken: list[tuple[_Holding, int]] = []
        try:
            for limit in limits:
                amount = claim.of(limit.account)
                taken.append((await self._take_one(limit, amount), amount))
        except BaseException:
            for holding, amount in taken:
                holding.release(amount, 0)
            raise
        return taken

    async def _take_one(self, limit: Limit, amount: int) -> _Holding:
        holding = self._holding(limit)
        if self._take(holding, amount):
            return holding
        async with holding.lock:
            while not self._take(holding, amount):
                await self._refill(holding, amount)
        return holding

    def _holding(self, limit: Limit) -> _Holding:
        key = limit.account, period_of(limit.account.span, self._now_unix_ms())
        holding = self._holdings.get(key)
        if holding is None:
            holding = self._holdings[key] = _Holding(*key, limit.amount)
        if limit.amount < holding.limit:
            holding.give_back()
        if limit.amount != holding.limit:
            holding.refused = None
        holding.limit = limit.amount
        return holding

    def _take(self, holding: _Holding, amount: int) -> bool:
        stale = self._monotonic_s() - holding.told_at_s > LEASE_VALID_S
        if amount and (holding.free < amount or stale):
            return False
        holding.reserved += amount
        holding.busiest = max(holding.busiest, holding.reserved)
        return True

    async def _refill(self, holding: _Holding, amount: int) -> None:
        need, now_s = max(0, amount - holding.free), self._monotonic_s()
        if holding.refused is not None and now_s < holding.refused[0] and need >= holding.refused[1]:
            raise self._exceeded(holding, holding.refused[2], amount)
        if now_s < holding.retry_at_s:
            self._go_on_alone(holding, need, amount)
            return
        try:
            want = max(need + (_WANT_REQUESTS - 1) * amount, holding.busiest)
            answer = await self._ask(holding, need, want)
        except SwitchyardError:
            holding.retry_at_s = self._monotonic_s() + _RETRY_AFTER_S  # those who wait behind need not wait in turn
            self._go_on_alone(holding, need, amount)
            return
        if answer.granted < need:
            holding.refused = (self._monotonic_s() + _REFUSED_FOR_S, need, answer)
            raise self._exceeded(holding, answer, amount)

    def _go_on_alone(self, holding: _Holding, need: int, amount: int) -> None:
        """The ledger is away: of what is no money this process takes up to its share. Raises `Overloaded`."""
        if holding.account.unit == "microusd":
            raise _unreachable() from None
        periods = neighbours(holding.period) if holding.account.span == "minute" else [holding.period]
        mine = (self._holdings.get((holding.account, period)) for period in periods)
        used = sum(each.settled + each.reserved for each in mine if each is not None)
        share = max(1, holding.limit // self._holders)
        if used + amount > share:
            raise self._exceeded(holding, LeaseAnswer(0, share - used - max(0, holding.free)), amount)
        holding.authority += need
        holding.told_at_s = self._monotonic_s()

    async def _tell(self, holding: _Holding) -> None:
        silent_s = self._monotonic_s() - holding.told_at_s
        if holding.told != holding.authority or (holding.authority > holding.settled and silent_s > _TELL_EVERY_S):
            await self._ask(holding, 0, 0)

    async def _ask(self, holding: _Holding, need: int, want: int) -> LeaseAnswer:
        """Only with the holding's lock held: the answer applies to the authority that was sent."""
        self._sequence += 1
        asked_at_s, authority = self._monotonic_s(), holding.authority
        holding.told = _UNKNOWN  # until it answers
        answer = await self._lease(
            LeaseAsk(
                *(holding.account, holding.period, self._holder, self._sequence, holding.limit, authority, need, want)
            )
        )
        self._holders = max(1, answer.holders)
        holding.authority += answer.granted
        holding.told, holding.told_at_s = authority + answer.granted, asked_at_s
        return answer

    def _exceeded(self, holding: _Holding, answer: LeaseAnswer, needed: int) -> BudgetExceeded | RateLimited:
        left = max(0, answer.left + max(0, holding.free))
        if holding.account.unit == "microusd":
            return budget_exceeded(holding.account, holding.period, holding.limit, left, needed)
        retry_after_s = _RETRY_AFTER_S
        if answer.resets_at_unix_ms is not None:
            retry_after_s = max(_RETRY_AFTER_S, answer.resets_at_unix_ms / 1000 - self._unix_s())
        return rate_limited(holding.account, holding.limit, left, needed, retry_after_s, answer.resets_at_unix_ms)

    def _now_unix_ms(self) -> int:
        return int(self._unix_s() * 1000)


_SPANS = {"day": "daily", "month": "monthly", "total": "whole"}
_WHAT = {"requests": "requests per minute", "tokens": "tokens per minute", "concurrent": "requests at a time"}


def budget_exceeded(account: Account, period: str, limit: int, left: int, needed: int) -> BudgetExceeded:
    _, resets_ms = period_span_unix_ms(account.span, period)
    resets_at = None if resets_ms is None else iso(resets_ms)
    return BudgetExceeded(
        f"The {_SPANS[account.span]} budget of {account.subject()} does not allow this request: {_usd(left)} of "
        f"{_usd(limit)} are left and it may cost {_usd(needed)}. Lower 'max_tokens', choose a cheaper model, have the "
        f"budget raised" + (f", or wait for {resets_at}." if resets_at else "."),
        None,
        None,
        {"budget_microusd": limit, "left_microusd": left, "needed_microusd": needed, "resets_at": resets_at},
    )


def rate_limited(
    account: Account, limit: int, left: int, needed: int, retry_after_s: float, resets_at_unix_ms: int | None
) -> RateLimited:
    subject = account.subject()
    told = f"{subject[0].upper()}{subject[1:]} may have {limit} {_WHAT[account.unit]}"
    if needed > limit:
        told += f", and this request alone may take {needed}: lower 'max_tokens' or have the limit raised."
    else:
        told += f"; {left} are left and this needs {needed}. Try again in {math.ceil(retry_after_s)} s."
    resets_at = None if resets_at_unix_ms is None else iso(resets_at_unix_ms)
    details = {"unit": account.unit, "limit": limit, "left": left, "needed": needed, "resets_at": resets_at}
    return RateLimited(told, None, retry_after_s, details)


def _unreachable() -> Overloaded:
    return Overloaded(
        "The budget cannot be checked just now and this process's part of it is used; try again.", None, _RETRY_AFTER_S
    )


def _usd(microusd: int) -> str:
    return f"{microusd // 1_000_000}.{microusd % 1_000_000:06d} USD"
