"""Numbers that say how alike two texts ask: what the verifier's trees see of a pair.

No number tells which words they are, only how the texts differ, so what was learnt on one subject holds for others.
All are the same for (a, b) and (b, a). About 0.03 ms a pair beside the facts, which are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from router import lexicon
from router.facts import Facts
from router.synonyms import same_word
from router.vetoes import in_common, reordered, substituted, without

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
_MOST_LEFT = 64
"""Where more words of both texts are left, nobody looks for slips of the pen among them: that takes the square of their
number, and they ask for something else anyway."""

_TENSES = (_PAST, _COMING, _MUST)
_OTHERS = lexicon.FUNCTION_WORDS["english"] - _PREPOSITIONS - _PRONOUNS


@lru_cache(maxsize=1024)
def _trigrams(words: tuple[str, ...]) -> frozenset[int | str]:
    """Of the words with a space between them, each as a number: that is made in half the time of a text."""
    text = " ".join(words)
    codes = [*map(ord, text)]
    grams = zip(codes, codes[1:], codes[2:], strict=False)
    return frozenset([a << 42 | b << 21 | c for a, b, c in grams]) or frozenset((text,))


def pair_features(a: Facts, b: Facts, cosine: float) -> tuple[float, ...]:
    """One row for the trees, in the order of `FEATURES`."""
    common = in_common(a.core, b.core)
    shared = len(common) if isinstance(common, set) else common.total()
    less, more, synonyms, typos, related = _left(a, b)
    words_less, words_more = sorted((len(a.words), len(b.words)))
    names_less, names_more = sorted((len(a.names - b.word_set), len(b.names - a.word_set)))
    grams_a, grams_b = _trigrams(a.words), _trigrams(b.words)
    grams = len(grams_a & grams_b)
    words = len(a.word_set & b.word_set)
    odd = a.word_set ^ b.word_set
    core_less, core_more = sorted((len(a.core), len(b.core)))
    both_known = a.kind is not None and b.kind is not None
    capitals = a.names | b.names
    return (
        cosine,
        float(a.kind == b.kind) if both_known or a.kind == b.kind else float("nan"),
        float(a.kind is not None) + float(b.kind is not None),
        shared,
        core_less,
        core_more,
        shared / max(1, core_more),
        synonyms,
        related,
        len(less),
        len(more),
        sum(map(len, more)),
        sum(map(len, less)),
        sum([word in capitals for word in (*less, *more)]) if capitals else 0,
        typos,
        words_less,
        words_less / max(1, words_more),
        words / max(1, words + len(odd)),
        _longest_common(b.words, a.words) / max(1, words_more),
        grams / max(1, len(grams_a) + len(grams_b) - grams),
        float(a.words[:1] == b.words[:1]),
        len(odd & _PREPOSITIONS),
        len(odd & _PRONOUNS),
        float(any([a.word_set.isdisjoint(group) != b.word_set.isdisjoint(group) for group in _TENSES])),
        len(odd & _OTHERS),
        abs(a.sentences - b.sentences),
        min(len(a.numbers), len(b.numbers)),
        names_less,
        names_more,
        float(a.quantifiers != b.quantifiers),
        float(a.units != b.units),
        float(reordered(a, b)),
        float(substituted(a, b)),
        float(a.core[-1:] == b.core[-1:]),
    )


def _left(a: Facts, b: Facts) -> tuple[list[str], list[str], int, int, int]:
    """What of both is not in the other, the less first, when words that may be the same are paired off; and how many
    pairs were synonyms, slips of the pen, and words that begin alike."""
    left_a, left_b = without(a.core, b.core), without(b.core, a.core)
    synonyms = typos = related = 0
    if left_a and left_b:
        synonyms = _pair_off(left_a, left_b, same_word)
        if min(len(left_a), len(left_b)) <= _MOST_LEFT:
            typos = _pair_off(left_a, left_b, _letter, _typo)
        related = _pair_off(left_a, left_b, _beginning)
    less, more = sorted((left_a, left_b), key=lambda left: (len(left), sum(map(len, left))))
    return less, more, synonyms, typos, related


def _pair_off(
    left_a: list[str], left_b: list[str], key: Callable[[str], str], alike: Callable[[str, str], bool] | None = None
) -> int:
    """Take pairs off both lists that have a `key` in common, which "" is none of, and are `alike`, where that is asked.
    Returns how many."""
    places: dict[str, list[int]] = {}
    for at, word in enumerate(left_b):
        places.setdefault(key(word), []).append(at)
    places.pop("", None)
    kept: list[str] = []
    for word in left_a:
        near = places.get(key(word), [])
        match = next((at for at in near if alike is None or alike(word, left_b[at])), None)
        if match is None:
            kept.append(word)
        else:
            near.remove(match)
            left_b[match] = ""
    found = len(left_a) - len(kept)
    if found:
        left_a[:], left_b[:] = kept, filter(None, left_b)
    return found


def _beginning(word: str) -> str:
    return word[:4] if len(word) > 3 else ""


def _letter(word: str) -> str:
    """The first one, of words that may have a slip of the pen."""
    return word[0] if len(word) > 4 else ""


def _typo(a: str, b: str) -> bool:
    """One letter more, less, other, or two swapped, in words of five letters or more that begin alike."""
    if a[0] != b[0] or abs(len(a) - len(b)) > 1 or min(len(a), len(b)) < 5:
        return False
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[start:], b[start:]
    swapped = len(a) == len(b) and rest_a[:2] == rest_b[:2][::-1] and rest_a[2:] == rest_b[2:]
    return rest_a[1:] == rest_b[1:] or rest_a[1:] == rest_b or rest_a == rest_b[1:] or swapped


def _longest_common(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Length of the longest common subsequence of the first 64 words, as bits of one number (Hyyro 2004)."""
    places, size = _places(a)
    row = full = (1 << size) - 1
    for word in b[:64]:
        match = row & places.get(word, 0)
        row = (row + match | row - match) & full
    return size - row.bit_count()


@lru_cache(maxsize=64)
def _places(words: tuple[str, ...]) -> tuple[dict[str, int], int]:
    """Where each of the first 64 words stands, as bits, and how many there are."""
    places: dict[str, int] = {}
    for at, word in enumerate(words[:64]):
        places[word] = places.get(word, 0) | 1 << at
    return places, min(64, len(words))
