from __future__ import annotations

import numpy as np
import pytest

from router.learned.report import apgr, cpt, ece, reliability
from router.learned.train import fold_of

SMALL = np.array([1.0, 0.0, 1.0, 0.0])
LARGE = np.array([1.0, 1.0, 1.0, 1.0])


def test_who_knows_the_gain_recovers_it_first_and_who_knows_nothing_half_of_it() -> None:
    assert apgr(LARGE - SMALL, SMALL, LARGE) == pytest.approx(0.75)
    assert apgr(SMALL - LARGE, SMALL, LARGE) == pytest.approx(0.25)
    assert apgr(np.zeros(4), SMALL, LARGE) == pytest.approx(0.5)


def test_calls_to_the_large_model_that_recover_half_of_the_gap() -> None:
    assert cpt(LARGE - SMALL, SMALL, LARGE, 0.5) == 25
    assert cpt(SMALL - LARGE, SMALL, LARGE, 0.5) == 75


def test_calibrated_chances_have_no_error_and_false_ones_have_theirs() -> None:
    outcomes = np.tile([1.0, 0.0, 0.0, 0.0], 50)
    assert ece(np.full(200, 0.25), outcomes, 1) == pytest.approx(0)
    assert ece(np.full(200, 0.75), outcomes, 1) == pytest.approx(0.5)
    assert sum(count for *_, count in reliability(np.linspace(0, 1, 200), outcomes)) == 200


def test_questions_about_the_same_passage_share_a_fold() -> None:
    passage = "This question refers to the following passage. " * 10
    assert len({fold_of(f"{passage} {i}\nA. x\nB. y", 5) for i in range(20)}) == 1
    assert len({fold_of(f"question {i}", 5) for i in range(50)}) == 5
