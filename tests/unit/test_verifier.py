from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from models.encoder import Encoder
from models.trees import load
from router.facts import facts
from router.pair_features import FEATURES
from router.settings import CacheSettings
from router.verifier import WEIGHTS, Verifier, packaged

LEAST = CacheSettings().min_score

SAME = [
    ("How do I make money online?", "What is the best way to earn money online?"),
    ("How can I get rid of ants?", "What are some ways to get rid of ants?"),
    ("Which river is the longest in Asia?", "What is the longest river in Asia?"),
    ("Are raw eggs safe to eat?", "Is it safe to eat raw eggs?"),
    ("How do I reverse a list in Python?", "In Python, how can I reverse a list?"),
    ("When did World War II end?", "When did the Second World War end?"),
    ("What are the pros and cons of nuclear power?", "What are the advantages and disadvantages of nuclear power?"),
]
OTHER = [
    ("Write a poem about the quiet sea", "Write a story about the quiet sea"),
    ("What is the boiling point of ethanol?", "What is the boiling point of methanol?"),
    ("Why do cats purr?", "When do cats purr?"),
    ("Can hummingbirds fly backwards?", "How do hummingbirds fly backwards?"),
    ("How do I learn to swim?", "How do I learn to swim in winter without a teacher?"),
    ("Should I buy a house?", "How do I buy a house?"),
    ("Is it safe to eat raw eggs?", "Is it safe to eat raw mushrooms?"),
    ("Write a formal letter to my landlord", "Write a humorous letter to my landlord"),
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


def score(encoder: Encoder, a: str, b: str) -> float:
    one, other = encoder.encode([a, b])
    return packaged().judge(b, [(float(one @ other), a)])[0].score


@pytest.mark.parametrize(("a", "b"), SAME)
def test_other_wordings_pass(encoder: Encoder, a: str, b: str) -> None:
    assert score(encoder, a, b) >= LEAST and score(encoder, b, a) >= LEAST


@pytest.mark.parametrize(("a", "b"), OTHER)
def test_other_questions_do_not(encoder: Encoder, a: str, b: str) -> None:
    assert score(encoder, a, b) < LEAST and score(encoder, b, a) < LEAST


def test_no_score_overrides_a_veto() -> None:
    (found,) = packaged().judge("Add 2 and 3.", [(1.0, "Add 2 and 4.")])
    assert (found.score, found.objection) == (0.0, "number")


def test_candidates_are_judged_each_for_itself_and_in_their_order() -> None:
    text = "How do I make money online?"
    stored = [(0.9, "Why do I make money online?"), (0.95, "How can I earn money online?"), (0.9, "Add 1 and 2.")]
    together = packaged().judge(text, stored)
    assert together == [packaged().judge(text, [each])[0] for each in stored]
    assert packaged().judge(text, []) == []


def test_weights_for_other_features_are_refused() -> None:
    trees = load(WEIGHTS)
    with pytest.raises(ValueError, match="train them anew"):
        Verifier(dataclasses.replace(trees, features=FEATURES[::-1]))


def test_eight_candidates_take_a_few_milliseconds_at_most() -> None:
    """Of processor time; docs/cache.md has what it is on a quiet machine."""
    stored = [(0.9 - 0.01 * n, f"What is the {word} way to make money online?") for n, word in enumerate("abcdefgh")]
    packaged().judge("How do I make money online?", stored)

    def once_s() -> float:
        facts.cache_clear()
        began_s = time.thread_time()
        packaged().judge("How do I make money online?", stored)
        return time.thread_time() - began_s

    assert min(once_s() for _ in range(10)) < 0.01


def test_what_the_weights_say_of_themselves() -> None:
    trees = load(WEIGHTS)
    rows = np.zeros((1, len(FEATURES)))
    assert 0 < trees.probability(rows)[0] < 1
    assert WEIGHTS.stat().st_size < 1_000_000
