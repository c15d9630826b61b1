"""The ledger's side of limits: who has used how much, and who may use how much more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from router.accounting.limits import SLICE_MS, SLICES, Account, is_over, neighbours, period_of, period_span_unix_ms

_SHARE = 4  # one refill takes at most this part of what is left, unless the request at hand needs more
_CLOSE_EVERY_MS = 1000


@dataclass(frozen=True, slots=True)
class Spent:
    holder: str
    microusd: int


@dataclass(frozen=True, slots=True)
class Lease:
    """`holder` may use `authority` beyond the `base` that it had already used in that period."""

    account: Account
    period: str
    holder: str
    sequence: int
    base: int
    authority: int


@dataclass(frozen=True, slots=True)
class LeaseAsk:
    """A holder's word: `authority` is all it was granted and keeps, used or not (less than before: it gives back). It
    needs `need` more now and would like `want`. A later ask has a higher `sequence`."""

    account: Account
    period: str
    holder: str
    sequence: int
    limit: int
    authority: int
    need: int = 0
    want: int = 0


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """left: of the limit, what is neither used nor anybody's lease after this grant. resets_at_unix_ms: when some of
    what is used is free again, where that is known. holders: how many share the account."""

    granted: int
    left: int
    resets_at_unix_ms: int | None = None
    holders: int = 1


@dataclass(frozen=True, slots=True)
class Standing:
    """How an account stands. used: as far as the books know it; of requests, tokens and concurrency, and of money that
    requests under way may yet cost, `held` is what the holders' leases have."""

    used: int
    held: int
    left: int
    resets_at_unix_ms: int | None


@dataclass(slots=True)
class _Balance:
    spent: int = 0
    spent_by: dict[str, int] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)

    def held(self) -> int:
        return sum(
            max(0, lease.base + lease.authority - self.spent_by.get(lease.holder, 0)) for lease in self.leases.values()
        )

    def committed(self) -> int:
        return self.spent + self.held()


class Balances:
    """By account and period, in memory, those that somebody asked for: each is loaded before it is first asked. What is
    over (`limits.is_over`) is closed."""

    def __init__(self, now_unix_ms: int) -> None:
        self._now_unix_ms = self._closed_unix_ms = now_unix_ms
        self._balances: dict[tuple[Account, str], _Balance] = {}
        self._of_org: dict[str, set[tuple[Account, str]]] = {}

    def knows(self, account: Account, period: str) -> bool:
        return (account, period) in self._balances or is_over(account.span, period, self._now_unix_ms)

    def load(self, account: Account, period: str, spent: Iterable[Spent], leases: Iterable[Lease]) -> None:
        """Take over what the database says of it."""
        balance = self._balances[account, period] = _Balance()
        self._of_org.setdefault(account.org, set()).add((account, period))
        for row in spent:
            balance.spent += row.microusd
            balance.spent_by[row.holder] = balance.spent_by.get(row.holder, 0) + row.microusd
        balance.leases = {lease.holder: lease for lease in leases}

    def book(
        self, org: str, team: str, key_id: str, opened_at_unix_ms: int, holder: str, by_model: Mapping[str, int]
    ) -> None:
        """A close of a request that `holder` served has come in and changed what was spent by so many micro-USD."""
        for account, period in self._of_org.get(org, ()):
            if account.unit != "microusd" or period_of(account.span, opened_at_unix_ms) != period:
                continue
            if account.team not in ("", team) or account.key_id not in ("", key_id):
                continue
            microusd = by_model.get(account.model, 0) if account.model else sum(by_model.values())
            balance = self._balances[account, period]
            balance.spent += microusd
            balance.spent_by[holder] = balance.spent_by.get(holder, 0) + microusd

    def lease(self, ask: LeaseAsk) -> tuple[Lease | None, LeaseAnswer]:
        """The lease as it now is (None: none), and the answer to its holder."""
        if is_over(ask.account.span, ask.period, self._now_unix_ms):
            return None, LeaseAnswer(0, 0)
        balance = self._balances[ask.account, ask.period]
        held = balance.leases.get(ask.holder)
        if held is not None and ask.sequence <= held.sequence:  # came late: its sender has asked again since
            return held, self._answer(ask, 0)
        already = balance.spent_by.get(ask.holder, 0)
        base = held.base if held is not None and ask.authority else already
        lease = Lease(ask.account, ask.period, ask.holder, ask.sequence, base, ask.authority)
        balance.leases[ask.holder] = lease
        left = ask.limit - self._committed(ask.account, ask.period)
        granted = 0
        if ask.need <= left:
            granted = min(left, max(ask.need, min(ask.want, left // _SHARE)))
            lease = replace(lease, authority=lease.authority + granted)
            balance.leases[ask.holder] = lease
        return lease, self._answer(ask, granted)

    def standing(self, account: Account, period: str, limit: int) -> Standing:
        """Of an account that is known."""
        balances = self._counted(account, period)
        used = sum(balance.spent for balance in balances)
        held = sum(balance.held() for balance in balances)
        return Standing(used, held, max(0, limit - used - held), self._resets_at(account, period))

    def drop(self, holder: str) -> None:
        """`holder` is gone, and all that it spent is in the books. What it used of a minute stays used."""
        for (account, _), balance in self._balances.items():
            if account.span != "minute":
                balance.leases.pop(holder, None)
                balance.spent_by.pop(holder, None)

    def forget(self) -> None:
        """Load all of it anew: what the database took in is not sure."""
        self._balances.clear()
        self._of_org.clear()

    def advance(self, now_unix_ms: int) -> None:
        """It is later now: close what is over."""
        self._now_unix_ms = max(self._now_unix_ms, now_unix_ms)
        if self._now_unix_ms - self._closed_unix_ms < _CLOSE_EVERY_MS:
            return
        self._closed_unix_ms = self._now_unix_ms
        for key in [key for key in self._balances if is_over(key[0].span, key[1], self._now_unix_ms)]:
            del self._balances[key]
            mine = self._of_org[key[0].org]
            mine.discard(key)
            if not mine:
                del self._of_org[key[0].org]

    def _committed(self, account: Account, period: str) -> int:
        return sum(balance.committed() for balance in self._counted(account, period))

    def _counted(self, account: Account, period: str) -> list[_Balance]:
        periods = neighbours(period) if account.span == "minute" else [period]
        found = (self._balances.get((account, each)) for each in periods)
        return [balance for balance in found if balance is not None]

    def _answer(self, ask: LeaseAsk, granted: int) -> LeaseAnswer:
        account, period = ask.account, ask.period
        holders = {holder for balance in self._counted(account, period) for holder in balance.leases}
        left = ask.limit - self._committed(account, period)
        return LeaseAnswer(granted, left, self._resets_at(account, period), max(1, len(holders)))

    def _resets_at(self, account: Account, period: str) -> int | None:
        if account.span != "minute":
            return period_span_unix_ms(account.span, period)[1]
        for each in neighbours(period):
            balance = self._balances.get((account, each))
            if balance is not None and balance.committed():
                return (int(each) + SLICES) * SLICE_MS
        return None
