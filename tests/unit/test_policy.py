from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.base import Capabilities
from models.catalog import TIERS, ModelEntry, Tier
from models.errors import (
    ContextLengthExceeded,
    ModelNotFound,
    NoEligibleModel,
    PermissionDenied,
    SwitchyardError,
    UnsupportedFeature,
)
from models.messages import ChatRequest, Message, TextPart, Tool
from router.constraints import Demand, exclusion
from router.policy import ABSTAINED, Candidate, Decision, Wish, decide, tier_of
from router.ports import Assessment
from router.settings import RoutingSettings, Strategy

ROUTING = RoutingSettings()


def candidate(
    name: str,
    tier: Tier = "small",
    cost: int = 10,
    context: int = 1_000,
    capabilities: Capabilities | None = None,
) -> Candidate:
    entry = ModelEntry(
        name=name,
        engine="simulated",
        tier=tier,
        context_tokens=context,
        capabilities=capabilities or Capabilities(),
    )
    return Candidate(entry, f"backend-of-{name}", cost)


SMALL, MEDIUM, LARGE = candidate("s"), candidate("m", "medium", 20), candidate("l", "large", 90)
ALL = (SMALL, MEDIUM, LARGE)


def question(model: str = "auto", **changes: object) -> ChatRequest:
    return replace(ChatRequest(model, (Message("user", (TextPart("?"),)),)), **changes)


def choose(
    score: float | None,
    candidates: tuple[Candidate, ...] = ALL,
    request: ChatRequest | None = None,
    allowed: tuple[str, ...] | None = None,
    tokens: int = 1,
) -> Decision:
    assessment = None if score is None else Assessment(score, "chat", {"length": score})
    return decide(request or question(), assessment, candidates, ROUTING, allowed, tokens)


TOOLS = question(tools=(Tool("look"),))
WITH_TOOLS = Capabilities(tools=True)


# ---- auto ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "model"), [(0.0, "s"), (0.299, "s"), (0.3, "m"), (0.6, "m"), (0.601, "l"), (1.0, "l"), (None, "l")]
)
def test_the_score_chooses_the_tier(score: float | None, model: str) -> None:
    assert choose(score).model == model


def test_the_cheapest_of_a_tier_is_chosen_and_equal_prices_by_name() -> None:
    dear, cheap, twin = candidate("a", cost=5), candidate("c", cost=3), candidate("b", cost=3)
    assert choose(0, (dear, cheap, twin)).model == "b"


def test_an_empty_tier_goes_to_the_nearest_stronger_then_to_the_nearest_weaker() -> None:
    assert choose(0, (MEDIUM, LARGE)).model == "m"
    assert choose(0.5, (SMALL, LARGE)).model == "l"
    assert choose(1, (SMALL, MEDIUM)).model == "m"


def test_fallbacks_are_the_same_tier_then_stronger_then_weaker() -> None:
    other = candidate("m2", "medium", 30)
    decision = choose(0.5, (SMALL, LARGE, other, MEDIUM))
    assert (decision.model, *decision.fallbacks) == ("m", "m2", "l", "s")


def test_a_decision_explains_itself() -> None:
    narrow = candidate("narrow", context=1)
    decision = choose(0.1, (*ALL, narrow))
    assert decision == Decision(
        model="s",
        backend="backend-of-s",
        fallbacks=("m", "l"),
        tier="small",
        strategy="complexity",
        strategy_version="1",
        score=0.1,
        task="chat",
        factors={"length": 0.1},
        eligible=("l", "m", "s"),
        excluded={
            "narrow": "The prompt has at least 1 tokens and model 'narrow' takes 1 with the answer; "
            "shorten the conversation or choose a model with a larger context."
        },
        propensity=1.0,
        expected_cost_microusd=10,
        baseline_cost_microusd=90,
        basis=decision.basis,
    )


def test_the_baseline_is_the_cheapest_of_the_strongest_eligible_tier() -> None:
    cheaper = candidate("l2", "large", 70)
    assert choose(0, (*ALL, cheaper)).baseline_cost_microusd == 70
    assert choose(0, (SMALL, MEDIUM)).baseline_cost_microusd == 20


def test_without_an_assessment_the_decision_says_so() -> None:
    decision = choose(None)
    assert (decision.strategy, decision.score) == (ABSTAINED.strategy, 1.0)


# ---- a named model -------------------------------------------------------------------------------------------------


def test_a_named_model_is_pinned() -> None:
    decision = choose(None, request=question("m"))
    assert (decision.model, decision.fallbacks, decision.strategy) == ("m", (), "pinned")
    assert (decision.score, decision.task, decision.eligible) == (None, None, ("m",))
    assert decision.expected_cost_microusd == decision.baseline_cost_microusd == 20
    assert decision.excluded.keys() == {"s", "l"}


