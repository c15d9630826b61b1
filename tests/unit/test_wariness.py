"""What callers say of stored answers."""

from __future__ import annotations

import numpy as np
import pytest

from models.messages import Finish, TextDelta, Usage
from router.fingerprint import partition
from router.ports import CachedAnswer, CacheKey
from router.scope_index import PROMOTE_AT
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings
from router.verifier import Judgement
from router.wariness import MAX_MARKS, MAX_SCOPES, MAX_VOICES, WARY_SCORE, Voices, Wariness

NOW_S = 1_800_000_000.0
TENANT = partition("acme", "")


def heard(*scores: float) -> bool:
    voices = Voices()
    return [voices.hear(str(number), score) for number, score in enumerate(scores)][-1]


def test_one_bad_word_is_enough_where_nobody_says_the_contrary() -> None:
    assert heard(0) and heard(1, 0, 0)
    assert not heard(1) and not heard(1, 0) and not heard(1, 1, 1, 1, 1, 0, 0)


def test_the_newest_word_of_a_voice_counts_and_there_are_not_too_many() -> None:
    voices = Voices()
    assert voices.hear("ann", 0)
    assert not voices.hear("ann", 1)
    for number in range(3 * MAX_VOICES):
        voices.hear(str(number), 1)
    assert len(voices._said) == MAX_VOICES


def unit(*numbers: float) -> np.ndarray:
    vector = np.zeros(16, dtype="<f4")
    vector[: len(numbers)] = numbers
    return vector / np.linalg.norm(vector)


QUESTION, NEAR, FAR = unit(1), unit(1, 0.3), unit(1, 1)


class Shelf:
    """A store whose verifier gives every candidate `score`."""

    def __init__(self, score: float, more: int = 0) -> None:
        self.score = score
        self.store = SemanticStore(CacheSettings(audit=0, threshold=0.5), lambda: NOW_S, judge=self._judge)
        for number in range(more):
            rest = np.zeros(16, dtype="<f4")
            rest[5 + number % 11] = 1
            self.keep(f"other {number}", rest)

    def _judge(self, text, others):
        return [Judgement(self.score, None) for _ in others]

    def keep(self, name: str, vector: np.ndarray) -> None:
        answer = CachedAnswer(name, "m", (TextDelta("yes", 1), Finish("stop")), Usage(1, 1), 5, NOW_S, 3600.0)
        self.store.store(CacheKey(TENANT, name, "scope", name), answer, vector.tobytes())

    def ask(self, vector: np.ndarray) -> str | None:
        found = self.store.lookup(CacheKey(TENANT, "new", "scope", "new"), vector.tobytes())
        return found.answer.answer_id if found.answer else None


@pytest.mark.parametrize("more", [0, PROMOTE_AT + 8])
def test_a_bad_answer_goes_and_its_neighbourhood_takes_more(more: int) -> None:
    shelf = Shelf(0.5, more)
    shelf.keep("bad", QUESTION)
    shelf.keep("near", NEAR)
    shelf.keep("far", FAR)
    assert shelf.store.judge("other", "bad", "ann", 0) is None  # another organisation's word
    assert shelf.ask(QUESTION) == "bad"
    assert shelf.store.judge("acme", "bad", "ann", 0) == "bad"
    assert shelf.store.stats()["disliked"] == 1
    assert shelf.ask(QUESTION) is None and shelf.ask(NEAR) is None
    shelf.keep("again", QUESTION)  # what comes in its place is given with more care too
    assert shelf.ask(QUESTION) is None
    assert shelf.store.exact(CacheKey(TENANT, "again")).answer.answer_id == "again"
    shelf.score = WARY_SCORE + 0.01
    assert shelf.ask(QUESTION) == "again"
    shelf.score = 0.5
    assert shelf.store.judge("acme", "nobody's", "ann", 0) is None


def test_a_good_word_keeps_it() -> None:
    shelf = Shelf(0.5)
    shelf.keep("fine", QUESTION)
    for number in range(6):
        assert shelf.store.judge("acme", "fine", str(number), 1) == ""
    assert shelf.store.judge("acme", "fine", "grumbler", 0) == ""
    assert shelf.ask(NEAR) == "fine"


def test_marks_are_bounded() -> None:
    wary = Wariness()
    for number in range(MAX_SCOPES + 5):
        wary.mark("t", str(number), QUESTION)
    for _ in range(3 * MAX_MARKS):
        wary.mark("t", "s", QUESTION)
    assert len(wary._marks) == MAX_SCOPES and len(wary._marks["t", "s"]) == MAX_MARKS
    assert wary.least_score("t", "s", NEAR) == WARY_SCORE and wary.least_score("u", "s", NEAR) == 0
