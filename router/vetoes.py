"""Differences that make another question out of a similar one, whatever a similarity score says.

Sentence vectors hardly move when a number, a name, a "not" or one operator changes. These rules look at the words
themselves (`router.facts`) and only ever say no: a wrong veto costs a generation, a missing one costs a wrong answer.
They are the hard layer under any learned verifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from router.facts import Facts
from router.synonyms import same_word

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

LONG_WORDS = 20
"""From here on a text is long: what differs between two that are nearly equal was changed on purpose."""

_BOUNDS = frozenset(
    ("second", "third", "fourth", "fifth", "exactly", "only", "at least", "at most", "up to", "no more than", "maximum")
)


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
    if a.opposites and any(sides != b.opposites.get(axis, sides) for axis, sides in a.opposites.items()):
        return "opposite"
    if reordered(a, b) and a.chunks != b.chunks:
        return "order"
    if _detail_differs(a, b):
        return "detail"
    if a.kind != b.kind and frozenset((a.kind, b.kind)) in _OTHER_KINDS:
        return "kind"
    return None


def in_common(a: Collection[str], b: Collection[str]) -> Counter[str] | set[str]:
    """The words of both, as often as the fewer of them has them; a plain set where none has one twice, which takes a
    fifth of the time."""
    of_a, of_b = set(a), set(b)
    if len(of_a) == len(a) and len(of_b) == len(b):
        return of_a & of_b
    return Counter(a) & Counter(b)


def without(a: Collection[str], b: Collection[str]) -> list[str]:
    """The words of `a` that are left when each of `b` takes one of its own away, equal ones side by side."""
    of_a, of_b = set(a), set(b)
    if len(of_a) == len(a) and len(of_b) == len(b):
        return [word for word in a if word not in of_b]
    return [*(Counter(a) - Counter(b)).elements()]


def reordered(a: Facts, b: Facts) -> bool:
    """Whether nearly the same words ask in another order: who does what to whom may have changed."""
    if a.content == b.content:
        plain_a, plain_b = a.plain, b.plain
        return plain_a != plain_b and len(plain_a) == len(plain_b) and sorted(plain_a) == sorted(plain_b)
    most = max(len(a.content), len(b.content))
    if min(len(a.content), len(b.content)) < most - 1:
        return False
    common = in_common(a.content, b.content)
    if isinstance(common, set):
        of_a, of_b = ([word for word in each.content if word in common] for each in (a, b))
        return len(common) >= most - 1 and of_a != of_b
    return common.total() >= most - 1 and _kept(a.content, common) != _kept(b.content, common)


def substituted(a: Facts, b: Facts) -> bool:
    """Whether the texts are the same but for one place, where both have content words of their own."""
    begin, shorter = 0, min(len(a.words), len(b.words))
    while begin < shorter and a.words[begin] == b.words[begin]:
        begin += 1
    end = 0
    while end < shorter - begin and a.words[-1 - end] == b.words[-1 - end]:
        end += 1
    if begin + end < max(len(a.words), len(b.words)) - begin - end:
        return False
    mine, other = ({*each.contents[begin : len(each.words) - end]} - {""} for each in (a, b))
    return bool(mine - other) and bool(other - mine)


def _quantifiers_clash(a: Facts, b: Facts) -> bool:
    """Whether both have one that the other lacks, or one has a bound or a rank that the other lacks."""
    if a.quantifiers == b.quantifiers:
        return False
    mine, other = a.quantifiers - b.quantifiers, b.quantifiers - a.quantifiers
    return bool(mine and other) or bool((mine | other) & _BOUNDS)


def _units_clash(a: Facts, b: Facts) -> bool:
    """Whether both have one that the other lacks, or one has a number that the unit may belong to."""
    if a.units == b.units:
        return False
    mine, other = Counter(a.units) - Counter(b.units), Counter(b.units) - Counter(a.units)
    return bool(mine and other) or (bool(mine or other) and bool(a.numbers) and len(a.words) < 12)


def _names_differ(a: Facts, b: Facts) -> bool:
    return not a.names <= b.word_set or any([quoted not in b.lowered for quoted in a.quoted])


def _name_order_differs(a: Facts, b: Facts) -> bool:
    """From Rome to Paris is not from Paris to Rome."""
    names = a.names | b.names
    if not names:
        return False
    return [*dict.fromkeys(w for w in a.words if w in names)] != [*dict.fromkeys(w for w in b.words if w in names)]


def _detail_differs(a: Facts, b: Facts) -> bool:
    """Whether two long texts are nearly word for word the same, yet not in what they say: one was made from the other
    by a change that is meant."""
    shorter, longer = sorted((len(a.words), len(b.words)))
    if longer < LONG_WORDS or shorter < 0.8 * longer:
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
