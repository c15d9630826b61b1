"""Open prompts, with neither options nor one number for an answer: no public outcomes of them are free to train on, so
what is known of kinds of work stands in, set by hand: a small model is nearly as good at writing and explaining as a
large one, and falls behind in mathematics, code and reasoning. What a tenant's feedback says replaces it
(`learning`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

_PRIOR: dict[str, tuple[float, float]] = {
    # chance that a small model answers well, and that a large one does
    "math": (0.50, 0.88),
    "code": (0.56, 0.86),
    "reasoning": (0.55, 0.84),
    "extraction": (0.78, 0.92),
    "persona": (0.80, 0.92),
    "creative": (0.86, 0.94),
    "explain": (0.91, 0.96),
    "facts": (0.84, 0.93),
    "chat": (0.96, 0.98),
}
SHARPNESS = 2.2
"""Of the choice between kinds of work."""
KINDS_OF_WORK = tuple(_PRIOR)


def shares(found: Mapping[str, float]) -> dict[str, float]:
    """How much of each kind of work a prompt looks like; they sum to 1. `found` are its `signs`."""

    def at_most(most: float, *names: str) -> float:
        return min(most, sum(found[name] for name in names))

    talk = at_most(3, "creative") + 1.5 * at_most(2, "persona")
    evidence = {
        "math": 0.9 * at_most(2, "compute")
        + 1.1 * at_most(3, "proof")
        + 0.35 * at_most(4, "distinct_numbers", "spelt_numbers")
        + 1.5 * found["notation"]
        + 0.4 * at_most(3, "formulas")
        + 0.5 * at_most(2, "spread", "fraction", "percent"),
        "code": 2.0 * found["code"] + 1.1 * at_most(3, "programming"),
        "reasoning": 0.9 * at_most(3, "puzzle")
        + 0.7 * at_most(3, "logic")
        + 0.4 * at_most(2, "conditional")
        + 0.4 * at_most(2, "comparison"),
        "extraction": 1.0 * at_most(3, "extraction") + 0.4 * at_most(2, "following") + 0.3 * found["lines"],
        "persona": 1.8 * at_most(2, "persona"),
        "creative": 1.1 * at_most(3, "creative") + (0.4 * at_most(1, "listing") if talk else 0.0),
        "explain": 0.8 * at_most(3, "explain") + 0.2 * at_most(2, "cause"),
        "facts": 0.9 * at_most(2, "facts") if found["words_log"] < 3.5 else 0.0,
        "chat": 1.6 if found["words_log"] < 2.2 and not found["questions"] else 0.4,
    }
    top = max(evidence.values())
    weights = {name: math.exp(SHARPNESS * (value - top)) for name, value in evidence.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def open_chances(found: Mapping[str, float]) -> tuple[float, float, str]:
    """The chances of a small and of a large model, and the kind of work that it looks most like.

    Longer tasks of several parts are harder for both, for the small one more."""
    parts = shares(found)
    small = sum(share * _PRIOR[name][0] for name, share in parts.items())
    large = sum(share * _PRIOR[name][1] for name, share in parts.items())
    burden = min(1.0, max(0.0, (found["words_log"] - 2.5) / 4)) + 0.1 * min(3.0, found["list_items"])
    gap = (large - small) * (0.75 + 0.5 * burden)
    large -= 0.04 * burden
    return max(0.05, large - gap), large, max(parts, key=lambda name: parts[name])
