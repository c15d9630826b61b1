"""How good are the classifier's chances? RouteLLM's measures of a router (Ong et al. 2024, arXiv 2406.18665) and how
far the chances can be believed. And how long it takes to say them."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.messages import Message, TextPart
from router.features import FOCUS_CHARS

if TYPE_CHECKING:
    from router.assessor import Assessor
    from router.learned.model import Array
    from router.learned.train import Rows, Shipped

BINS = 10
DEMO_SEED, DEMO_PER_DIFFICULTY = 2026, 600
AT_MOST, WARM_UP = 2_000, 100
"""Prompts of a kind that are timed, and that come before them, untimed."""


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


def report(found: Mapping[str, tuple[Rows, Array, Shipped]], path: Path | None = None) -> None:
    """By kind: the questions, what their expert says, and what the classifier says that is not told their kind."""
    figures: dict[str, object] = {}
    for kind, (rows, chances, shipped) in found.items():
        sizes = dict(enumerate(("small", "large")))
        figures[kind] = {
            "questions": len(chances),
            **ranked(chances[:, 1] - chances[:, 0], rows.outcomes),
            "ece": {size: round(ece(chances[:, i], rows.outcomes[:, i]), 4) for i, size in sizes.items()},
            "reliability": {
                size: [
                    [round(said, 3), round(was, 3), count]
                    for said, was, count in reliability(chances[:, i], rows.outcomes[:, i])
                ]
                for i, size in sizes.items()
            },
            "as_it_ships": {
                "taken_for": dict(Counter(shipped.kinds)),
                "abstained": int(shipped.abstains.sum()),
                **ranked(shipped.score, rows.outcomes),
            },
        }
    _tell(figures, path)


def ranked(score: Array, outcomes: Array) -> dict[str, object]:
    """How well `score` says which questions are for the large model. outcomes: [n, 2]."""
    small, large = outcomes[:, 0], outcomes[:, 1]
    low, high = interval(score, small, large)
    return {
        "apgr": round(apgr(score, small, large), 4),
        "apgr_interval": [round(low, 4), round(high, 4)],
        "cpt50": round(cpt(score, small, large, 0.5), 1),
        "cpt80": round(cpt(score, small, large, 0.8), 1),
    }


def report_latency(prompts: Mapping[str, Sequence[str]], path: Path | None = None) -> None:
    """How long `Assessor.assess` takes with the default profile's settings and heads, in this one thread: of `prompts`,
    by what they are, and of the held-out questions of the demonstration models, one by one and joined to the longest
    text that is read."""
    from models.catalog import BUILT_IN
    from models.demo.dataset import held_out_items
    from router.assessor import Assessor
    from router.settings import ClassifierSettings

    heads = {entry.name: entry.head for entry in BUILT_IN if entry.head}
    assessor = Assessor(ClassifierSettings(heads=heads))
    if assessor.warning:
        raise SystemExit(assessor.warning)
    own = [item.question for item in held_out_items(DEMO_SEED, DEMO_PER_DIFFICULTY)]
    whole = "\n".join(own)
    long = [whole[at : at + FOCUS_CHARS] for at in range(0, len(whole) - FOCUS_CHARS, FOCUS_CHARS)]
    given = {"demo": own, "demo_joined": long, **prompts}
    sets = {name: some[:: -(-len(some) // AT_MOST)] for name, some in given.items() if some}
    _tell({name: latency(assessor, some) for name, some in sets.items()}, path)


def latency(assessor: Assessor, prompts: Sequence[str]) -> dict[str, object]:
    """Milliseconds of a prompt: by the clock, and of the processor for this thread alone, which other work on the
    machine does not lengthen."""
    asked = [[Message("user", (TextPart(prompt),))] for prompt in prompts]
    for messages in asked[:WARM_UP]:
        assessor.assess(messages)
    taken = np.zeros((len(asked), 2))
    for i, messages in enumerate(asked):
        began_s, began_cpu_s = time.perf_counter(), time.thread_time()
        assessor.assess(messages)
        taken[i] = 1000 * (time.perf_counter() - began_s), 1000 * (time.thread_time() - began_cpu_s)
    shown = {
        name: {f"p{share}": round(float(np.percentile(taken[:, i], share)), 2) for share in (50, 95, 99)}
        for i, name in enumerate(("wall_ms", "cpu_ms"))
    }
    return {"prompts": len(asked), "chars_p50": round(float(np.median([len(prompt) for prompt in prompts]))), **shown}


def _tell(figures: Mapping[str, object], path: Path | None) -> None:
    text = json.dumps(figures, indent=1)
    print(text)
    if path is not None:
        path.write_text(text + "\n")
