from __future__ import annotations

import numpy as np
import pytest

from router.offpolicy import Log, always, at_random, coin, evaluate, mean_by_model

MODELS, REQUESTS, SEEDS = 3, 600, 1_000
TRUE_COST = np.array([1.0, 3.0, 10.0])
POPULATION = 200_000


def world(seed: int, requests: int = REQUESTS) -> tuple[Log, np.ndarray, np.ndarray]:
    """A log of a policy that prefers what it believes is best and explores; the other policy; every model's expected
    quality. Difficulty decides how good each model is, and how good it is seen to be."""
    draw = np.random.default_rng(seed)
    hard = draw.random(requests)
    quality = 1 / (1 + np.exp(-(np.array([1.0, 2.0, 3.0])[None, :] - 4 * hard[:, None])))
    preferred = np.clip((hard + draw.normal(0, 0.2, requests)) * MODELS, 0, MODELS - 1).astype(int)
    logging = 0.3 / MODELS + 0.7 * always(preferred, MODELS)
    chosen = (draw.random((requests, 1)) > logging.cumsum(axis=1)).sum(axis=1).clip(max=MODELS - 1)
    rows = np.arange(requests)
    outcome = (draw.random(requests) < quality[rows, chosen]).astype(float)
    predicted = mean_by_model(chosen, outcome, MODELS)
    other = always((hard > 0.5).astype(int) * 2, MODELS)
    return Log(chosen, logging[rows, chosen], outcome, predicted), other, quality


def test_95_percent_intervals_cover_the_known_truth_in_93_percent_of_1000_worlds() -> None:
    _, other, quality = world(10**6, POPULATION)
    truth = float((other * quality).sum(axis=1).mean())
    covered = dict.fromkeys(("ips", "snips", "doubly_robust"), 0)
    for seed in range(SEEDS):
        log, policy, _ = world(seed)
        found = evaluate(log, policy)
        for name in covered:
            estimate = getattr(found, name)
            covered[name] += estimate.low <= truth <= estimate.high
    print(f"covered in {SEEDS} worlds: {covered}")  # pytest -rP shows it
    assert min(covered.values()) / SEEDS >= 0.93, covered


def test_doubly_robust_is_right_where_predictions_are_wrong_and_tighter_where_they_are_right() -> None:
    log, policy, quality = world(1, 20_000)
    truth = float((policy * quality).sum(axis=1).mean())
    wrong = evaluate(
        Log(log.chosen, log.propensity, log.outcome, np.full_like(log.predicted, 7.0)), policy
    ).doubly_robust
    right = evaluate(Log(log.chosen, log.propensity, log.outcome, quality), policy).doubly_robust
    assert wrong.low <= truth <= wrong.high and right.low <= truth <= right.high
    assert right.high - right.low < wrong.high - wrong.low


def test_the_logging_policy_itself_is_valued_at_its_mean() -> None:
    log, _, _ = world(2)
    chosen = always(log.chosen, MODELS)
    found = evaluate(Log(log.chosen, np.ones(len(log.chosen)), log.outcome, log.predicted), chosen)
    assert found.ips.value == pytest.approx(log.outcome.mean())
    assert found.effective == pytest.approx(len(log.chosen)) and found.covered == pytest.approx(1)


def test_without_overlap_nothing_is_known_and_the_effective_sample_says_so() -> None:
    log, _, _ = world(3)
    only_first = Log(np.zeros_like(log.chosen), np.ones(len(log.chosen)), log.outcome, log.predicted)
    found = evaluate(only_first, always(np.full(len(log.chosen), 2), MODELS))
    assert found.effective == 0 and found.covered == 0


def test_a_coin_between_two_policies_costs_what_it_is_to_cost() -> None:
    cheap, strong = always(np.zeros(10, int), MODELS), always(np.full(10, 2), MODELS)
    costs = np.tile(TRUE_COST, (10, 1))
    mixed = coin(cheap, strong, costs, 4.0)
    assert (mixed * costs).sum(axis=1).mean() == pytest.approx(4.0)
    assert np.array_equal(coin(cheap, strong, costs, 99.0), strong)


def test_a_draw_is_from_those_that_may_answer() -> None:
    drawn = at_random(np.array([[True, False, True], [False, True, False]]))
    assert drawn.tolist() == [[0.5, 0, 0.5], [0, 1, 0]]


def test_what_is_no_log_is_refused() -> None:
    log, policy, _ = world(4)
    with pytest.raises(ValueError, match="propensity"):
        Log(log.chosen, log.propensity * 0, log.outcome, log.predicted)
    with pytest.raises(ValueError, match="sum to 1"):
        evaluate(log, policy * 0.5)
    with pytest.raises(ValueError, match="two requests"):
        Log(log.chosen[:1], log.propensity[:1], log.outcome[:1], log.predicted[:1])
