"""What became of answers, by tenant, kind of work and model, as evidence for the strategies `hybrid` and `learning`.

An outcome counts by how much it says: a user's feedback whole, a gate's verdict or a named model after `auto` in part.
Evidence decays by half in `HALF_LIFE_S`, so that a model that changed is judged anew. Bounded; a replica's own.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from router.events import Record, RequestClosed

HALF_LIFE_S = 7 * 86_400.0
MOST = 50_000
FEEDBACK, OVERRIDE, ESCALATED, RELEASED = 1.0, 0.5, 0.5, 0.1


class Experience:
    """A sink of records too: gates' verdicts are taken from receipts."""

    def __init__(
        self, clock: Callable[[], float] = time.time, half_life_s: float = HALF_LIFE_S, most: int = MOST
    ) -> None:
        self._clock, self._half_life_s, self._most = clock, half_life_s, most
        self._seen: OrderedDict[tuple[str, str, str], tuple[float, float, float]] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._seen)

    def __call__(self, record: Record) -> None:
        if not isinstance(record, RequestClosed) or not record.decision:
            return
        work = str(record.decision.get("task") or "")
        for attempt in record.attempts:
            if attempt.outcome == "escalated":
                self.learn(record.org, work, attempt.model, False, ESCALATED)
            elif attempt.outcome == "ok" and attempt.gate is not None:
                self.learn(record.org, work, attempt.model, True, RELEASED)

    def learn(self, org: str, work: str, model: str, good: float, weight: float = FEEDBACK) -> None:
        """`good` in [0, 1]: how good the answer was."""
        key, now_s = (org, work, model), self._clock()
        right, wrong = self._decayed(key, now_s)
        self._seen[key] = (right + weight * good, wrong + weight * (1 - good), now_s)
        self._seen.move_to_end(key)
        if len(self._seen) > self._most:
            self._seen.popitem(last=False)
            self.evicted += 1

    def of(self, org: str, work: str, models: Iterable[str]) -> dict[str, tuple[float, float]]:
        """Good and bad outcomes of each model that has any, as far as they still count."""
        now_s = self._clock()
        return {model: self._decayed((org, work, model), now_s) for model in models if (org, work, model) in self._seen}

    def _decayed(self, key: tuple[str, str, str], now_s: float) -> tuple[float, float]:
        right, wrong, then_s = self._seen.get(key, (0.0, 0.0, now_s))
        kept = 0.5 ** (max(0.0, now_s - then_s) / self._half_life_s)
        return right * kept, wrong * kept
