from __future__ import annotations

from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalog import ModelEntry, NodePrice, Price
from router.accounting.prices import PriceBook
from router.node_costs import LEAST_FACTOR, MOST_A_MINUTE, MOST_FACTOR, PRIOR_S, NodeCosts, factor_of
from router.pipeline import Options
from router.replay import Logged, policy_of
from router.settings import IngressSettings, RoutingSettings
from router.work import Work
from tests.unit.test_pipeline import ME, ask, make_world

NODE = NodePrice(usd_per_hour=Decimal(36), input_tokens_per_hour=36_000, output_tokens_per_hour=3_600)
LOCAL = ModelEntry(name="m", engine="simulated", context_tokens=1024, node_price=NODE)
BOOK = PriceBook([LOCAL], {}, {})


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def costs() -> tuple[NodeCosts, Clock]:
    clock = Clock()
    return NodeCosts({"Sim:m": "m"}, clock), clock


def took(busy_s: float, input_tokens: float = 0, output_tokens: float = 0) -> dict[str, Work]:
    return {"Sim:m": Work(busy_s, input_tokens, output_tokens)}


def test_a_replica_that_is_half_as_fast_as_listed_makes_tokens_twice_as_dear_in_the_end() -> None:
    assert BOOK.replica_seconds("m", 36_000, 3_600) == 7200
    factors = [factor_of(Work(busy_s), busy_s / 2) for busy_s in (10, 60, 600, 6_000, 600_000)]
    assert factors[0] == 1.0, "too little to go by"
    assert factors == sorted(factors) and 1 < factors[1] < 1.1 and 1.99 < factors[-1] < 2.0
    assert factor_of(Work(PRIOR_S), 2 * PRIOR_S) == 2 / 3


seconds = st.floats(0, 1e12)


@given(seconds, seconds)
@settings(max_examples=100)
def test_a_factor_is_never_zero_negative_or_without_bounds(busy_s: float, listed_s: float) -> None:
    assert LEAST_FACTOR <= factor_of(Work(busy_s), listed_s) <= MOST_FACTOR


@given(st.lists(st.tuples(st.floats(0.1, 600), seconds, seconds), min_size=2, max_size=12))
@settings(max_examples=60)
def test_whatever_is_measured_a_price_moves_slowly(steps: list[tuple[float, float, float]]) -> None:
    moving, clock = costs()
    moving.take(took(PRIOR_S, 6_000), BOOK)
    last = moving.factor("m")
    for waited_s, busy_s, tokens in steps:
        clock.now_s += waited_s
        moving.take(took(busy_s, tokens), BOOK)
        now = moving.factor("m")
        most = MOST_A_MINUTE ** (min(60, waited_s) / 60)
        assert last / most - 0.002 <= now <= last * most + 0.002
        last = now


def test_the_same_measurements_move_nothing_and_those_that_are_lost_do_so_slowly() -> None:
    moving, clock = costs()
    seen = took(6_000, 30_000)  # 6,000 s for what the list says takes 3,000
    moving.take(seen, BOOK)
    first = moving.factor("m")
    assert first == round(6_600 / 3_600, 3)
    clock.now_s = 600
    moving.take(seen, BOOK)
    assert moving.factor("m") == first
    moving.take(took(0), BOOK)  # admission has started anew
    assert first / 1.11 < moving.factor("m") < first
    assert moving.explained()["m"]["busy_replica_s"] == 0


def test_a_model_with_a_price_list_of_its_own_goes_by_that() -> None:
    fixed = PriceBook([LOCAL], {"m": Price(input=Decimal(1), output=Decimal(1))}, {})
    moving, _ = costs()
    moving.take(took(6_000, 30_000), fixed)
    assert fixed.replica_seconds("m", 1, 1) is None and moving.factor("m") == 1.0 and moving.explained() == {}
    assert PriceBook([LOCAL], {}, {"m": NODE}).replica_seconds("m", 36_000, 0) == 3600


async def test_decisions_go_by_what_was_measured_the_books_by_the_list_and_a_replay_by_what_was_kept() -> None:
    world = make_world(IngressSettings.model_validate({"routing": {"strategy": "cheapest"}}))
    before = await world.pipeline.explain(ask(), ME, Options())
    assert before["decision"]["model"] == "medium-1" and before["node_costs"] == {}
    world.places.work = {"SimulatedModel:medium-1": Work(6_000, 30_000, 0)}
    told = await world.pipeline.explain(ask(), ME, Options())
    assert told["decision"]["model"] == "small-1"
    assert told["node_costs"]["medium-1"] == {
        "factor": 1.833,
        "busy_replica_s": 6_000,
        "input_tokens": 30_000,
        "output_tokens": 0,
    }
    assert told["expected_cost_microusd"] == before["expected_cost_microusd"], "what would be charged"
    models = told["decision"]["basis"]["models"]
    assert models["medium-1"]["node_factor"] == 1.833 and "node_factor" not in models["small-1"]
    assert told["decision"]["baseline_cost_microusd"] == models["medium-1"]["cost"]
    again = {
        mode: policy_of(RoutingSettings(strategy="cheapest", node_costs=mode))(Logged(told["decision"], 1.0, None, 0))
        for mode in ("measured", "listed")
    }
    assert again == {"measured": {"small-1": 1.0}, "listed": {"medium-1": 1.0}}
    world.pipeline.reconfigure(
        IngressSettings.model_validate({"routing": {"strategy": "cheapest", "node_costs": "listed"}})
    )
    listed = await world.pipeline.explain(ask(), ME, Options())
    assert listed["decision"]["model"] == "medium-1"
    assert listed["decision"]["basis"]["models"]["medium-1"]["node_factor"] == 1.833, "for a replay under the other"
    async with world.pipeline.run(ask("hello"), ME, Options(cache="off"), "chat") as run:
        await run.begin(False)
        await run.completion()
    close = world.closes()[-1]
    assert world.places.done == [close.usage], "which admission counts for all"
    assert close.cost_microusd == world.pipeline.prices.cost_microusd("medium-1", close.usage)
