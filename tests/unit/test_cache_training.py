from __future__ import annotations

from itertools import combinations, islice
from pathlib import Path

import numpy as np

from models.trees import from_sklearn, load
from router.cache_training.pairs import questions, teachable
from router.cache_training.train import examples, fit, pairs, report, vectors
from router.pair_features import FEATURES

ASKED = questions(3)


def test_a_seed_says_it_all_and_no_text_is_there_twice() -> None:
    assert questions(3) == ASKED != questions(4)
    assert len({each.text for each in ASKED}) == len(ASKED) > 5000


def test_every_kind_of_question_has_pairs_of_both_labels() -> None:
    groups: dict[str, list[int]] = {}
    for at, each in enumerate(ASKED):
        groups.setdefault(each.group, []).append(at)
    for kind in ("lose weight", "coffee", "laptop", "swap 1", "task 1", "sum 1"):
        labels = {ASKED[i].meaning == ASKED[j].meaning for i, j in combinations(groups[kind], 2)}
        assert labels == {True, False}, kind


def test_what_teaches_nothing_is_left_out() -> None:
    how = next(each for each in ASKED if each.intent == "how")
    steps = next(each for each in ASKED if each.intent == "steps")
    assert not teachable(how, steps) and teachable(how, how)


def test_a_fit_on_a_few_groups_learns_and_can_be_kept(tmp_path: Path) -> None:
    """Vectors of word counts stand in for the encoder's: fast, and alike for texts with the same words."""
    names = list(islice(dict.fromkeys(each.group for each in ASKED), 12))
    asked = [each for each in ASKED if each.group in names]
    rows = np.zeros((len(asked), 512), dtype=np.float32)
    for at, each in enumerate(asked):
        for word in each.text.lower().split():
            rows[at, sum(map(ord, word)) % 512] += 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.savez(tmp_path / "kept.npz", vectors=rows, texts=np.array([each.text for each in asked]))
    assert np.array_equal(vectors(asked, tmp_path / "kept.npz"), rows)
    features, labels, groups = examples(asked, rows, pairs(asked, rows, 1))
    assert 0.02 < labels.mean() < 0.98 and set(groups) <= set(names)
    trees = from_sklearn(fit(features, labels, 1), FEATURES)
    trees.save(tmp_path / "trees.safetensors")
    scores = load(tmp_path / "trees.safetensors").probability(features)
    assert scores[labels].mean() > scores[~labels].mean() + 0.2
    assert float(report(scores, labels)["right_at_1_in_50"]) > 0.2
