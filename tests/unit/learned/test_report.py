from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from router.learned import report
from router.learned.model import mixed
from router.learned.open_tasks import open_chances
from router.learned.report import apgr, cpt, ece, reliability
from router.learned.signs import shape_of, signs
from router.learned.train import (
    GROWN_STEPS,
    Question,
    Rows,
    Shipped,
    as_shipped,
    fit_opinions,
    fold_of,
    main,
    rows_of,
    shared_parts,
)

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


def test_as_it_ships_the_classifier_sees_the_kind_itself_and_abstains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GROWN_STEPS, "max_iter", 3)
    choice = "Which planet of these is the largest?\nA. Mars\nB. Venus\nC. Jupiter\nD. Earth\nAnswer:"
    story = "Ben buys {} books for ${} each and sells one of them for $5. How much did he spend in total on the books?"
    sums = [Question(story.format(n, n + 4), (n % 2, 1.0), float(n % 3)) for n in range(2, 42)]
    joke, foreign = "Tell me a joke about books.", "Докажите, что корень из двух иррационален."
    asked = [Question(prompt, (0.0, 1.0)) for prompt in (choice, story.format(3, 90), joke, foreign)]
    shared = shared_parts(asked, sums)
    rows = rows_of("choice", asked, shared)
    mix = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.5]])
    other = fit_opinions(rows_of("problem", sums, shared))
    alike = [f"{prompt} Please." for prompt in (choice, joke, sums[0].prompt)] * 2
    found = as_shipped(rows, np.full((4, 2), (0.2, 0.9)), (other, mix), shared, [*alike, foreign, foreign])
    assert found.kinds == ("choice", "problem", "open", "open")
    assert found.abstains.tolist() == [False, False, False, True]
    problem = mixed(mix, other.opinions(rows_of("problem", asked[1:2], shared)))[0]
    small, large, _ = open_chances(signs(shape_of(joke)))
    gains = [0.9 - 0.2, problem[1] - problem[0], large - small]
    assert (2 * found.score - 1)[:3] == pytest.approx(gains) and found.score[3] >= 0.65


def test_the_report_has_both_figures(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes, chances = np.tile([[1.0, 1.0], [0.0, 1.0]], (20, 1)), np.tile([[0.9, 0.9], [0.1, 0.9]], (20, 1))
    none = np.zeros((40, 0))
    rows = Rows("choice", ("",) * 40, none, none, none, none, outcomes)
    report.report({"choice": (rows, chances, Shipped(("choice", "open") * 20, np.zeros(40, bool), np.full(40, 0.5)))})
    told = json.loads(capsys.readouterr().out)["choice"]
    assert (told["apgr"], told["as_it_ships"]["apgr"]) == (0.75, 0.5)
    assert told["as_it_ships"]["taken_for"] == {"choice": 20, "open": 20}


def test_the_time_of_a_prompt_is_measured_with_the_heads_of_the_default_profile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "DEMO_PER_DIFFICULTY", 20)
    assert main(["--latency", "--json", str(tmp_path / "latency.json")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "latency.json").read_text())
    assert told["demo"]["prompts"] == 60 and 0 < told["demo"]["cpu_ms"]["p50"] <= told["demo"]["cpu_ms"]["p95"] < 5
    with pytest.raises(SystemExit):
        main([])
    assert "--data" in capsys.readouterr().err
