"""One question with its answer, and how what is held out is kept apart from what is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, TypeVar

from models.demo.grading import Grader

T = TypeVar("T")
Split = Literal["train", "held_out"]
Difficulty = Literal["easy", "medium", "hard"]
DIFFICULTIES: tuple[Difficulty, ...] = ("easy", "medium", "hard")
_HELD_OUT_SHARE = 8  # one operand combination in so many is never trained on


@dataclass(frozen=True, slots=True)
class Item:
    """A conversation that ends with a user turn, the answer wanted, and the grader that tells right from wrong."""

    kind: str
    difficulty: Difficulty
    messages: tuple[dict[str, str], ...]
    answer: str
    grader: Grader

    @property
    def question(self) -> str:
        return self.messages[-1]["content"]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "difficulty": self.difficulty,
            "messages": list(self.messages),
            "answer": self.answer,
            "grader": self.grader.to_json(),
        }


Make = Callable[[Random, Split], Item]


@dataclass(frozen=True, slots=True)
class Phrasings:
    """Ways to ask one thing. A held-out question is asked in a held-out way, which training never sees."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def choose(self, random: Random, split: Split) -> str:
        return random.choice(self.train if split == "train" else self.held_out)


def phrasings(text: str) -> Phrasings:
    """One way to ask per line; those that start with `!` are held out."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    train = tuple(line for line in lines if not line.startswith("!"))
    held_out = tuple(line[1:].strip() for line in lines if line.startswith("!"))
    if not train or not held_out:
        raise ValueError(f"phrasings for both splits are needed: {lines}")
    return Phrasings(train, held_out)


def is_held_out(*operands: object) -> bool:
    """Whether this combination of operands belongs to the held-out set: a hash, so it is the same everywhere."""
    text = "|".join(str(operand) for operand in operands)
    return hashlib.blake2b(text.encode(), digest_size=4).digest()[0] % _HELD_OUT_SHARE == 0


def draw(split: Split, make: Callable[[], T]) -> T:
    """Operands of this split: `make` is called until it returns some that belong there."""
    for _ in range(10_000):
        operands = make()
        if is_held_out(operands) == (split == "held_out"):
            return operands
    raise ValueError("no operands of this split: the range to draw from is too small")


_OPENINGS = ("Please tell me: ", "Hi, ", "Hello! ", "Quick question: ", "Tell me, ", "I have a question. ", "Hey, ")


def ask(random: Random, split: Split, ways: Phrasings, **values: object) -> str:
    """The question as somebody types it: some are polite, some lazy about capitals and punctuation."""
    text = ways.choose(random, split).format(**values)
    if random.random() < 0.12:
        text = text[0].lower() + text[1:]
    if random.random() < 0.12:
        text = text.rstrip("?.")
    if random.random() < 0.15:
        text = random.choice(_OPENINGS) + text
    return text


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
