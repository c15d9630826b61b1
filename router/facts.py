"""What a text says, as far as it can be compared word by word: what the vetoes and the verifier go by.

A lookup reads up to eight stored texts that nobody looked at lately, so this is most of what a lookup takes. Texts are
made of few words: each piece between two spaces is read once and kept, and a text is put together from its pieces.
The word lists are in `router.lexicon`; English is known best.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from router import lexicon
from router.question import asked, bare, may_have_alias, one_wording
from router.synonyms import stem

_TOKEN = re.compile(
    r"(?<![\w)\]])[-\u2212]?\d+(?:[.,:]\d+)*"  # a number with its sign and separators
    r"|[^\W\d_]+(?:['\u2019][^\W\d_]+)?"  # a word, an apostrophe inside
    r"|[$€£¥₹%°]"
    r"|[,;]"
)
_SENTENCE_END = re.compile(r"(?:^|[.!?:\n\"“(•*-])\s*$")
_QUOTED = re.compile(
    r"[\"“”]([^\"“”\n]{1,200})[\"“”]|(?<!\w)['\u2018]([^'\u2018\u2019\n]{2,200})['\u2019](?!\w)|`([^`\n]{1,200})`"
)
_QUOTE = re.compile(r"[\"“”`]|(?<!\w)['\u2018]")
_FENCED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_INDENTED = re.compile(r"(?<=\n)(?: {2,}|\t).*")
_SYMBOLS = re.compile(r"[{}\[\]<>=+*/\\|&^~#@]|!=|--|::|->|(?<=\d)!")
_IDENTIFIER = re.compile(r"\b(?:\w+_\w*|_\w+|[a-z]+[A-Z]\w*|\w+\(|[A-Za-z_]\w*\.\w+)")
_NEGATED = re.compile(r"n['\u2019]t$")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_AFTER_NUMBER = re.compile(r"\d ?([gmslhwvkbtcfnGMSLHWVKBTCFN][a-zA-Z]?(?![\w'])|[\u2030\u2031])")
_DIGIT = re.compile(r"\d")
_STOPS = re.compile(r"[.?!]+(?=\s|$)")
_COMMAS = frozenset((",", ";"))
_JOINS = frozenset(("and", "or", ",", ";", "&", "nor", "vs", "versus"))
_ARTICLES = frozenset(("a", "an", "the", ",", ";"))
_PREPOSITIONS = lexicon.words(
    """
    in on at of for from to by with without into onto about between among through during before after than under
    over against as per via within across if when while because that which who is are was were do does did
    """
)
_LANGUAGES = tuple(lexicon.FUNCTION_WORDS)
_COUNT_BITS, _MOST_COUNTED = 24, (1 << 24) - 1
"""A word counts for all languages that have it at once: each has so many bits of a number."""

_LATIN = frozenset(("latin",))
_CODE, _CAPITALS, _DIGITS, _QUOTES, _TELLING, _ALIAS = 1, 2, 4, 8, 16, 32  # what a piece has, as bits
_KEPT_PIECES, _PIECE_CHARS = 16384, 64
"""So many pieces are kept, those that are not longer than this."""


@dataclass(slots=True)
class Facts:
    """What of a text must be the same in another one for both to ask the same. Not to be changed; it is not frozen
    since that would take a tenth of the time that reading takes.

    words: in lower case and in order, numbers, units and dates in one spelling. contents: beside each of them its stem,
    empty for function words and negations; content: those that are not. names: the words capitalised inside a sentence
    or written with inner capitals. opposites: by axis, the sides in order. parts: the words after the opening that
    `kind` is of, and the commas; core: what is content of them.
    """

    lowered: str
    words: tuple[str, ...]
    word_set: frozenset[str]
    contents: tuple[str, ...]
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
    parts: tuple[_Word, ...]
    sentences: int

    @property
    def plain(self) -> tuple[str, ...]:
        """The words without articles."""
        return tuple([word for word in self.words if word not in _ARTICLES])

    @property
    def chunks(self) -> frozenset[tuple[str, tuple[str, ...]]]:
        """See `_chunks`: put together when somebody asks, which hardly anybody does."""
        return _chunks(self.parts)


@dataclass(frozen=True, slots=True)
class _Word:
    """spelling: in lower case, and in one spelling for numbers, units and dates. content: its stem, if it is neither a
    function word nor a negation. telling: whether any of what is below it holds."""

    raw: str
    lowered: str
    spelling: str
    stemmed: str
    content: str
    languages: int
    capital: bool
    telling: bool
    number: bool
    negates: bool
    unit: str | None
    date: str | None
    quantifier: str | None
    side: tuple[str, int] | None
    names_language: bool


@dataclass(frozen=True, slots=True)
class _Piece:
    """What stands between two spaces. parts: its words, with the commas between them. capitals: the words that may be
    names, and where they begin. marks: what it has that most have not, as bits."""

    length: int
    parts: tuple[_Word, ...]
    words: tuple[_Word, ...]
    capitals: tuple[tuple[int, _Word], ...]
    symbols: str
    identifiers: tuple[str, ...]
    stops: int
    marks: int


@lru_cache(maxsize=4096)
def facts(text: str) -> Facts:
    """The words of fenced or quoted code count as code only, greetings and thanks not at all."""
    blocks, prose = _code_blocks(bare(text.strip()))
    pieces, marks = _pieces(prose)
    code = (*blocks, *(_operators(pieces) if marks & _CODE else ("",)))
    text = one_wording(prose, may_be_alias=bool(marks & _ALIAS))
    if text != prose:
        pieces, marks = _pieces(text)
    words = [word for piece in pieces for word in piece.words]
    telling = [word for word in words if word.telling] if marks & _TELLING else []
    lowered, spelled, contents = text.lower(), tuple([w.spelling for w in words]), tuple([w.content for w in words])
    kind, rest = asked(text)
    behind = pieces[-rest.count(" ") :] if rest[:1] == " " and text.endswith(rest) else _pieces(rest)[0]
    parts = tuple([part for piece in behind for part in piece.parts])
    return Facts(
        lowered=lowered,
        words=spelled,
        word_set=frozenset(spelled),
        contents=contents,
        content=tuple(filter(None, contents)),
        numbers=tuple([word.spelling for word in telling if word.number]),
        units=_units(text if marks & _DIGITS else "", telling),
        dates=tuple(sorted([word.date for word in telling if word.date is not None])),
        names=_names(text, pieces) if marks & _CAPITALS else frozenset(),
        quoted=_quoted(text) if marks & _QUOTES else (),
        negations=sum([word.negates for word in telling]),
        quantifiers=_quantifiers(telling, lowered),
        opposites=_opposites(telling),
        code=code,
        script=_scripts(lowered),
        language=_language(words),
        languages_named=frozenset([word.lowered for word in telling if word.names_language]),
        kind=kind,
        core=tuple([part.content for part in parts if part.content]),
        parts=parts,
        sentences=sum([piece.stops for piece in pieces]) or 1,
    )


def _pieces(text: str) -> tuple[list[_Piece], int]:
    """And all their marks."""
    split = text.split(" ")
    if len(text) <= _PIECE_CHARS or len(max(split, key=len)) <= _PIECE_CHARS:
        found = list(map(_piece, split))
    else:
        found = [_piece(each) if len(each) <= _PIECE_CHARS else _piece.__wrapped__(each) for each in split]
    marks = 0
    for piece in found:
        marks |= piece.marks
    return found, marks


@lru_cache(maxsize=_KEPT_PIECES)
def _piece(text: str) -> _Piece:
    """No pattern that is used here has a space in it or looks further than to one."""
    found = [(match.start(), _read(match.group())) for match in _TOKEN.finditer(text)]
    words = [(start, word) for start, word in found if word.raw not in _COMMAS]
    capitals = tuple((start, word) for start, word in words if word.capital)
    symbols, identifiers = "".join(_SYMBOLS.findall(text)), tuple(_IDENTIFIER.findall(text))
    marks = {
        _CODE: symbols or identifiers,
        _CAPITALS: capitals,
        _DIGITS: _DIGIT.search(text),
        _QUOTES: _QUOTE.search(text),
        _ALIAS: may_have_alias(text),
        _TELLING: any(word.telling for _, word in words),
    }
    return _Piece(
        length=len(text),
        parts=tuple(word for _, word in found),
        words=tuple(word for _, word in words),
        capitals=capitals,
        symbols=symbols,
        identifiers=identifiers,
        stops=len(_STOPS.findall(text)),
        marks=sum(mark for mark, there in marks.items() if there),
    )


def _read(token: str) -> _Word:
    raw = token.removesuffix("'s").removesuffix("\u2019s")
    return _word(raw) if len(raw) <= _PIECE_CHARS else _word.__wrapped__(raw)


@lru_cache(maxsize=_KEPT_PIECES)
def _word(raw: str) -> _Word:
    lowered = raw.lower()
    spelling = _one_spelling(lowered)
    english = lexicon.FUNCTION_WORDS["english"]
    empty = spelling in english or _negates(spelling) or spelling in _COMMAS
    telling = {
        "number": spelling[-1].isdigit() or spelling in lexicon.NUMBER_WORDS,
        "negates": _negates(lowered),
        "unit": lexicon.UNITS.get(lowered),
        "date": lexicon.DATES.get(lowered),
        "quantifier": lexicon.QUANTIFIERS.get(lowered),
        "side": lexicon.OPPOSITES.get(lowered) or lexicon.OPPOSITES.get(stem(lowered)),
        "names_language": lowered in lexicon.LANGUAGE_NAMES,
    }
    return _Word(
        raw=raw,
        lowered=lowered,
        spelling=spelling,
        stemmed=stem(spelling),
        content="" if empty else stem(spelling),
        languages=sum(
            1 << _COUNT_BITS * at for at, name in enumerate(_LANGUAGES) if lowered in lexicon.FUNCTION_WORDS[name]
        ),
        capital=raw != lowered and lowered not in english,
        telling=any(telling.values()),
        **telling,  # type: ignore[arg-type]
    )


def _negates(word: str) -> bool:
    return word in lexicon.NEGATIONS or _NEGATED.search(word) is not None


def _one_spelling(word: str) -> str:
    """`1,000` and 1000, `five` and 5, `km` and `kilometres`, `sept` and `september`."""
    if not word[-1].isdigit():
        return lexicon.NUMBER_WORDS.get(word) or lexicon.UNITS.get(word) or lexicon.DATES.get(word) or word
    word = word.replace("\u2212", "-")
    return word.replace(",", "") if _THOUSANDS.fullmatch(word) else word


def _code_blocks(text: str) -> tuple[list[str], str]:
    """What is surely code in `text`, and the rest. Fenced, quoted or indented code stays as it is, since case and
    spaces count there; of the rest it is the operators and the identifiers."""
    if "`" in text and (blocks := [block.rstrip("` \n") for block in _FENCED.findall(text)]):
        return blocks, _FENCED.sub(" ", text)
    return [line.rstrip() for line in _INDENTED.findall(text)] if "\n" in text else [], text


def _operators(pieces: Iterable[_Piece]) -> list[str]:
    """And the identifiers."""
    return ["".join([each.symbols for each in pieces]), *(found for each in pieces for found in each.identifiers)]


def _units(text: str, telling: Iterable[_Word]) -> tuple[str, ...]:
    """Also what follows a number in `text` and is too short to be in a list of units: g, m, s, TB, \u2030."""
    found = [word.unit for word in telling if word.unit is not None]
    if text:
        found += [unit for unit in _AFTER_NUMBER.findall(text) if unit.lower() not in lexicon.UNITS]
    return tuple(sorted(found))


def _names(text: str, pieces: Iterable[_Piece]) -> frozenset[str]:
    names, begin = set(), 0
    for piece in pieces:
        for offset, word in piece.capitals:
            start = begin + offset
            inner = not word.raw[1:].islower() and len(word.raw) > 1
            if inner or not _SENTENCE_END.search(text, max(0, start - 4), start):
                names.add(word.spelling)
        begin += piece.length + 1
    return frozenset(names)


def _quoted(text: str) -> tuple[str, ...]:
    return tuple("".join(match).lower().strip() for match in _QUOTED.findall(text))


def _quantifiers(telling: Iterable[_Word], lowered: str) -> frozenset[str]:
    found = [word.quantifier for word in telling if word.quantifier is not None]
    return frozenset(found + [phrase for phrase in lexicon.QUANTIFIER_PHRASES if phrase in lowered])


def _opposites(telling: Iterable[_Word]) -> dict[str, tuple[int, ...]]:
    sides: dict[str, list[int]] = {}
    for word in telling:
        if word.side:
            sides.setdefault(word.side[0], []).append(word.side[1])
    return {axis: tuple(dict.fromkeys(found)) for axis, found in sides.items()}


def _scripts(lowered: str) -> frozenset[str]:
    if lowered.isascii():
        return _LATIN if lowered.islower() else frozenset()
    return frozenset(_script(char) for char in set(lowered) if char.isalpha())


@lru_cache(maxsize=4096)
def _script(char: str) -> str:
    code = ord(char)
    return next((name for last, name in lexicon.SCRIPTS if code <= last), "other")


def _language(words: Iterable[_Word]) -> str | None:
    """The language whose function words are clearly the most; None for short or mixed texts."""
    counts = sum([word.languages for word in words])
    if not counts:
        return None
    each = [counts >> _COUNT_BITS * at & _MOST_COUNTED for at in range(len(_LANGUAGES))]
    most = max(each)
    return _LANGUAGES[each.index(most)] if most >= 2 and each.count(most) == 1 else None


def _chunks(parts: Sequence[_Word]) -> frozenset[tuple[str, tuple[str, ...]]]:
    """The words by the preposition before them, so that a phrase may move as a whole. What "and", "or" or a comma joins
    hangs on the same one; what "of" hangs on stands before it, as in "order history"."""
    chunks: list[tuple[str, list[str]]] = [("", [])]
    fronted = bool(parts) and parts[0].spelling in _PREPOSITIONS
    for part in parts:
        word = part.spelling
        if word == "," and fronted and len(chunks) == 2:
            chunks.append(("", []))
        elif word in _JOINS:
            chunks.append((chunks[-1][0], []))
        elif word in _PREPOSITIONS:
            chunks.append((word, []))
        elif word not in _ARTICLES:
            chunks[-1][1].append(part.stemmed)
    whole: list[tuple[str, list[str]]] = []
    for before, chunk in chunks:
        if before == "of" and whole and whole[-1][1]:
            whole[-1] = (whole[-1][0], [*chunk, *whole[-1][1]])
        elif chunk:
            whole.append((before, chunk))
    return frozenset([(before, tuple(chunk)) for before, chunk in whole])
