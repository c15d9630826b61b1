from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.facts import facts
from router.vetoes import veto

DIFFERENT = [
    ("number", "Add 3 and 5.", "Add 3 and 6."),
    ("number", "What is 7 minus 4?", "What is 4 minus 7?"),
    ("number", "Is it two or three?", "Is it two or four?"),
    ("number", "What is 5 plus 1?", "What is -5 plus 1?"),
    ("number", "Round 1.5 up", "Round 15 up"),
    ("unit", "Is 40 degrees Celsius hot?", "Is 40 degrees Fahrenheit hot?"),
    ("unit", "What can I buy for $5?", "What can I buy for €5?"),
    ("unit", "How far is 5 km?", "How far is 5 miles?"),
    ("date", "Is the shop open on monday?", "Is the shop open on tuesday?"),
    ("number", "Who won on 3 May 1999?", "Who won on 4 May 1999?"),
    ("negation", "Why is remote work good?", "Why is remote work not good?"),
    ("negation", "Can I do that?", "Can't I do that?"),
    ("negation", "Make a cake with eggs", "Make a cake without eggs"),
    ("name", "Where was Marie Curie born?", "Where was Marie Stopes born?"),
    ("name", "Is it far from Rome to Paris?", "Is it far from Paris to Rome?"),
    ("name", 'Translate "good luck"', 'Translate "good luck to all of you"'),
    ("language", "Say hello in German.", "Say hello in Dutch."),
    ("language", "Sort a list in python", "Sort a list in rust"),
    ("language", "Wie ist das Wetter in der Stadt und auf dem Land?", "What is the weather like in the city?"),
    ("language", "What is a cat?", "What is a кот?"),
    ("code", "What does `a < b` do?", "What does `a > b` do?"),
    ("code", "What is 2*3?", "What is 2**3?"),
    ("code", "What is 5!", "What is 5"),
    ("code", "Learn C# fast", "Learn C++ fast"),
    ("code", "Explain:\n```\nif a:\n  b()\nc()\n```", "Explain:\n```\nif a:\n  b()\n  c()\n```"),
    ("code", "Explain this:\nif a:\n    b()\nc()", "Explain this:\nif a:\n    b()\n    c()"),
    ("code", "What is my_value?", "What is my_Value?"),
    ("quantifier", "Did all of them leave?", "Did most of them leave?"),
    ("quantifier", "Which river is the longest here?", "Which river is the second longest here?"),
    ("opposite", "Sort them in ascending order.", "Sort them in descending order."),
    ("opposite", "What are the pros of it?", "What are the cons of it?"),
    ("kind", "Can hummingbirds fly backwards?", "How do hummingbirds fly backwards?"),
    ("kind", "When will the Earth die?", "Will the Earth ever die?"),
    ("unit", "Is 500 mg of it safe?", "Is 500 g of it safe?"),
    ("order", "Can love be for someone who is you?", "Can love be you for someone who is?"),
    (
        "detail",
        "There were 36 penguins in the snow. One third of them went to swim in the ocean. How many were still there?",
        "There were 36 penguins in the snow. One third of them went to eat in the ocean. How many were still there?",
    ),
    ("order", "Does the dog bite the cat?", "Does the cat bite the dog?"),
]


def differs(a: str, b: str) -> str | None:
    return veto(facts(a), facts(b))


@pytest.mark.parametrize(("expected", "a", "b"), DIFFERENT)
def test_other_questions_are_told_apart(expected: str, a: str, b: str) -> None:
    assert differs(a, b) == differs(b, a) == expected


SAME = [
    ("What is the capital of France?", "what is the capital of france"),
    ("What is the capital of France?", "WHAT IS THE CAPITAL OF FRANCE?!"),
    ("How do I boil an egg?", "  How  do I boil an egg?\n"),
    ("How do I boil an egg?", "How can I boil eggs?"),
    ("What's the price of 1,000 bolts?", "What is the price of 1000 bolts?"),
    ("How far is 5 km?", "How far is 5 kilometres?"),
    ("Give me five ideas.", "Give me 5 ideas."),
    ("I can't log in. Why?", "I cannot log in. Why?"),
    ("Is the \u201cHamlet\u201d play long?", 'Is the "Hamlet" play long?'),
    ("What is the rent of a development?", "What's the rent of the development?"),
    ("Was it on Sept 3, 1999?", "Was it on September 3, 1999?"),
    ("Please finish this.\n```\nx = 1\n```", "Finish this, please:\n```\nx = 1\n```"),
    ("Is it 5\u00b0 warm?", "Is it 5 degrees warm?"),
    ("What is the difference between red tea and green tea?", "What is the difference between green tea and red tea?"),
    ("Explain gravity in simple terms.", "In simple terms, explain gravity."),
    ("Where is my order history?", "Where is the history of my orders?"),
    ("Hello! How  popular  is it? Thanks!", "how popular is it?"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_other_wordings_are_let_through(a: str, b: str) -> None:
    assert differs(a, b) is None and differs(b, a) is None


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_is_judged_and_both_ways_alike(a: str, b: str) -> None:
    assert differs(a, a) is None
    assert differs(a, b) == differs(b, a)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=4), st.lists(st.integers(0, 999), min_size=1, max_size=4))
def test_other_numbers_never_pass(a: list[int], b: list[int]) -> None:
    text = "Add up the numbers {}."
    found = differs(text.format(" and ".join(map(str, a))), text.format(" and ".join(map(str, b))))
    assert (found is None) == (a == b)


def test_it_is_fast_even_on_the_longest_text() -> None:
    text = ("It's a (long) text: `x`, \"y\" and 'z', 3.5 km in Rome... " * 40)[:2048]

    def once() -> float:
        began_s = time.thread_time()  # others may keep the machine busy
        facts.__wrapped__(text)
        return time.thread_time() - began_s

    assert min(once() for _ in range(10)) < 0.02
