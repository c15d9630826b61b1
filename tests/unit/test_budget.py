from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BudgetExceeded, DeadlineExceeded, Overloaded, RateLimited
from router.accounting.balances import Balances, Lease, LeaseAnswer, LeaseAsk, Spent
from router.accounting.budget import LEASE_VALID_S, Budgets
from router.accounting.limits import Account, Claim, Limit, is_over, month_of, period_of, period_span_unix_ms
from router.events import Principal
from tests.unit.leases import Fixed, Leases, monthly, reserve

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
        self.balances = Balances(int(self.unix_s * 1000))
        self.balances.load(monthly(), MONTH, [Spent(h, m) for h, m in self.spent.items()], self.leases.values())

    async def lease(self, ask: LeaseAsk) -> LeaseAnswer:
        self.asks += 1
        await asyncio.sleep(0)
        if self.lose_ask:
            raise DeadlineExceeded("lost")
        if not self.balances.knows(ask.account, ask.period):
            self.balances.load(ask.account, ask.period, [], [])
        lease, answer = self.balances.lease(ask)
        if lease is not None and lease.period == MONTH:
            self.leases[lease.holder] = lease
        await asyncio.sleep(0)
        if self.lose_answer:
            raise DeadlineExceeded("lost")
        return answer

    def book(self, holder: str, microusd: int) -> None:
        self.spent[holder] = self.spent.get(holder, 0) + microusd
        self.balances.book("acme", "", "", int(MAY * 1000), holder, {"m": microusd})

    def drop(self, holder: str) -> None:
        self.leases.pop(holder, None)
        self.balances.drop(holder)

    def budgets(self, holder: str = "one") -> Budgets:
        return Budgets(holder, AsTheWorldSays(self), self.lease, lambda: self.unix_s, lambda: self.monotonic_s)


class AsTheWorldSays(Fixed):
    """A monthly budget of every org, which may change."""

    def __init__(self, world: World) -> None:
        self.world = world

    def limit_of(self, account: Account) -> int | None:
        return self.world.limit

    def _met(self, claim: Claim) -> list[Limit]:
        amount = self.world.limit
        return [] if amount is None else [Limit(monthly(claim.principal.org), amount)]


def test_months() -> None:
    assert month_of(1_780_000_000_000) == MONTH
    start, end = period_span_unix_ms("month", "2026-12")
    assert month_of(start) == "2026-12" and month_of(start - 1) == "2026-11"
    assert month_of(end) == "2027-01" and month_of(end - 1) == "2026-12"


async def test_without_a_budget_nobody_is_asked() -> None:
    world = World(limit=None)
    budgets = world.budgets()
    await reserve(budgets, "acme", "r", 10**12)
    budgets.settle("r", 10**12, 0)
    await budgets.renew()
    assert world.asks == 0


async def test_n_at_once_on_a_budget_for_one_less() -> None:
    world = World(limit=7 * 100)
    budgets = world.budgets()
    results = await asyncio.gather(*(reserve(budgets, "acme", f"r{n}", 100) for n in range(8)), return_exceptions=True)
    assert [type(result) for result in results].count(BudgetExceeded) == 1 and results.count(None) == 7


async def test_over_three_processes_never_more_than_the_budget_and_all_of_it_in_the_end() -> None:
    world = World(limit=100 * 10)
    holders = [world.budgets(name) for name in ("one", "two", "three")]
    paid = 0
    for _ in range(4):
        world.monotonic_s += 1  # a refusal holds for a moment
        results = await asyncio.gather(
            *(reserve(holders[n % 3], "acme", f"r{n}", 10) for n in range(200)), return_exceptions=True
        )
        for n, result in enumerate(results):
            assert result is None or isinstance(result, BudgetExceeded)
            if result is None:
                holders[n % 3].settle(f"r{n}", 9, 0)
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
        await reserve(budgets, "acme", f"r{n}", 1000)
        budgets.settle(f"r{n}", 10, 0)
    assert world.asks < 5


async def test_refusal_says_what_is_left_and_when_it_resets() -> None:
    world = World(limit=1_500_000)
    budgets = world.budgets()
    await reserve(budgets, "acme", "a", 1_000_000)
    with pytest.raises(BudgetExceeded) as refused:
        await reserve(budgets, "acme", "b", 600_000)
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
    await reserve(budgets, "acme", "a", 100)
    budgets.settle("a", 30, 0)
    budgets.settle("a", 30, 0)
    budgets.settle("never", 30, 0)
    await reserve(budgets, "acme", "b", 70)
    with pytest.raises(BudgetExceeded):
        await reserve(budgets, "acme", "c", 1)


