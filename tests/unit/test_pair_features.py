from __future__ import annotations

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from router.facts import facts
from router.pair_features import FEATURES, _beginning, _letter, _longest_common, _pair_off, _typo, pair_features
from router.synonyms import same_word


def named(a: str, b: str, cosine: float = 0.9) -> dict[str, float]:
    return dict(zip(FEATURES, pair_features(facts(a), facts(b), cosine), strict=True))


@given(st.text(max_size=80), st.text(max_size=80))
def test_they_are_the_same_both_ways_and_finite_but_for_an_unknown_kind(a: str, b: str) -> None:
    one, other = (np.array(pair_features(facts(x), facts(y), 0.8)) for x, y in ((a, b), (b, a)))
    assert np.array_equal(one, other, equal_nan=True) and one.shape == (len(FEATURES),)
    assert set(np.flatnonzero(~np.isfinite(one))) <= {FEATURES.index("kind_same")}


def test_a_pair_that_asks_the_same_has_nothing_left() -> None:
    found = named("How do I lose weight?", "What is the best way to lose weight?")
    assert (found["kind_same"], found["core_share"], found["left_more"]) == (1, 1, 0)


def test_synonyms_forms_and_slips_are_told_from_other_words() -> None:
    assert named("How do I buy a bicycle?", "How do I purchase a bicycle?")["synonyms"] == 1
    assert named("How do I learn programming?", "How do I learn progamming?")["typos"] == 1
    found = named("How do I buy a bicycle?", "How do I paint a bicycle?")
    assert (found["left_less"], found["left_more"], found["synonyms"]) == (1, 1, 0)


def test_other_small_words_are_counted() -> None:
    assert named("Flights to Rome", "Flights from Rome")["prepositions"] == 2
    assert named("Does it rain?", "Did it rain?")["tenses"] == 1
    assert named("Why does he sing?", "Why does she sing?")["pronouns"] == 2


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_the_longest_common_subsequence(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert _longest_common(tuple(a), tuple(b)) == table[-1][-1]


words = st.lists(st.sampled_from(("begin", "start", "started", "starter", "stater", "car", "auto", "autos", "a")))


@settings(max_examples=50)
@given(words, words)
def test_words_are_paired_off_with_the_first_that_is_alike(a: list[str], b: list[str]) -> None:
    ways = (
        (same_word, None, lambda x, y: same_word(x) == same_word(y)),
        (_letter, _typo, _typo),
        (_beginning, None, lambda x, y: x[:4] == y[:4] and min(len(x), len(y)) > 3),
    )
    for key, alike, whether in ways:
        left_a, left_b = a[:], b[:]
        for word in a:
            match = next((other for other in left_b if whether(word, other)), None)
            if match is not None:
                left_a.remove(word)
                left_b.remove(match)
        of_a, of_b = a[:], b[:]
        assert _pair_off(of_a, of_b, key, alike) == len(a) - len(left_a)
        assert (of_a, of_b) == (left_a, left_b)


def test_two_long_texts_of_other_words_hold_nobody_up() -> None:
    """A shard serves all tenants, and stands still meanwhile."""
    a, b = (facts("compare " + " ".join(f"{first}{chr(97 + n % 26)}{n}word" for n in range(560))) for first in "pq")
    c = facts("compare " + " ".join(f"p{chr(97 + n % 26)}{n}other" for n in range(560)))
    began_s = time.thread_time()
    pair_features(a, b, 0.9)
    pair_features(a, c, 0.9)
    assert time.thread_time() - began_s < 0.15


def test_slips_of_the_pen() -> None:
    assert all(_typo("writing", slip) for slip in ("wrtiing", "writng", "writting", "writimg"))
    assert not any(_typo("writing", other) for other in ("wiring", "biting", "written", "write"))


def test_a_pair_takes_a_fraction_of_a_millisecond() -> None:
    a, b = facts("How do I lose weight at home without money?"), facts("What is the best way to get slim at home?")

    def once_s() -> float:
        began_s = time.thread_time()
        for _ in range(20):
            pair_features(a, b, 0.9)
        return (time.thread_time() - began_s) / 20

    assert min(once_s() for _ in range(10)) < 0.0005
