"""What to keep when there is no room for all: GreedyDual-Size-Frequency (Cherkasova 1998, HPL-98-69R1).

An answer is worth its cost times how often it was asked for, per byte. To that comes the worth of what had to go before
it was last used, so that what nobody asks for any more grows old, however dear it was.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

LEAST_MICROUSD = 1
"""Of an answer that cost nothing, or less than a microdollar: its work is saved all the same."""


@dataclass(slots=True)
class _Worth:
    per_use: float
    uses: int
    worth: float
    turn: int  # of its last use: of two that are worth the same, the one that was used longer ago goes


class GreedyDual:
    """Entries by number. Not for several threads. All takes O(log n), amortised."""

    def __init__(self) -> None:
        self._worths: dict[int, _Worth] = {}
        self._heap: list[tuple[float, int, int]] = []  # with some that no longer hold, which are skipped
        self._age = 0.0
        self._turn = 0

    def add(self, entry_id: int, microusd: int, size_bytes: int) -> None:
        per_use = max(microusd, LEAST_MICROUSD) / max(size_bytes, 1)
        self._worths[entry_id] = _Worth(per_use, 0, 0.0, 0)
        self.use(entry_id)

    def use(self, entry_id: int) -> None:
        found = self._worths[entry_id]
        found.uses += 1
        found.worth = self._age + found.uses * found.per_use
        self._turn = found.turn = self._turn + 1
        heapq.heappush(self._heap, (found.worth, found.turn, entry_id))
        if len(self._heap) > 4 * len(self._worths) + 64:
            self._heap = [(each.worth, each.turn, number) for number, each in self._worths.items()]
            heapq.heapify(self._heap)

    def drop(self, entry_id: int) -> None:
        del self._worths[entry_id]

    def least(self) -> int:
        """The one that has to go; what stays is younger than it from now on. Raises IndexError when there is none."""
        while True:
            worth, turn, entry_id = self._heap[0]
            found = self._worths.get(entry_id)
            if found is not None and found.turn == turn:
                self._age = worth
                return entry_id
            heapq.heappop(self._heap)
