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
from router.question import asked, bare, one_wording
from router.synonyms import same_word, stem

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
_SYMBOLS = re.compile(r"[{}\[\]<>=+*/\\|&^~#@]|!=|--|::|->|(?<=\d)!")
_IDENTIFIER = re.compile(r"\b(?:\w+_\w*|_\w+|[a-z]+[A-Z]\w*|\w+\(|[A-Za-z_]\w*\.\w+)")
_NEGATED = re.compile(r"n['\u2019]t$")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_TOKEN_OR_COMMA = re.compile(_TOKEN.pattern + "|[,;]")
_AFTER_NUMBER = re.compile(r"\d ?([gmslhwvkbtcfnGMSLHWVKBTCFN][a-zA-Z]?(?![\w'])|[\u2030\u2031])")
_STOPS = re.compile(r"[.?!]+(?=\s|$)")
_JOINS = frozenset(("and", "or", ",", ";", "&", "nor", "vs", "versus"))
_PREPOSITIONS = lexicon.words(
    """
    in on at of for from to by with without into onto about between among through during before after than under
    over against as per via within across if when while because that which who is are was were do does did
    """
)
_OTHER_KINDS = frozenset(
    frozenset(pair)
    for group, others in (
        (("how", "why", "when", "where", "who"), ("yes_no", "can", "should", "must")),
        (("why",), ("how", "when", "where", "who", "how_long", "how_many", "how_much")),
        (("when", "where", "who"), ("how", "how_many", "how_much")),
        (("when",), ("where", "who")),
        (("where",), ("who",)),
        (("should", "must"), ("can",)),
    )
    for pair in ((one, other) for one in group for other in others)
)
"""Kinds of question of which one is never the other, whatever else is the same."""

_LATIN = frozenset(("latin",))
_ARTICLES = frozenset(("a", "an", "the", ",", ";"))
LONG_WORDS = 20
"""From here on a text is long: what differs between two that are nearly equal was changed on purpose."""

_BOUNDS = frozenset(
    ("second", "third", "fourth", "fifth", "exactly", "only", "at least", "at most", "up to", "no more than", "maximum")
)


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
    kind: str | None
    core: tuple[str, ...]
    chunks: frozenset[tuple[str, tuple[str, ...]]]
    plain: tuple[str, ...]
    sentences: int


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
    if _units_clash(a, b):
        return "unit"
    if a.dates != b.dates:
        return "date"
    if a.negations != b.negations:
        return "negation"
    if _names_differ(a, b) or _names_differ(b, a) or _name_order_differs(a, b):
        return "name"
    if _quantifiers_clash(a, b):
        return "quantifier"
    if any(a.opposites[axis] != b.opposites[axis] for axis in a.opposites.keys() & b.opposites.keys()):
        return "opposite"
    if a.chunks != b.chunks and _reordered(a, b):
        return "order"
    if _detail_differs(a, b):
        return "detail"
    if frozenset((a.kind, b.kind)) in _OTHER_KINDS:
        return "kind"
    return None


def soft_differences(a: Facts, b: Facts) -> frozenset[str]:
    """What speaks against the same question, but not always: for the verifier to weigh."""
    found = {
        "quantifier": a.quantifiers != b.quantifiers,
        "unit": a.units != b.units,
        "order": _reordered(a, b),
        "substitution": _substituted(a, b),
    }
    return frozenset(name for name, differs in found.items() if differs)


@lru_cache(maxsize=4096)
def facts(text: str) -> Facts:
    """The words of fenced or quoted code count as code only, greetings and thanks not at all."""
    code, text = _code(bare(text.strip()))
    text = one_wording(text)
    matches = list(_TOKEN.finditer(text))
    raw = [match.group().removesuffix("'s").removesuffix("\u2019s") for match in matches]
    lower = [word.lower() for word in raw]
    words = tuple(_one_spelling(word) for word in lower)
    lowered = text.lower()
    kind, rest = asked(text)
    rest_words = _words(rest)
    return Facts(
        lowered=lowered,
        words=words,
        content=tuple(_content(words)),
        numbers=tuple(word for word in words if word[-1].isdigit() or word in lexicon.NUMBER_WORDS),
        units=tuple(sorted([lexicon.UNITS[word] for word in lower if word in lexicon.UNITS] + _short_units(text))),
        dates=tuple(sorted(lexicon.DATES[word] for word in lower if word in lexicon.DATES)),
        names=_names(text, matches, raw),
        quoted=tuple("".join(match).lower().strip() for match in _QUOTED.findall(text)),
        negations=sum(_negates(word) for word in lower),
        quantifiers=_quantifiers(lower, lowered),
        opposites=_opposites(lower),
        code=code,
        script=_scripts(lowered),
        language=_language(lower),
        languages_named=frozenset(word for word in lower if word in lexicon.LANGUAGE_NAMES),
        kind=kind,
        core=tuple(_content([word for word in rest_words if word not in (",", ";")])),
        chunks=_chunks(rest_words),
        plain=tuple(word for word in words if word not in _ARTICLES),
        sentences=len(_STOPS.findall(text)) or 1,
    )


