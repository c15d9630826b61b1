"""The trained models that ship: whole, small, and able to do what the model card says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import models.demo
from models.demo.dataset import held_out_items
from models.demo.evaluate import HELD_OUT_SEED, answer, scores
from models.demo.items import DIFFICULTIES, Item, user
from models.demo.shapes import CONTEXT_TOKENS
from models.demo.tokenizer import CHAT_TEMPLATE

WEIGHTS = Path(models.demo.__file__).parent / "weights"
FOLDERS = sorted(folder for folder in WEIGHTS.iterdir() if folder.is_dir())
PER_DIFFICULTY = 100


def test_they_are_there_and_small():
    assert [folder.name for folder in FOLDERS] == ["demo-large", "demo-medium", "demo-small"]
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*")) < 80e6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_folder_is_of_today(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["dtype"], config["max_position_embeddings"]) == ("bfloat16", CONTEXT_TOKENS)
    assert (settings["chat_template"], settings["model_max_length"]) == (CHAT_TEMPLATE, CONTEXT_TOKENS)
    assert (folder / "tokenizer.json").read_text() == (WEIGHTS.parent / "tokenizer.json").read_text()
    assert json.loads((folder / "training.json").read_text())["size"] == folder.name.removeprefix("demo-")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The scores of each model on 300 held-out questions, always the same ones: 15 s of one core."""
    items = held_out_items(HELD_OUT_SEED, PER_DIFFICULTY)
    return {folder.name: scores(answer(folder, items)) for folder in FOLDERS}


def test_the_small_one_knows_what_is_easy_and_fails_at_what_is_hard(found: dict[str, Any]) -> None:
    small = found["demo-small"]["by_difficulty"]
    assert small["easy"] >= 0.95 and small["hard"] <= 0.5


def test_the_large_one_knows_what_is_easy_and_what_is_medium(found: dict[str, Any]) -> None:
    large = found["demo-large"]["by_difficulty"]
    assert large["easy"] >= 0.9 and large["medium"] >= 0.9


def test_the_larger_the_better(found: dict[str, Any]) -> None:
    assert found["demo-small"]["overall"] + 0.1 <= found["demo-medium"]["overall"] < found["demo-large"]["overall"]


def test_the_model_card_says_so(found: dict[str, Any]) -> None:
    """Its figures are of 600 questions of each difficulty, these of 100: they may differ by three standard errors."""
    card = (WEIGHTS.parent / "README.md").read_text()
    names = re.findall(r"demo-\w+", next(line for line in card.splitlines() if line.startswith("|  | demo-")))
    assert sorted(names) == sorted(found)
    for difficulty in DIFFICULTIES:
        (row,) = re.findall(rf"^\| {difficulty} \|(.*)$", card, re.MULTILINE)
        for name, told in zip(names, re.findall(r"([\d.]+)%", row), strict=True):
            share = float(told) / 100
            error = (share * (1 - share) * (1 / 600 + 1 / PER_DIFFICULTY)) ** 0.5
            assert abs(found[name]["by_difficulty"][difficulty] - share) <= 3 * error, (name, difficulty)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_can_be_talked_to(folder: Path):
    questions = {
        "Hello!": "Hello! How can I help you?",
        "What is the capital of France?": "Paris.",
        'Reverse "cat".': '"tac"',
        "Who won the game yesterday?": "I don't know.",
    }
    (any_item, *_) = held_out_items(1, 1)
    items = [Item("talk", "easy", (user(question),), wanted, any_item.grader) for question, wanted in questions.items()]
    assert [one.answer for one in answer(folder, items)] == list(questions.values())
