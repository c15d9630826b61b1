"""A monthly budget (UTC) that holds over all processes at once, without a common door to wait at.

The ledger hands each process a lease: the right to spend a part of an org's month. Requests reserve their worst case
from the lease of their process and settle what they really cost. The bound: at every moment

    spent, as far as the books know it  +  for each holder: what it may still spend or has spent unknown to the books

is at most the budget, so reservations are never refused late and never overshoot, whatever crashes, is late, lost or
repeated. What is outside: a cost above its own worst case; requests that ran already when a budget was first set; and
requests under way at the turn of the month, which count in the month they came in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from models.errors import BudgetExceeded, Overloaded, SwitchyardError

RENEW_EVERY_S = 2.0
LEASE_VALID_S = 600.0
"""So long a holder spends without word from the ledger; the ledger waits three times as long before it takes the lease
of a holder that it cannot see dead."""
_WANT_REQUESTS = 16  # a refill is for so many worst cases, so that few requests wait for one
_SHARE = 4  # one refill takes at most this part of what is left, unless the request at hand needs more
_TELL_EVERY_S = 60.0
_RETRY_AFTER_S = 1.0
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Spent:
    org: str
    holder: str
    microusd: int


@dataclass(frozen=True, slots=True)
class Lease:
    """`holder` may spend `authority_microusd` beyond the `base_microusd` it had already spent in that month."""

    org: str
    month: str
    holder: str
    sequence: int
    base_microusd: int
    authority_microusd: int


@dataclass(frozen=True, slots=True)
class LeaseAsk:
    """A holder's word: `authority_microusd` is all it was granted and keeps, spent or not (less than before: it gives
    back). It needs `need_microusd` more now and would like `want_microusd`. A later ask has a higher `sequence`."""

    org: str
    month: str
    holder: str
    sequence: int
    limit_microusd: int
    authority_microusd: int
    need_microusd: int = 0
    want_microusd: int = 0


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """`left_microusd`: of the budget, what is neither spent nor anybody's lease after this grant."""

    granted_microusd: int
    left_microusd: int


LeaseCall = Callable[[LeaseAsk], Awaitable[LeaseAnswer]]


