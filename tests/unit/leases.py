"""Limits and a ledger of leases in one process, for tests of what stands before and behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from router.accounting.balances import Balances, LeaseAnswer, LeaseAsk
from router.accounting.budget import Budgets
from router.accounting.limits import Account, Claim, Limit
from router.events import Principal


@dataclass
class Fixed:
    """Limits that are what a test says: `amounts` by account. Those of requests are met at the door."""

    amounts: dict[Account, int | None] = field(default_factory=dict)

    def door_limits(self, claim: Claim) -> Sequence[Limit]:
        return [limit for limit in self._met(claim) if limit.account.unit == "requests"]

    def limits_of(self, claim: Claim) -> Sequence[Limit]:
        return [limit for limit in self._met(claim) if limit.account.unit != "requests"]

    def limit_of(self, account: Account) -> int | None:
        return self.amounts.get(account)

    def limits_of_org(self) -> list[Limit]:
        return [Limit(account, amount) for account, amount in self.amounts.items() if amount is not None]

    def _met(self, claim: Claim) -> list[Limit]:
        who = claim.principal
        return [x for x in self.limits_of_org() if x.account.covers(who) and x.account.model in ("", claim.model)]


class Leases:
    """A ledger without a database: nothing was spent before."""

    def __init__(self, now_unix_ms: Callable[[], int] = lambda: 0) -> None:
        self.balances, self._now_unix_ms = Balances(0), now_unix_ms

    async def lease(self, ask: LeaseAsk) -> LeaseAnswer:
        self.balances.advance(self._now_unix_ms())
        if not self.balances.knows(ask.account, ask.period):
            self.balances.load(ask.account, ask.period, [], [])
        return self.balances.lease(ask)[1]


def monthly(org: str = "acme") -> Account:
    return Account(org, "microusd", "month")


async def reserve(budgets: Budgets, org: str, reservation_id: str, microusd: int, tokens: int = 0) -> None:
    await budgets.reserve(reservation_id, Claim(Principal(org), "m", microusd, tokens))
