from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.errors import SwitchyardError
from router.constraints import Limits
from router.events import Principal
from router.pipeline import Options
from router.settings import IngressSettings, RoutingSettings
from router.trial_settings import ExperimentSettings, LimitSettings, TimeRule
from router.trials import Courses, arm_of, holds, tighter, unit_of, version_of
from tests.unit.test_pipeline import ask, make_world, unary

ANN = Principal("acme", "", "key-1", "ann")
MONDAY = datetime(2026, 6, 1, tzinfo=UTC)


def experiment(**changes: Any) -> ExperimentSettings:
    arms = {"control": {}, "b": {"routing": {"strategy": "cheapest"}}, "c": {"model": "medium-1", "share": 2}}
    return ExperimentSettings.model_validate({"arms": arms, **changes})


def nobody(_name: str, _version: str) -> None: ...


# ---- by the time of the day ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "at", "matches"),
    [
        ({"hours": "08:00-18:00"}, (1, 8, 0), True),
        ({"hours": "08:00-18:00"}, (1, 18, 0), False),
        ({"hours": "08:00-18:00", "timezone": "Asia/Tokyo"}, (1, 8, 0), True),
        ({"hours": "08:00-18:00", "timezone": "Asia/Tokyo"}, (1, 10, 0), False),
        ({"days": ["sat", "sun"]}, (1, 12, 0), False),
        ({"days": ["sat", "sun"]}, (6, 12, 0), True),
        ({"hours": "22:00-06:00", "days": ["fri"]}, (5, 23, 0), True),
        ({"hours": "22:00-06:00", "days": ["fri"]}, (6, 5, 59), True),
        ({"hours": "22:00-06:00", "days": ["fri"]}, (6, 6, 0), False),
        ({"hours": "22:00-06:00", "days": ["fri"]}, (5, 5, 0), False),
        ({}, (3, 0, 0), True),
    ],
)
def test_a_rule_holds_at_its_hours(rule: dict[str, Any], at: tuple[int, int, int], matches: bool) -> None:
    settings = TimeRule.model_validate({"name": "r", "routing": {}, **rule})
    assert holds(settings, MONDAY.replace(day=at[0], hour=at[1], minute=at[2])) is matches


def test_summer_time_is_the_time_zones_own() -> None:
    rule = TimeRule(name="r", hours="08:00-09:00", timezone="Europe/Berlin", routing={})
    assert holds(rule, datetime(2026, 7, 1, 6, 30, tzinfo=UTC)) and holds(rule, datetime(2026, 1, 1, 7, 30, tzinfo=UTC))


async def test_the_first_rule_that_matches_decides_and_is_in_the_receipt() -> None:
    rules = (
        TimeRule(name="always", routing={"strategy": "cheapest", "limits": {"local_only": True}}),
        TimeRule(name="never reached", routing={"strategy": "cascade"}),
    )
    world = make_world(IngressSettings(routing=RoutingSettings(rules=rules)))
    await unary(world, ask("x" * 30))
    decision = world.closes()[0].decision or {}
    assert (decision["rule"], decision["strategy"]) == ("always", "cheapest")
    world.books_are_shut()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rules": [{"name": "r", "routing": {"no_such": 1}}]},
        {"rules": [{"name": "r", "hours": "8-18", "routing": {}}]},
        {"rules": [{"name": "r", "timezone": "Mars/Base", "routing": {}}]},
        {"rules": [{"name": "r", "routing": {"rules": []}}]},
        {"rules": [{"name": "r", "routing": {}}, {"name": "r", "routing": {}}]},
        {"experiments": {"e": {"arms": {"a": {}}}}},
        {"experiments": {"e": {"arms": {"a": {}, "b": {"routing": {"strategy": "nonsense"}}}}}},
        {"experiments": {"e": {"arms": {"a": {}, "b": {"shadow": True}}}}},
        {"experiments": {"e": {"arms": {"a": {"shadow": True, "model": "m"}, "b": {}}}}},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RoutingSettings.model_validate(wrong)


