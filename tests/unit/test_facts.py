from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import facts as module
from router.facts import facts

PARTS = (
    "How", "do", "I", "Paris", "don\u2019t", "Bob's", "5", "5 km", "-5", "1,000", "3.5kg", "x=1", "a_b", "f(x)", "5!",
    "--", "->", "e.g.", "is", "in", "of", "and", ",", ";", "(and)", '"a b"', "'c d'", "`x y`", "```z\n  k```", "\n  p",
    "\t", "", " ", "caf\u00e9", "\u043a\u043e\u0442", "\u212aa", "second", "ww 2", "The USA.", "thanks", "?", "x" * 70,
)  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=6)), max_size=12).map(" ".join)


@given(texts)
def test_a_text_is_what_its_pieces_are(text: str) -> None:
    """What is found between two spaces is what would be found in the whole text."""
    pieces, marks = module._pieces(text)
    words = [word.raw for piece in pieces for word in piece.parts]
    assert words == [re.sub("['\u2019]s$", "", each) for each in module._TOKEN.findall(text)]
    operators = ["".join(module._SYMBOLS.findall(text)), *module._IDENTIFIER.findall(text)]
    assert (module._operators(pieces) if marks & module._CODE else [""]) == operators
    assert sum(piece.stops for piece in pieces) == len(module._STOPS.findall(text))
    assert not module._QUOTED.search(text) or marks & module._QUOTES
    assert not module._AFTER_NUMBER.search(text) or marks & module._DIGITS
    starts, begin = [], 0
    for piece in pieces:
        starts += [(begin + offset, word.raw) for offset, word in piece.capitals]
        begin += piece.length + 1
    assert all(text.startswith(raw, start) for start, raw in starts)


@given(texts)
def test_what_was_kept_of_a_text_changes_nothing(text: str) -> None:
    facts.cache_clear()
    first = facts(text)
    facts.cache_clear()
    assert facts(text) == first
    assert first.word_set == set(first.words) and first.content == tuple(filter(None, first.contents))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Paris is far. Rome is not.", set()),
        ("How far is Rome from Paris?", {"rome", "paris"}),
        ("Is my iPhone old?", {"iphone"}),
        ("\u201cHamlet\u201d or (Macbeth)", set()),
        ("I like NASA", {"nasa"}),
    ],
)
def test_names_are_capitals_inside_a_sentence(text: str, names: set[str]) -> None:
    assert facts(text).names == names


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the weather like in the city?", "english"),
        ("Wie ist das Wetter in der Stadt und auf dem Land?", "german"),
        ("Gato!", None),
        ("de la", None),
    ],
)
def test_the_language_is_that_of_most_function_words(text: str, language: str | None) -> None:
    assert facts(text).language == language


def test_long_pieces_are_not_kept() -> None:
    before = module._piece.cache_info().currsize, module._word.cache_info().currsize
    long = "y" * 65
    assert facts(f"{long} {long}").words == (long, long)
    after = module._piece.cache_info().currsize, module._word.cache_info().currsize
    assert after == before


def test_a_text_of_known_words_is_read_in_a_fraction_of_a_millisecond() -> None:
    def once_s() -> float:
        began_s = time.thread_time()
        facts.__wrapped__("What is the best way to get slim at home without money?")
        return time.thread_time() - began_s

    assert min(once_s() for _ in range(20)) < 0.0005
