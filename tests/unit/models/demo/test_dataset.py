from __future__ import annotations

import re
from random import Random

import pytest

from models.demo import arithmetic, strings
from models.demo.dataset import MAKERS, held_out_items, maker_name, training_items
from models.demo.items import DIFFICULTIES, Item, is_held_out
from models.demo.shapes import SHAPES

ALL = [(difficulty, make) for difficulty in DIFFICULTIES for make in MAKERS[difficulty]]


@pytest.fixture(scope="module")
def practised() -> list[Item]:
    return training_items(1, 0, 20_000)


@pytest.fixture(scope="module")
def held_out() -> list[Item]:
    return held_out_items(1, 1000)


def test_a_batch_hangs_on_seed_and_step_alone():
    assert training_items(1, 2, 50) == training_items(1, 2, 50)
    assert training_items(1, 2, 50) != training_items(1, 3, 50)
    assert training_items(1, 2, 50) != training_items(2, 2, 50)
    assert held_out_items(1, 60) == held_out_items(1, 60)
    assert held_out_items(1, 60) != held_out_items(2, 60)


def test_the_mixture_is_kept():
    easy = training_items(1, 0, 300, {"easy": 1, "medium": 0, "hard": 0})
    assert {item.difficulty for item in easy} == {"easy"}


def test_what_is_emphasised_comes_more_often():
    only = {maker_name(make): 0.0 for make in MAKERS["easy"]} | {"capital": 1.0, "unit": 3.0}
    kinds = [item.kind for item in training_items(1, 0, 400, {"easy": 1, "medium": 0, "hard": 0}, only)]
    assert set(kinds) == {"capital", "unit"}
    assert kinds.count("unit") > 2 * kinds.count("capital")


def test_emphasis_names_makers_that_there_are():
    names = {maker_name(make) for makers in MAKERS.values() for make in makers}
    assert not [name for shape in SHAPES.values() for name in shape.emphasis if name not in names]


def test_every_kind_is_in_both_splits(practised: list[Item], held_out: list[Item]):
    kinds = {(item.difficulty, item.kind) for item in practised}
    assert kinds == {(item.difficulty, item.kind) for item in held_out}
    assert len(kinds) > 40


def test_no_held_out_question_is_trained_on(practised: list[Item], held_out: list[Item]):
    """Not even in other spelling: the last turns have nothing in common but the operands' ways of being asked."""

    def plain(item: Item) -> str:
        return " | ".join(message["content"].lower().strip(" ?.!") for message in item.messages)

    assert not {plain(item) for item in practised} & {plain(item) for item in held_out}


def test_held_out_phrasings_differ_from_those_trained_on(practised: list[Item], held_out: list[Item]):
    """Facts have the same operands in both splits, so whole last turns may not meet."""
    easy = {item.question for item in practised if item.difficulty == "easy"}
    assert not easy & {item.question for item in held_out if item.difficulty == "easy"}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_operands_keep_to_their_split(split: str):
    random = Random(3)
    for _ in range(300):
        text = strings.word(random, split, 3, 9)  # type: ignore[arg-type]
        assert is_held_out(text) == (split == "held_out")


def _numbers(split: str) -> set[tuple[str, ...]]:
    random = Random(4)
    questions = [arithmetic.three_digits(random, split).question for _ in range(3000)]  # type: ignore[arg-type]
    return {tuple(sorted(re.findall(r"\d+", question))) for question in questions}


def test_three_digit_sums_of_the_splits_have_no_numbers_in_common():
    assert not _numbers("train") & _numbers("held_out")
    assert len(_numbers("held_out")) > 2000


@pytest.mark.parametrize(
    ("difficulty", "make"), ALL, ids=lambda value: getattr(value, "__name__", None) or getattr(value, "kind", None)
)
def test_every_answer_passes_its_grader_and_a_wrong_one_fails(difficulty: str, make):
    random = Random(5)
    for split in ("train", "held_out"):
        for _ in range(60):
            item = make(random, split)
            assert item.difficulty == difficulty
            assert item.messages[-1]["role"] == "user"
            assert item.grader.grade(item.answer), item
            assert not item.grader.grade("nonsense 987654"), item
            assert not item.grader.grade(""), item


def test_answers_of_one_kind_are_wrong_for_other_questions(held_out: list[Item]):
    """A grader that takes anything plausible would let these through."""
    by_kind: dict[str, list[Item]] = {}
    for item in held_out:
        by_kind.setdefault(item.kind, []).append(item)
    for kind, items in by_kind.items():
        answers = {item.answer for item in items}
        if len(answers) < 3:  # parity, yes or no, I don't know
            continue
        rejected = sum(not item.grader.grade(other.answer) for item in items for other in items[:10])
        assert rejected > 0.4 * len(items) * min(10, len(items)), kind


def test_conversations_are_short(practised: list[Item]):
    assert max(len(str(message["content"])) for item in practised for message in item.messages) < 220
