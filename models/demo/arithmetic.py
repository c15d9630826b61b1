"""Sums from one step to several. Longer ones are worked out step by step in the answer; the last number counts."""

from __future__ import annotations

from random import Random

from models.demo.grading import Grader
from models.demo.items import Difficulty, Item, Make, Split, ask, draw, phrasings, user

_SYMBOL_WAYS = """
    What is {a} {sign} {b}?
    {a} {sign} {b} = ?
    Calculate {a} {sign} {b}.
    Compute {a} {sign} {b}.
    {a} {sign} {b}
    How much is {a} {sign} {b}?
    What does {a} {sign} {b} give?
    !What number do you get for {a} {sign} {b}?
    !What is the result of {a} {sign} {b}?
"""
_WAYS = {
    "+": phrasings(
        _SYMBOL_WAYS
        + """
    What is {a} plus {b}?
    Add {a} and {b}.
    What is the sum of {a} and {b}?
    How much is {a} plus {b}?
    !Calculate {a} plus {b}.
    !Calculate the sum of {a} and {b}.
"""
    ),
    "-": phrasings(
        _SYMBOL_WAYS
        + """
    What is {a} minus {b}?
    Subtract {b} from {a}.
    How much is {a} minus {b}?
    Take {b} from {a}.
    !Calculate {a} minus {b}.
"""
    ),
    "*": phrasings(
        _SYMBOL_WAYS
        + """
    What is {a} times {b}?
    Multiply {a} by {b}.
    How much is {a} times {b}?
    What is the product of {a} and {b}?
    !Calculate {a} times {b}.
    !Calculate the product of {a} and {b}.
"""
    ),
}
_LARGER = phrasings("""
    Which is larger, {a} or {b}?
    Which number is larger: {a} or {b}?
    What is larger, {a} or {b}?
    What is the larger of {a} and {b}?
    !Which of {a} and {b} is larger?
    !Which number is the larger, {a} or {b}?
""")
_PARITY = phrasings("""
    Is {a} even or odd?
    Is {a} odd or even?
    Is the number {a} even or odd?
    Even or odd: {a}?
    {a}: even or odd?
    !Is the number {a} odd or even?
    !Tell me whether {a} is even or odd.
""")
_EXPRESSION = phrasings("""
    What is {x}?
    Calculate {x}.
    Compute {x}.
    {x} = ?
    How much is {x}?
    !What number do you get for {x}?
    !What is the result of {x}?
""")
_CHAIN = phrasings("""
    {x} What do you get?
    {x} What is the result?
    {x} Which number is it now?
    {x} What is the number now?
    {x} What number do you get?
    !{x} Which number do you get?
    !{x} What is the result now?
""")
_SHOP = phrasings("""
    I have {a} {x} and buy {b} bags with {c} each. How many {x} do I have?
    There are {a} {x}. Then come {b} boxes of {c}. How many {x} are there?
    A shelf holds {a} {x}, and {b} boxes hold {c} each. How many {x} is that?
    !There are {a} {x}, and {b} boxes hold {c} each. How many {x} are there?
    !I have {a} {x} and get {b} boxes of {c}. How many {x} do I have?
""")
_THINGS = ("apples", "pencils", "lemons", "keys", "candles", "lamps", "stones", "flowers")