def _short_units(text: str) -> list[str]:
    """What follows a number and is too short to be in a list of units: g, m, s, TB, \u2030."""
    return [unit for unit in _AFTER_NUMBER.findall(text) if unit.lower() not in lexicon.UNITS]


def _words(text: str) -> list[str]:
    """In one spelling, with the commas between them."""
    found = _TOKEN_OR_COMMA.findall(text)
    return [_one_spelling(word.removesuffix("'s").removesuffix("\u2019s").lower()) for word in found]


def _chunks(words: Sequence[str]) -> frozenset[tuple[str, tuple[str, ...]]]:
    """The words by the preposition before them, so that a phrase may move as a whole. What "and", "or" or a comma joins
    hangs on the same one; what "of" hangs on stands before it, as in "order history"."""
    chunks: list[tuple[str, list[str]]] = [("", [])]
    fronted = bool(words) and words[0] in _PREPOSITIONS
    for word in words:
        if word == "," and fronted and len(chunks) == 2:
            chunks.append(("", []))
        elif word in _JOINS:
            chunks.append((chunks[-1][0], []))
        elif word in _PREPOSITIONS:
            chunks.append((word, []))
        elif word not in _ARTICLES:
            chunks[-1][1].append(word)
    whole: list[tuple[str, list[str]]] = []
    for before, chunk in chunks:
        if before == "of" and whole and whole[-1][1]:
            whole[-1] = (whole[-1][0], [*chunk, *whole[-1][1]])
        elif chunk:
            whole.append((before, chunk))
    return frozenset((before, tuple(map(stem, chunk))) for before, chunk in whole)


def _quantifiers_clash(a: Facts, b: Facts) -> bool:
    """Whether both have one that the other lacks, or one has a bound or a rank that the other lacks."""
    mine, other = a.quantifiers - b.quantifiers, b.quantifiers - a.quantifiers
    return bool(mine and other) or bool((mine | other) & _BOUNDS)


def _units_clash(a: Facts, b: Facts) -> bool:
    """Whether both have one that the other lacks, or one has a number that the unit may belong to."""
    mine, other = Counter(a.units) - Counter(b.units), Counter(b.units) - Counter(a.units)
    return bool(mine and other) or (bool(mine or other) and bool(a.numbers) and len(a.words) < 12)


def _content(words: Sequence[str]) -> list[str]:
    return [stem(word) for word in words if word not in lexicon.FUNCTION_WORDS["english"] and not _negates(word)]


@lru_cache(maxsize=32768)
def _negates(word: str) -> bool:
    return word in lexicon.NEGATIONS or _NEGATED.search(word) is not None


@lru_cache(maxsize=32768)
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
    if a.content == b.content:
        return Counter(a.plain) == Counter(b.plain) and a.plain != b.plain
    if common.total() < max(len(a.content), len(b.content)) - 1:
        return False
    return _kept(a.content, common) != _kept(b.content, common)


def _detail_differs(a: Facts, b: Facts) -> bool:
    """Whether two long texts are nearly word for word the same, yet not in what they say: one was made from the other
    by a change that is meant."""
    longer = max(len(a.words), len(b.words))
    if longer < LONG_WORDS:
        return False
    common = (Counter(a.words) & Counter(b.words)).total()
    if common < 0.8 * longer:
        return False
    mine, other = Counter(a.content) - Counter(b.content), Counter(b.content) - Counter(a.content)
    return bool(mine or other) and {same_word(w) for w in mine} != {same_word(w) for w in other}


def _kept(content: tuple[str, ...], common: Counter[str]) -> list[str]:
    left, kept = common.copy(), []
    for each in content:
        if left[each] > 0:
            left[each] -= 1
            kept.append(each)
    return kept


def _quantifiers(words: list[str], lowered: str) -> frozenset[str]:
    found = {lexicon.QUANTIFIERS[word] for word in words if word in lexicon.QUANTIFIERS}
    return frozenset(found | {phrase for phrase in lexicon.QUANTIFIER_PHRASES if phrase in lowered})


def _opposites(words: list[str]) -> dict[str, tuple[int, ...]]:
    sides: dict[str, list[int]] = {}
    for word in words:
        side = lexicon.OPPOSITES.get(word) or lexicon.OPPOSITES.get(stem(word))
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


def _scripts(lowered: str) -> frozenset[str]:
    letters = [char for char in set(lowered) if char.isalpha()]
    if lowered.isascii():
        return _LATIN if letters else frozenset()
    return frozenset(map(_script, letters))


@lru_cache(maxsize=4096)
def _script(char: str) -> str:
    code = ord(char)
    return next((name for last, name in lexicon.SCRIPTS if code <= last), "other")


def _language(words: list[str]) -> str | None:
    """The language whose function words are clearly the most; None for short or mixed texts."""
    counts = sorted((sum(map(known.__contains__, words)), name) for name, known in lexicon.FUNCTION_WORDS.items())
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
