from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import Overloaded
from models.messages import ChatRequest, Message, TextPart, ToolCall
from router.compression import without_boilerplate, without_spaces
from router.few_shot import AT_ONCE, Examples
from router.history import trimmed
from router.pipeline import Options
from router.ports import Embedded
from router.prompting import Prompting
from router.settings import IngressSettings
from router.trial_settings import PromptSettings
from tests.unit.test_pipeline import ME, ask, make_world, unary


def say(role: Any, text: str, **more: Any) -> Message:
    return Message(role, (TextPart(text),), **more)


# ---- compression -----------------------------------------------------------------------------------------------------

KEPT = (
    '```python\nif  x:\n\n\n    y  =  "a   b"\n```',
    "~~~\nno   end   to this",
    "`a   b`",
    '"he said   so,\n\n\n  twice"',
    "\u201cquoted   text\u201d",
    "'single   quoted'",
    "    indented   code",
    "\tindented   code",
    "> quoted   mail",
    "| a   |  b  |",
    "- one   item",
    "key:   value",
    "x = 1;   y = 2;",
    "<pre>a    b\n\n\n\nc</pre>",
    "Answer in   exactly  two   words.",
    "You must   not  do that   ever.",
    "What is   the answer?",
)


@pytest.mark.parametrize("kept", KEPT)
def test_what_may_hang_on_its_bytes_stays(kept: str) -> None:
    text = f"Some   prose   here.   \n\n\n\n{kept}\nMore   prose."
    found = without_spaces(text)
    assert kept in found and found.startswith("Some prose here.\n\n" + kept[:1])
    if kept != KEPT[1]:
        assert found.endswith("\nMore prose.")


@given(st.text(alphabet=st.sampled_from("ab. \n\t\"'`~>|?:=-"), max_size=200))
def test_no_word_is_changed_and_doing_it_twice_changes_nothing(text: str) -> None:
    found = without_spaces(text)
    assert found.split() == text.split() and len(found) <= len(text)
    assert without_spaces(found) == found


@given(st.lists(st.sampled_from([*KEPT[:1], *KEPT[2:], "plain   prose", "", "more  of   it  "]), max_size=8))
def test_whatever_is_around_it_what_is_kept_is_kept(pieces: list[str]) -> None:
    found = without_spaces("\n".join(pieces))
    for piece in pieces:
        assert piece in found or not any(kept == piece for kept in KEPT)


@pytest.mark.parametrize(
    "phrase",
    [
        "Sent from my iPhone",
        "CONFIDENTIALITY NOTICE: This e-mail and its attachments\nare for you alone.",
        "This email and any attachments are confidential and intended solely for the addressee.",
        "Please consider the environment before printing this e-mail.",
        "Unsubscribe",
        "\u00a9 2024 Acme Inc. All rights reserved.",
    ],
)
def test_what_every_mail_ends_with_goes_as_a_whole_paragraph_only(phrase: str) -> None:
    mail = f"Dear all,\n\nwe meet at nine.\n\n{phrase}"
    assert without_boilerplate(mail) == ("Dear all,\n\nwe meet at nine.", 1)
    assert without_boilerplate(phrase) == (phrase, 0)  # a text that is nothing else is what is asked about
    for kept in (f"```\n\n{phrase}\n\n```\n\nWhat is this?", f'He wrote "x\n\n{phrase}\n\ny" to me.'):
        assert without_boilerplate(kept) == (kept, 0)
    inline = f"Why does it say {phrase} there? Tell me.\n\nok"
    assert without_boilerplate(inline) == (inline, 0)


def test_it_is_fast_on_anything() -> None:
    texts = ['"' * 50_000, "`" * 50_001, "<pre " * 10_000, "a  " * 60_000, "'x" * 30_000, "\n \n" * 50_000]
    texts += ["x" + "`" * 40_000 + "y" * 40_000, "`a`\n\n" * 20_000, "\u00a0" * 80_000 + "x"]
    texts += [("Sent from my " + "w" * 1_980 + "!\n\n") * 20, ("copyright" + " " * 1_980 + "x\n\n") * 20]
    for text in texts:
        began = time.process_time()
        without_boilerplate(without_spaces(text))
        assert time.process_time() - began < 2, text[:4]


# ---- history ---------------------------------------------------------------------------------------------------------


def conversation(turns: int, chars: int = 400) -> list[Message]:
    found = [say("system", "Be kind. " * 50)]
    for number in range(turns):
        found += [say("user", f"{number}" * chars), say("assistant", "a" * chars)]
    return [*found, say("user", "the last one")]


