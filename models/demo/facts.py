"""Facts in many phrasings: each item is one row of a table asked in one of the ways of its relation."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from models.demo import tables
from models.demo.grading import Grader, Rule
from models.demo.items import Difficulty, Item, Make, Phrasings, Split, ask, draw, phrasings, user


@dataclass(frozen=True, slots=True)
class Relation:
    """A table from `x` to its answer, and the ways to ask for it."""

    kind: str
    rows: dict[str, str]
    ways: Phrasings
    difficulty: Difficulty = "easy"

    def __call__(self, random: Random, split: Split) -> Item:
        x = random.choice(tuple(self.rows))
        answer = self.rows[x]
        question = ask(random, split, self.ways, x=x)
        rule: Rule = "number" if answer.isdigit() else "exact"
        spoken = answer if rule == "number" else f"{answer}."
        return Item(self.kind, self.difficulty, (user(question),), spoken, Grader(rule, answer))


def _after(names: tuple[str, ...], steps: int) -> dict[str, str]:
    return {name: names[(index + steps) % len(names)] for index, name in enumerate(names)}


def _flipped(table: dict[str, str]) -> dict[str, str]:
    return {value: key for key, value in table.items()}


CAPITAL_WAYS = phrasings("""
    What is the capital of {x}?
    What is {x}'s capital?
    Name the capital of {x}.
    Which city is the capital of {x}?
    What city is the capital of {x}?
    The capital of {x} is?
    Capital of {x}?
    Give me the capital of {x}.
    Do you know the capital of {x}?
    {x}: what is its capital?
    !Which city is {x}'s capital?
    !Can you name the capital of {x}?
    !Say the capital of {x}.
""")

RELATIONS: tuple[Relation, ...] = (
    Relation("capital", tables.CAPITALS, CAPITAL_WAYS),
    Relation(
        "country",
        _flipped(tables.CAPITALS),
        phrasings("""
    {x} is the capital of which country?
    Which country has the capital {x}?
    Of which country is {x} the capital?
    What country is {x} the capital of?
    Name the country with the capital {x}.
    {x} is the capital of what country?
    !Which country is {x} the capital of?
    !Name the country whose capital is {x}.
"""),
    ),
    Relation(
        "continent",
        tables.CONTINENTS,
        phrasings("""
    On which continent is {x}?
    Which continent is {x} on?
    What continent does {x} belong to?
    Name the continent of {x}.
    In which continent is {x}?
    On what continent is {x} found?
    {x} is on which continent?
    !What continent is {x} on?
    !Which continent does {x} belong to?
"""),
    ),
    Relation(
        "element_symbol",
        tables.ELEMENT_SYMBOLS,
        phrasings("""
    What is the chemical symbol of {x}?
    What is the symbol for {x}?
    Which symbol does {x} have?
    Give the chemical symbol for {x}.
    Chemical symbol of {x}?
    The symbol of {x} is?
    How is {x} written in the periodic table?
    What symbol stands for {x}?
    !What is the chemical symbol for {x}?
    !Give me the symbol of {x}.
"""),
    ),
    Relation(
        "element_name",
        _flipped(tables.ELEMENT_SYMBOLS),
        phrasings("""
    Which element has the symbol {x}?
    What element is {x}?
    What does the symbol {x} stand for?
    Name the element with the symbol {x}.
    The symbol {x} stands for which element?
    !What element has the symbol {x}?
    !Which element does the symbol {x} stand for?
"""),
    ),
    Relation(
        "element_number",
        tables.ELEMENT_NUMBERS,
        phrasings("""
    What is the atomic number of {x}?
    Which atomic number does {x} have?
    Give the atomic number of {x}.
    Atomic number of {x}?
    What number has {x} in the periodic table?
    How many protons does {x} have?
    How many protons are in an atom of {x}?
    !What atomic number does {x} have?
    !Name the atomic number of {x}.
"""),
    ),
    Relation(
        "planet",
        _flipped(tables.PLANET_PLACES),
        phrasings("""
    Which planet is the {x} from the Sun?
    What is the {x} planet from the Sun?
    Name the {x} planet.
    What is the {x} planet of the solar system?
    Which planet is {x}?
    Counting from the Sun, which planet is {x}?
    !Which is the {x} planet from the Sun?
    !Name the {x} planet of the solar system.
"""),
    ),
    Relation(
        "http_code",
        tables.HTTP_CODES,
        phrasings("""
    What does HTTP status {x} mean?
    What does HTTP {x} mean?
    What is HTTP status code {x}?
    Name the HTTP status {x}.
    HTTP {x} means?
    What is the meaning of HTTP code {x}?
    What does the status code {x} stand for?
    I got a {x} from the server. What does it mean?
    !What does HTTP code {x} mean?
    !What is the meaning of status code {x}?
