from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalog import ModelEntry
from models.errors import InvalidRequest, NoEligibleModel
from models.messages import ChatRequest, Message, TextPart
from router.objective import Evidence, bounded, chance_of, chances, quality_of
from router.policy import AUTO, Candidate, Circumstances, Limits, Wish, decide
from router.ports import Assessment, Outlook
from router.settings import RoutingSettings

ASKED = ChatRequest(AUTO, (Message("user", (TextPart("question"),)),))
TIERS = ("small", "medium", "large")

probabilities = st.floats(0.02, 0.98)
heads = st.dictionaries(st.sampled_from([f"model-{i}" for i in range(5)]), probabilities)
outlooks = st.builds(Outlook, probabilities, probabilities, st.just("math"), st.booleans(), st.just("1"), heads=heads)
assessments = st.builds(
    lambda score, outlook: Assessment(score, "math", outlook=outlook), st.floats(0, 1), st.none() | outlooks
)
costs = st.lists(st.integers(0, 10_000), min_size=1, max_size=5)
strategies = st.sampled_from(
    ["hybrid", "learned", "learning", "complexity", "cheapest", "fastest", "round_robin", "cascade"]
)


def entry(name: str, tier: str = "small", **fields: object) -> ModelEntry:
    return ModelEntry.model_validate(
        {"name": name, "engine": "simulated", "tier": tier, "context_tokens": 4096, **fields}
    )


def pool_of(prices: list[int]) -> list[Candidate]:
    return [
        Candidate(entry(f"model-{i}", TIERS[i % 3]), "backend", cost, float(cost), i) for i, cost in enumerate(prices)
    ]


def choose(pool: list[Candidate], assessment: Assessment, strategy: str = "hybrid", **routing: object):
    settings_ = RoutingSettings.model_validate({"strategy": strategy, **routing})
    return decide(ASKED, assessment, pool, settings_, None, 10)


def chosen(outlook: Outlook, prices: dict[str, int], strategy: str = "learned", **routing: object) -> str:
    pool = [Candidate(entry(tier, tier), "backend", cost) for tier, cost in prices.items()]
    return choose(pool, Assessment(0.5, "math", outlook=outlook), strategy, **routing).model


def test_a_large_gain_is_worth_the_large_model_and_a_small_one_is_not() -> None:
    prices = {"small": 100, "large": 1000}
    assert chosen(Outlook(0.4, 0.9, "math"), prices) == "large"
    assert chosen(Outlook(0.85, 0.9, "chat"), prices) == "small"


def test_who_abstains_goes_to_the_strong_side() -> None:
    unsure = Outlook(0.85, 0.9, "chat", abstains=True)
    assert chosen(unsure, {"small": 100, "large": 1000}) == "large"
    assert unsure.score > Outlook(0.85, 0.9, "chat").score


@settings(max_examples=150)
@given(assessments, costs, strategies, st.integers(0, 4), st.integers(1, 5_000), st.none() | st.just(3_000))
def test_a_model_that_gets_dearer_is_never_chosen_for_it(
    assessment: Assessment, prices: list[int], strategy: str, which: int, more: int, failure_price: int | None
) -> None:
    """A bad answer costs something fixed, or so many answers of the strongest: then its price is what all is measured
    by, and of the others this holds."""
    which %= len(prices)
    pool = pool_of(prices)
    strongest = min(pool, key=lambda each: (-TIERS.index(each.entry.tier), each.expected_cost_microusd))
    if strategy in ("fastest", "round_robin") or (failure_price is None and pool[which] is strongest):
        return
    dearer = pool_of([cost + more * (i == which) for i, cost in enumerate(prices)])
    first, then = (
        choose(each, assessment, strategy, failure_price_microusd=failure_price).model for each in (pool, dearer)
    )
    assert first == f"model-{which}" or then != f"model-{which}"


evidences = st.dictionaries(st.sampled_from(["model-0", "model-1"]), st.tuples(st.floats(0, 50), st.floats(0, 50)))


