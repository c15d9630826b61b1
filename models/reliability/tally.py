"""What the wrappers of one endpoint count, for the metrics."""

from __future__ import annotations

from collections import Counter
from typing import Literal, get_args

Count = Literal[
    "retries",
    "retries_over_budget",
    "timeouts",
    "breaker_opened",
    "breaker_refused",
    "hedges",
    "hedges_won",
    "key_rests",
    "usage_replaced",
]
COUNTS: tuple[Count, ...] = get_args(Count)


class Tally:
    """Counts by label. Labels are the endpoint's own models, or words of a fixed set: nothing a caller writes."""

    def __init__(self) -> None:
        self._counts: dict[Count, Counter[str]] = {name: Counter() for name in COUNTS}

    def add(self, name: Count, label: str) -> None:
        self._counts[name][label] += 1

    def snapshot(self) -> dict[str, dict[str, int]]:
        """Plain values, by count and label."""
        return {name: dict(counter) for name, counter in self._counts.items()}