def test_a_shadow_needs_a_budget() -> None:
    arms = {"a": {}, "b": {"shadow": True, "model": "m"}}
    routing = {"experiments": {"e": {"arms": arms}}}
    with pytest.raises(ValidationError, match="needs a budget"):
        IngressSettings.model_validate({"routing": routing})
    IngressSettings.model_validate({"routing": routing, "tenants": {"shadow": {"monthly_budget_microusd": 5}}})


@given(st.none() | st.floats(0, 1), st.none() | st.floats(0, 1), st.none() | st.integers(0, 9), st.booleans())
def test_of_the_callers_and_the_operators_limits_the_tighter_holds(
    one: float | None, other: float | None, cost: int | None, local: bool
) -> None:
    found = tighter(Limits(one, cost, local_only=local), LimitSettings(min_quality=other, max_cost_microusd=5))
    times = LimitSettings(max_latency_ms=900, max_ttft_ms=50)
    assert tighter(Limits(region="eu"), LimitSettings()).region == "eu"
    assert tighter(Limits(), LimitSettings(region="eu")).region == "eu"
    assert tighter(Limits(region="eu"), LimitSettings(region="eu")).region == "eu"
    assert tighter(Limits(region="us"), LimitSettings(region="eu")).region == "eu and us", "where nothing runs"
    both = tighter(Limits(one, max_latency_ms=cost, max_ttft_ms=60), times)
    assert (both.max_latency_ms, both.max_ttft_ms) == (900 if cost is None else min(cost, 900), 50)
    assert found.min_quality == max((each for each in (one, other) if each is not None), default=None)
    assert found.max_cost_microusd == min(5, 5 if cost is None else cost) and found.local_only is local


# ---- arms ------------------------------------------------------------------------------------------------------------


def test_arms_are_drawn_in_proportion_and_always_alike() -> None:
    settings = experiment(share=0.5)
    drawn = Counter(arm_of("e", settings, f"unit-{i}") for i in range(8_000))
    assert drawn[None] == pytest.approx(4_000, abs=200)
    assert [drawn[arm] for arm in ("control", "b", "c")] == [pytest.approx(n, abs=150) for n in (1_000, 1_000, 2_000)]
    assert all(arm_of("e", settings, f"u{i}") == arm_of("e", settings, f"u{i}") for i in range(50))
    assert [arm_of("e", settings, f"u{i}") for i in range(50)] != [arm_of("f", settings, f"u{i}") for i in range(50)]


def test_whose_arm_it_is() -> None:
    other = replace(ANN, key_id="key-2")
    tenant, user, session = (experiment(by=by) for by in ("tenant", "user", "session"))
    assert unit_of(tenant, ANN, "ben", "c1") == unit_of(tenant, other, None, "c2")
    assert unit_of(user, ANN, None, "c1") == unit_of(user, other, None, "c2") != unit_of(user, ANN, "ben", "c1")
    assert unit_of(session, ANN, None, "c1") != unit_of(session, ANN, None, "c2")
    assert "ann" not in unit_of(user, ANN, None, None)


def test_a_named_strategy_or_another_organisation_takes_no_part() -> None:
    courses = Courses(RoutingSettings(experiments={"e": experiment(orgs=("acme",))}), nobody)
    assert courses.of(ANN, None, "c", True, 0).trial is not None
    assert courses.of(ANN, None, "c", False, 0).trial is None
    assert courses.of(Principal("other"), None, "c", True, 0).trial is None


def test_with_other_arms_the_counting_begins_anew_but_not_with_another_metric() -> None:
    assert version_of(experiment()) == version_of(experiment(metric="quality")) != version_of(experiment(by="user"))


def settings(**changes: Any) -> IngressSettings:
    return IngressSettings(routing=RoutingSettings(strategy="complexity", experiments={"e": experiment(**changes)}))


async def test_an_arm_decides_and_the_propensity_is_over_all_arms() -> None:
    world = make_world(settings())
    for i in range(40):
        await unary(world, ask(f"question {i}"))
    arms: dict[str, set[tuple[str, str, float]]] = {}
    for close in world.closes():
        decision = close.decision or {}
        part = decision["experiment"]
        arms.setdefault(part["arm"], set()).add((decision["model"], decision["strategy"], decision["propensity"]))
    assert arms == {
        "control": {("small-1", "complexity", 0.25)},
        "b": {("medium-1", "cheapest", 0.75)},
        "c": {("medium-1", "preferred", 0.75)},
    }
    world.books_are_shut()


