"""What callers said of stored answers, and where to be more careful since one of them was bad."""

from __future__ import annotations

from collections import OrderedDict

from router.accounting.feedback import wilson
from router.scope_index import Vector

MOST_BAD = 0.2
"""An answer goes when the share of callers who find it bad is above this with 97.5 % confidence (Wilson): when one has
said so and nobody the contrary, or two of three."""

NEIGHBOURHOOD = 0.85
"""Cosine similarity to a question with a bad answer, from which others are answered only when they are surely the
same."""

WARY_SCORE = 0.9
"""The verifier's score that it then takes, instead of the threshold that holds elsewhere."""

MAX_VOICES, MAX_SCOPES, MAX_MARKS = 64, 4096, 16


class Voices:
    """Of one answer: the newest word of each voice, 0 for bad and 1 for good; the oldest are forgotten."""

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def hear(self, voice: str, score: float) -> bool:
        """Whether the answer has to go."""
        self._said.pop(voice, None)
        self._said[voice] = score
        if len(self._said) > MAX_VOICES:
            del self._said[next(iter(self._said))]
        low, _ = wilson(sum(1 - each for each in self._said.values()), len(self._said))
        return low > MOST_BAD


class Wariness:
    """Questions whose answers had to go, by tenant and scope; the oldest are forgotten."""

    def __init__(self) -> None:
        self._marks: OrderedDict[tuple[str, str], list[Vector]] = OrderedDict()

    def mark(self, tenant: str, scope: str, vector: Vector) -> None:
        marks = self._marks.setdefault((tenant, scope), [])
        self._marks.move_to_end((tenant, scope))
        marks.append(vector)
        del marks[:-MAX_MARKS]
        if len(self._marks) > MAX_SCOPES:
            self._marks.popitem(last=False)

    def knows(self, tenant: str, scope: str) -> bool:
        """Whether a question of this scope had an answer that had to go."""
        return (tenant, scope) in self._marks

    def least_score(self, tenant: str, scope: str, vector: Vector) -> float:
        """Of a question that may be answered with the answer to this one."""
        marks = self._marks.get((tenant, scope), ())
        return WARY_SCORE if any(float(mark @ vector) >= NEIGHBOURHOOD for mark in marks) else 0.0
