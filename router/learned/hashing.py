"""Words and pairs of words as a sparse vector of fixed size, by hashing: no vocabulary to store (Weinberger et al.
2009, https://arxiv.org/abs/0902.2206)."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

SIZE = 1 << 16
CHAR_SIZE = 1 << 18
SEEN_SIZE = 1 << 18
MOST_WORDS = 1_500
"""Of a text; of a longer one its beginning and its end count."""

MOST_CHARS = 1_500

_TOKEN = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?|\d+|[$%=^\\{}<>+*/]")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")


def tokens(text: str) -> list[str]:
    """Case-folded words, numbers by how many digits they have, signs of formulas. Scripts that are written without
    spaces give one token per sign."""
    if not text.isascii():
        text = _WIDE.sub(lambda sign: f" {sign[0]} ", text)
    found = [f"#{len(t)}" if t.isdecimal() else t for t in _TOKEN.findall(text.casefold())]
    if len(found) > MOST_WORDS:
        found = found[: MOST_WORDS // 2] + found[-MOST_WORDS // 2 :]
    return found


Sparse = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""Places, int64, shape [n], and what stands there, float64."""


def word_terms(text: str, words: Sequence[str] | None = None) -> Sparse:
    """Its words and pairs of words, with 1 + log of how often each occurs. `words`: its `tokens`, where they are
    known."""
    words = tokens(text) if words is None else words
    terms = Counter(words)
    terms.update(map(" ".join, pairwise(words)))
    return _hashed(terms, SIZE)


def char_terms(text: str) -> Sparse:
    """The same of its runs of 2 to 5 characters within words, of the first `MOST_CHARS` characters."""
    terms: Counter[str] = Counter()
    for word in text[:MOST_CHARS].casefold().split():
        padded = f" {word} "
        for size in range(2, 6):
            terms.update(padded[at : at + size] for at in range(max(1, len(padded) - size + 1)))
    return _hashed(terms, CHAR_SIZE)


def seen_places(text: str, words: Sequence[str] | None = None) -> np.ndarray[Any, Any]:
    """Of its distinct words, in a table of `SEEN_SIZE` bits that holds which words training saw."""
    distinct = {token for token in (tokens(text) if words is None else words) if token[0].isalpha()}
    return np.fromiter((zlib.crc32(word.encode()) % SEEN_SIZE for word in distinct), np.int64, len(distinct))


_OPERAND = re.compile(r'"([^"\n]{1,60})"|\u201c([^\u201d\n]{1,60})\u201d')
MOST_ASKED_WORDS, MOST_OPERANDS = 400, 8
EARLIER = "<"


def asked_terms(question: str, earlier: Sequence[str] = ()) -> Sparse:
    """What one model's answers are known by (`heads`): words and pairs of words of a question, and of the user's turns
    before it as such; how many words it has, and which numbers, signs and quotations in which order. A short quotation
    counts by its length, as a number does: it is what is worked on, not what is asked. Places are whole 32-bit hashes;
    a table of 2^k takes the lowest k bits of them."""
    words = _asked_words(question)
    terms = Counter(words)
    terms.update(map(" ".join, pairwise(("^", *words, "$"))))
    operands = [word for word in words if not word[0].isalpha()]
    terms.update((f"~{len(words).bit_length()}", f"={len(operands)}", "=" + "".join(operands[:MOST_OPERANDS])))
    for turn in earlier:
        before = [EARLIER + word for word in _asked_words(turn)]
        terms.update(before)
        terms.update(map(" ".join, pairwise(before)))
    counts = np.fromiter(terms.values(), np.float64, len(terms))
    return np.fromiter((zlib.crc32(term.encode()) for term in terms), np.int64, len(terms)), 1.0 + np.log(counts)


def _asked_words(text: str) -> list[str]:
    found: list[str] = []
    end = 0
    for quotation in _OPERAND.finditer(text):
        inside = quotation[1] or quotation[2]
        found += tokens(text[end : quotation.start()])
        found.append(f'"{min(len(inside), 20) if inside.isalnum() else "+"}')
        end = quotation.end()
    found += tokens(text[end:])
    if len(found) > MOST_ASKED_WORDS:
        found = found[: MOST_ASKED_WORDS // 2] + found[-MOST_ASKED_WORDS // 2 :]
    return found


def _hashed(terms: Counter[str], size: int) -> Sparse:
    places: dict[int, float] = {}
    for term, count in terms.items():
        place = zlib.crc32(term.encode()) % size
        places[place] = places.get(place, 0.0) + 1.0 + math.log(count)
    return np.fromiter(places.keys(), np.int64, len(places)), np.fromiter(places.values(), np.float64, len(places))