def test_the_newest_turns_stay_with_the_instructions() -> None:
    messages = conversation(20)
    kept, gone = trimmed(messages, 1_000)
    assert kept[0] is messages[0] and kept[-1] is messages[-1] and kept[1].role == "user"
    assert gone == tuple(range(1, gone[-1] + 1)) and list(kept[1:]) == messages[gone[-1] + 1 :]
    assert sum(len(each.text) for each in kept[1:]) // 4 <= 1_100
    assert trimmed(messages, 100_000) == (tuple(messages), ())


def test_a_conversation_of_very_many_turns_holds_nobody_up() -> None:
    messages = [say("user", "x"), say("assistant", "y")] * 10_000
    began = time.process_time()
    kept, gone = trimmed(messages, 9_000)
    assert time.process_time() - began < 1 and len(kept) + len(gone) == 20_000


def test_calls_of_tools_stay_with_their_results_and_a_long_last_turn_stays_whole() -> None:
    call = say("assistant", "", tool_calls=(ToolCall("c", "look", "{}"),))
    old = [say("user", "x" * 4_000), call, say("tool", "y" * 4_000, tool_call_id="c"), say("assistant", "z")]
    last = [say("user", "w" * 40_000), call, say("tool", "v" * 4_000, tool_call_id="c")]
    kept, gone = trimmed([*old, *last], 500)
    assert kept == tuple(last) and gone == (0, 1, 2, 3)


def test_the_cut_stays_where_it_is_for_some_turns() -> None:
    """So that what providers cache by its beginning is still there at the next turn."""
    cuts = [len(trimmed(conversation(turns), 2_000)[1]) for turns in range(10, 40)]
    assert cuts == sorted(cuts) and len(set(cuts)) <= 12


# ---- examples --------------------------------------------------------------------------------------------------------

KNOWN = ("How do I reset my password?", "Where is my invoice?", "Cancel my subscription")


async def test_by_the_words_in_common_where_there_is_no_encoder() -> None:
    assert await Examples().nearest("Where do I reset a password", KNOWN, 2, None) == ([1, 0], "words")
    assert await Examples().nearest("anything", KNOWN, 9, None) == ([2, 1, 0], "words")


async def test_by_the_encoder_whose_vectors_of_examples_are_made_once() -> None:
    asked: list[list[str]] = []

    async def embed(texts: Sequence[str], dimensions: int | None) -> Embedded:
        asked.append(list(texts))
        angles = [1.0 if "invoice" in text or "bill" in text else 2.5 for text in texts]
        return Embedded([array("f", [math.cos(angle), math.sin(angle)]).tobytes() for angle in angles], 9, "e")

    examples = Examples()
    for _ in range(2):
        assert await examples.nearest("my bill?", KNOWN, 1, embed) == ([1], "encoder")
    assert asked == [list(KNOWN), ["my bill?"], ["my bill?"]]

    async def fails(texts: Sequence[str], dimensions: int | None) -> Embedded:
        raise Overloaded("no")

    assert (await examples.nearest("invoice", KNOWN, 1, fails)) == ([1], "words")


async def test_another_encoder_reads_the_examples_anew() -> None:
    encoder, asked = "one", list[list[str]]()

    async def embed(texts: Sequence[str], dimensions: int | None) -> Embedded:
        asked.append(list(texts))
        size = 2 if encoder == "one" else -3  # of another length, and the other way round
        rows = [[0.0] * (abs(size) - 2) + [math.cos(len(text)), math.sin(size * len(text))] for text in texts]
        return Embedded([array("f", row).tobytes() for row in rows], 9, encoder)

    examples = Examples()
    before = await examples.nearest(KNOWN[1], KNOWN, 1, embed)
    encoder = "two"
    assert (await examples.nearest(KNOWN[1], KNOWN, 1, embed))[1] == "words", "the old vectors say nothing of these"
    asked.clear()
    assert await examples.nearest(KNOWN[1], KNOWN, 1, embed) == ([1], "encoder")
    assert asked == [list(KNOWN), [KNOWN[1]]]
    encoder = "one"  # both are up for a while
    assert (await examples.nearest(KNOWN[1], KNOWN, 1, embed))[1] == "words"
    asked.clear()
    assert await examples.nearest(KNOWN[1], KNOWN, 1, embed) == before and asked == [[KNOWN[1]]]


async def test_an_encoder_that_is_replaced_while_it_reads_them() -> None:
    calls = 0

    async def embed(texts: Sequence[str], dimensions: int | None) -> Embedded:
        nonlocal calls
        calls += 1
        made = await slowly(texts, dimensions)
        return Embedded(made.vectors, made.tokens, f"e{min(calls, 2)}")

    known = [f"example {number}" for number in range(AT_ONCE + 1)]
    examples = Examples(10)
    assert (await examples.nearest("q", known, 1, embed))[1] == "words"
    assert (await examples.nearest("q", known, 1, embed))[1] == "encoder"


