"""Lexical features of a conversation: how long, how demanding, how much code and formal notation, which task.

All of it is counting, in one pass per turn, on an excerpt of bounded size. Nothing splits on spaces where that decides
something, so that languages written without them count like the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from models.messages import Message, TextPart

FOCUS_CHARS = 8_000
CONTEXT_CHARS = 1_000
CONTEXT_TURNS = 6


@dataclass(frozen=True, slots=True)
class Turn:
    """What one text looks like.

    length: in characters of English; an ideograph, syllable block or kana counts as three.
    words: distinct case-folded words; for scripts without spaces these are runs, so match those by substring.
    steps: list items and further questions, which mark a task of several parts.
    code: how much of it looks like code, in [0, 1].
    notation: how much of it looks like formulas, in [0, 1].
    """

    text: str
    length: float
    words: frozenset[str]
    steps: int
    code: float
    notation: float


@dataclass(frozen=True, slots=True)
class Features:
    """`focus` is the last user turn (the last turn when no user spoke). `earlier` are the other turns of the dialogue,
    newest first. `instructions` are the system and developer turns: the same for every question of an application, so
    they say which task it is and not how hard this question is."""

    focus: Turn
    earlier: tuple[Turn, ...]
    instructions: str


def excerpt(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The part of a conversation that features are made of: text only, each turn and the number of turns bounded.

    An excerpt of an excerpt is itself, so it may be taken before a hop and again behind it.
    """
    focus = focus_of(messages)
    kept: list[Message] = []
    turns = instructions = 0
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if index == focus:
            kept.append(_clipped(message, FOCUS_CHARS))
        elif message.role in ("system", "developer"):
            instructions += 1
            if instructions == 1:
                kept.append(_clipped(message, CONTEXT_CHARS))
        elif turns < CONTEXT_TURNS:
            turns += 1
            kept.append(_clipped(message, CONTEXT_CHARS))
    return tuple(reversed(kept))


def extract(messages: Sequence[Message]) -> Features:
    """The features of `messages`, which may be a whole conversation or its excerpt: both give the same."""
    messages = excerpt(messages)
    focus = focus_of(messages)
    others = [message for index, message in enumerate(messages) if index != focus]
    return Features(
        focus=read(messages[focus].text if messages else ""),
        earlier=tuple(read(m.text) for m in reversed(others) if m.role not in ("system", "developer")),
        instructions="\n".join(m.text for m in others if m.role in ("system", "developer")),
    )


def read(text: str) -> Turn:
    """The features of one text. Linear in its size; about 0.1 ms per 1,000 characters."""
    folded = text.casefold()
    return Turn(
        text=folded,
        length=float(len(text) if text.isascii() else len(text) + 2 * len(_WIDE.findall(text))),
        words=frozenset(_WORD.findall(folded)),
        steps=len(_LIST_ITEM.findall(text)) + max(0, text.count("?") + text.count("\uff1f") - 1),
        code=_code(text),
        notation=_notation(text),
    )


# ---- signs of code and formulas ------------------------------------------------------------------------------------

_WORD = re.compile(r"\w+(?:[+#]+|['\u2019]\w+)?")
# Han, kana, Hangul: one sign says about what three letters do.
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\(?\d{1,2}[.):、])[ \t]*\S", re.MULTILINE)

# Each sign with how much it speaks for code; they are joined as independent evidence. They begin with a literal where
# that is possible and look behind it afterwards: `re` then jumps from candidate to candidate, which is 10 times faster.
_CODE_SIGNS: tuple[tuple[re.Pattern[str], float], ...] = (
    (re.compile(r"```|~~~"), 0.7),
    (re.compile(r"`[^`\n]{1,80}`"), 0.3),
    (re.compile(r"^[ \t]*(?:(?:async )?def|class|fn|func|function|interface|struct) +\w+", re.MULTILINE), 0.6),
    (re.compile(r"^[ \t]*(?:import|from|using|package|require|#include) *[\w<\"'(][^\n]{0,80}$", re.MULTILINE), 0.3),
    (re.compile(r"^[ \t]*(?:return|if|for|while|try|else|elif|except|catch)\b[^\n]{0,120}[:{;]$", re.MULTILINE), 0.5),
    (re.compile(r"Traceback \(most|(?:Error|Exception)\b|\([\w.]+:\d+\)"), 0.6),
    (re.compile(r"(?:SELECT|INSERT INTO|UPDATE|CREATE TABLE)\b[^;]{1,200}\b(?:FROM|VALUES|SET|WHERE|INT|TEXT)\b"), 0.7),
    (re.compile(r"[.]\w+\([^)\n]{0,80}\)|=>|->|::|&&|\|\||[!=]=|\+=|\);"), 0.4),
    (re.compile(r"</\w+>|/>"), 0.4),
    (re.compile(r"[.](?<=\w[.])(?:py|js|tsx?|go|rs|java|cpp|c|h|cs|rb|php|sql|sh|ya?ml|toml|json|html|css)\b"), 0.3),
)
_CODE_MARKS = re.compile(r"[{}\[\]();=<>_&|\\]")
_NOTATION_SIGNS: tuple[tuple[re.Pattern[str], float], ...] = (
    (re.compile(r"\\(?:frac|sum|int|sqrt|lim|begin|mathbb|cdot|le|ge|in|to|infty|partial|alpha|beta|pi|theta)\b"), 0.8),
    (re.compile(r"\$[^$\n]{1,120}[\\^_=][^$\n]{0,120}\$"), 0.7),
    (re.compile(r"[\u2190-\u21ff\u2200-\u22ff]"), 0.6),
    (re.compile(r"\^(?<=\w\^)[\w({]|\([a-z]\) ?="), 0.5),
    (re.compile(r"[=<>](?:(?<=\b\w.)|(?<=\b\w .)) ?-?\w|[+*=\u00d7\u00f7](?:(?<=\d.)|(?<=\d .)) ?\d"), 0.3),
)


def _code(text: str) -> float:
    density = len(_CODE_MARKS.findall(text)) / (len(text) + 200)
    return _joined((min(0.6, 8 * density), *(weight for sign, weight in _CODE_SIGNS if sign.search(text))))


def _notation(text: str) -> float:
    return _joined(weight for sign, weight in _NOTATION_SIGNS if sign.search(text))


def _joined(weights: Iterable[float]) -> float:
    missed = 1.0
    for weight in weights:
        missed *= 1 - weight
    return 1 - missed


def focus_of(messages: Sequence[Message]) -> int:
    """The place of the last user turn, or of the last turn when no user spoke."""
    last = len(messages) - 1
    return next((i for i in range(last, -1, -1) if messages[i].role == "user"), last)


def _clipped(message: Message, limit: int) -> Message:
    """Text alone, and of a long one its beginning and its end, where instructions stand."""
    text = message.text
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n{text[-(limit - limit // 2 - 1) :]}"
    return Message(message.role, (TextPart(text),))
