"""Questions with a known meaning, and so pairs of them that are known to ask the same or not.

A question is a meaning (intent, subject, what narrows it, what else is said) put into one of its wordings. Two are the
same where the meanings are. Everything is drawn from `frames` and `words` by a seed; no foreign text is in it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from router.cache_training import frames, words
from router.cache_training.actions import ACTIONS

Rng = random.Random

CONTEXTS = (
    "I am a student.",
    "I am 35 years old.",
    "I work in a bank.",
    "I live in a small town.",
    "My parents do not agree with me.",
    "I have two kids.",
    "I have tried everything.",
    "I am new here.",
    "I lost my job last year.",
    "I have a lot of free time.",
    "My doctor told me to ask.",
    "I don't have much money.",
    "It has been a long time.",
    "I am very shy.",
    "We just moved.",
)
SECONDS = (
    "Why?",
    "And how long does it take?",
    "What does it cost?",
    "Is it safe?",
    "What should I know first?",
    "Where should I start?",
    "Which one do you prefer?",
    "Is it worth it?",
    "How did it go?",
    "What are the risks?",
    "Does age matter?",
)
OPENERS = (
    "Hi! {}",
    "Hello, {}",
    "Please answer: {}",
    "Please tell me: {}",
    "I would like to know: {}",
    "{} Thanks!",
    "{} Thank you.",
    "Quick question: {}",
)
SPELLINGS = (
    ("favourite", "favorite"),
    ("colour", "color"),
    ("What is", "What's"),
    ("I am", "I'm"),
    ("do not", "don't"),
    ("cannot", "can't"),
)


@dataclass(frozen=True, slots=True)
class Question:
    """`meaning` is equal for the same question only; `intent` is part of it. `group`: what it is about, for a split."""

    group: str
    meaning: tuple[str, ...]
    intent: str
    text: str


def questions(seed: int) -> list[Question]:
    """About 9,000 of them, in groups whose members are near to each other."""
    rng = random.Random(seed)
    found: dict[str, Question] = {}
    for make in (_of_actions, _of_subjects, _of_nouns, _of_pairs, _of_swaps, _of_tasks, _of_sums):
        for question in make(rng):
            found.setdefault(question.text, question)
    return list(found.values())


def teachable(a: Question, b: Question) -> bool:
    """Whether it is beyond doubt if the two are the same."""
    if a.meaning == b.meaning:
        return True
    return frozenset((a.intent, b.intent)) not in frames.NOT_QUITE


def _said(rng: Rng, text: str) -> str:
    """`text` as people type it."""
    for one, other in SPELLINGS:
        if rng.random() < 0.3:
            text = text.replace(one, other)
    ways: tuple[Callable[[str], str], ...] = (
        str.lower, str.upper, lambda t: t.rstrip("?."), lambda t: t + "?", lambda t: "  " + t.replace(" ", "  ") + "\n",
        lambda t: rng.choice(OPENERS).format(t), lambda t: _misspelt(rng, t), lambda t: t.replace("?", " ?"),
    )  # fmt: skip
    return rng.choice(ways)(text) if rng.random() < 0.3 else text


def _misspelt(rng: Rng, text: str) -> str:
    """One long word with two letters swapped or one left out."""
    spots = [word for word in text.split() if len(word) > 6 and word.isalpha()]
    if not spots:
        return text
    word = rng.choice(spots)
    at = rng.randrange(2, len(word) - 2)
    return text.replace(word, word[:at] + rng.choice((word[at + 1] + word[at] + word[at + 2 :], word[at + 1 :])), 1)


def _end(rng: Rng, text: str, addition: str) -> str:
    mark = text[-1]
    return f"{text[:-1]} {addition}{mark}" if mark in "?." else f"{text} {addition}"


def _variants(
    rng: Rng, group: str, intents: list[str], put: Callable[[str], tuple[str, str]], count: int
) -> Iterator[Question]:
    """`count` questions of one group. `put` puts an intent into words and says what about: (text, subject)."""
    narrow_pool = rng.sample(range(len(words.NARROWS)), 3)
    for _ in range(count):
        intent = rng.choice(intents)
        text, subject = put(intent)
        narrow = context = second = ""
        roll = rng.random()
        if roll < 0.35:
            at = rng.choice(narrow_pool)
            narrow, text = words.NARROWS[at][0], _narrowed(rng, text, rng.choice(words.NARROWS[at]))
        elif roll < 0.45:
            text = _end(rng, text, rng.choice(words.FILLERS))
        elif roll < 0.55:
            context = rng.choice(CONTEXTS)
            text = f"{context} {text}"
        elif roll < 0.65:
            second = rng.choice(SECONDS)
            text = f"{text} {second}"
        yield Question(group, (group, intent, subject, narrow, context, second), intent, _said(rng, text))


def _narrowed(rng: Rng, text: str, narrow: str) -> str:
    if rng.random() < 0.15 and text.split()[0] not in ("I", "Python"):
        return f"{narrow[0].upper()}{narrow[1:]}, {text[0].lower()}{text[1:]}"
    return _end(rng, text, narrow)


def _of_actions(rng: Rng) -> Iterator[Question]:
    for wordings in ACTIONS:
        intents = ["how", "how", "how", *rng.sample([each for each in frames.ACTION_INTENTS if each != "how"], 4)]

        def put(intent: str, wordings: tuple[str, ...] = wordings) -> tuple[str, str]:
            return rng.choice(frames.ACTION_INTENTS[intent]).format(v=rng.choice(wordings)), ""

        yield from _variants(rng, wordings[0], intents, put, 36)


def _of_subjects(rng: Rng) -> Iterator[Question]:
    for wordings in words.SUBJECTS:
        intents = rng.sample(list(frames.SUBJECT_INTENTS), 6)

        def put(intent: str, wordings: tuple[str, ...] = wordings) -> tuple[str, str]:
            return rng.choice(frames.SUBJECT_INTENTS[intent]).format(t=rng.choice(wordings)), ""

        yield from _variants(rng, wordings[0], intents, put, 24)


def _of_nouns(rng: Rng) -> Iterator[Question]:
    for noun in words.NOUNS:
        intents = rng.sample(list(frames.NOUN_INTENTS), 5)
        adjectives = ("", "", *rng.sample(words.ADJECTIVES, 2))

        def put(intent: str, noun: str = noun, adjectives: tuple[str, ...] = adjectives) -> tuple[str, str]:
            adjective = rng.choice(adjectives)
            named = f"{adjective} {noun}".strip()
            text = rng.choice(frames.NOUN_INTENTS[intent]).format(n=named)
            return text.replace("seriess", "series").replace("citys", "cities").replace("countrys", "countries"), named

        yield from _variants(rng, noun, intents, put, 34)


def _of_pairs(rng: Rng) -> Iterator[Question]:
    """Two subjects; who swaps them asks another question, unless the intent takes them alike."""
    pool = [each[0] for each in words.SUBJECTS]
    for _ in range(60):
        one, two, three = rng.sample(pool, 3)
        intents = rng.sample(list(frames.PAIR_INTENTS), 3)

        def put(intent: str, one: str = one, two: str = two, three: str = three) -> tuple[str, str]:
            a, b = rng.choice(((one, two), (one, two), (two, one), (one, three)))
            named = " / ".join(sorted((a, b)) if intent in frames.SYMMETRIC else (a, b))
            return rng.choice(frames.PAIR_INTENTS[intent]).format(a=a, b=b), named

        yield from _variants(rng, f"{one} / {two}", intents, put, 16)


def _of_swaps(rng: Rng) -> Iterator[Question]:
    """The same words, other roles (as in Zhang et al. 2019, PAWS, arXiv:1904.01130); the sentences are our own."""
    forms = (
        "Why do {x} people like {n}s that are {y}?", "Is a {x} {n} better than a {y} one?",
        "Are {x} {n}s more {y} than others?",
        "How did the {x} {n} become {y}?", "What makes a {x} {n} look {y}?", "Can a {x} person enjoy a {y} {n}?",
    )  # fmt: skip
    for number in range(60):
        form, noun = rng.choice(forms), rng.choice(words.NOUNS)
        x, y, z = rng.sample(words.ADJECTIVES, 3)
        for a, b in ((x, y), (y, x), (x, z), (x, y)):
            yield Question(f"swap {number}", (form, noun, a, b), "swap", _said(rng, form.format(x=a, y=b, n=noun)))


def _of_tasks(rng: Rng) -> Iterator[Question]:
    """Orders: another form, tone, language or length is another order."""
    kinds = (
        "poem",
        "story",
        "song",
        "speech",
        "letter",
        "email",
        "summary",
        "review",
        "joke",
        "tweet",
        "tagline",
        "plan",
    )
    tones = ("", "formal", "funny", "short", "detailed", "sad", "persuasive", "simple")
    for number in range(90):
        subject = rng.choice(words.SUBJECTS)
        person = rng.choice(("a nurse", "a teacher", "my boss", "a child", "an investor", "a customer", ""))
        for _ in range(12):
            kind, tone = rng.choice(kinds[number % 3 :: 3]), rng.choice(tones[:: 1 + number % 2])
            named = f"{tone} {kind}".strip()
            article = "an" if named[0] in "aeiou" else "a"
            verb = rng.choice(("Write", "Please write", "Compose", "Can you write", "I need you to write"))
            text = f"{verb} {article} {named} about {rng.choice(subject)}" + (f" for {person}" if person else "")
            meaning = (subject[0], kind, tone, person)
            yield Question(f"task {number}", meaning, "task", _said(rng, text + rng.choice((".", ".", "", " please."))))


SUMS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        ("{p} has {a} {t} and buys {b} more.", "{p} owns {a} {t} and purchases another {b}."),
        ("{p} has {a} {t} and gives away {b} of them.", "{p} owns {a} {t} and hands out {b} of them."),
    ),
    (
        (
            "{p} sells {a} {t} for ${b} each.",
            "{p} is selling {a} {t} at ${b} apiece.",
            "At ${b} apiece, {p} sold {t}, {a} in all.",
        ),
        ("{p} sells {a} {t} a day for {b} days.", "Every day {p} sells {a} {t}, and does so for {b} days."),
    ),
    (
        ("{p} packs {a} {t} into boxes of {b}.", "{p} puts {a} {t} in boxes that hold {b} each."),
        ("{p} loses {a} {t} and then finds {b}.", "After losing {a} {t}, {p} finds {b} of them."),
    ),
)
ASKED = (
    (
        "How many {t} does {p} have now?",
        "What is the number of {t} that {p} has now?",
        "How many {t} does {p} own in the end?",
    ),
    (
        "How much money does {p} make?",
        "How much does {p} earn?",
        "What are the earnings of {p}?",
        "Can you find out how much money {p} earns?",
    ),
    (
        "How many boxes does {p} need?",
        "What number of boxes is needed by {p}?",
        "Determine how many boxes {p} needs.",
    ),
    ("How many {t} are left?", "What number of {t} remains?", "How many {t} remain?"),
)


def _of_sums(rng: Rng) -> Iterator[Question]:
    for number in range(110):
        story_pool = rng.choice(SUMS)
        person, thing, (a, b) = rng.choice(words.PEOPLE), rng.choice(words.THINGS), rng.sample(range(2, 99), 2)
        asked = rng.sample(ASKED, 2)
        for _ in range(8):
            story, question = rng.randrange(2), rng.randrange(2)
            told = f"{rng.choice(story_pool[story])} {rng.choice(asked[question])}"
            text = told.format(p=person, t=thing, a=a, b=b)
            meaning = (story_pool[story][0], asked[question][0], person, thing, str(a), str(b))
            yield Question(f"sum {number}", meaning, "sum", _said(rng, text))
