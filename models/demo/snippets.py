"""Short Python functions from templates, graded by running them."""

from __future__ import annotations

from random import Random
from typing import Any

from models.demo.grading import Case, Grader
from models.demo.items import Item, Make, Split, ask, draw, phrasings, user

_NAMES = ("f", "g", "h", "solve", "calc", "run", "make", "get", "step", "work", "task", "job")

_WAYS = phrasings("""
    Write a Python function {name} that returns {what}.
    Write a function {name} that returns {what}.
    Python function {name} that returns {what}?
    Define a Python function {name} which returns {what}.
    Give me a function {name} that returns {what}.
    In Python, write {name} so that it returns {what}.
    !Give me a Python function {name} that returns {what}.
    !Define a function {name} that returns {what}.
""")

# What it returns, its parameters, the expression, and arguments to try with the result of each.
_TASKS: tuple[tuple[str, str, str, tuple[Case, ...]], ...] = (
    ("the sum of a and b", "a, b", "a + b", (((2, 3), 5), ((7, -1), 6))),
    ("the difference of a and b", "a, b", "a - b", (((5, 3), 2), ((1, 4), -3))),
    ("the product of a and b", "a, b", "a * b", (((2, 3), 6), ((5, 5), 25))),
    ("the larger of a and b", "a, b", "max(a, b)", (((2, 3), 3), ((9, 1), 9))),
    ("the smaller of a and b", "a, b", "min(a, b)", (((2, 3), 2), ((9, 1), 1))),
    ("the square of n", "n", "n * n", (((3,), 9), ((5,), 25))),
    ("the double of n", "n", "2 * n", (((3,), 6), ((5,), 10))),
    ("the half of n", "n", "n / 2", (((3,), 1.5), ((8,), 4.0))),
    ("the absolute value of n", "n", "abs(n)", (((-3,), 3), ((5,), 5))),
    ("whether n is even", "n", "n % 2 == 0", (((3,), False), ((4,), True))),
    ("whether n is odd", "n", "n % 2 == 1", (((3,), True), ((4,), False))),
    ("whether n is positive", "n", "n > 0", (((3,), True), ((-4,), False))),
    ("the last digit of n", "n", "n % 10", (((37,), 7), ((120,), 0))),
    ("the length of text", "text", "len(text)", ((("abc",), 3), (("",), 0))),
    ("text in upper case", "text", "text.upper()", ((("aB",), "AB"), (("x",), "X"))),
    ("text in lower case", "text", "text.lower()", ((("aB",), "ab"), (("X",), "x"))),
    ("text reversed", "text", "text[::-1]", ((("abc",), "cba"), (("xy",), "yx"))),
    ("the first letter of text", "text", "text[0]", ((("abc",), "a"), (("xy",), "x"))),
    ("the last letter of text", "text", "text[-1]", ((("abc",), "c"), (("xy",), "y"))),
    ("the sum of items", "items", "sum(items)", ((([1, 2],), 3), (([5],), 5))),
    ("the largest of items", "items", "max(items)", ((([1, 2],), 2), (([5, 3],), 5))),
    ("the smallest of items", "items", "min(items)", ((([1, 2],), 1), (([5, 3],), 3))),
    ("the number of items", "items", "len(items)", ((([1, 2],), 2), (([],), 0))),
    ("items in order", "items", "sorted(items)", ((([3, 1, 2],), [1, 2, 3]), (([5],), [5]))),
    ("items reversed", "items", "items[::-1]", ((([3, 1, 2],), [2, 1, 3]), (([5],), [5]))),
    ("the first of items", "items", "items[0]", ((([3, 1],), 3), (([5],), 5))),
    ("the last of items", "items", "items[-1]", ((([3, 1],), 1), (([5],), 5))),
)

# Built on a number of its own: "{}" becomes the number k.
_NUMBERED: tuple[tuple[str, str, str], ...] = (
    ("n plus {}", "n", "n + {}"),
    ("n times {}", "n", "n * {}"),
    ("whether n is larger than {}", "n", "n > {}"),
    ("whether n is smaller than {}", "n", "n < {}"),
    ("the remainder of n divided by {}", "n", "n % {}"),
    ("{} if n is even, else 0", "n", "{} if n % 2 == 0 else 0"),
    ("the sum of a and b times {}", "a, b", "(a + b) * {}"),
    ("the product of a and b plus {}", "a, b", "a * b + {}"),
    ("the items larger than {}", "items", "[x for x in items if x > {}]"),
    ("the items smaller than {}", "items", "[x for x in items if x < {}]"),
    ("each of items times {}", "items", "[x * {} for x in items]"),
    ("each of items plus {}", "items", "[x + {} for x in items]"),
    ("the sum of items plus {}", "items", "sum(items) + {}"),
    ("the larger of n and {}", "n", "max(n, {})"),
    ("the smaller of n and {}", "n", "min(n, {})"),
)
_ARGUMENTS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "n": ((3,), (8,), (50,), (97,)),
    "a, b": ((2, 3), (7, 4)),
    "items": (([1, 60, 5, 97, 30],), ([2, 45],)),
}


def snippet(random: Random, split: Split) -> Item:
    """The function's name with its task is held out: trained on with other names."""
    name, (what, parameters, body, cases) = draw(split, lambda: (random.choice(_NAMES), random.choice(_TASKS)))
    question = ask(random, split, _WAYS, name=name, what=what)
    return Item("snippet", "medium", (user(question),), _code(name, parameters, body), Grader("code", name, cases))


def numbered_snippet(random: Random, split: Split) -> Item:
    """The task with its number is held out."""
    name = random.choice(_NAMES)
    (what, parameters, body), k = draw(split, lambda: (random.choice(_NUMBERED), random.randint(2, 99)))
    body = body.format(k)
    # Our own text from the tables above, nobody else's.
    function = eval(f"lambda {parameters}: {body}")
    cases = tuple((given, function(*given)) for given in _ARGUMENTS[parameters])
    question = ask(random, split, _WAYS, name=name, what=what.format(k))
    return Item("snippet_number", "hard", (user(question),), _code(name, parameters, body), Grader("code", name, cases))


def _code(name: str, parameters: str, body: str) -> str:
    return f"def {name}({parameters}):\n    return {body}"


MEDIUM: tuple[Make, ...] = (snippet,)
HARD: tuple[Make, ...] = (numbered_snippet,)
