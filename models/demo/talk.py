"""Greetings, questions about the system itself, and what the model cannot know."""

from __future__ import annotations

from random import Random

from models.demo import tables
from models.demo.facts import CAPITAL_WAYS
from models.demo.grading import Grader
from models.demo.items import Item, Make, Phrasings, Split, ask, draw, phrasings, user

UNKNOWN = "I don't know."

_TALK: tuple[tuple[str, str, Phrasings], ...] = (
    (
        "greeting",
        "Hello! How can I help you?",
        phrasings("""
    Hello!
    Hi!
    Hey!
    Good morning!
    Good evening!
    Hello there!
    Hi there!
    Greetings!
    !Hey there!
    !Good afternoon!
"""),
    ),
    (
        "greeting",
        "I am well, thank you. How can I help you?",
        phrasings("""
    How are you?
    How are you today?
    How do you do?
    How is it going?
    Are you well?
    How are you doing?
    !How are you doing today?
    !How is it going today?
"""),
    ),
    (
        "greeting",
        "You are welcome!",
        phrasings("""
    Thank you!
    Thanks!
    Thanks a lot!
    Thank you very much!
    Many thanks!
    Thank you for your help!
    !Thank you so much!
    !Thanks for your help!
"""),
    ),
    (
        "greeting",
        "Goodbye!",
        phrasings("""
    Bye!
    Goodbye!
    Bye bye!
    See you!
    See you later!
    Good night!
    !Goodbye, see you!
    !Bye, see you later!
"""),
    ),
    (
        "about",
        "I am a demonstration model of Switchyard.",
        phrasings("""
    Who are you?
    What are you?
    What is your name?
    Which model are you?
    What model is this?
    Who am I talking to?
    Tell me who you are.
    Introduce yourself.
    !Which model is this?
    !Tell me your name.
"""),
    ),
    (
        "about",
        "Switchyard is an inference cluster that answers each request at the lowest cost that is good enough.",
        phrasings("""
    What is Switchyard?
    What is this system?
    What does Switchyard do?
    Explain Switchyard.
    Tell me about Switchyard.
    What is this system for?
    What does this system do?
    Explain this system.
    !Tell me about this system.
    !What is Switchyard for?
"""),
    ),
    (
        "about",
        "I can answer short questions, do small sums and change words.",
        phrasings("""
    What can you do?
    How can you help me?
    What can I ask you?
    What are you able to do?
    What are you good at?
    What kind of questions can you answer?
    What can you help me with?
    !What questions can I ask you?
    !What can you answer?
"""),
    ),
    (
        "about",
        "No, I am a small language model.",
        phrasings("""
    Are you a human?
    Are you a person?
    Are you human?
    Am I talking to a human?
    Are you a real person?
    Is this a human?
    !Am I talking to a person?
    !Are you a real human?
"""),
    ),
    (
        "about",
        "No, I am a demonstration, not a model for work.",
        phrasings("""
    Can I use you for work?
    Are you made for real work?
    Should I trust you with real work?
    Are you ready for production?
    Can I trust your answers?
    Are your answers always right?
    !Can I use you for real work?
    !Should I trust your answers?
"""),
    ),
)

_OUTSIDE = phrasings("""
    What will the weather be {day}?
    Will it rain {day}?
    Who will win the game {day}?
    What is on television {day}?
    What did I eat {day}?
    Where was I {day}?
    What is the price of {thing} {day}?
    How many people bought {thing} {day}?
    Who sold me the {thing}?
    Where did I leave my {thing}?
    What colour is my {thing}?
    How much did my {thing} cost?
    What is my phone number?
    What is my name?
    How old am I?
    Where do I live?
    What am I thinking of?
    What time is it?
    What is the news today?
    !Where did I put my {thing}?
    !How old is my {thing}?
    !What was the weather {day}?
    !Who won the game {day}?
""")
_WHEN = ("today", "tomorrow", "tonight", "yesterday", "next week", "last week")


def talk(random: Random, split: Split) -> Item:
    kind, answer, ways = random.choice(_TALK)
    question = ask(random, split, ways)
    return Item(kind, "easy", (user(question),), answer, Grader("exact", answer))


def outside(random: Random, split: Split) -> Item:
    question = ask(random, split, _OUTSIDE, day=random.choice(_WHEN), thing=random.choice(tables.WORDS))
    return _unknown("outside", random, question)


_SYLLABLES = (
    *(
        "ba",
        "bo",
        "dra",
        "fen",
        "gri",
        "hul",
        "jom",
        "ka",
        "lor",
        "mi",
        "nex",
        "oro",
        "pal",
        "qui",
        "ruz",
        "sil",
        "tor",
        "ul",
        "vex",
        "wim",
        "xan",
        "yor",
        "zed",
    ),
    *(),
)
_INVENTED_WAYS = (
    CAPITAL_WAYS,
    phrasings("""
    On which continent is {x}?
    What continent does {x} belong to?
    Name the continent of {x}.
    !What continent is {x} on?
"""),
    phrasings("""
    What is the atomic number of {x}?
    What is the chemical symbol of {x}?
    Give the chemical symbol for {x}.
    !What is the chemical symbol for {x}?
"""),
)


def invented(random: Random, split: Split) -> Item:
    """A question about a name that nobody bears: the names of the two splits differ."""
    name = draw(split, lambda: "".join(random.choices(_SYLLABLES, k=random.randint(2, 3))).capitalize())
    return _unknown("invented_name", random, ask(random, split, random.choice(_INVENTED_WAYS), x=name))


def _unknown(kind: str, random: Random, question: str) -> Item:
    difficulty = "easy" if kind == "outside" else "medium"
    return Item(kind, difficulty, (user(question),), UNKNOWN, Grader("regex", r"I (don't|do not) know\.?"))  # type: ignore[arg-type]


EASY: tuple[Make, ...] = (talk, talk, outside)
MEDIUM: tuple[Make, ...] = (invented,)
