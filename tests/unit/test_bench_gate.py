from __future__ import annotations

import math
from dataclasses import astuple

import pytest

from cluster.bench.gate import PUBLISHED, Outcome, discarded_tokens, judged, questions, report, row
from models.demo.dataset import held_out_items
from router.gates import auroc, threshold
from router.settings import GateSettings


def outcome(right: bool, *logprobs: float, stronger_right: bool = True) -> Outcome:
    return Outcome(right, stronger_right, logprobs)


FOUR = [
    outcome(True, -0.01, stronger_right=False),
    outcome(True, -0.02, -0.06),
    outcome(False, -0.10),
    outcome(True, -0.20),
]


def test_a_row_says_what_a_threshold_gives_out_and_what_the_cascade_gets_right() -> None:
    assert astuple(row(FOUR, None, -0.05)) == (-0.05, 0.5, 1.0, 1.0, 0, 1)
    assert astuple(row(FOUR, None, -0.15)) == (-0.15, 0.75, pytest.approx(2 / 3), 0.75, 1, 1)
    assert math.isnan(row(FOUR, None, -0.001).accuracy_of_released)


def test_the_lowest_threshold_that_keeps_to_the_target_is_learned() -> None:
    assert threshold(judged(FOUR, None), 1.0) == pytest.approx(-0.04)
    assert threshold(judged(FOUR, 1), 1.0) == pytest.approx(-0.02)
    assert threshold(judged(FOUR, None), 0.7) == pytest.approx(-0.20), "three of four are right again"


def test_the_report_names_what_was_learned() -> None:
    assert auroc(judged(FOUR, None)) == pytest.approx(2 / 3)
    told = report(FOUR, 1.0)
    assert "4 questions; alone 75.0% right, the stronger model 75.0%" in told
    assert "| -0.04 (learned) | 50.0% | 100.0%" in told


def test_what_an_answer_costs_until_it_is_given_up_is_the_products_own_count() -> None:
    gate = GateSettings(tokens=4, min_mean_logprob=-0.1)
    assert discarded_tokens([outcome(True, *[-0.01] * 9)], gate) == 0
    assert discarded_tokens([outcome(False, -0.2, -0.3, -0.01, -0.01)], gate) == 2
    assert discarded_tokens([outcome(False, -0.2)], gate) == 1


def test_no_published_question_is_learned_from() -> None:
    mine = {str(item.messages) for item in questions(30)}
    for seed, count in PUBLISHED:
        assert not mine & {str(item.messages) for item in held_out_items(seed, count // 3)}