async def test_a_cost_above_its_worst_case_is_made_good_from_what_follows() -> None:
    world = World(limit=100)
    budgets = world.budgets()
    await reserve(budgets, "acme", "a", 10)
    budgets.settle("a", 60, 0)
    with pytest.raises(BudgetExceeded):
        await reserve(budgets, "acme", "b", 41)
    await reserve(budgets, "acme", "b", 40)


async def test_what_one_does_not_use_another_gets() -> None:
    world = World(limit=1000)
    one, two = world.budgets("one"), world.budgets("two")
    await reserve(one, "acme", "a", 100)
    one.settle("a", 0, 0)
    with pytest.raises(BudgetExceeded):
        await reserve(two, "acme", "b", 1000)
    await one.renew()
    await one.renew()
    world.monotonic_s += 1  # a refusal holds for a moment
    await reserve(two, "acme", "b", 1000)


async def test_close_gives_back_what_no_request_holds() -> None:
    world = World(limit=1000)
    one, two = world.budgets("one"), world.budgets("two")
    await reserve(one, "acme", "a", 100)
    await one.close()
    await reserve(two, "acme", "b", 900)
    with pytest.raises(BudgetExceeded):
        await reserve(two, "acme", "c", 1)


async def test_a_request_of_a_new_organisation_may_come_in_during_the_close() -> None:
    budgets = World().budgets()
    await reserve(budgets, "acme", "a", 10)
    closing = asyncio.create_task(budgets.close())
    await asyncio.sleep(0)
    await asyncio.gather(reserve(budgets, "other", "b", 10), closing)


async def test_the_next_month_starts_anew_and_the_old_one_is_settled() -> None:
    world = World(limit=100)
    budgets = world.budgets()
    await reserve(budgets, "acme", "a", 100)
    world.unix_s += 31 * 86_400
    await reserve(budgets, "acme", "b", 100)
    budgets.settle("a", 40, 0)
    await budgets.renew()
    assert world.leases["one"].authority == 40
    with pytest.raises(BudgetExceeded):
        await reserve(budgets, "acme", "c", 1)


async def test_a_lowered_budget_holds_at_once() -> None:
    world = World(limit=1000)
    budgets = world.budgets()
    await reserve(budgets, "acme", "a", 10)
    world.limit = 15
    with pytest.raises(BudgetExceeded):
        await reserve(budgets, "acme", "b", 10)
    await reserve(budgets, "acme", "c", 5)


async def test_while_the_ledger_is_down_the_lease_goes_on_and_then_it_is_said() -> None:
    world = World(limit=100_000)
    budgets = world.budgets()
    await reserve(budgets, "acme", "a", 100)
    world.lose_ask = True
    for n in range(10):
        await reserve(budgets, "acme", f"b{n}", 100)
    results = await asyncio.gather(
        *(reserve(budgets, "acme", f"c{n}", 10_000) for n in range(20)), return_exceptions=True
    )
    asks = world.asks
    assert all(isinstance(result, Overloaded) for result in results) and asks <= 3
    world.lose_ask = False
    world.monotonic_s += 1
    await reserve(budgets, "acme", "d", 10_000)


async def test_a_lease_that_was_not_confirmed_for_long_is_not_used() -> None:
    world = World(limit=1000)
    budgets = world.budgets()
    await reserve(budgets, "acme", "a", 10)
    world.monotonic_s += LEASE_VALID_S + 1
    asks = world.asks
    await reserve(budgets, "acme", "b", 10)
    assert world.asks == asks + 1


async def test_what_was_spent_before_there_was_a_budget_is_not_taken_for_spending_of_the_lease() -> None:
    world = World(limit=1000)
    world.book("one", 500)
    one, two = world.budgets("one"), world.budgets("two")
    await reserve(one, "acme", "a", 400)
    with pytest.raises(BudgetExceeded):
        await reserve(two, "acme", "b", 101)
    await reserve(two, "acme", "b", 100)


async def test_a_grant_whose_answer_was_lost_is_not_lost() -> None:
    world = World(limit=1000)
    one, two = world.budgets("one"), world.budgets("two")
    world.lose_answer = True
    with pytest.raises(Overloaded):
        await reserve(one, "acme", "a", 900)
    world.lose_answer = False
    with pytest.raises(BudgetExceeded):
        await reserve(two, "acme", "b", 500)
    world.monotonic_s += 1
    await one.renew()
    await reserve(two, "acme", "b", 1000)


