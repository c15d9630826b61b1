"""Which models a cascade asks, where their own answers are known."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalog import TIERS
from router.constraints import Candidate
from router.plan import Plan
from router.policy import Decision, Limits, Wish, decide
from router.ports import Assessment, Outlook
from router.settings import RoutingSettings
from router.steps import worthwhile
from tests.unit.test_objective import ASKED, entry

POOL = tuple(Candidate(entry(name[0], name), "b", cost) for name, cost in zip(TIERS, (28, 57, 100), strict=True))
ROUTING = RoutingSettings(strategy="cascade")


def cascade(*chances: float | None, routing: RoutingSettings = ROUTING) -> Decision:
    """By what heads say of the small, the medium and the large model; None: it has none."""
    heads = {tier[0]: chance for tier, chance in zip(TIERS, chances, strict=True) if chance is not None}
    outlook = Outlook(0.5, 0.9, "math", version="1", heads=heads)
    return decide(ASKED, Assessment(0.5, "math", outlook=outlook), POOL, routing, None, 10)


def test_without_heads_every_tier_is_asked_from_the_weakest_on() -> None:
    found = cascade(None, None, None)
    assert (found.model, found.cascade, found.fallbacks) == ("s", ("s", "m", "l"), ("m", "l"))


def test_it_does_not_begin_with_a_model_that_is_known_to_fail() -> None:
    found = cascade(0.05, 0.9, 0.95)
    assert (found.model, found.cascade[0]) == ("m", "m")
    assert set(found.fallbacks) == {"s", "l"}, "it may still stand in for one that cannot be reached"
    assert cascade(0.05, None, None).cascade == ("m", "l")


def test_it_ends_with_the_model_after_which_nothing_is_gained() -> None:
    assert cascade(0.975, 0.977, 0.97).cascade == ("s",)
    assert cascade(0.6, 0.97, 0.975).cascade == ("s", "m")
    assert cascade(0.02, 0.03, 0.03).cascade == ("s",), "where all fail, the cheapest fails as well"
    assert cascade(0.4, 0.4, 0.95).cascade == ("s", "l"), "the middle one adds nothing"


def test_only_what_is_known_is_left_out() -> None:
    assert cascade(None, 0.02, 0.95).cascade == ("s", "l")
    assert cascade(0.9, None, None).cascade == ("s", "m", "l"), "who comes after has no head: a guess ends nothing"


def test_a_dearer_mistake_asks_more() -> None:
    few, many = (RoutingSettings(strategy="cascade", failure_price_answers=price) for price in (0.5, 40))
    assert cascade(0.6, 0.9, 0.95, routing=few).cascade == ("s",)
    assert cascade(0.6, 0.9, 0.95, routing=many).cascade == ("s", "m", "l")


@pytest.mark.parametrize("strategy", ["cheapest", "complexity", "hybrid"])
def test_the_cheapest_that_is_good_enough_goes_by_what_each_model_is_known_to_do(strategy: str) -> None:
    heads = {"s": 0.4, "m": 0.9, "l": 0.95}
    assessment = Assessment(0.1, "math", outlook=Outlook(0.9, 0.95, "math", heads=heads))  # for which any would do
    wish = Wish(limits=Limits(min_quality=0.8))
    for limit, eligible in ((wish, ("l", "m")), (Wish(), ("l", "m", "s"))):
        found = decide(ASKED, assessment, POOL, RoutingSettings(strategy=strategy), None, 10, limit)
        assert found.eligible == eligible
    assert decide(ASKED, assessment, POOL, RoutingSettings(strategy="cheapest"), None, 10, wish).model == "m"


def test_its_version_names_what_the_steps_depend_on_and_not_the_question() -> None:
    versions = {cascade(*heads).strategy_version for heads in ((0.05, 0.9, 0.95), (0.9, 0.98, 0.97))}
    assert len(versions) == 1 and cascade(None, None, None).strategy_version not in versions
    assert (
        cascade(0.9, 0.98, 0.97, routing=RoutingSettings(failure_price_answers=9, strategy="cascade")).strategy_version
        not in versions
    )


chances = st.none() | st.floats(0, 1)


@settings(max_examples=60)
@given(chances, chances, chances, st.floats(0, 50))
def test_the_steps_get_stronger_and_begin_with_the_model_that_is_asked(
    small: float | None, medium: float | None, large: float | None, price: float
) -> None:
    found = cascade(small, medium, large, routing=RoutingSettings(strategy="cascade", failure_price_answers=price))
    tiers = {candidate.entry.name: TIERS.index(candidate.entry.tier) for candidate in POOL}
    places = [tiers[name] for name in found.cascade]
    assert places == sorted(set(places)) and found.cascade[0] == found.model
    assert {found.model, *found.fallbacks} == {"s", "m", "l"}


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(0, 500))
def test_no_other_steps_are_expected_to_lose_less(known: list[float], failure: float) -> None:
    """By another way of reckoning: each question is a lot, and a model is right where the lot is below its chance."""
    by_name = {candidate.entry.name: chance for candidate, chance in zip(POOL, known, strict=True)}

    def loss(steps: tuple[Candidate, ...]) -> float:
        lots, total = sorted({0.0, *known, 1.0}), 0.0
        for low, high in pairwise(lots):
            middle, cost, right = (low + high) / 2, 0.0, False
            for step in steps:
                cost += step.expected_cost_microusd
                if right := middle < by_name[step.entry.name]:
                    break
            total += (high - low) * (cost + (0 if right else failure))
        return total

    best = loss(worthwhile(POOL, by_name, by_name, failure))
    some = (POOL[:1], POOL[1:2], POOL[2:], POOL[:2], POOL[1:], (POOL[0], POOL[2]), POOL)
    assert best <= min(map(loss, some)) + 1e-4


# ---- what is tried -------------------------------------------------------------------------------------------------


def plan(*heads: float | None) -> Plan:
    return Plan(cascade(*heads), {candidate.entry.name: candidate.entry for candidate in POOL}, ROUTING)


def test_the_last_step_is_not_judged_and_a_step_that_was_left_out_comes_after_the_others() -> None:
    tried = plan(0.4, 0.4, 0.95)
    assert tried.next() == "s" and tried.gate("s") is not None
    tried.escalate("s")
    assert tried.left == ["l", "m", "s"], "should the large one fail, a stronger one than the first is there"
    assert tried.next() == "l" and tried.gate("l") is None
    alone = plan(0.05, 0.97, 0.96)
    assert alone.next() == "m" and alone.gate("m") is None, "nobody is asked after it: what it says is the answer"