"""),
    ),
    Relation(
        "opposite",
        tables.OPPOSITES,
        phrasings("""
    What is the opposite of {x}?
    Name the opposite of {x}.
    Which word is the opposite of {x}?
    Opposite of {x}?
    Give me the opposite of {x}.
    What word means the opposite of {x}?
    The opposite of {x} is?
    !Say the opposite of {x}.
    !What is the opposite word of {x}?
"""),
    ),
    Relation(
        "day",
        _after(tables.DAYS, 1) | _after(tables.MONTHS, 1),
        phrasings("""
    What comes after {x}?
    Which one follows {x}?
    What follows {x}?
    {x} is followed by what?
    Name the one after {x}.
    What is next after {x}?
    !What is after {x}?
    !What comes next after {x}?
"""),
    ),
    Relation(
        "day_before",
        _after(tables.DAYS, -1) | _after(tables.MONTHS, -1),
        phrasings("""
    What comes before {x}?
    Which one is before {x}?
    What is just before {x}?
    Name the one before {x}.
    {x} comes right after what?
    !What is before {x}?
    !What comes just before {x}?
"""),
    ),
    Relation(
        "young_animal",
        tables.ANIMALS,
        phrasings("""
    What is a young {x} called?
    What do you call a young {x}?
    What is a baby {x} called?
    Name the young of a {x}.
    A young {x} is called?
    What is the name for a baby {x}?
    !What do you call a baby {x}?
    !What is the name for a young {x}?
"""),
    ),
    Relation(
        "definition",
        {term: meaning[0].upper() + meaning[1:] for term, meaning in tables.TERMS.items()},
        phrasings("""
    What is {x}?
    What does {x} mean?
    Define {x}.
    Explain {x}.
    What is meant by {x}?
    Give a definition of {x}.
    Explain the term {x}.
    What is the meaning of {x}?
    !Define the term {x}.
    !What does the term {x} mean?
    !Give me the definition of {x}.
"""),
    ),
    Relation(
        "built_in",
        {f"{name}()": meaning for name, meaning in tables.BUILT_INS.items()},
        phrasings("""
    What does {x} return in Python?
    What does Python's {x} return?
    In Python, what does {x} return?
    What is returned by {x}?
    What do I get from {x} in Python?
    The Python function {x} returns what?
    !What does the Python function {x} return?
    !In Python, what is returned by {x}?
"""),
    ),
)

_UNIT_WAYS = phrasings("""
    How many {part} are in {whole}?
    How many {part} are there in {whole}?
    How many {part} does {whole} have?
    {whole} has how many {part}?
    Tell me how many {part} {whole} has.
    Number of {part} in {whole}?
    What is the number of {part} in {whole}?
    !Tell me how many {part} are in {whole}.
    !In {whole}, how many {part} are there?
""")

_LIST_WAYS = phrasings("""
    List the {count} {x}.
    Name the {count} {x}.
    What are the {count} {x}?
    List {count} {x}.
    Give me the {count} {x}.
    Can you list the {count} {x}?
    Which are the {count} {x}?
    List the {x}.
    !Can you name the {count} {x}?
    !Give the list of the {count} {x}.
""")

_IS_CAPITAL_WAYS = phrasings("""
    Is {city} the capital of {country}?
    Is the capital of {country} {city}?
    {city} is the capital of {country}, yes or no?
    True or false: is {city} the capital of {country}?
    Is it true that {city} is the capital of {country}?
    !Yes or no: is {city} the capital of {country}?
    !Is it right that {city} is the capital of {country}?
""")

_NUMBER_NAMES = ("zero", "one", "two", "three", "four", "five")


def unit(random: Random, split: Split) -> Item:
    (part, whole), count = random.choice(tuple(tables.UNITS.items()))
    question = ask(random, split, _UNIT_WAYS, part=part, whole=whole)
    return Item("unit", "easy", (user(question),), str(count), Grader("number", str(count)))


def enumeration(random: Random, split: Split) -> Item:
    name, (count, members) = random.choice(tuple(tables.LISTS.items()))
    question = ask(random, split, _LIST_WAYS, x=name, count=random.choice((str(count), _NUMBER_NAMES[count])))
    return Item("list", "easy", (user(question),), f"{members}.", Grader("set", members))


def is_capital(random: Random, split: Split) -> Item:
    """Half the pairs match. Those that do not are held out by pair, so that "no" must come from the fact."""
    countries = tuple(tables.CAPITALS)
    country = random.choice(countries)
    city, answer = tables.CAPITALS[country], "Yes"
    if random.random() < 0.5:
        others = tuple(other for other in countries if other != country)
        city, answer = draw(split, lambda: (country, tables.CAPITALS[random.choice(others)]))[1], "No"
    question = ask(random, split, _IS_CAPITAL_WAYS, country=country, city=city)
    return Item("yes_no", "medium", (user(question),), f"{answer}.", Grader("exact", answer))


EASY: tuple[Make, ...] = (*RELATIONS, unit, enumeration)