async def test_an_ask_that_comes_late_changes_nothing() -> None:
    world = World()
    first = LeaseAsk(monthly(), MONTH, "one", 1, 1000, 0, 100, 100)
    world.balances.lease(first)
    second, _ = world.balances.lease(replace(first, sequence=3, authority=100))
    late, answer = world.balances.lease(replace(first, sequence=2))
    assert late == second and answer.granted == 0
    assert world.balances.lease(replace(first, period="2026-04")) == (None, LeaseAnswer(0, 0))


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


@settings(max_examples=300)
@given(st.lists(steps, max_size=60))
def test_no_interleaving_of_crashes_and_losses_overshoots(plan: list[tuple[str, str, int]]) -> None:
    """Holders that reserve, settle, ship their closes late and die, and a ledger that restarts and loses messages."""
    world = World(limit=1000)
    alive = {name: world.budgets(name) for name in HOLDERS}
    reserved: dict[str, dict[str, int]] = {name: {} for name in HOLDERS}
    unshipped: dict[str, list[int]] = {name: [] for name in HOLDERS}
    names = dict(zip(HOLDERS, HOLDERS, strict=True))  # place -> the process that is there now
    serial = 0

    async def begin(place: str, amount: int) -> None:
        nonlocal serial
        serial += 1
        try:
            await reserve(alive[place], "acme", f"r{serial}", amount)
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
                await begin(place, amount)
            case "settle" if reserved[place]:
                request, worst = reserved[place].popitem()
                alive[place].settle(request, worst * amount // 100, 0)
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
        await reserve(alive["one"], "acme", "last", left)  # nothing was lost on the way

    asyncio.run(run())


# ---- limits per minute, at a time, and several at once ---------------------------------------------------------------


ACME = Principal("acme")


@dataclass
class Crowd:
    """Three processes under the limits of one org, on a clock of their own; the ledger may be away."""

    amounts: dict[Account, int]
    unix_s: float = MAY
    away: bool = False
    booked: int = 0

    def __post_init__(self) -> None:
        self.leases = Leases(lambda: int(self.unix_s * 1000))
        self.limits = Fixed(dict(self.amounts))
        clocks = (lambda: self.unix_s), (lambda: self.unix_s)
        self.holders = [Budgets(name, self.limits, self._lease, *clocks) for name in ("one", "two", "three")]

    async def _lease(self, ask: LeaseAsk) -> LeaseAnswer:
        await asyncio.sleep(0)
        if self.away:
            raise DeadlineExceeded("away")
        return await self.leases.lease(ask)

    async def enter(self, place: int, who: Principal = ACME) -> bool:
        try:
            await self.holders[place].enter(who)
        except RateLimited as refused:
            assert refused.retry_after_s is not None and refused.retry_after_s >= 1
            return False
        return True


PER_MINUTE = Account("acme", "requests", "minute")


async def test_requests_per_minute_hold_over_all_processes_and_all_of_them_can_be_had() -> None:
    crowd = Crowd({PER_MINUTE: 100})
    let_in = 0
    for _ in range(3):
        let_in += sum(await asyncio.gather(*(crowd.enter(n % 3) for n in range(200))))
        for holder in crowd.holders:
            await holder.renew()
            await holder.renew()
        crowd.unix_s += 0.5
    assert let_in == 100
    with pytest.raises(RateLimited) as refused:
        await crowd.holders[0].enter(Principal("acme"))
    assert "Organisation 'acme' may have 100 requests per minute" in refused.value.message
    assert refused.value.details["limit"] == 100 and 0 < refused.value.retry_after_s <= 70
    crowd.unix_s += refused.value.retry_after_s
    assert await crowd.enter(1)
    assert await crowd.enter(0, Principal("other"))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 15), st.integers(0, 2), st.sampled_from(["", "renew", "die"])), max_size=120),
    st.integers(1, 12),
)
def test_no_sixty_seconds_hold_more_than_the_limit(plan: list[tuple[float, int, str]], limit: int) -> None:
    """Over three processes that come and go."""

    async def run() -> None:
        crowd = Crowd({PER_MINUTE: limit})
        taken: list[float] = []
        for wait_s, place, event in plan:
            crowd.unix_s += wait_s
            if event == "renew":
                await crowd.holders[place].renew()
            elif event == "die":
                crowd.leases.balances.drop(crowd.holders[place]._holder)
                clocks = (lambda: crowd.unix_s), (lambda: crowd.unix_s)
                name = f"{place}-{len(taken)}-{crowd.unix_s}"
                crowd.holders[place] = Budgets(name, crowd.limits, crowd._lease, *clocks)
            if await crowd.enter(place):
                taken.append(crowd.unix_s)
        for start in taken:
            assert sum(start <= at < start + 60 for at in taken) <= limit

    asyncio.run(run())