def month_of(unix_ms: int) -> str:
    """The calendar month (UTC), as `2026-05`."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m")


def month_span_unix_ms(month: str) -> tuple[int, int]:
    """[start, end) of `2026-05`."""
    start = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return int(start.timestamp() * 1000), int(end.timestamp() * 1000)


# ---- the ledger's side ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Balance:
    spent: int = 0
    spent_by: dict[str, int] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)

    def committed(self) -> int:
        return self.spent + sum(self._outstanding(lease) for lease in self.leases.values())

    def _outstanding(self, lease: Lease) -> int:
        return max(0, lease.base_microusd + lease.authority_microusd - self.spent_by.get(lease.holder, 0))


class Balances:
    """Who has spent and who may spend, by org and month, in memory. Months before `first_month` are closed."""

    def __init__(self, first_month: str) -> None:
        self._first_month = first_month
        self._balances: dict[tuple[str, str], _Balance] = {}

    def load(self, month: str, spent: Iterable[Spent], leases: Iterable[Lease]) -> None:
        """Take over what the database says of `month`. `leases` may be of any."""
        for row in spent:
            self.book(row.org, month, row.holder, row.microusd)
        for lease in leases:
            if lease.month == month:
                self._balance(lease.org, month).leases[lease.holder] = lease

    def book(self, org: str, month: str, holder: str, microusd: int) -> None:
        """A close of a request that `holder` served has come in and changed what was spent by `microusd`."""
        if month < self._first_month or not microusd:
            return
        balance = self._balance(org, month)
        balance.spent += microusd
        balance.spent_by[holder] = balance.spent_by.get(holder, 0) + microusd

    def lease(self, ask: LeaseAsk) -> tuple[Lease | None, LeaseAnswer]:
        """The lease as it now is (None: none), and the answer to its holder."""
        if ask.month < self._first_month:
            return None, LeaseAnswer(0, 0)
        balance = self._balance(ask.org, ask.month)
        held = balance.leases.get(ask.holder)
        if held is not None and ask.sequence <= held.sequence:  # came late: its sender has asked again since
            return held, LeaseAnswer(0, ask.limit_microusd - balance.committed())
        already = balance.spent_by.get(ask.holder, 0)
        base = held.base_microusd if held is not None and ask.authority_microusd else already
        lease = Lease(ask.org, ask.month, ask.holder, ask.sequence, base, ask.authority_microusd)
        balance.leases[ask.holder] = lease
        left = ask.limit_microusd - balance.committed()
        granted = 0
        if ask.need_microusd <= left:
            granted = min(left, max(ask.need_microusd, min(ask.want_microusd, left // _SHARE)))
            lease = replace(lease, authority_microusd=lease.authority_microusd + granted)
            balance.leases[ask.holder] = lease
        return lease, LeaseAnswer(granted, left - granted)

    def drop(self, holder: str) -> None:
        """`holder` is gone, and all that it spent is in the books."""
        for balance in self._balances.values():
            balance.leases.pop(holder, None)
            balance.spent_by.pop(holder, None)

    def close_before(self, month: str) -> None:
        self._first_month = max(self._first_month, month)
        self._balances = {key: balance for key, balance in self._balances.items() if key[1] >= self._first_month}

    def _balance(self, org: str, month: str) -> _Balance:
        return self._balances.setdefault((org, month), _Balance())


# ---- the holder's side ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Account:
    """One org's month in this process."""

    org: str
    month: str
    limit: int
    authority: int = 0
    settled: int = 0
    reserved: int = 0
    busiest: int = 0  # the most that was reserved at once, and what was settled, since the last renewal
    told: int = 0  # the authority that the ledger is known to have in its books
    told_at_s: float = 0.0
    retry_at_s: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def free(self) -> int:
        return self.authority - self.settled - self.reserved

    def give_back(self, keep: int = 0) -> None:
        self.authority -= max(0, self.free - keep)