async def slowly(texts: Sequence[str], dimensions: int | None) -> Embedded:
    await asyncio.sleep(0.002 * len(texts))
    return Embedded([array("f", [1.0, len(text) / 100]).tobytes() for text in texts], 9, "slow")


async def test_vectors_that_take_longer_than_a_request_waits_are_there_for_later_ones() -> None:
    sent: list[int] = []

    async def embed(texts: Sequence[str], dimensions: int | None) -> Embedded:
        sent.append(len(texts))
        return await slowly(texts, dimensions)

    examples, known = Examples(0.05), [f"example {number}" for number in range(200)]
    assert {(await examples.nearest("q", known, 1, embed))[1] for _ in range(2)} == {"words"}
    async with asyncio.timeout(10):
        while (await examples.nearest("q", known, 1, embed))[1] != "encoder":
            pass
    assert sum(number for number in sent if number > 1) == len(known)  # none twice, and in pieces
    assert max(sent) <= AT_ONCE


async def test_vectors_that_are_evicted_meanwhile_are_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.few_shot.MOST_VECTORS", 20)
    examples, mine = Examples(), [f"a{number}" for number in range(10)]
    await examples.nearest("q", mine, 1, slowly)
    both = asyncio.gather(*(examples.nearest("q", [*mine, new], 3, slowly) for new in ("new", "newer")))
    await examples.nearest("q", [f"b{number}" for number in range(15)], 1, slowly)
    assert [by for _, by in await both] == ["encoder", "encoder"]
    assert len(examples._vectors) <= 20 and not examples._coming


async def test_hundreds_of_long_examples_do_not_hold_up_others() -> None:
    known = [" ".join(f"word{number * 7 + at}" for at in range(200)) for number in range(500)]
    for embed in (None, slowly):
        examples = Examples(10)
        await examples.nearest("q", known, 3, embed)
        began = time.process_time()
        found, _ = await examples.nearest(known[123], known, 3, embed)
        assert time.process_time() - began < 0.1
        assert embed is not None or found[-1] == 123


async def test_an_encoder_that_hangs_is_not_waited_for() -> None:
    async def hangs(texts: Sequence[str], dimensions: int | None) -> Embedded:
        await asyncio.sleep(60)
        return Embedded([], 0, "")

    settings = PromptSettings.model_validate({"examples": [{"question": "Where?", "answer": "There."}]})
    made, changes = await Prompting(hangs, 0.01).changed(ask("Where is it?"), settings)
    assert [message.role for message in made.messages] == ["user", "assistant", "user"]
    assert changes[0] == {"change": "examples", "examples": [0], "by": "words"}


# ---- in a request ----------------------------------------------------------------------------------------------------


def opted_in(**prompt: Any) -> IngressSettings:
    return IngressSettings.model_validate({"tenants": {"acme": {"prompt": prompt}}})


TALK = ChatRequest(
    "auto",
    (
        say("system", "Keep   this.   "),
        *(say("user", "old   words   " * 200), say("assistant", "I   see.")),
        say("user", "new   words   \n\n\n\nSent from my iPhone"),
    ),
)


async def test_models_get_what_the_tenants_settings_make_of_it_and_the_receipt_says_so() -> None:
    examples = [{"question": "What is a word?", "answer": "This."}]
    world = make_world(opted_in(compress="boilerplate", history_tokens=100, examples=examples))
    await unary(world, TALK)
    asked = next(iter([*world.small.asked, *world.medium.asked]))
    texts = [message.text for message in asked.messages]
    assert texts == ["Keep   this.   ", "What is a word?", "This.", "new words"]
    changes = world.closes()[0].changes
    assert [change["change"] for change in changes] == ["compression", "compression", "history", "examples", "tokens"]
    assert changes[1] == {"change": "compression", "message": 3, "characters": 28, "boilerplate": 1}
    assert changes[2] == {"change": "history", "messages": [1, 2]}
    assert changes[4]["after"] < changes[4]["before"] / 10
    assert "words" not in str([c for c in changes if c["change"] != "examples"])
    told = await world.pipeline.explain(TALK, ME, Options())
    assert told["prompt_changes"] == list(changes)
    world.books_are_shut()


async def test_nothing_is_changed_for_who_has_not_asked_for_it() -> None:
    world = make_world(IngressSettings())
    await unary(world, TALK)
    asked = next(iter([*world.small.asked, *world.medium.asked]))
    assert asked.messages == TALK.messages and world.closes()[0].changes == ()


async def test_an_answer_is_found_under_what_was_asked() -> None:
    world = make_world(opted_in(compress="whitespace"))
    for _ in range(2):
        head, _ = await unary(world, TALK, Options())
    assert head.verdict == "hit-exact"