def test_an_unknown_name_lists_what_the_tenant_may_use() -> None:
    with pytest.raises(ModelNotFound) as raised:
        choose(None, request=question("gpt-17"), allowed=("s", "m"))
    assert raised.value.param == "model"
    assert "one of: m, s." in raised.value.message


@pytest.mark.parametrize(
    ("request_", "allowed", "tokens", "error"),
    [
        (question("s"), ("m",), 1, PermissionDenied),
        (replace(TOOLS, model="s"), None, 1, UnsupportedFeature),
        (question("s"), None, 1_000, ContextLengthExceeded),
    ],
)
def test_a_named_model_that_cannot_raises_its_own_error(
    request_: ChatRequest,
    allowed: tuple[str, ...] | None,
    tokens: int,
    error: type[SwitchyardError],
) -> None:
    with pytest.raises(error) as raised:
        choose(None, (SMALL, LARGE), request_, allowed, tokens)
    assert "'s'" in raised.value.message


# ---- nobody left ---------------------------------------------------------------------------------------------------


def refused(error: type[SwitchyardError], *candidates: Candidate, **asked: object) -> SwitchyardError:
    with pytest.raises(error) as raised:
        choose(0.5, candidates, **asked)  # type: ignore[arg-type]
    assert type(raised.value) is error
    return raised.value


def test_a_prompt_too_long_for_all() -> None:
    refused(ContextLengthExceeded, *ALL, tokens=1_000)
    assert choose(0, (SMALL, candidate("wide", "large", context=1_001)), tokens=1_000).model == "wide"


def test_a_feature_that_none_has() -> None:
    error = refused(UnsupportedFeature, *ALL, request=TOOLS)
    assert error.param == "tools"
    assert error.details["excluded"].keys() == {"s", "m", "l"}


def test_models_outside_the_allow_list_are_no_reason() -> None:
    refused(ContextLengthExceeded, SMALL, candidate("wide", context=9_000), allowed=("s",), tokens=1_000)


def test_a_mixture_names_the_tightest_constraint() -> None:
    tools = candidate("tools", capabilities=WITH_TOOLS)
    error = refused(NoEligibleModel, SMALL, MEDIUM, tools, request=TOOLS, tokens=1_000)
    assert "tightest is capability, which excludes 2 of 3" in error.message


def test_an_allow_list_of_absent_models_and_no_models_at_all() -> None:
    assert "allow-list" in refused(NoEligibleModel, *ALL, allowed=("gone",)).message
    assert "No model is configured" in refused(NoEligibleModel).message


def test_who_could_not_be_reached_of_late_is_out_as_long_as_others_are_left() -> None:
    down = replace(SMALL, rests=True)
    found = choose(0.0, (down, MEDIUM, LARGE))
    assert (found.model, found.eligible) == ("m", ("l", "m")) and "could not be reached" in found.excluded["s"]
    assert "s" not in found.fallbacks
    alone = choose(0.0, (down, replace(MEDIUM, rests=True)))
    assert (alone.model, alone.eligible) == ("s", ("m", "s")), "a try is better than no answer"
    assert choose(None, (down, MEDIUM), question("s")).model == "s", "a named model is asked all the same"


# ---- properties ----------------------------------------------------------------------------------------------------

capabilities = st.sampled_from([Capabilities(), WITH_TOOLS])
pools = st.lists(
    st.builds(
        candidate,
        st.sampled_from("abcdefgh"),
        st.sampled_from(TIERS),
        st.integers(0, 50),
        st.sampled_from([100, 1_000]),
        capabilities,
    ),
    max_size=8,
    unique_by=lambda c: c.entry.name,
).map(tuple)
scores = st.floats(0, 1)
requests = st.sampled_from([question(), TOOLS, question("a"), question("b")])
allow_lists = st.none() | st.lists(st.sampled_from("abcdefgh"), max_size=6).map(tuple)
prompts = st.sampled_from([1, 500])


def outcome(*args: object) -> Decision | str:
    try:
        return choose(*args)  # type: ignore[arg-type]
    except SwitchyardError as error:
        return f"{error.code}: {error.message}"


@given(scores, pools, requests, allow_lists, prompts)
def test_no_excluded_model_is_ever_in_the_plan(
    score: float, pool: tuple[Candidate, ...], request: ChatRequest, allowed: tuple[str, ...] | None, tokens: int
) -> None:
    decision = outcome(score, pool, request, allowed, tokens)
    may = {c.entry.name for c in pool if exclusion(Demand(request, allowed, tokens), c) is None}
    if isinstance(decision, Decision):
        plan = {decision.model, *decision.fallbacks}
        assert plan == set(decision.eligible) <= may
        assert not plan & decision.excluded.keys()
        assert plan | decision.excluded.keys() == {c.entry.name for c in pool}
    else:
        assert not may or request.model not in ("auto", *may)