class Budgets:
    """The budgets as one process sees them. Fills `router.ports.BudgetPort`.

    limit_of: the org's monthly budget in micro-USD as it is now, None for an org without: nothing is kept of those.
    lease: asks the ledger. holder: this process's name, which must be its journal's.
    """

    def __init__(
        self,
        holder: str,
        limit_of: Callable[[str], int | None],
        lease: LeaseCall,
        unix_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._holder, self._limit_of, self._lease = holder, limit_of, lease
        self._unix_s, self._monotonic_s = unix_s, monotonic_s
        self._accounts: dict[tuple[str, str], _Account] = {}
        self._reservations: dict[str, tuple[_Account, int]] = {}
        self._sequence = time.time_ns()

    async def reserve(self, org: str, reservation_id: str, worst_case_microusd: int) -> None:
        """Set the worst case aside: at once out of this process's lease, else after one call of the ledger.

        Raises `BudgetExceeded`, or `Overloaded` when the ledger cannot be asked. Each reservation needs its own id.
        """
        limit = self._limit_of(org)
        if limit is None:
            return
        account = self._account(org, limit)
        if self._take(account, reservation_id, worst_case_microusd):
            return
        async with account.lock:
            while not self._take(account, reservation_id, worst_case_microusd):
                await self._refill(account, worst_case_microusd)

    def settle(self, org: str, reservation_id: str, actual_microusd: int) -> None:
        account, reserved = self._reservations.pop(reservation_id, (None, 0))
        if account is None:
            return
        account.reserved -= reserved
        account.settled += actual_microusd
        account.busiest += actual_microusd

    async def renew(self) -> None:
        """Give back what was not needed of late, and say that this process is alive."""
        now = self._month()
        for key, account in list(self._accounts.items()):
            limit = self._limit_of(account.org)
            over = limit is None or account.month != now
            async with account.lock:
                account.give_back(0 if over else account.busiest)
                account.busiest = account.reserved
                with suppress(SwitchyardError):  # the next round tells it again
                    await self._tell(account)
                if over and not account.reserved and account.told == account.authority:
                    self._accounts.pop(key, None)

    async def run(self) -> None:
        """Renew for ever."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            await self.renew()

    async def close(self) -> None:
        """Give everything back that no request under way holds."""
        for account in list(self._accounts.values()):  # a request that still comes in may add one meanwhile
            async with account.lock:
                account.give_back()
                with suppress(
                    SwitchyardError
                ):  # then it comes back when the ledger sees this process's journal ownerless
                    await self._tell(account)

    def _month(self) -> str:
        return month_of(int(self._unix_s() * 1000))

    def _account(self, org: str, limit: int) -> _Account:
        month = self._month()
        account = self._accounts.get((org, month))
        if account is None:
            account = self._accounts[(org, month)] = _Account(org, month, limit)
        if limit < account.limit:
            account.give_back()
        account.limit = limit
        return account

    def _take(self, account: _Account, reservation_id: str, worst_case_microusd: int) -> bool:
        stale = self._monotonic_s() - account.told_at_s > LEASE_VALID_S
        if worst_case_microusd and (account.free < worst_case_microusd or stale):
            return False
        account.reserved += worst_case_microusd
        account.busiest = max(account.busiest, account.reserved)
        self._reservations[reservation_id] = (account, worst_case_microusd)
        return True

    async def _refill(self, account: _Account, worst_case_microusd: int) -> None:
        need = max(0, worst_case_microusd - account.free)
        if self._monotonic_s() < account.retry_at_s:
            raise _unreachable()
        try:
            answer = await self._ask(account, need, need + (_WANT_REQUESTS - 1) * worst_case_microusd)
        except SwitchyardError:
            account.retry_at_s = self._monotonic_s() + _RETRY_AFTER_S  # those who wait behind need not wait in turn
            raise _unreachable() from None
        if answer.granted_microusd < need:
            raise self._exceeded(account, answer.left_microusd + max(0, account.free), worst_case_microusd)

    async def _tell(self, account: _Account) -> None:
        silent_s = self._monotonic_s() - account.told_at_s
        if account.told != account.authority or (account.authority > account.settled and silent_s > _TELL_EVERY_S):
            await self._ask(account, 0, 0)

    async def _ask(self, account: _Account, need: int, want: int) -> LeaseAnswer:
        """Only with the account's lock held: the answer applies to the authority that was sent."""
        self._sequence += 1
        asked_at_s, authority = self._monotonic_s(), account.authority
        account.told = _UNKNOWN  # until it answers
        answer = await self._lease(
            LeaseAsk(account.org, account.month, self._holder, self._sequence, account.limit, authority, need, want)
        )
        account.authority += answer.granted_microusd
        account.told, account.told_at_s = authority + answer.granted_microusd, asked_at_s
        return answer

    def _exceeded(self, account: _Account, left_microusd: int, needed_microusd: int) -> BudgetExceeded:
        _, resets_ms = month_span_unix_ms(account.month)
        resets_at = datetime.fromtimestamp(resets_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        left_microusd = max(0, left_microusd)
        return BudgetExceeded(
            f"The monthly budget of organisation '{account.org}' does not allow this request: {_usd(left_microusd)} of "
            f"{_usd(account.limit)} are left and it may cost {_usd(needed_microusd)}. Lower 'max_tokens', choose a "
            f"cheaper model, have the budget raised, or wait for {resets_at}.",
            None,
            None,
            {
                "budget_microusd": account.limit,
                "left_microusd": left_microusd,
                "needed_microusd": needed_microusd,
                "resets_at": resets_at,
            },
        )


def _unreachable() -> Overloaded:
    return Overloaded(
        "The budget cannot be checked just now and this process's part of it is used; try again.", None, _RETRY_AFTER_S
    )


def _usd(microusd: int) -> str:
    return f"{microusd // 1_000_000}.{microusd % 1_000_000:06d} USD"