@settings(max_examples=150)
@given(assessments, evidences, costs, strategies, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_bound_of_quality_never_lets_in_more_models_nor_a_worse_one(
    assessment: Assessment, evidence: Evidence, prices: list[int], strategy: str, one: float, other: float
) -> None:
    lower, higher = sorted((one, other))
    routing = RoutingSettings.model_validate({"strategy": strategy})

    def eligible(least: float) -> dict[str, float]:
        pool, wish = pool_of(prices), Wish(limits=Limits(min_quality=least))
        try:
            decision = decide(ASKED, assessment, pool, routing, None, 10, wish, Circumstances(evidence=evidence))
        except NoEligibleModel:
            return {}
        chance = chances(decision.strategy, assessment, pool, evidence, routing)
        return {name: chance[name] for name in decision.eligible}

    strict = eligible(higher)
    assert strict.items() <= eligible(lower).items()
    assert all(chance >= higher for chance in strict.values())


@settings(max_examples=200)
@given(assessments, costs, strategies, st.floats(0, 0.999), st.floats(0, 1), st.integers(0, 9), st.integers(0, 8_000))
def test_no_excluded_model_is_chosen_and_the_same_inputs_give_the_same_decision(
    assessment: Assessment, prices: list[int], strategy: str, draw: float, share: float, turn: int, limit: int
) -> None:
    routing = RoutingSettings.model_validate({"strategy": strategy, "exploration": share})
    wish, circumstances = Wish(limits=Limits(max_cost_microusd=limit)), Circumstances(turn, draw)

    def once():
        return decide(ASKED, assessment, pool_of(prices), routing, None, 10, wish, circumstances)

    try:
        decision = once()
    except NoEligibleModel as error:
        assert "max_cost_microusd" in str(error)
        return
    assert decision == once()
    assert {decision.model, *decision.fallbacks} <= set(decision.eligible)
    assert not set(decision.eligible) & set(decision.excluded)
    assert set(decision.eligible) | set(decision.excluded) == {f"model-{i}" for i in range(len(prices))}
    assert 0 < decision.propensity <= 1


def test_propensities_are_how_often_models_are_chosen() -> None:
    pool, times = pool_of([10, 20, 30]), 3_000
    routing = RoutingSettings(strategy="cheapest", exploration=0.3)
    counts: dict[str, int] = {}
    said: dict[str, float] = {}
    for number in range(times):
        decision = decide(ASKED, None, pool, routing, None, 10, Wish(), Circumstances(0, (number + 0.5) / times))
        counts[decision.model] = counts.get(decision.model, 0) + 1
        said[decision.model] = decision.propensity
    assert sum(said.values()) == pytest.approx(1)
    for name, propensity in said.items():
        assert counts[name] / times == pytest.approx(propensity, abs=0.01)


def test_the_tightest_constraint_is_named_and_each_model_says_why_it_is_out() -> None:
    pool = [Candidate(entry("near", region="eu"), "b", 5), Candidate(entry("far", "large", region="us"), "b", 5)]
    with pytest.raises(NoEligibleModel, match="the tightest is region") as caught:
        decide(ASKED, None, pool, RoutingSettings(), None, 10, Wish(limits=Limits(region="mars")))
    assert "not in 'mars'" in caught.value.details["excluded"]["near"]


def test_local_only_and_measured_latency_exclude() -> None:
    cloud = entry("cloud", "large", engine="openai_compatible", provider="somebody")
    pool = [Candidate(entry("here"), "b", 50, 20.0), Candidate(cloud, "b", 5, 900.0)]
    for limits in (Limits(local_only=True), Limits(max_ttft_ms=100.0)):
        decision = decide(ASKED, None, pool, RoutingSettings(), None, 10, Wish(limits=limits))
        assert decision.model == "here" and list(decision.excluded) == ["cloud"]


def test_a_bound_of_quality_beside_a_named_model_is_refused() -> None:
    asked = replace(ASKED, model="model-0")
    with pytest.raises(InvalidRequest, match="min_quality"):
        decide(asked, None, pool_of([1]), RoutingSettings(), None, 10, Wish(limits=Limits(min_quality=0.5)))


def test_staying_with_the_model_of_a_conversation_is_worth_its_price() -> None:
    outlook = Outlook(0.8, 0.9, "chat")
    stay = [Candidate(entry("a", "small"), "b", 100, None, 60), Candidate(entry("b", "small"), "b", 120, None, 0)]
    assert choose(stay, Assessment(0.4, "chat", outlook=outlook)).model == "b"


def test_outcomes_move_hybrid_and_learning_but_not_learned() -> None:
    outlook = Outlook(0.9, 0.92, "chat")
    pool = [Candidate(entry("small", "small"), "b", 100), Candidate(entry("large", "large"), "b", 300)]
    for strategy, expected in (("learned", "small"), ("hybrid", "large"), ("learning", "large")):
        routing = RoutingSettings.model_validate({"strategy": strategy})
        circumstances = Circumstances(evidence={"small": (0.0, 60.0), "large": (30.0, 0.0)})
        decision = decide(
            ASKED, Assessment(0.4, "chat", outlook=outlook), pool, routing, None, 10, Wish(), circumstances
        )
        assert decision.model == expected, strategy


def test_complexity_bounds_what_was_learned() -> None:
    routing = RoutingSettings()
    trivial = bounded(Outlook(0.3, 0.9, "chat"), Assessment(0.05, "chat"), routing)
    assert trivial.large - trivial.small <= 0.02 + 1e-9
    demanding = bounded(Outlook(0.9, 0.9, "chat"), Assessment(0.9, "math"), routing)
    assert demanding.large - demanding.small >= 0.15 - 1e-9
    foreign = bounded(Outlook(0.9, 0.9, "chat", abstains=True), Assessment(0.7, "math"), routing)
    assert foreign.large - foreign.small >= 0.25


def test_without_the_learned_word_the_score_decides_under_its_own_name() -> None:
    decision = choose(pool_of([1, 2, 3]), Assessment(0.9, "math"))
    assert (decision.strategy, decision.tier) == ("complexity", "large")


def test_round_robin_takes_turns_and_fastest_what_was_measured() -> None:
    pool, routing = pool_of([5, 3, 9]), RoutingSettings(strategy="round_robin")
    turns = [decide(ASKED, None, pool, routing, None, 10, Wish(), Circumstances(turn)).model for turn in range(4)]
    assert turns == ["model-0", "model-1", "model-2", "model-0"]
    assert choose(pool, Assessment(0.9, "math"), "fastest").model == "model-1"


def test_a_quality_of_its_own_places_a_model_between_the_tiers() -> None:
    outlook = Outlook(0.3, 0.9, "math")
    assert quality_of(entry("m", "medium")) == 0.5
    assert 0.3 < chance_of(outlook, quality_of(entry("m", quality=0.25))) < chance_of(outlook, 0.5) < 0.9
