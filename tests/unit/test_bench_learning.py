"""What is said of learning: the best cut with hindsight, and a correction that sees no label before its turn."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.bench.cache_learning import Asked, Candidate, corrected, report, right_at
from router.pair_features import FEATURES


def test_the_best_cut_leaves_no_more_wrong_than_allowed() -> None:
    odds, labels = np.array([5.0, 4.0, 3.0, 2.0, 1.0]), [True, None, False, True, True]
    assert right_at(odds, labels, (10, 0), 0, loose=False) == 11
    assert right_at(odds, labels, (10, 0), 1, loose=False) == 13
    assert right_at(odds, labels, (10, 0), 1, loose=True) == 11
    assert right_at(odds, labels, (10, 1), 0, loose=False) == 10


def test_a_correction_begins_with_the_score_and_learns_what_tells() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(2000, 5))
    labels = [bool(row[2] > 0) for row in rows]
    scores = np.full(2000, -2.0)  # of which all are heard, at first
    odds = corrected(rows, scores, labels, 0.1)
    assert odds[0] == -2.0
    later = odds[1000:] > np.median(odds[1000:])
    assert np.mean(later == np.array(labels[1000:])) > 0.9
    changed = [*labels[:1000], *(not each for each in labels[1000:])]
    assert (corrected(rows, scores, changed, 0.1)[:1001] == odds[:1001]).all()


def test_the_report_says_what_keeps_answers_back(capsys: pytest.CaptureFixture[str]) -> None:
    def candidate(objection: str | None, same: bool | None, score: float) -> Candidate:
        return Candidate(objection, (0.5,) * len(FEATURES), same, score)

    stream = [
        Asked(possible=False),
        Asked(possible=True, hit=True),
        Asked(possible=True, candidates=[candidate(None, True, 1.0), candidate("name", True, 2.0)]),
        Asked(possible=True, candidates=[candidate("name", True, 2.0)]),
        Asked(possible=True),
    ]
    report(stream)
    said = capsys.readouterr().out
    assert "1 a candidate without a veto (20.00%), 1 only with a veto (20.00%), 1 no candidate (20.00%)" in said
    assert "right at most, with these vetoes: 40.00%" in said
