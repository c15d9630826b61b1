"""Python's collector of cyclic garbage in a process that holds a great many answers.

It looks at all objects anew whenever a quarter more have come: 0.15 to 0.3 s for 100,000 answers, in which nothing else
runs, again and again. Stored answers have no cycles, and are gone when they are dropped, so it need not look at them.
"""

from __future__ import annotations

import gc

YOUNG = 20_000
"""New objects between two looks at the youngest. Of Python's 700 a lookup makes a good part, and most are gone before
the next one: a fifth of its time went there."""

_GROWN, _LEAST = 1.25, 5_000


class Collector:
    """Of this process; there is one."""

    def __init__(self) -> None:
        gc.set_threshold(YOUNG, 10, 10)
        self._passed_over = 0

    def grown(self, entries: int) -> None:
        """So many answers are held now. All that there is by then is passed over from then on, where they have become a
        quarter more: what garbage happens to be among it stays, so this is not done often."""
        if entries >= _LEAST and entries > _GROWN * self._passed_over:
            gc.freeze()
            self._passed_over = entries
