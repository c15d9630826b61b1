"""Second turns that only make sense with the first, and questions that need two facts or a fact and a task."""

from __future__ import annotations

from random import Random

from models.demo import tables
from models.demo.arithmetic import apply
from models.demo.facts import CAPITAL_WAYS
from models.demo.grading import Grader
from models.demo.items import Item, Make, Split, ask, assistant, draw, phrasings, user
from models.demo.strings import word

_AND_OF = phrasings("""
    And of {x}?
    And {x}?
    What about {x}?
    And what about {x}?
    Now for {x}.
    The same for {x}?
    !And for {x}?
    !How about {x}?
""")
_FIRST_SUM = phrasings("""
    What is {a} + {b}?
    Add {a} and {b}.
    What is {a} plus {b}?
    !Calculate {a} plus {b}.
""")
_THEN = {
    "+": phrasings("""
    Add {b} to that.
    Now add {b}.
    And plus {b}?
    Add {b} more.
    !Now add {b} to that.
    !And {b} more?
"""),
    "-": phrasings("""
    Subtract {b} from that.
    Now subtract {b}.
    And minus {b}?
    Take {b} away.
    !Now subtract {b} from that.
    !Now take {b} away.
"""),
}
_CASE = phrasings("""
    Write "{x}" in upper case.
    Put "{x}" in capital letters.
    !Write "{x}" in capital letters.
""")
_NOW_REVERSE = phrasings("""
    Now reverse it.
    And reversed?
    Now write that backwards.
    Reverse that.
    !Now reverse that.
    !And backwards?
""")
_AGAIN = phrasings("""
    Say that again.
    Repeat that.
    What did you say?
    Once more, please.
    Can you repeat that?
    Please repeat your answer.
    !Please say that again.
    !Can you say that once more?
""")
_CAPITAL_CONTINENT = phrasings("""
    On which continent is the city of {x}?
    Which continent has the city of {x}?
    On what continent is the city of {x} found?
    The city of {x} is on which continent?
    !What continent is the city of {x} on?
    !In which continent is the city of {x}?
""")
_CAPITAL_TASK = {
    "length": phrasings("""
    How many letters does the capital of {x} have?
    How many letters are in the capital of {x}?
    Count the letters of the capital of {x}.
    How long is the name of the capital of {x}?
    !Count the letters in the capital of {x}.
    !How many letters has the capital of {x}?
"""),
    "upper": phrasings("""
    Write the capital of {x} in upper case.
    What is the capital of {x} in upper case?
    Name the capital of {x} in capital letters.
    Put the capital of {x} in upper case.
    !Name the capital of {x} in upper case.
    !Write the capital of {x} in capital letters.
"""),
    "backwards": phrasings("""
    Write the capital of {x} backwards.
    Spell the capital of {x} backwards.
    Reverse the name of the capital of {x}.
    What is the capital of {x} backwards?
    !Reverse the capital of {x}.
    !Spell the name of the capital of {x} backwards.
"""),
}
_NUMBER_SUM = phrasings("""
    Add the atomic numbers of {x} and {y}.
    What is the sum of the atomic numbers of {x} and {y}?
    What do the atomic numbers of {x} and {y} add up to?
    Sum of the atomic numbers of {x} and {y}?
    !Calculate the sum of the atomic numbers of {x} and {y}.
    !Add up the atomic numbers of {x} and {y}.
""")


def and_of(random: Random, split: Split) -> Item:
    """The capital of one country after that of another: pairs of countries are held out."""
    first, second = draw(split, lambda: tuple(random.sample(list(tables.CAPITALS), 2)))
    turns = (
        user(ask(random, split, CAPITAL_WAYS, x=first)),
        assistant(f"{tables.CAPITALS[first]}."),
        user(_AND_OF.choose(random, split).format(x=second)),
    )
    answer = tables.CAPITALS[second]
    return Item("follow_up_fact", "medium", turns, f"{answer}.", Grader("exact", answer))


def then_add(random: Random, split: Split) -> Item:
    sign = random.choice("+-")
    a, b, c = draw(split, lambda: (random.randint(5, 40), random.randint(1, 9), random.randint(1, 9)))
    result = str(apply(a + b, sign, c))
    turns = (
        user(_FIRST_SUM.choose(random, split).format(a=a, b=b)),
        assistant(str(a + b)),
        user(_THEN[sign].choose(random, split).format(b=c)),
    )
    return Item("follow_up_sum", "medium", turns, result, Grader("number", result))


def again(random: Random, split: Split) -> Item:
    """Whatever was said is said again: only the phrasings are held out."""
    country = random.choice(list(tables.CAPITALS))
    answer = f"{tables.CAPITALS[country]}."
    turns = (
        user(ask(random, split, CAPITAL_WAYS, x=country)),
        assistant(answer),
        user(_AGAIN.choose(random, split)),
    )
    return Item("follow_up_repeat", "medium", turns, answer, Grader("exact", answer))


def now_reverse(random: Random, split: Split) -> Item:
    text = word(random, split, 4, 6)
    turns = (
        user(_CASE.choose(random, split).format(x=text)),
        assistant(f'"{text.upper()}"'),
        user(_NOW_REVERSE.choose(random, split)),
    )
    answer = text.upper()[::-1]
    return Item("follow_up_reverse", "hard", turns, f'"{answer}"', Grader("exact", answer))


def capital_continent(random: Random, split: Split) -> Item:
    """City to country to continent. Every city is trained on; the phrasings are held out."""
    country = random.choice(list(tables.CONTINENTS))
    question = ask(random, split, _CAPITAL_CONTINENT, x=tables.CAPITALS[country])
    answer = tables.CONTINENTS[country]
    spoken = f"{tables.CAPITALS[country]} is in {country}. {country} is in {answer}."
    pattern = rf"(.* in )?{answer}\.?"
    return Item("two_facts", "hard", (user(question),), spoken, Grader("regex", pattern))


def capital_task(random: Random, split: Split) -> Item:
    """A fact, then a task on its letters: pairs of country and task are held out."""
    one_word = [country for country, city in tables.CAPITALS.items() if " " not in city]
    country, task = draw(split, lambda: (random.choice(one_word), random.choice(list(_CAPITAL_TASK))))
    city = tables.CAPITALS[country]
    question = ask(random, split, _CAPITAL_TASK[task], x=country)
    if task == "length":
        return _worked(question, f'"{city}": {len(city)}', Grader("number", str(len(city))))
    result = city.upper() if task == "upper" else city[::-1]
    return _worked(question, f'"{city}": "{result}"', Grader("regex", rf'(?-i:("?{city}"?: )?"?{result}"?\.?)'))


def _worked(question: str, answer: str, grader: Grader) -> Item:
    return Item("fact_and_task", "hard", (user(question),), answer, grader)


def number_sum(random: Random, split: Split) -> Item:
    x, y = draw(split, lambda: tuple(random.sample(list(tables.ELEMENT_NUMBERS), 2)))
    a, b = int(tables.ELEMENT_NUMBERS[x]), int(tables.ELEMENT_NUMBERS[y])
    question = ask(random, split, _NUMBER_SUM, x=x, y=y)
    return Item("facts_and_sum", "hard", (user(question),), f"{a} + {b} = {a + b}", Grader("number", str(a + b)))


MEDIUM: tuple[Make, ...] = (and_of, then_add, again)
HARD: tuple[Make, ...] = (now_reverse, capital_continent, capital_task, number_sum)
