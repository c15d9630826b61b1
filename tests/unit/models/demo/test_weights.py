"""The trained models that ship: whole, small, and able to do what the model card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import models.demo
from models.demo.dataset import held_out_items
from models.demo.evaluate import answer, scores
from models.demo.items import Item, user
from models.demo.shapes import CONTEXT_TOKENS
from models.demo.tokenizer import CHAT_TEMPLATE

WEIGHTS = Path(models.demo.__file__).parent / "weights"
FOLDERS = sorted(folder for folder in WEIGHTS.iterdir() if folder.is_dir())


def test_they_are_there_and_small():
    assert "demo-small" in [folder.name for folder in FOLDERS]
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*")) < 80e6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_folder_is_of_today(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["dtype"], config["max_position_embeddings"]) == ("bfloat16", CONTEXT_TOKENS)
    assert (settings["chat_template"], settings["model_max_length"]) == (CHAT_TEMPLATE, CONTEXT_TOKENS)
    assert (folder / "tokenizer.json").read_text() == (WEIGHTS.parent / "tokenizer.json").read_text()
    assert json.loads((folder / "training.json").read_text())["size"] == folder.name.removeprefix("demo-")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_knows_what_is_easy(folder: Path):
    items = [item for item in held_out_items(11, 40) if item.difficulty == "easy"]
    assert scores(answer(folder, items))["by_difficulty"]["easy"] >= 0.9


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
