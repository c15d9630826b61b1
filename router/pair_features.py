"""Numbers that say how alike two texts ask: what the verifier's trees see of a pair.

No number tells which words they are, only how the texts differ, so what was learnt on one subject holds for others.
All are the same for (a, b) and (b, a). About 0.1 ms a pair beside the facts, which are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from router import lexicon
from router.synonyms import same_word
from router.vetoes import Facts, soft_differences

FEATURES = (
    "cosine", "kind_same", "kind_known", "core_common", "core_less", "core_more", "core_share", "synonyms", "related",
    "left_less", "left_more", "left_chars", "left_less_chars", "left_capitals", "typos", "words_less", "words_ratio",
    "words_share", "in_order", "trigrams", "openings_same", "prepositions", "pronouns", "tenses", "others", "sentences",
    "numbers", "names_less", "names_more", "quantifiers", "units", "reordered", "substituted", "ends_same",
)  # fmt: skip

_PREPOSITIONS = lexicon.words(
    """
    in on at of for from to by with without into onto about between among through during before after than under
    over against as per via within across behind beyond near since until upon like
    """
)
_PRONOUNS = lexicon.words(
    """
    he she they him her them his hers their theirs it its we us our who whom whose
    """
)
_PAST = lexicon.words(
    """
    did was were had
    """
)
_COMING = lexicon.words(
    """
    will would shall going
    """
)
_MUST = lexicon.words(
    """
    must should may might can could have need ought
    """
)


@lru_cache(maxsize=1024)
def _trigrams(text: str) -> frozenset[str]:
    return frozenset(text[start : start + 3] for start in range(len(text) - 2)) or frozenset((text,))


def pair_features(a: Facts, b: Facts, cosine: float) -> NDArray[np.float64]:
    """One row for the trees, in the order of `FEATURES`."""
    core_a, core_b = Counter(a.core), Counter(b.core)
    common = (core_a & core_b).total()
    left_a, left_b = list((core_a - core_b).elements()), list((core_b - core_a).elements())
    synonyms = _pair_off(left_a, left_b, lambda x, y: same_word(x) == same_word(y))
    typos = _pair_off(left_a, left_b, _typo)
    related = _pair_off(left_a, left_b, lambda x, y: x[:4] == y[:4] and min(len(x), len(y)) > 3)
    less, more = sorted((left_a, left_b), key=lambda left: (len(left), sum(map(len, left))))
    words_less, words_more = sorted((len(a.words), len(b.words)))
    names_less, names_more = sorted((len(a.names - set(b.words)), len(b.names - set(a.words))))
    grams_a, grams_b = _trigrams(" ".join(a.words)), _trigrams(" ".join(b.words))
    words_a, words_b = set(a.words), set(b.words)
    core_less, core_more = sorted((len(a.core), len(b.core)))
    soft = soft_differences(a, b)
    both_known = a.kind is not None and b.kind is not None
    known = float(a.kind is not None) + float(b.kind is not None)
    capitals = a.names | b.names
    values = (
        cosine,
        float(a.kind == b.kind) if both_known or a.kind == b.kind else float("nan"),
        known,
        common,
        core_less,
        core_more,
        common / max(1, core_more),
        synonyms,
        related,
        len(less),
        len(more),
        sum(map(len, more)),
        sum(map(len, less)),
        sum(word in capitals for word in (*less, *more)),
        typos,
        words_less,
        words_less / max(1, words_more),
        len(words_a & words_b) / max(1, len(words_a | words_b)),
        _longest_common(a.words, b.words) / max(1, words_more),
        len(grams_a & grams_b) / max(1, len(grams_a | grams_b)),
        float(a.words[:1] == b.words[:1]),
        _differ(words_a, words_b, _PREPOSITIONS),
        _differ(words_a, words_b, _PRONOUNS),
        max(_differ_in_kind(words_a, words_b, group) for group in (_PAST, _COMING, _MUST)),
        _differ(words_a, words_b, lexicon.FUNCTION_WORDS["english"] - _PREPOSITIONS - _PRONOUNS),
        abs(a.sentences - b.sentences),
        min(len(a.numbers), len(b.numbers)),
        names_less,
        names_more,
        float("quantifier" in soft),
        float("unit" in soft),
        float("order" in soft),
        float("substitution" in soft),
        float(a.core[-1:] == b.core[-1:]),
    )
    return np.array(values, dtype=np.float64)


def _pair_off(left_a: list[str], left_b: list[str], alike: object) -> int:
    """Take pairs that are `alike` off both lists. Returns how many."""
    found = 0
    for word in left_a[:]:
        match = next((other for other in left_b if alike(word, other)), None)  # type: ignore[operator]
        if match is not None:
            left_a.remove(word)
            left_b.remove(match)
            found += 1
    return found


def _typo(a: str, b: str) -> bool:
    """One letter more, less, other, or two swapped, in words of five letters or more that begin alike."""
    if min(len(a), len(b)) < 5 or abs(len(a) - len(b)) > 1 or a[0] != b[0]:
        return False
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[start:], b[start:]
    swapped = len(a) == len(b) and rest_a[:2] == rest_b[:2][::-1] and rest_a[2:] == rest_b[2:]
    return rest_a[1:] == rest_b[1:] or rest_a[1:] == rest_b or rest_a == rest_b[1:] or swapped


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence of the first 64 words, as bits of one number (Hyyro 2004)."""
    places: dict[str, int] = {}
    for at, word in enumerate(a[:64]):
        places[word] = places.get(word, 0) | 1 << at
    size = min(64, len(a))
    row = full = (1 << size) - 1
    for word in b[:64]:
        match = row & places.get(word, 0)
        row = (row + match | row - match) & full
    return size - row.bit_count()


def _differ(a: set[str], b: set[str], group: frozenset[str]) -> float:
    return float(len((a ^ b) & group))


def _differ_in_kind(a: set[str], b: set[str], group: frozenset[str]) -> float:
    return float(bool(a & group) != bool(b & group))