def apply(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def _sum(kind: str, difficulty: Difficulty, random: Random, split: Split, a: int, sign: str, b: int) -> Item:
    result = str(apply(a, sign, b))
    question = ask(random, split, _WAYS[sign], a=a, b=b, sign=sign)
    return Item(kind, difficulty, (user(question),), result, Grader("number", result))


def one_digit(random: Random, split: Split) -> Item:
    """All one-digit sums are trained on, as a pupil learns them: only the phrasings are held out."""
    sign, a, b = random.choice("+-*"), random.randint(0, 9), random.randint(0, 9)
    if sign == "-" and a < b:
        a, b = b, a
    return _sum("one_digit", "easy", random, split, a, sign, b)


def two_digits(random: Random, split: Split) -> Item:
    sign = random.choice("+-")

    def operands() -> tuple[int, int]:
        a, b = random.randint(10, 99), random.randint(1, 99)
        return (a, b) if sign == "+" or a >= b else (b, a)

    a, b = draw(split, operands)
    return _sum("two_digits", "medium", random, split, a, sign, b)


def three_digits(random: Random, split: Split) -> Item:
    sign = random.choice("+-")
    a, b = draw(split, lambda: sorted((random.randint(100, 999), random.randint(100, 999)), reverse=True))
    return _sum("three_digits", "hard", random, split, a, sign, b)


def product(random: Random, split: Split) -> Item:
    """Two digits times one digit, worked out by tens and ones."""
    a, b = draw(split, lambda: (random.randint(11, 99), random.randint(2, 9)))
    tens, ones = a // 10 * 10, a % 10
    steps = f"{tens} * {b} = {tens * b}, {ones} * {b} = {ones * b}, {tens * b} + {ones * b} = {a * b}"
    question = ask(random, split, _WAYS["*"], a=a, b=b, sign="*")
    return Item("product", "hard", (user(question),), steps, Grader("number", str(a * b)))


def larger(random: Random, split: Split) -> Item:
    a, b = draw(split, lambda: tuple(random.sample(range(1, 100), 2)))
    answer = str(max(a, b))
    return Item("larger", "medium", (user(ask(random, split, _LARGER, a=a, b=b)),), answer, Grader("number", answer))


def parity(random: Random, split: Split) -> Item:
    a = draw(split, lambda: random.randint(1, 999))
    answer = "odd" if a % 2 else "even"
    question = ask(random, split, _PARITY, a=a)
    return Item("parity", "medium", (user(question),), answer.capitalize() + ".", Grader("regex", rf"{answer}\.?"))


def expression(random: Random, split: Split) -> Item:
    """Two signs: "23 + 4 * 6" (the product first) or "(7 - 4) * 6"."""
    text, steps, result = draw(split, lambda: _expression(random))
    question = ask(random, split, _EXPRESSION, x=text)
    return Item("expression", "hard", (user(question),), steps, Grader("number", str(result)))


def _expression(random: Random) -> tuple[str, str, int]:
    a, b, c, sign = random.randint(2, 9), random.randint(2, 9), random.randint(2, 9), random.choice("+-")
    if random.random() < 0.5:
        a, first = a + 20, b * c
        result = apply(a, sign, first)
        return f"{a} {sign} {b} * {c}", f"{b} * {c} = {first}, {a} {sign} {first} = {result}", result
    a, b = max(a, b), min(a, b)
    first = apply(a, sign, b)
    return f"({a} {sign} {b}) * {c}", f"{a} {sign} {b} = {first}, {first} * {c} = {first * c}", first * c


def chain(random: Random, split: Split) -> Item:
    """ "Start with 7. Add 5. Double it." with two to four steps, worked out one after another."""
    told, steps, value = draw(split, lambda: _chain(random))
    question = ask(random, split, _CHAIN, x=told)
    return Item("chain", "hard", (user(question),), steps, Grader("number", str(value)))


def _chain(random: Random) -> tuple[str, str, int]:
    """What is told, the steps, and the last number, which stays between 0 and 200."""
    value = random.randint(2, 20)
    told, steps = [f"Start with {value}."], []
    for _ in range(random.randint(2, 4)):
        verb, sign, b = random.choice(_STEPS)
        b = b or random.randint(2, 20)
        if not 0 <= apply(value, sign, b) <= 200:
            verb, sign = _STEPS[0][0], "+"
        told.append(verb.format(b=b))
        steps.append(f"{value} {sign} {b} = {apply(value, sign, b)}")
        value = apply(value, sign, b)
    return " ".join(told), ", ".join(steps), value


# What is said, the sign, and the number when it is always the same one.
_STEPS = (("Add {b}.", "+", 0), ("Subtract {b}.", "-", 0), ("Double it.", "*", 2), ("Multiply by {b}.", "*", 3))


def story(random: Random, split: Split) -> Item:
    a, b, c = draw(split, lambda: (random.randint(1, 20), random.randint(2, 9), random.randint(2, 9)))
    question = ask(random, split, _SHOP, a=a, b=b, c=c, x=random.choice(_THINGS))
    steps = f"{b} * {c} = {b * c}, {a} + {b * c} = {a + b * c}"
    return Item("story", "hard", (user(question),), steps, Grader("number", str(a + b * c)))


EASY: tuple[Make, ...] = (one_digit, one_digit)
MEDIUM: tuple[Make, ...] = (two_digits, two_digits, larger, parity)
HARD: tuple[Make, ...] = (three_digits, product, expression, chain, chain, story)
