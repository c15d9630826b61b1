from __future__ import annotations

import random
import shutil
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.learned.hashing import char_terms, word_terms
from router.learned.model import WEIGHTS, Chances, Classifier
from router.learned.signs import kind_of, shape_of, signs

CLASSIFIER = Classifier()

DEMANDING = (
    "Prove that the sum of two odd integers is even.",
    "Solve 3x + 7 = 2x - 5 for x and check the result.",
    "Find the remainder when 7^100 is divided by 13.",
    "What is the probability that two fair dice sum to 9?",
    "Implement a thread-safe queue in Python with a bounded size.",
    "Write a function in JavaScript that merges two sorted arrays.",
    "Debug this program: def f(x): return x+ why does it not compile?",
    "Tom is older than Ann, and Ann is older than Liz. Who is the youngest of the three?",
)
EASY = (
    "Write a short poem about autumn leaves.",
    "Draft a friendly letter to my neighbour about the garden party.",
    "Explain how vaccines protect us, for a school class.",
    "Describe what a central bank does.",
    "Rewrite this paragraph so that it sounds more cheerful.",
    "You are a pirate. Tell me about your ship.",
    "Thanks, that was kind!",
    "Why do leaves turn red?",
)


def chances(text: str) -> Chances:
    return CLASSIFIER.chances(text)


def test_mathematics_code_and_reasoning_need_a_large_model_more_than_writing_and_explaining() -> None:
    pairs = [(hard, easy) for hard in DEMANDING for easy in EASY]
    right = sum(chances(hard).need > chances(easy).need for hard, easy in pairs)
    assert right / len(pairs) >= 0.95


def test_a_choice_of_lettered_options_and_a_sum_told_as_a_story_have_experts() -> None:
    choice = "Which planet is the largest?\nA. Mars\nB. Venus\nC. Jupiter\nD. Earth\nAnswer:"
    story = (
        "Ben buys 3 books for $12 each and sells one of them for $5. How much did he spend in total on all the books?"
    )
    assert [chances(text).kind for text in (choice, story, "Tell me a joke.")] == ["choice", "problem", "open"]


@settings(max_examples=60)
@given(st.text(max_size=400))
def test_any_text_has_chances_and_always_the_same(text: str) -> None:
    found = chances(text)
    assert 0 < found.small < 1 and 0 < found.large < 1 and 0 <= found.known <= 1
    assert found == chances(text)


def test_other_languages_are_abstained_from() -> None:
    for text in (
        "请证明根号二是无理数。",
        "Докажите, что корень из двух иррационален.",
        "√2が無理数であることを証明して。",
    ):
        assert chances(text).abstains
    assert not chances("Prove that the square root of two is irrational.").abstains


def test_weights_load_without_network_and_damaged_ones_are_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("no network is needed")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    assert Classifier(tmp_path / "weights").version == CLASSIFIER.version
    path = tmp_path / "weights" / "router.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-100] ^= 0xFF
    path.write_bytes(bytes(whole))
    with pytest.raises(ValueError, match=r"router\.safetensors is damaged"):
        Classifier(tmp_path / "weights")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"router\.safetensors can't be read"):
        Classifier(tmp_path / "weights")
    with pytest.raises(ValueError, match="can't be read"):
        Classifier(tmp_path / "nowhere")


def test_the_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) < 4 * 1024**2


def test_a_prompt_takes_less_than_5_ms_of_one_core() -> None:
    draw = random.Random(5)
    words = (
        "the",
        "patient",
        "court",
        "force",
        "which",
        "of",
        "following",
        "is",
        "not",
        "energy",
        "contract",
        "3",
        "42",
    )
    prompts = [" ".join(draw.choices(words, k=120)) + "?\nA. one\nB. two\nC. three\nD. four" for _ in range(100)]
    for prompt in prompts:
        chances(prompt)
    taken = []
    for prompt in prompts:
        began_s = time.thread_time()
        chances(prompt)
        taken.append(time.thread_time() - began_s)
    assert sorted(taken)[94] < 0.005


def test_hashed_terms_are_bounded_for_long_texts() -> None:
    assert len(word_terms("word number " * 100_000)[0]) < 50
    assert len(char_terms("abcdefgh " * 10_000)[0]) < 200


def test_years_are_no_quantities_of_a_sum() -> None:
    shape = shape_of(
        "What happened in Europe between 1914 and 1918, and why does it matter for how we live now and here?"
    )
    assert kind_of(shape, signs(shape)) == "open"