async def test_one_conversation_stays_with_its_arm() -> None:
    world = make_world(settings())
    for _ in range(5):
        await unary(world, ask("the same beginning"), Options(cache="off"))
    assert len({(close.decision or {})["experiment"]["arm"] for close in world.closes()}) == 1


async def test_a_promoted_arm_is_everybodys_and_counts_no_more() -> None:
    world = make_world(settings(share=0.01))
    world.pipeline.stages.promoted = lambda name, version: "c" if name == "e" else None
    world.pipeline.reconfigure(world.pipeline.settings)
    for i in range(10):
        await unary(world, ask(f"question {i}"))
    decisions = [close.decision or {} for close in world.closes()]
    assert {(decision["model"], decision["experiment"]) for decision in decisions} == {("medium-1", None)}


async def test_an_arm_under_which_nobody_can_answer_counts_as_failed() -> None:
    unmeetable = {"routing": {"limits": {"min_quality": 1.0, "max_cost_microusd": 0}}}
    routing = RoutingSettings(experiments={"e": experiment(arms={"a": unmeetable, "b": unmeetable})})
    world = make_world(IngressSettings(routing=routing))
    with pytest.raises(SwitchyardError):
        await unary(world, ask())
    (close,) = world.closes()
    assert close.status == "error" and (close.decision or {})["experiment"]["arm"] in ("a", "b")


async def test_it_is_explained_before_it_is_asked() -> None:
    world = make_world(settings())
    told = await world.pipeline.explain(ask(), ANN, Options())
    assert isinstance(told["decision"], dict) and told["decision"]["experiment"]["experiment"] == "e"


# ---- shadows ---------------------------------------------------------------------------------------------------------


def shadowing(share: float = 1.0) -> IngressSettings:
    arms = {"control": {"model": "small-1"}, "b": {}, "s": {"model": "medium-1", "shadow": True, "share": share}}
    return IngressSettings.model_validate(
        {
            "routing": {"experiments": {"e": {"arms": arms}}},
            "tenants": {"shadow": {"monthly_budget_microusd": 1_000_000}, "shy": {"models": ["small-1"]}},
        }
    )


async def ended(world: Any) -> None:
    while world.pipeline._background:
        await next(iter(world.pipeline._background))


async def test_a_shadow_is_asked_after_the_answer_and_paid_by_the_operator() -> None:
    world = make_world(shadowing())
    _, completion = await unary(world, ask())
    assert len(world.closes()) == 1 and completion.text
    await ended(world)
    answer, shadow = world.closes()
    assert (shadow.org, shadow.team, shadow.door, shadow.model) == ("shadow", "e", "shadow", "medium-1")
    assert shadow.cost_microusd > 0 and answer.org != "shadow"
    mine, its = (answer.decision or {})["experiment"], (shadow.decision or {})["experiment"]
    assert its["arm"] == "s" and its["unit"] == mine["unit"] and its["version"] == mine["version"]
    assert (world.pipeline.shadows.asked, world.pipeline.shadows.running) == (1, 0)
    assert world.pipeline.exact.stats().entries == 1  # its answer is kept nowhere
    world.books_are_shut()


async def test_who_may_not_use_a_model_is_not_shadowed_by_it() -> None:
    world = make_world(shadowing())
    await unary(world, ask(), who=Principal("shy"))
    await ended(world)
    assert len(world.closes()) == 1


async def test_its_share_holds_and_too_many_at_once_are_left_out() -> None:
    world = make_world(shadowing(0.0001))
    await unary(world, ask())
    await ended(world)
    assert len(world.closes()) == 1
    crowded = make_world(shadowing())
    crowded.pipeline.shadows.running = 4
    await unary(crowded, ask())
    assert len(crowded.closes()) == 1 and crowded.pipeline.shadows.left_out == 1