async def test_while_the_ledger_is_away_each_process_goes_on_with_its_share() -> None:
    crowd = Crowd({PER_MINUTE: 30})
    for place in range(3):
        assert await crowd.enter(place)
    crowd.away = True
    crowd.unix_s += 61
    let_in = [sum([await crowd.enter(place) for _ in range(30)]) for place in range(3)]
    assert all(1 <= count <= 30 for count in let_in) and sum(let_in) <= 60
    crowd.away = False
    crowd.unix_s += 1
    assert sum([await crowd.enter(0) for _ in range(30)]) + sum(let_in) <= 60


async def test_concurrency_holds_over_all_processes_and_places_come_back() -> None:
    crowd = Crowd({Account("acme", "concurrent", "now"): 5})

    async def begin(n: int) -> object:
        return await asyncio.gather(reserve(crowd.holders[n % 3], "acme", f"r{n}", 10, 10), return_exceptions=True)

    begun = [n for n in range(30) if (await begin(n))[0] is None]
    assert len(begun) == 5
    for n in begun:
        crowd.holders[n % 3].settle(f"r{n}", 5, 5)
    for holder in crowd.holders:
        await holder.renew()
        await holder.renew()
    crowd.unix_s += 1
    assert [await begin(n) for n in (30, 33, 36, 39, 42)] == [[None]] * 5
    crowd.leases.balances.drop("one")  # it died with all five
    crowd.unix_s += 1
    assert await begin(31) == [None]


async def test_tokens_per_minute_are_what_was_really_taken() -> None:
    crowd = Crowd({Account("acme", "tokens", "minute"): 1000})
    one = crowd.holders[0]
    await reserve(one, "acme", "a", 0, 900)
    with pytest.raises(RateLimited) as refused:
        await reserve(one, "acme", "b", 0, 200)
    assert "1000 tokens per minute" in refused.value.message
    one.settle("a", 0, 100)
    await reserve(one, "acme", "b", 0, 900)
    with pytest.raises(RateLimited, match="lower 'max_tokens'"):
        await reserve(one, "acme", "c", 0, 1001)


async def test_of_several_limits_each_holds_and_a_refusal_takes_nothing() -> None:
    team, key = Account("acme", "microusd", "day", team="web"), Account("acme", "microusd", "total", key_id="k1")
    model = Account("acme", "microusd", "month", model="m")
    crowd = Crowd({monthly(): 1000, team: 300, key: 200, model: 500})
    budgets, number = crowd.holders[0], 0

    async def spend(microusd: int, who: Principal, name: str = "m") -> str:
        """The limit that refuses."""
        nonlocal number
        number, crowd.unix_s = number + 1, crowd.unix_s + 1
        try:
            await budgets.reserve(f"r{number}", Claim(who, name, microusd, 0))
        except BudgetExceeded as refused:
            return refused.message.partition(" does not")[0]
        budgets.settle(f"r{number}", microusd, 0)
        return ""

    web, ops = Principal("acme", "web", "k1"), Principal("acme", "ops", "k2")
    assert await spend(200, web) == ""
    assert await spend(1, web) == "The whole budget of key 'k1' of organisation 'acme'"
    assert await spend(101, Principal("acme", "web", "k3")) == "The daily budget of team 'web' of organisation 'acme'"
    assert await spend(100, Principal("acme", "web", "k3")) == ""
    assert await spend(201, ops) == "The monthly budget of organisation 'acme' for model 'm'"
    assert await spend(200, ops) == ""
    assert await spend(501, ops, "n") == "The monthly budget of organisation 'acme'"
    assert await spend(500, ops, "n") == ""
    crowd.unix_s += 86_400
    assert await spend(1, web, "n") == "The monthly budget of organisation 'acme'"


def test_periods_begin_and_end() -> None:
    at = 1_780_000_000_000
    for span in ("minute", "day", "month"):
        start, end = period_span_unix_ms(span, period_of(span, at))
        assert end is not None and start <= at < end
        assert period_of(span, start) == period_of(span, end - 1) != period_of(span, end)
        assert not is_over(span, period_of(span, at), end) and is_over(span, period_of(span, at), end + 86_400_000)
    assert period_of("total", at) == "total" and not is_over("total", "total", 2**50)
