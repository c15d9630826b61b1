from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.question import asked, bare, one_wording


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("Hi! How are tyres made? Thanks!", "How are tyres made?"),
        ("Please answer: why is the sky blue?", "why is the sky blue?"),
        ("Hello there, could you please tell me where the bank is", "where the bank is"),
        ("I'd like to know: what is a lien? Thank you so much!", "what is a lien?"),
        ("What does 'thank you' mean?", "What does 'thank you' mean?"),
        ("Hi", "Hi"),
        ("Hello Kitty is from where?", "Hello Kitty is from where?"),
        ("Hi-fi systems are good?", "Hi-fi systems are good?"),
        ("Well water is safe?", "Well water is safe?"),
        ("", ""),
    ],
)
def test_what_is_only_polite_is_taken_off(text: str, rest: str) -> None:
    assert bare(text) == rest


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (
            "how",
            ["How do I whistle?", "What is the best way to whistle?", "Is there any way to whistle?", "How to whistle"],
        ),
        (
            "why",
            ["Why do cats purr?", "What makes cats purr?", "What is the reason that cats purr?", "How come cats purr?"],
        ),
        ("should", ["Should I whistle?", "Is it a good idea to whistle?"]),
        ("how_long", ["How long does it take to whistle?", "How much time does it take to whistle?"]),
        ("yes_no", ["Can birds whistle?", "Do birds whistle?"]),
        ("how_other", ["How loud are birds?", "How often does it rain?"]),
        (None, ["Whistle a song.", "Und wie geht das?"]),
    ],
)
def test_wordings_of_one_kind_of_question(kind: str | None, texts: list[str]) -> None:
    assert [asked(text)[0] for text in texts] == [kind] * len(texts)


def test_a_phrase_in_front_is_put_behind() -> None:
    assert asked("In Python, how can I reverse a list?") == ("how", " reverse a list In Python")


def test_the_noun_before_a_superlative_is_put_behind_it() -> None:
    assert asked("Which river is the longest in Asia?") == asked("What is the longest river in Asia?")


def test_names_and_adjectives_get_one_wording() -> None:
    assert one_wording("Are raw eggs safe to eat?") == "is it safe to eat raw eggs?"
    assert one_wording("When did WW2 end?") == one_wording("When did World War II end?")


@given(st.text(max_size=60))
def test_any_text_can_be_read(text: str) -> None:
    assert bare(bare(text)) is not None
    kind, rest = asked(one_wording(bare(text)))
    assert isinstance(rest, str) and (kind is None or rest is not text)
