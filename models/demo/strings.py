"""Tasks on words: upper-case, reverse, count, sort. Words are drawn letter by letter, so no table can hold them.

A word stands in double quotes; the tokenizer cuts what is quoted into single letters.
"""

from __future__ import annotations

from random import Random

from models.demo.grading import Grader
from models.demo.items import Difficulty, Item, Make, Phrasings, Split, ask, draw, phrasings, user

_COMMON = "aaabcddeeeefghiijklmnnooprrssttuuvwxyz"

_UPPER = phrasings("""
    Write "{x}" in upper case.
    Convert "{x}" to upper case.
    Put "{x}" in capital letters.
    Upper case: "{x}"
    What is "{x}" in upper case?
    Make "{x}" upper case.
    Turn "{x}" into capital letters.
    !Write "{x}" in capital letters.
    !Turn "{x}" into upper case.
""")
_LOWER = phrasings("""
    Write "{x}" in lower case.
    Convert "{x}" to lower case.
    Put "{x}" in small letters.
    Lower case: "{x}"
    What is "{x}" in lower case?
    Make "{x}" lower case.
    !Write "{x}" in small letters.
    !Turn "{x}" into lower case.
""")
_REVERSE = phrasings("""
    Reverse "{x}".
    Reverse the word "{x}".
    Write "{x}" backwards.
    What is "{x}" reversed?
    Spell "{x}" backwards.
    Reverse the letters of "{x}".
    Turn "{x}" around.
    !Write the word "{x}" backwards.
    !What is the word "{x}" reversed?
""")
_COUNT = phrasings("""
    How many letters are in "{x}"?
    How many letters does "{x}" have?
    Count the letters of "{x}".
    Count the letters in "{x}".
    How long is "{x}"?
    What is the length of "{x}"?
    How many letters has the word "{x}"?
    !How many letters are in the word "{x}"?
    !Count the letters in the word "{x}".
""")
_FIRST = phrasings("""
    What is the first letter of "{x}"?
    First letter of "{x}"?
    Give the first letter of "{x}".
    Which letter does "{x}" start with?
    !Name the first letter of "{x}".
    !What letter does "{x}" start with?
""")
_LAST = phrasings("""
    What is the last letter of "{x}"?
    Last letter of "{x}"?
    Give the last letter of "{x}".
    Which letter does "{x}" end with?
    !Name the last letter of "{x}".
    !What letter does "{x}" end with?
""")
_OCCURRENCES = phrasings("""
    How many times does "{y}" occur in "{x}"?
    How often does "{y}" occur in "{x}"?
    Count the letter "{y}" in "{x}".
    How often is "{y}" in "{x}"?
    !How many times is "{y}" in "{x}"?
    !Count how often "{y}" occurs in "{x}".
""")
_SORT_LETTERS = phrasings("""
    Sort the letters of "{x}".
    Sort the letters in "{x}".
    Put the letters of "{x}" in order.
    Put the letters of "{x}" in alphabetical order.
    !Sort the letters of the word "{x}".
    !Put the letters in "{x}" in order.
""")
_SORT_NUMBERS = phrasings("""
    Sort {x}.
    Sort the numbers {x}.
    Put {x} in order.
    Put the numbers {x} in order.
    Order {x} from small to large.
    Sort {x} in ascending order.
    Sort {x} from small to large.
    !Put the numbers {x} in ascending order.
    !Sort the numbers {x} from small to large.
""")
_SORT_DOWN = phrasings("""
    Sort {x} in descending order.
    Sort {x} from large to small.
    Order {x} from large to small.
    Put {x} in descending order.
    !Sort the numbers {x} in descending order.
    !Put {x} in order from large to small.
""")


def word(random: Random, split: Split, shortest: int, longest: int) -> str:
    """Random letters; whether a word is held out hangs on the word alone, in any task."""
    return draw(split, lambda: "".join(random.choices(_COMMON, k=random.randint(shortest, longest))))


