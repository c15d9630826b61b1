from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BudgetExceeded, DeadlineExceeded, Overloaded
from router.accounting.budget import (
    LEASE_VALID_S,
    Balances,
    Budgets,
    Lease,
    LeaseAnswer,
    LeaseAsk,
    Spent,
    month_of,
    month_span_unix_ms,
)

MAY = 1_779_000_000.0  # in May 2026
MONTH = "2026-05"


@dataclass
class World:
    """A ledger and what is on its disk; holders reach it through `lease`, which can fail before or after the fact."""

    limit: int | None = 1000
    spent: dict[str, int] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    lose_ask: bool = False
    lose_answer: bool = False
    asks: int = 0
    unix_s: float = MAY
    monotonic_s: float = 5000.0

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.balances = Balances(MONTH)
        self.balances.load(MONTH, [Spent("acme", h, m) for h, m in self.spent.items()], self.leases.values())

    async def lease(self, ask: LeaseAsk) -> LeaseAnswer:
        self.asks += 1
        await asyncio.sleep(0)
        if self.lose_ask:
            raise DeadlineExceeded("lost")
        lease, answer = self.balances.lease(ask)
        if lease is not None and lease.month == MONTH:
            self.leases[lease.holder] = lease
        await asyncio.sleep(0)
        if self.lose_answer:
            raise DeadlineExceeded("lost")
        return answer

    def book(self, holder: str, microusd: int) -> None:
        self.spent[holder] = self.spent.get(holder, 0) + microusd
        self.balances.book("acme", MONTH, holder, microusd)

    def drop(self, holder: str) -> None:
        self.leases.pop(holder, None)
        self.balances.drop(holder)

    def budgets(self, holder: str = "one") -> Budgets:
        limit_of: Callable[[str], int | None] = lambda org: self.limit  # noqa: E731
        return Budgets(holder, limit_of, self.lease, lambda: self.unix_s, lambda: self.monotonic_s)


def test_months() -> None:
    assert month_of(1_780_000_000_000) == MONTH
    start, end = month_span_unix_ms("2026-12")
    assert month_of(start) == "2026-12" and month_of(start - 1) == "2026-11"
    assert month_of(end) == "2027-01" and month_of(end - 1) == "2026-12"


async def test_without_a_budget_nobody_is_asked() -> None:
    world = World(limit=None)
    budgets = world.budgets()
    await budgets.reserve("acme", "r", 10**12)
    budgets.settle("acme", "r", 10**12)
    await budgets.renew()
    assert world.asks == 0


async def test_n_at_once_on_a_budget_for_one_less() -> None:
    world = World(limit=7 * 100)
    budgets = world.budgets()
    results = await asyncio.gather(*(budgets.reserve("acme", f"r{n}", 100) for n in range(8)), return_exceptions=True)
    assert [type(result) for result in results].count(BudgetExceeded) == 1 and results.count(None) == 7


async def test_over_three_processes_never_more_than_the_budget_and_all_of_it_in_the_end() -> None:
    world = World(limit=100 * 10)
    holders = [world.budgets(name) for name in ("one", "two", "three")]
    paid = 0
    for _ in range(4):
        results = await asyncio.gather(
            *(holders[n % 3].reserve("acme", f"r{n}", 10) for n in range(200)), return_exceptions=True
        )
        for n, result in enumerate(results):
            assert result is None or isinstance(result, BudgetExceeded)
            if result is None:
                holders[n % 3].settle("acme", f"r{n}", 9)
                paid += 9
                world.book(("one", "two", "three")[n % 3], 9)
        for budgets in holders:
            await budgets.renew()
            await budgets.renew()
    assert 1000 - 10 < paid <= 1000


async def test_most_reservations_ask_nobody() -> None:
    world = World(limit=10**9)
    budgets = world.budgets()
    for n in range(200):
        await budgets.reserve("acme", f"r{n}", 1000)
        budgets.settle("acme", f"r{n}", 10)
    assert world.asks < 5


async def test_refusal_says_what_is_left_and_when_it_resets() -> None:
    world = World(limit=1_500_000)
    budgets = world.budgets()
    await budgets.reserve("acme", "a", 1_000_000)
    with pytest.raises(BudgetExceeded) as refused:
        await budgets.reserve("acme", "b", 600_000)
    assert "0.500000 USD of 1.500000 USD" in refused.value.message
    assert refused.value.details == {
        "budget_microusd": 1_500_000,
        "left_microusd": 500_000,
        "needed_microusd": 600_000,
        "resets_at": "2026-06-01T00:00:00Z",
    }


