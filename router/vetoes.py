"""Differences that make another question out of a similar one, whatever a similarity score says.

Sentence vectors hardly move when a number, a name, a "not" or one operator changes. These rules look at the words
themselves and only ever say no: a wrong veto costs a generation, a missing one costs a wrong answer. They are the hard
layer under any learned verifier. English is known best; the word lists are in `router.lexicon`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from router import lexicon

_TOKEN = re.compile(
    r"(?<![\w)\]])[-\u2212]?\d+(?:[.,:]\d+)*"  # a number with its sign and separators
    r"|[^\W\d_]+(?:['\u2019][^\W\d_]+)?"  # a word, an apostrophe inside
    r"|[$€£¥₹%°]"
)
_SENTENCE_END = re.compile(r"(?:^|[.!?:\n\"“(•*-])\s*$")
_QUOTED = re.compile(
    r"[\"“”]([^\"“”\n]{1,200})[\"“”]|(?<!\w)['\u2018]([^'\u2018\u2019\n]{2,200})['\u2019](?!\w)|`([^`\n]{1,200})`"
)
_FENCED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_INDENTED = re.compile(r"(?<=\n)(?: {2,}|\t).*")
_SYMBOLS = re.compile(r"[{}\[\]<>=+*/\\|&^~#@]|!=|--|::|->")
_IDENTIFIER = re.compile(r"\b(?:\w+_\w*|_\w+|[a-z]+[A-Z]\w*|\w+\(|[A-Za-z_]\w*\.\w+)")
_NEGATED = re.compile(r"n['\u2019]t$")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_SUFFIXES = ("ments", "ment", "ings", "ing", "ies", "ied", "ers", "er", "est", "ed", "es", "ly", "s", "d", "e", "y")


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a text must be the same in another one for both to ask the same.

    words: in lower case and in order, numbers, units and dates in one spelling. content: the stems of those that are
    neither function words nor negations. names: the words capitalised inside a sentence or written with inner
    capitals. opposites: by axis, the sides in order.
    """

    lowered: str
    words: tuple[str, ...]
    content: tuple[str, ...]
    numbers: tuple[str, ...]
    units: tuple[str, ...]
    dates: tuple[str, ...]
    names: frozenset[str]
    quoted: tuple[str, ...]
    negations: int
    quantifiers: frozenset[str]
    opposites: dict[str, tuple[int, ...]]
    code: tuple[str, ...]
    script: frozenset[str]
    language: str | None
    languages_named: frozenset[str]


def veto(a: Facts, b: Facts) -> str | None:
    """The first reason not to answer the text of `b` with the answer to that of `a`, or None. Symmetrical."""
    if a.script != b.script or a.languages_named != b.languages_named:
        return "language"
    if a.language and b.language and a.language != b.language:
        return "language"
    if a.code != b.code:
        return "code"
    if a.numbers != b.numbers:
        return "number"
    if a.units != b.units:
        return "unit"
    if a.dates != b.dates:
        return "date"
    if a.negations != b.negations:
        return "negation"
    if _names_differ(a, b) or _names_differ(b, a) or _name_order_differs(a, b):
        return "name"
    if a.quantifiers != b.quantifiers:
        return "quantifier"
    if any(a.opposites[axis] != b.opposites[axis] for axis in a.opposites.keys() & b.opposites.keys()):
        return "opposite"
    if _reordered(a, b):
        return "order"
    if _substituted(a, b):
        return "substitution"
    return None


@lru_cache(maxsize=512)
def facts(text: str) -> Facts:
    """The words of fenced or quoted code count as code only."""
    text = text.strip()
    code, text = _code(text)
    matches = list(_TOKEN.finditer(text))
    raw = [match.group().removesuffix("'s").removesuffix("\u2019s") for match in matches]
    lower = [word.lower() for word in raw]
    words = tuple(_one_spelling(word) for word in lower)
    lowered = text.lower()
    return Facts(
        lowered=lowered,
        words=words,
        content=tuple(_content(words)),
        numbers=tuple(word for word in words if word[-1].isdigit() or word in lexicon.NUMBER_WORDS),
        units=tuple(sorted(lexicon.UNITS[word] for word in lower if word in lexicon.UNITS)),
        dates=tuple(sorted(lexicon.DATES[word] for word in lower if word in lexicon.DATES)),
        names=_names(text, matches, raw),
        quoted=tuple("".join(match).lower().strip() for match in _QUOTED.findall(text)),
        negations=sum(_negates(word) for word in lower),
        quantifiers=_quantifiers(lower, lowered),
        opposites=_opposites(lower),
        code=code,
        script=frozenset(_script(char) for char in set(lowered) if char.isalpha()),
        language=_language(lower),
        languages_named=frozenset(word for word in lower if word in lexicon.LANGUAGE_NAMES),
    )