def _quoted(kind: str, difficulty: Difficulty, question: str, answer: str) -> Item:
    return Item(kind, difficulty, (user(question),), f'"{answer}"', Grader("exact", answer))


def _counted(kind: str, difficulty: Difficulty, question: str, count: int) -> Item:
    return Item(kind, difficulty, (user(question),), str(count), Grader("number", str(count)))


def upper_case(random: Random, split: Split) -> Item:
    text = word(random, split, 3, 7)
    return _quoted("upper_case", "medium", ask(random, split, _UPPER, x=text), text.upper())


def lower_case(random: Random, split: Split) -> Item:
    text = word(random, split, 3, 7)
    return _quoted("lower_case", "medium", ask(random, split, _LOWER, x=text.upper()), text)


def reverse(random: Random, split: Split) -> Item:
    text = word(random, split, 3, 4)
    return _quoted("reverse", "medium", ask(random, split, _REVERSE, x=text), text[::-1])


def reverse_long(random: Random, split: Split) -> Item:
    text = word(random, split, 6, 9)
    return _quoted("reverse_long", "hard", ask(random, split, _REVERSE, x=text), text[::-1])


def upper_case_reversed(random: Random, split: Split) -> Item:
    text = word(random, split, 4, 6)
    return _quoted("upper_reversed", "hard", ask(random, split, _UPPER_REVERSED, x=text), text[::-1].upper())


def count_letters(random: Random, split: Split) -> Item:
    text = word(random, split, 3, 7)
    return _counted("count_letters", "medium", ask(random, split, _COUNT, x=text), len(text))


def end_letter(random: Random, split: Split) -> Item:
    text = word(random, split, 3, 7)
    ways, letter = random.choice(((_FIRST, text[0]), (_LAST, text[-1])))
    return _quoted("end_letter", "medium", ask(random, split, ways, x=text), letter)


def count_occurrences(random: Random, split: Split) -> Item:
    text = draw(split, lambda: "".join(random.choices(random.choices(_COMMON, k=3), k=random.randint(5, 8))))
    letter = random.choice(text)
    question = ask(random, split, _OCCURRENCES, x=text, y=letter)
    return _counted("count_occurrences", "hard", question, text.count(letter))


def sort_letters(random: Random, split: Split) -> Item:
    text = word(random, split, 4, 6)
    return _quoted("sort_letters", "hard", ask(random, split, _SORT_LETTERS, x=text), "".join(sorted(text)))


def sort_digits(random: Random, split: Split) -> Item:
    return _sorted("sort_short", "medium", random, split, _SORT_NUMBERS, 3, 9)


def sort_long(random: Random, split: Split) -> Item:
    ways = random.choice((_SORT_NUMBERS, _SORT_DOWN))
    return _sorted("sort_long", "hard", random, split, ways, random.randint(4, 6), 99)


def _sorted(
    kind: str, difficulty: Difficulty, random: Random, split: Split, ways: Phrasings, count: int, largest: int
) -> Item:
    numbers = draw(split, lambda: tuple(random.sample(range(1, largest + 1), count)))
    question = ask(random, split, ways, x=", ".join(map(str, numbers)))
    answer = ", ".join(map(str, sorted(numbers, reverse=ways is _SORT_DOWN)))
    return Item(kind, difficulty, (user(question),), answer, Grader("sequence", answer))


_UPPER_REVERSED = phrasings("""
    Reverse "{x}" and write it in upper case.
    Write "{x}" backwards in upper case.
    Reverse "{x}" in capital letters.
    Put "{x}" in upper case and reverse it.
    !Reverse the word "{x}" and write it in upper case.
    !Write "{x}" backwards in capital letters.
""")

MEDIUM: tuple[Make, ...] = (upper_case, lower_case, reverse, count_letters, end_letter, sort_digits)
HARD: tuple[Make, ...] = (reverse_long, upper_case_reversed, count_occurrences, sort_letters, sort_long)
