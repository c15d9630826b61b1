# ruff: noqa: RUF001 (punctuation of other scripts is part of what is tested)

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.messages import ImagePart, Message, Role, TextPart
from router import features
from router.features import excerpt, extract, read

ROLES: tuple[Role, ...] = ("system", "developer", "user", "assistant", "tool")


def turn(role: Role, text: str) -> Message:
    return Message(role, (TextPart(text),))


conversations = st.lists(
    st.builds(turn, st.sampled_from(ROLES), st.text(max_size=80) | st.text(max_size=20).map(lambda text: text * 900)),
    max_size=20,
).map(tuple)


@given(conversations)
def test_an_excerpt_of_an_excerpt_is_itself(messages: tuple[Message, ...]) -> None:
    assert excerpt(excerpt(messages)) == excerpt(messages)


@given(conversations)
def test_a_conversation_and_its_excerpt_have_the_same_features(messages: tuple[Message, ...]) -> None:
    assert extract(messages) == extract(excerpt(messages))


@given(conversations)
def test_an_excerpt_is_bounded(messages: tuple[Message, ...]) -> None:
    part = excerpt(messages)
    assert len(part) <= features.CONTEXT_TURNS + 2
    assert (
        sum(len(message.text) for message in part)
        <= features.FOCUS_CHARS + features.CONTEXT_CHARS * (len(part) - 1) + 1
    )


def test_an_excerpt_keeps_the_last_user_turn_and_drops_what_is_not_text() -> None:
    asked = Message("user", (TextPart("What is this?"), ImagePart("https://example.org/cat.png")))
    part = excerpt((turn("system", "Be brief."), asked, *[turn("tool", "x" * 5_000)] * 30))
    assert turn("user", "What is this?") in part
    assert turn("system", "Be brief.") in part


def test_a_long_turn_keeps_its_beginning_and_its_end() -> None:
    (kept,) = excerpt((turn("user", "Translate this: " + "a" * 1_000_000 + " into French."),))
    assert kept.text.startswith("Translate this: ") and kept.text.endswith(" into French.")


def test_the_focus_is_the_last_user_turn_else_the_last_turn() -> None:
    assert extract((turn("user", "one"), turn("assistant", "two"), turn("tool", "three"))).focus.text == "one"
    assert extract((turn("system", "one"), turn("assistant", "two"))).focus.text == "two"
    assert extract(()).focus.text == ""


def test_length_does_not_depend_on_spaces() -> None:
    english = read("Please explain how photosynthesis works in plants").length
    chinese = read("请解释植物的光合作用是如何进行的").length
    assert 0.6 < chinese / english < 1.6


def test_steps_are_list_items_and_further_questions_in_any_language() -> None:
    assert read("1. read\n2. write\n- test").steps == 3
    assert read("Who? When? Where?").steps == 2
    assert read("谁？什么时候？").steps == 1


@pytest.mark.parametrize(
    "text",
    [
        "```\nls\n```",
        "def f(x):\n    return x",
        "TypeError: unsupported operand",
        "SELECT name FROM users WHERE id = 1",
        "items.map(item => item.id)",
        "#include <stdio.h>\nint main() { return 0; }",
    ],
)
def test_code_is_seen(text: str) -> None:
    assert read(text).code >= 0.45


@pytest.mark.parametrize(
    "text",
    [
        "Dear team, the meeting (in room 4) is at noon; please be on time.",
        "Can you import this idea from last year's class? I'd return to it for a while.",
        "Erreur de ma part : le train part à 9 h.",
    ],
)
def test_prose_is_not_code(text: str) -> None:
    assert read(text).code < 0.2


@pytest.mark.parametrize("text", [r"\frac{1}{2}", "∑ k ≤ n", "p^2 - 1 and f(x) = 3"])
def test_notation_is_seen(text: str) -> None:
    assert read(text).notation >= 0.5


@pytest.mark.parametrize(
    "pattern",
    [
        "SELECT ",
        "a" * 100 + ".",
        "$a",
        "`",
        "(",
        "(a.",
        " \t",
        "for ",
        "at a.",
        "\n",
        "a/",
        "</a",
        ".a(",
        "= a ",
        "1. \n",
    ],
)
def test_no_input_makes_a_pattern_slow(pattern: str) -> None:
    text = (pattern * 400_000)[:1_000_000]
    began = time.perf_counter()
    extract((turn("user", text),) * 8)
    assert time.perf_counter() - began < 2.0  # about 5 ms; the room is for a busy machine
