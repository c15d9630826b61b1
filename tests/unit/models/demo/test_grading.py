from __future__ import annotations

import json

import pytest

from models.demo.code_check import passes
from models.demo.grading import Grader, grader_from_json

ADD = (((2, 3), 5), ((7, -1), 6))


@pytest.mark.parametrize(
    ("grader", "right", "wrong"),
    [
        (Grader("exact", "Paris"), ['"Paris".', " Paris", "Paris"], ["paris", "Rome", "Paris, Rome"]),
        (Grader("number", "12"), ["12", "3 * 4 = 12", "It is 12."], ["21", "12 + 1 = 13", "twelve", "-12"]),
        (Grader("sequence", "1, 2, 3"), ["1, 2, 3", "1,2,3.", "1, 2 and 3"], ["3, 2, 1", "1, 2", "1 2 3"]),
        (Grader("set", "a, b, c"), ["c, b, a", "a, b and c."], ["a, b", "a, b, c, d", "a, b, b"]),
        (Grader("regex", r"odd\.?"), ["Odd.", "odd"], ["not odd", "even"]),
    ],
    ids=lambda value: value.rule if isinstance(value, Grader) else None,
)
def test_rules(grader: Grader, right: list[str], wrong: list[str]):
    assert [grader.grade(answer) for answer in right] == [True] * len(right)
    assert [grader.grade(answer) for answer in wrong] == [False] * len(wrong)


def test_a_grader_survives_json():
    grader = Grader("code", "f", ((([3, 1],), [1, 3]), ((2, 3), 5)))
    assert grader_from_json(json.loads(json.dumps(grader.to_json()))) == grader


def test_code_runs():
    assert passes("def f(a, b):\n    return a + b", "f", ADD)
    assert passes("def f(x, y):\n    z = x + y\n    return z", "f", ADD)


@pytest.mark.parametrize(
    "code",
    [
        "def f(a, b):\n    return a - b",
        "def g(a, b):\n    return a + b",
        "def f(a, b): return",
        "def f(a, b)",
        "",
        "f = 3",
        "def f(a, b):\n    return a + b\ndef g(): return 1",
    ],
)
def test_wrong_code_fails(code: str):
    assert not passes(code, "f", ADD)


@pytest.mark.parametrize(
    "code",
    [
        "def f(a, b):\n    import os\n    return a + b",
        "def f(a, b):\n    while True: pass",
        "def f(a, b):\n    for i in [1]: pass\n    return a + b",
        "def f(a, b):\n    ().__class__\n    return a + b",
        "def f(a, b):\n    open('x')\n    return a + b",
        "def f(a, b):\n    (lambda: 1)()\n    return a + b",
        "def f(a, b):\n    9 ** 9 ** 9\n    return a + b",
        "def f(a, b):\n    [1] * 1000 * 1000 * 1000\n    return a + b",
        "def f(a, b):\n    [x for x in [1] for y in [2]]\n    return a + b",
        "@print\ndef f(a, b):\n    return a + b",
        "def f(a, b):\n    eval('1')\n    return a + b",
    ],
)
def test_code_that_could_do_harm_is_never_run(code: str):
    """Each would pass, or never end, if it ran."""
    assert not passes(code, "f", ADD)


def test_two_and_true_are_not_the_same_answer():
    assert not passes("def f(n):\n    return n % 2", "f", (((3,), True),))