async def test_settling_frees_what_was_not_needed_and_only_once() -> None:
    world = World(limit=100)
    budgets = world.budgets()
    await budgets.reserve("acme", "a", 100)
    budgets.settle("acme", "a", 30)
    budgets.settle("acme", "a", 30)
    budgets.settle("acme", "never", 30)
    await budgets.reserve("acme", "b", 70)
    with pytest.raises(BudgetExceeded):
        await budgets.reserve("acme", "c", 1)


async def test_a_cost_above_its_worst_case_is_made_good_from_what_follows() -> None:
    world = World(limit=100)
    budgets = world.budgets()
    await budgets.reserve("acme", "a", 10)
    budgets.settle("acme", "a", 60)
    with pytest.raises(BudgetExceeded):
        await budgets.reserve("acme", "b", 41)
    await budgets.reserve("acme", "b", 40)


async def test_what_one_does_not_use_another_gets() -> None:
    world = World(limit=1000)
    one, two = world.budgets("one"), world.budgets("two")
    await one.reserve("acme", "a", 100)
    one.settle("acme", "a", 0)
    with pytest.raises(BudgetExceeded):
        await two.reserve("acme", "b", 1000)
    await one.renew()
    await one.renew()
    await two.reserve("acme", "b", 1000)


async def test_close_gives_back_what_no_request_holds() -> None:
    world = World(limit=1000)
    one, two = world.budgets("one"), world.budgets("two")
    await one.reserve("acme", "a", 100)
    await one.close()
    await two.reserve("acme", "b", 900)
    with pytest.raises(BudgetExceeded):
        await two.reserve("acme", "c", 1)


async def test_a_request_of_a_new_organisation_may_come_in_during_the_close() -> None:
    budgets = World().budgets()
    await budgets.reserve("acme", "a", 10)
    closing = asyncio.create_task(budgets.close())
    await asyncio.sleep(0)
    await asyncio.gather(budgets.reserve("other", "b", 10), closing)


async def test_the_next_month_starts_anew_and_the_old_one_is_settled() -> None:
    world = World(limit=100)
    budgets = world.budgets()
    await budgets.reserve("acme", "a", 100)
    world.unix_s += 31 * 86_400
    await budgets.reserve("acme", "b", 100)
    budgets.settle("acme", "a", 40)
    await budgets.renew()
    assert world.leases["one"].authority_microusd == 40
    with pytest.raises(BudgetExceeded):
        await budgets.reserve("acme", "c", 1)


async def test_a_lowered_budget_holds_at_once() -> None:
    world = World(limit=1000)
    budgets = world.budgets()
    await budgets.reserve("acme", "a", 10)
    world.limit = 15
    with pytest.raises(BudgetExceeded):
        await budgets.reserve("acme", "b", 10)
    await budgets.reserve("acme", "c", 5)


async def test_while_the_ledger_is_down_the_lease_goes_on_and_then_it_is_said() -> None:
    world = World(limit=100_000)
    budgets = world.budgets()
    await budgets.reserve("acme", "a", 100)
    world.lose_ask = True
    for n in range(10):
        await budgets.reserve("acme", f"b{n}", 100)
    results = await asyncio.gather(
        *(budgets.reserve("acme", f"c{n}", 10_000) for n in range(20)), return_exceptions=True
    )
    asks = world.asks
    assert all(isinstance(result, Overloaded) for result in results) and asks <= 3
    world.lose_ask = False
    world.monotonic_s += 1
    await budgets.reserve("acme", "d", 10_000)


async def test_a_lease_that_was_not_confirmed_for_long_is_not_used() -> None:
    world = World(limit=1000)
    budgets = world.budgets()
    await budgets.reserve("acme", "a", 10)
    world.monotonic_s += LEASE_VALID_S + 1
    asks = world.asks
    await budgets.reserve("acme", "b", 10)
    assert world.asks == asks + 1


async def test_what_was_spent_before_there_was_a_budget_is_not_taken_for_spending_of_the_lease() -> None:
    world = World(limit=1000)
    world.book("one", 500)
    one, two = world.budgets("one"), world.budgets("two")
    await one.reserve("acme", "a", 400)
    with pytest.raises(BudgetExceeded):
        await two.reserve("acme", "b", 101)
    await two.reserve("acme", "b", 100)


