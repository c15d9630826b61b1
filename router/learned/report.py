"""How good are the classifier's chances? RouteLLM's measures of a router (Ong et al. 2024, arXiv 2406.18665) and how
far the chances can be believed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from router.learned.model import Array
    from router.learned.train import Rows

BINS = 10


def apgr(score: Array, small: Array, large: Array) -> float:
    """Average performance gap recovered: the area under the share of the gap between the models that is recovered, over
    the share of questions that go to the large one. Every threshold counts, ties at their expected value."""
    gain = large - small
    order = np.argsort(-score, kind="stable")
    _, first, count = np.unique(-score[order], return_index=True, return_counts=True)
    rank = np.repeat(first + (count + 1) / 2, count)
    return float((gain[order] * (1 - (rank - 0.5) / len(gain))).sum() / gain.sum())


def cpt(score: Array, small: Array, large: Array, share: float) -> float:
    """The smallest share of questions, in percent, that has to go to the large model to recover `share` of the gap."""
    gain = (large - small)[np.argsort(-score, kind="stable")]
    recovered = np.concatenate([[0.0], np.cumsum(gain) / gain.sum()])
    return float(100 * np.argmax(recovered >= share) / len(gain))


def interval(score: Array, small: Array, large: Array, times: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval of the APGR, over questions."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(times):
        index = draw.integers(0, len(score), len(score))
        found.append(apgr(score[index], small[index], large[index]))
    return float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))


def reliability(chances: Array, outcomes: Array, bins: int = BINS) -> list[tuple[float, float, int]]:
    """By bins of equal size: mean chance, share of successes, questions."""
    parts = np.array_split(np.argsort(chances, kind="stable"), bins)
    return [(float(chances[part].mean()), float(outcomes[part].mean()), len(part)) for part in parts]


def ece(chances: Array, outcomes: Array, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal size (Nguyen and O'Connor 2015)."""
    rows = reliability(chances, outcomes, bins)
    return sum(count * abs(said - was) for said, was, count in rows) / len(chances)


def report(found: Mapping[str, tuple[Rows, Array]], path: Path | None = None) -> None:
    figures: dict[str, object] = {}
    for kind, (rows, chances) in found.items():
        small, large = rows.outcomes[:, 0], rows.outcomes[:, 1]
        score = chances[:, 1] - chances[:, 0]
        low, high = interval(score, small, large)
        figures[kind] = {
            "questions": len(score),
            "apgr": round(apgr(score, small, large), 4),
            "apgr_interval": [round(low, 4), round(high, 4)],
            "cpt50": round(cpt(score, small, large, 0.5), 1),
            "cpt80": round(cpt(score, small, large, 0.8), 1),
            "ece": {
                size: round(ece(chances[:, i], rows.outcomes[:, i]), 4) for i, size in enumerate(("small", "large"))
            },
            "reliability": {
                size: [
                    [round(said, 3), round(was, 3), count]
                    for said, was, count in reliability(chances[:, i], rows.outcomes[:, i])
                ]
                for i, size in enumerate(("small", "large"))
            },
        }
    text = json.dumps(figures, indent=1)
    print(text)
    if path is not None:
        path.write_text(text + "\n")
