"""How hard is this question? A strategy answers with a score in [0, 1] and its reasons; `policy` makes the choice."""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from models.messages import Message
from router.features import Features, Turn, extract, read
from router.ports import Assessment
from router.settings import ClassifierSettings
from router.vocabulary import (
    CODE_WORDS,
    HARD_PHRASES,
    HARD_UNSPACED,
    HARD_WORDS,
    TASK_OF_PHRASE,
    TASK_OF_UNSPACED,
    TASK_OF_WORD,
    TASKS,
)


class Strategy(Protocol):
    """`version` names everything that the score depends on, so that logged decisions stay comparable."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def assess(self, messages: Sequence[Message], domain: str | None = None) -> Assessment:
        """Works for any conversation, an empty one too. Pure: same input, same answer."""


class ComplexityStrategy:
    """Four factors, each in [0, 1], in a weighted sum: length, demanding words, code or formulas, task type.

    What was said before counts half as far as it is harder than the last user turn, so a short follow-up to a hard
    question stays above small talk.
    """

    name = "complexity"

    def __init__(self, settings: ClassifierSettings) -> None:
        self._weights = {
            "length": settings.length_weight,
            "keywords": settings.keyword_weight,
            "code": settings.code_weight,
            "task": settings.task_weight,
        }
        self._keywords = {
            domain: frozenset(word.casefold() for word in words) for domain, words in settings.keywords.items()
        }
        self.version = "1-" + hashlib.sha256(settings.model_dump_json(exclude={"heads"}).encode()).hexdigest()[:8]

    def assess(self, messages: Sequence[Message], domain: str | None = None) -> Assessment:
        features = extract(messages)
        keywords = self._keywords.get(domain, frozenset()) if domain else frozenset()
        focus = features.focus
        task = _task(focus) or _task(read(features.instructions)) or _task_without_cues(focus)
        factors = {
            "length": _length(features),
            "keywords": _with_earlier(features, lambda turn: _demands(turn, keywords)),
            "code": _with_earlier(features, _formality),
            "task": TASKS[task],
        }
        score = sum(weight * factors[factor] for factor, weight in self._weights.items())
        return Assessment(min(1.0, score), task, factors, self.name, self.version)


def _learned(settings: ClassifierSettings) -> Strategy:
    from router.learned.strategy import LearnedStrategy  # numpy and the weights are for who asks for it

    return LearnedStrategy(settings)


def custom_strategy(settings: ClassifierSettings) -> Strategy:
    """The operator's own. Raises ValueError, saying what to set, where its path leads nowhere."""
    path = settings.custom or ""
    module, _, name = path.partition(":")
    try:
        strategy: Strategy = getattr(importlib.import_module(module), name)(settings)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"`custom: {path}` is no strategy ('package.module:Class'): {error}") from error
    return strategy


STRATEGIES: dict[str, Callable[[ClassifierSettings], Strategy]] = {
    "complexity": ComplexityStrategy,
    "learned": _learned,
}


# ---- the factors ---------------------------------------------------------------------------------------------------

EARLIER_WEIGHT = 0.5
FULL_LENGTH_CHARS = 2_000
FULL_DEMANDS = 3
TASK_WINDOW_CHARS = 300
SMALL_TALK_CHARS = 80
_QUESTION_MARKS = ("?", "\uff1f", "\u061f")


def _with_earlier(features: Features, factor: Callable[[Turn], float]) -> float:
    here = factor(features.focus)
    before = max(map(factor, features.earlier), default=0.0)
    return here + EARLIER_WEIGHT * max(0.0, before - here)


def _length(features: Features) -> float:
    """Logarithmic, so that short questions are told apart: 40 characters 0.18, 150 0.40, 800 0.77, 2,000 and more 1."""

    def scaled(chars: float) -> float:
        return min(1.0, math.log1p(chars / 40) / math.log1p(FULL_LENGTH_CHARS / 40))

    here = scaled(features.focus.length)
    return here + EARLIER_WEIGHT * max(0.0, scaled(sum(turn.length for turn in features.earlier)) - here)


def _demands(turn: Turn, further: frozenset[str]) -> float:
    """Distinct demanding words; two parts of a list or two further questions count as one of them."""
    found = len(HARD_WORDS & turn.words) + sum(phrase in turn.text for phrase in HARD_PHRASES)
    if not turn.text.isascii():
        found += sum(word in turn.text for word in HARD_UNSPACED)
    found += sum(word in turn.words or (not _whole_word(word) and word in turn.text) for word in further)
    return min(1.0, (found + min(3, turn.steps) / 2) / FULL_DEMANDS)


def _whole_word(keyword: str) -> bool:
    """Whether it may only match as a word ("ion" is not in "station"), unlike phrases and scripts without spaces."""
    return keyword.isascii() and keyword.isalnum()


def _formality(turn: Turn) -> float:
    """Code or formulas; words about programming without a line of code are a weaker sign."""
    return max(turn.code, turn.notation, min(0.7, 0.5 * len(CODE_WORDS & turn.words)))


def _task(turn: Turn) -> str | None:
    """The task that most cues in the beginning and the end of a text speak for, among equals the first spoken of."""
    text = turn.text
    if len(text) > 2 * TASK_WINDOW_CHARS:
        text = f"{text[:TASK_WINDOW_CHARS]}\n{text[-TASK_WINDOW_CHARS:]}"
    first_at: dict[str, int] = {}
    votes: dict[str, int] = {}
    cues = [(text.find(word), TASK_OF_WORD[word]) for word in TASK_OF_WORD.keys() & turn.words]
    cues += [(text.find(phrase), task) for phrase, task in TASK_OF_PHRASE.items()]
    if not text.isascii():
        cues += [(text.find(phrase), task) for phrase, task in TASK_OF_UNSPACED.items()]
    for at, task in sorted(cues):
        if at >= 0:
            votes[task] = votes.get(task, 0) + 1
            first_at.setdefault(task, at)
    if votes:
        return min(votes, key=lambda task: (-votes[task], first_at[task]))
    if turn.notation >= 0.5:
        return "math"
    return "code" if turn.code >= 0.6 else None


def _task_without_cues(turn: Turn) -> str:
    """A question with quantities is a word problem in any language; a short remark is small talk."""
    asks = any(mark in turn.text for mark in _QUESTION_MARKS)
    if asks and sum(word.isdecimal() for word in turn.words) >= 2:
        return "math"
    return "question" if asks or turn.length > SMALL_TALK_CHARS else "chat"