def _stem(word: str) -> str:
    """Crude on purpose: it need only bring the forms of one word together."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)]
    return word


def _content(words: Sequence[str]) -> list[str]:
    return [_stem(word) for word in words if word not in lexicon.FUNCTION_WORDS["english"] and not _negates(word)]


def _negates(word: str) -> bool:
    return word in lexicon.NEGATIONS or _NEGATED.search(word) is not None


def _one_spelling(word: str) -> str:
    """`1,000` and 1000, `five` and 5, `km` and `kilometres`, `sept` and `september`."""
    if not word[-1].isdigit():
        return lexicon.NUMBER_WORDS.get(word) or lexicon.UNITS.get(word) or lexicon.DATES.get(word) or word
    word = word.replace("\u2212", "-")
    return word.replace(",", "") if _THOUSANDS.fullmatch(word) else word


def _names(text: str, matches: list[re.Match[str]], raw: list[str]) -> frozenset[str]:
    names = set()
    for match, word in zip(matches, raw, strict=True):
        lowered = word.lower()
        if word == lowered or lowered in lexicon.FUNCTION_WORDS["english"]:
            continue
        inner = not word[1:].islower() and len(word) > 1
        if inner or not _SENTENCE_END.search(text, max(0, match.start() - 4), match.start()):
            names.add(_one_spelling(lowered))
    return frozenset(names)


def _names_differ(a: Facts, b: Facts) -> bool:
    return not a.names <= set(b.words) or any(quoted not in b.lowered for quoted in a.quoted)


def _name_order_differs(a: Facts, b: Facts) -> bool:
    """From Rome to Paris is not from Paris to Rome."""
    names = a.names | b.names
    return [*dict.fromkeys(w for w in a.words if w in names)] != [*dict.fromkeys(w for w in b.words if w in names)]


def _reordered(a: Facts, b: Facts) -> bool:
    """Whether nearly the same words ask in another order: who does what to whom may have changed."""
    common = Counter(a.content) & Counter(b.content)
    if a.content == b.content or common.total() < max(len(a.content), len(b.content)) - 1:
        return False
    return _kept(a.content, common) != _kept(b.content, common)


def _kept(content: tuple[str, ...], common: Counter[str]) -> list[str]:
    left, kept = common.copy(), []
    for stem in content:
        if left[stem] > 0:
            left[stem] -= 1
            kept.append(stem)
    return kept


def _quantifiers(words: list[str], lowered: str) -> frozenset[str]:
    found = {lexicon.QUANTIFIERS[word] for word in words if word in lexicon.QUANTIFIERS}
    return frozenset(found | {phrase for phrase in lexicon.QUANTIFIER_PHRASES if phrase in lowered})


def _opposites(words: list[str]) -> dict[str, tuple[int, ...]]:
    sides: dict[str, list[int]] = {}
    for word in words:
        side = lexicon.OPPOSITES.get(word) or lexicon.OPPOSITES.get(_stem(word))
        if side:
            sides.setdefault(side[0], []).append(side[1])
    return {axis: tuple(dict.fromkeys(found)) for axis, found in sides.items()}


def _code(text: str) -> tuple[tuple[str, ...], str]:
    """What is code in `text`, and its prose. Fenced, quoted or indented code stays as it is, since case and spaces
    count there; of the prose it is the operators and the identifiers."""
    blocks = [block.rstrip("` \n") for block in _FENCED.findall(text)]
    prose = _FENCED.sub(" ", text) if blocks else text
    if not blocks:
        blocks = [line.rstrip() for line in _INDENTED.findall(text)]
    return (*blocks, "".join(_SYMBOLS.findall(prose)), *_IDENTIFIER.findall(prose)), prose


def _script(char: str) -> str:
    code = ord(char)
    return next((name for last, name in lexicon.SCRIPTS if code <= last), "other")


def _language(words: list[str]) -> str | None:
    """The language whose function words are clearly the most; None for short or mixed texts."""
    counts = sorted((sum(word in known for word in words), name) for name, known in lexicon.FUNCTION_WORDS.items())
    (second, _), (most, name) = counts[-2:]
    return name if most >= 2 and most > second else None


def _substituted(a: Facts, b: Facts) -> bool:
    """Whether the texts are the same but for one place, where both have content words of their own."""
    left, right = list(a.words), list(b.words)
    while left and right and left[0] == right[0]:
        del left[0], right[0]
    while left and right and left[-1] == right[-1]:
        del left[-1], right[-1]
    shared = min(len(a.words) - len(left), len(b.words) - len(right))
    if shared < max(len(left), len(right)):
        return False
    mine, other = set(_content(left)), set(_content(right))
    return bool(mine - other) and bool(other - mine)
