"""What the replicas of a backend did while they were busy: the time, and the tokens of that time.

A replica is busy while it has a request to work on, however many places it has: its node costs the same then.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

SETTLED_S = 1.0
"""Time is counted this late. Until then the holder of a lease has said for how long it stood unused at its end."""
HALF_LIFE_S = 3600.0
"""In which what was measured counts half."""


@dataclass(frozen=True, slots=True)
class Work:
    """Replica-seconds at work and the tokens of that time; of requests that are over, those cut short too."""

    busy_s: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.busy_s + other.busy_s,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )

    def faded(self, seconds: float) -> Work:
        share = 0.5 ** (seconds / HALF_LIFE_S)
        return Work(self.busy_s * share, self.input_tokens * share, self.output_tokens * share)


class WorkMeter:
    """Of one backend. `replica_s` and `busy_s` only grow; `recent` fades."""

    def __init__(self, now_s: float) -> None:
        self.replica_s = self.busy_s = 0.0
        self.recent = Work()
        self._until_s = now_s
        self._requests = self._replicas = 0
        self._changes: list[tuple[float, int, int]] = []

    def changed(self, at_s: float, requests: int = 0, replicas: int = 0) -> None:
        """There are so many more (or fewer) since `at_s`, which may be up to `SETTLED_S` ago."""
        heappush(self._changes, (max(at_s, self._until_s), requests, replicas))

    def done(self, input_tokens: int, output_tokens: int) -> None:
        self.recent += Work(0.0, max(0, input_tokens), max(0, output_tokens))

    def count(self, now_s: float) -> None:
        """Add up the time since the last count."""
        end_s = max(self._until_s, now_s - SETTLED_S)
        began_s, busy_s = self._until_s, self.busy_s
        while self._changes and self._changes[0][0] <= end_s:
            at_s, requests, replicas = heappop(self._changes)
            self._pass(at_s)
            self._requests, self._replicas = self._requests + requests, self._replicas + replicas
        self._pass(end_s)
        self.recent = self.recent.faded(end_s - began_s) + Work(self.busy_s - busy_s)

    def _pass(self, until_s: float) -> None:
        seconds, self._until_s = until_s - self._until_s, until_s
        self.replica_s += seconds * self._replicas
        # Requests are spread over replicas before any has two.
        self.busy_s += seconds * max(0, min(self._requests, self._replicas))