async def test_a_grant_whose_answer_was_lost_is_not_lost() -> None:
    world = World(limit=1000)
    one, two = world.budgets("one"), world.budgets("two")
    world.lose_answer = True
    with pytest.raises(Overloaded):
        await one.reserve("acme", "a", 900)
    world.lose_answer = False
    with pytest.raises(BudgetExceeded):
        await two.reserve("acme", "b", 500)
    await one.renew()
    await two.reserve("acme", "b", 1000)


async def test_an_ask_that_comes_late_changes_nothing() -> None:
    world = World()
    first = LeaseAsk("acme", MONTH, "one", 1, 1000, 0, 100, 100)
    world.balances.lease(first)
    second, _ = world.balances.lease(replace(first, sequence=3, authority_microusd=100))
    late, answer = world.balances.lease(replace(first, sequence=2))
    assert late == second and answer.granted_microusd == 0
    assert world.balances.lease(replace(first, month="2026-04")) == (None, LeaseAnswer(0, 0))


HOLDERS = ("one", "two", "three")
steps = st.one_of(
    st.tuples(st.just("reserve"), st.sampled_from(HOLDERS), st.integers(0, 400)),
    st.tuples(st.just("settle"), st.sampled_from(HOLDERS), st.integers(0, 100)),
    st.tuples(st.just("ship"), st.sampled_from(HOLDERS), st.integers(1, 5)),
    st.tuples(st.just("renew"), st.sampled_from(HOLDERS), st.just(0)),
    st.tuples(st.just("die"), st.sampled_from(HOLDERS), st.just(0)),
    st.tuples(st.just("lose_ask"), st.just(""), st.integers(0, 1)),
    st.tuples(st.just("lose_answer"), st.just(""), st.integers(0, 1)),
    st.tuples(st.just("restart"), st.just(""), st.just(0)),
    st.tuples(st.just("wait"), st.just(""), st.integers(1, 70)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=60))
def test_no_interleaving_of_crashes_and_losses_overshoots(plan: list[tuple[str, str, int]]) -> None:
    """Holders that reserve, settle, ship their closes late and die, and a ledger that restarts and loses messages."""
    world = World(limit=1000)
    alive = {name: world.budgets(name) for name in HOLDERS}
    reserved: dict[str, dict[str, int]] = {name: {} for name in HOLDERS}
    unshipped: dict[str, list[int]] = {name: [] for name in HOLDERS}
    names = dict(zip(HOLDERS, HOLDERS, strict=True))  # place -> the process that is there now
    serial = 0

    async def reserve(place: str, amount: int) -> None:
        nonlocal serial
        serial += 1
        try:
            await alive[place].reserve("acme", f"r{serial}", amount)
        except (BudgetExceeded, Overloaded):
            return
        reserved[place][f"r{serial}"] = amount

    def die(place: str) -> None:
        """Its journal is taken in: what it settled, and the worst case of what it left open."""
        nonlocal serial
        serial += 1
        for cost in (*unshipped[place], *reserved[place].values()):
            world.book(names[place], cost)
        world.drop(names[place])
        names[place], unshipped[place], reserved[place] = f"{place}-{serial}", [], {}
        alive[place] = world.budgets(names[place])

    async def step(action: str, place: str, amount: int) -> None:
        match action:
            case "reserve":
                await reserve(place, amount)
            case "settle" if reserved[place]:
                request, worst = reserved[place].popitem()
                alive[place].settle("acme", request, worst * amount // 100)
                unshipped[place].append(worst * amount // 100)
            case "ship":
                for cost in unshipped[place][:amount]:
                    world.book(names[place], cost)
                del unshipped[place][:amount]
            case "renew":
                await alive[place].renew()
            case "die":
                die(place)
            case "lose_ask" | "lose_answer":
                setattr(world, action, bool(amount))
            case "restart":
                world.restart()
            case "wait":
                world.monotonic_s += amount

    async def run() -> None:
        for action, place, amount in plan:
            await step(action, place, amount)
            spent = sum(world.spent.values()) + sum(map(sum, unshipped.values()))
            assert spent + sum(sum(open_.values()) for open_ in reserved.values()) <= 1000
        world.lose_ask = world.lose_answer = False
        world.monotonic_s += 100
        for place in HOLDERS:
            die(place)
        left = 1000 - sum(world.spent.values())
        await alive["one"].reserve("acme", "last", left)  # nothing was lost on the way

    asyncio.run(run())