@given(scores, scores, pools, st.sampled_from([question(), TOOLS]), allow_lists, prompts)
def test_a_higher_score_never_chooses_a_weaker_tier(
    one: float,
    two: float,
    pool: tuple[Candidate, ...],
    request: ChatRequest,
    allowed: tuple[str, ...] | None,
    tokens: int,
) -> None:
    low = outcome(min(one, two), pool, request, allowed, tokens)
    high = outcome(max(one, two), pool, request, allowed, tokens)
    if isinstance(low, Decision) and isinstance(high, Decision):
        assert TIERS.index(high.tier) >= TIERS.index(low.tier)
    else:
        assert low == high


@given(st.randoms(use_true_random=False), scores, pools, requests, allow_lists, prompts)
def test_the_same_input_in_any_order_gives_the_same_decision(
    random: object,
    score: float,
    pool: tuple[Candidate, ...],
    request: ChatRequest,
    allowed: tuple[str, ...] | None,
    n: int,
) -> None:
    shuffled = list(pool)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = outcome(score, pool, request, allowed, n), outcome(score, tuple(shuffled), request, allowed, n)
    if isinstance(first, str):
        assert isinstance(second, str) and first.split(":")[0] == second.split(":")[0]
    else:
        assert first == second


@given(scores, pools, st.integers(0, 50))
def test_a_model_that_gets_cheaper_stays_chosen_and_one_that_gets_dearer_is_not_newly_chosen(
    score: float, pool: tuple[Candidate, ...], change: int
) -> None:
    before = outcome(score, pool)
    if isinstance(before, str):
        return
    for touched in pool:
        name = touched.entry.name
        cheaper = replace(touched, expected_cost_microusd=max(0, touched.expected_cost_microusd - change))
        dearer = replace(touched, expected_cost_microusd=touched.expected_cost_microusd + change)
        after_cheaper = choose(score, tuple(cheaper if c is touched else c for c in pool))
        after_dearer = choose(score, tuple(dearer if c is touched else c for c in pool))
        if before.model == name:
            assert after_cheaper.model == name
        else:
            assert after_dearer.model == before.model


names = st.lists(st.sampled_from("abcdefgh"), max_size=6).map(tuple)


@given(scores, pools, requests, allow_lists, prompts, names, st.sampled_from(["complexity", "cascade", None]))
def test_whatever_is_wished_for_the_plan_holds_who_may_answer_in_the_order_that_was_asked_for(
    score: float,
    pool: tuple[Candidate, ...],
    request: ChatRequest,
    allowed: tuple[str, ...] | None,
    tokens: int,
    order: tuple[str, ...],
    strategy: Strategy | None,
) -> None:
    def decided() -> Decision | str:
        try:
            assessment = Assessment(score, "chat", {})
            return decide(request, assessment, pool, ROUTING, allowed, tokens, Wish(strategy, order))
        except SwitchyardError as error:
            return error.code

    decision = decided()
    assert decision == decided()
    if isinstance(decision, str):
        return
    may = {c.entry.name for c in pool if exclusion(Demand(request, allowed, tokens), c) is None}
    plan = (decision.model, *decision.fallbacks)
    assert set(plan) <= may and len(set(plan)) == len(plan)
    assert [name for name in dict.fromkeys(order) if name in decision.fallbacks] == list(decision.fallbacks)
    assert set(decision.eligible) | decision.excluded.keys() == {c.entry.name for c in pool}
    tiers = {c.entry.name: TIERS.index(c.entry.tier) for c in pool}
    steps = [tiers[name] for name in decision.cascade]
    assert steps == sorted(set(steps)), "each step is stronger than the one before"
    if request.model == "auto" and strategy == "cascade":
        assert decision.cascade[0] == decision.model
        assert tiers[decision.model] == min(tiers[name] for name in may), "the weakest comes first"
    else:
        assert decision.cascade == ()


@given(scores, pools)
def test_the_chosen_one_is_the_cheapest_of_its_tier(score: float, pool: tuple[Candidate, ...]) -> None:
    decision = outcome(score, pool)
    if isinstance(decision, Decision):
        rivals = [c for c in pool if c.entry.tier == decision.tier and c.entry.name in decision.eligible]
        assert decision.expected_cost_microusd == min(c.expected_cost_microusd for c in rivals)
        wanted = tier_of(score, ROUTING)
        if any(c.entry.tier == wanted for c in pool if c.entry.name in decision.eligible):
            assert decision.tier == wanted
