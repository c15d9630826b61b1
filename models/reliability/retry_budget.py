"""One budget for all retries and hedges of an endpoint in this process: a storm of failures brings no storm of retries.

After Finagle's RetryBudget (https://twitter.github.io/finagle/guide/Clients.html#retry-budget).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from models.reliability.settings import RetrySettings


class RetryBudget:
    """A bucket of retries. In any stretch of time at most

    budget_burst + budget_share * requests + budget_min_per_s * seconds
    """

    def __init__(self, settings: Callable[[], RetrySettings], clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._balance = float(settings().budget_burst)
        self._filled_at_s = clock()

    def earn(self) -> None:
        """A request has come: a part of a retry more."""
        self._fill(self._settings().budget_share)

    def spend(self) -> bool:
        """Take one retry; False: there is none."""
        self._fill(0.0)
        if self._balance < 1 - 1e-9:  # ten tenths are a little less than one
            return False
        self._balance -= 1
        return True

    def _fill(self, more: float) -> None:
        settings, now_s = self._settings(), self._clock()
        more += (now_s - self._filled_at_s) * settings.budget_min_per_s
        self._filled_at_s = now_s
        self._balance = min(float(settings.budget_burst), self._balance + more)
