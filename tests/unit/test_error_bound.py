from __future__ import annotations

import random

import pytest

from router.error_bound import LADDER, NEVER, SHOWN, ErrorBound, start_for
from router.settings import CacheSettings

DELTA = 0.01


def stream(seed: int, wrong_from: dict[float, float], length: int = 5000) -> list[tuple[float | None, bool]]:
    """Scores and whether the candidate's answer is right. `wrong_from`: how often, by least score."""
    rng = random.Random(seed)
    found: list[tuple[float | None, bool]] = []
    for _ in range(length):
        score = rng.random() if rng.random() < 0.5 else None
        risk = next((wrong for least, wrong in wrong_from.items() if score is not None and score >= least), 0.0)
        found.append((score, rng.random() >= risk))
    return found


def run(bound: ErrorBound, requests: list[tuple[float | None, bool]], seed: int = 0) -> tuple[int, int]:
    """(answered from the cache, wrongly)."""
    rng, served, wrong = random.Random(seed), 0, 0
    for score, right in requests:
        hit = score is not None and score >= bound.threshold
        audited = hit and score is not None and rng.random() < bound.audit_share(score)
        if hit and not audited:
            served += 1
            wrong += not right
            bound.see(score, None)
        else:
            bound.see(score, right if score is not None else None)
    return served, wrong


def test_it_starts_where_the_measured_curve_allows() -> None:
    default = CacheSettings()
    assert start_for(default.delta, default.min_score) == default.min_score == 0.3
    thresholds, wrong = zip(*SHOWN, strict=True)
    assert list(thresholds) == sorted(thresholds) and list(wrong) == sorted(wrong, reverse=True)
    assert [start_for(most, 0.0) for most in wrong] == list(thresholds)
    assert start_for(wrong[0], 0.77) == 0.77 and start_for(wrong[-1], 0.0) > start_for(wrong[0], 0.0)
    assert start_for(wrong[-1] * 0.99, 0.0) == NEVER


def test_one_that_starts_with_nothing_can_earn_it_from_near_misses() -> None:
    bound = ErrorBound(DELTA, NEVER, 0.1)
    served, _ = run(bound, stream(1, {0.0: 0.0}))
    assert served > 0 and bound.threshold == LADDER[-1] and bound.audited > 0


def test_a_cache_that_is_right_earns_lower_thresholds() -> None:
    bound = ErrorBound(DELTA, 0.9, 0.1)
    run(bound, stream(1, {0.0: 0.0}))
    assert bound.threshold == LADDER[-1] and bound.retreats == 0
    assert bound.upper_bound() < 2 * DELTA


def test_it_stops_where_answers_become_wrong() -> None:
    bound = ErrorBound(DELTA, 0.9, 0.1)
    served, wrong = run(bound, stream(2, {0.7: 0.0, 0.0: 0.5}, 8000))
    assert 0.6 < bound.threshold <= 0.75
    assert wrong / 8000 < DELTA and served > 500


def test_one_that_is_wrong_from_the_start_is_shut() -> None:
    bound = ErrorBound(DELTA, 0.9, 0.1)
    run(bound, stream(3, {0.0: 0.5}, 10_000))
    assert bound.retreats >= 1 and bound.threshold > 0.9


def test_drift_is_noticed() -> None:
    bound = ErrorBound(DELTA, 0.9, 0.1)
    run(bound, stream(4, {0.0: 0.0}))
    before = bound.threshold
    run(bound, stream(5, {0.0: 0.3}, 6000))
    assert bound.threshold > before and bound.retreats > 0


def test_the_upper_bound_holds_in_95_of_100_shuffled_streams() -> None:
    """The share of wrong hits, with those that the audit caught."""
    requests = stream(6, {0.8: 0.05, 0.0: 0.1}, 1500)
    held = 0
    for seed in range(100):
        random.Random(seed).shuffle(requests)
        bound, wrong = ErrorBound(DELTA, 0.8, 0.2), 0
        rng = random.Random(seed)
        for score, right in requests:
            hit = score is not None and score >= bound.threshold
            audited = hit and score is not None and rng.random() < bound.audit_share(score)
            wrong += hit and not right  # also where the audit kept it from being given out
            bound.see(score, right if score is not None and (audited or not hit) else None)
        held += bound.upper_bound() >= wrong / len(requests)
    assert held >= 95


@pytest.mark.parametrize("delta", [0.002, 0.01, 0.05])
def test_without_labels_nothing_moves(delta: float) -> None:
    bound = ErrorBound(delta, 0.9, 0.05)
    for _ in range(1000):
        bound.see(None, None)
    assert bound.upper_bound() < 1 and bound.threshold <= 0.9
