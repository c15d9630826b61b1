"""Whether a stored question and a new one that is near to it ask for the same answer.

First the hard vetoes, which no score overrides; then boosted trees over features of the pair. How they were trained and
what they are worth: docs/cache.md, `router.cache_training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from models.trees import Trees, load
from router.facts import facts
from router.pair_features import FEATURES, pair_features
from router.vetoes import veto

WEIGHTS = Path(__file__).parent / "weights" / "verifier.safetensors"


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of one candidate: `score` is the verifier's probability that the answer is the same, 0 where there is an
    `objection`, the name of the veto."""

    score: float
    objection: str | None = None


class Verifier:
    """Raises ValueError where the weights are damaged or were trained on other features than this code computes."""

    def __init__(self, trees: Trees) -> None:
        if trees.features != FEATURES:
            raise ValueError("the verifier's weights are for other features: train them anew (router.cache_training)")
        self._trees = trees

    def judge(self, text: str, candidates: Sequence[tuple[float, str]]) -> list[Judgement]:
        """One judgement for each candidate, a stored question's cosine to `text` and its text."""
        asked = facts(text)
        found: list[Judgement] = []
        rows, open_ = [], []
        for at, (cosine, stored) in enumerate(candidates):
            known = facts(stored)
            objection = veto(known, asked)
            found.append(Judgement(0.0, objection))
            if objection is None:
                rows.append(pair_features(known, asked, cosine))
                open_.append(at)
        if rows:
            for at, score in zip(open_, self._trees.probability(np.array(rows)), strict=True):
                found[at] = Judgement(float(score))
        return found


@cache
def packaged() -> Verifier:
    """With the weights that come with the project, read at the first call."""
    return Verifier(load(WEIGHTS))
