"""What the tokens of local models really cost: the hours of their nodes over what their replicas were measured to do.

A price list (`NodePrice`) says how many tokens a busy replica does in an hour. The Batcher knows how long replicas were
busy and what came of it, over all ingresses. The quotient of the two times is a factor on the listed price:

    (prior + seconds that they were busy) / (prior + seconds that the list gives for the same tokens)

One factor for input and output, since one time cannot tell two rates apart. Decisions go by it; the books do not (what
somebody pays must not depend on how busy others keep a replica). A replica with few requests at a time does little in
an hour, so its tokens are dear, which sends requests elsewhere, which makes them dearer. That loop is kept slow and
short: the prior pulls back, what was measured fades, a factor moves by `MOST_A_MINUTE` at most and stays within bounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from router.accounting.prices import PriceBook
from router.work import Work

PRIOR_S = 600.0
"""The listed price counts as much as so many replica-seconds."""
LEAST_S = 30.0
"""Of work, before which nothing is said."""
MOST_A_MINUTE = 1.1
"""By which a factor grows or shrinks at most."""
LEAST_FACTOR, MOST_FACTOR = 0.1, 10.0


def factor_of(work: Work, listed_s: float) -> float:
    """Never zero, 1 without measurements. listed_s: how long the list says that this work takes."""
    if work.busy_s < LEAST_S:
        return 1.0
    return min(MOST_FACTOR, max(LEAST_FACTOR, (PRIOR_S + work.busy_s) / (PRIOR_S + max(0.0, listed_s))))


class NodeCosts:
    """Of each model that has a backend to itself (backend -> model), in one ingress. All ingresses go by the same
    measurements, so their factors meet."""

    def __init__(self, models: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._models, self._clock = models, clock
        self._seen: Mapping[str, Work] = {}
        self._at_s = clock()
        self._factors: dict[str, float] = {}

    def take(self, recent: Mapping[str, Work], prices: PriceBook) -> None:
        """Move towards what was measured. Does nothing where `recent` is what it was the last time: so a factor stays
        the same for some seconds, and all arms of a decision see one."""
        if recent is self._seen:
            return
        now_s = self._clock()
        most = MOST_A_MINUTE ** (min(60.0, now_s - self._at_s) / 60.0)
        self._seen, self._at_s = recent, now_s
        for backend, model in self._models.items():
            work = recent.get(backend, Work())
            listed_s = prices.replica_seconds(model, work.input_tokens, work.output_tokens)
            if listed_s is None:
                self._factors.pop(model, None)
                continue
            target, last = factor_of(work, listed_s), self._factors.get(model)
            if last is not None:
                target = min(last * most, max(last / most, target))
            if last is not None or work.busy_s >= LEAST_S:
                self._factors[model] = target

    def factor(self, model: str) -> float:
        """On the listed price of its tokens; 1 where that is not a node's, or nothing was measured."""
        return round(self._factors.get(model, 1.0), 3)

    def explained(self) -> dict[str, dict[str, float]]:
        """By model with measurements: the factor and what it comes from, as plain JSON values."""
        works = {model: self._seen.get(backend, Work()) for backend, model in self._models.items()}
        return {
            model: {
                "factor": self.factor(model),
                "busy_replica_s": round(works[model].busy_s, 1),
                "input_tokens": round(works[model].input_tokens),
                "output_tokens": round(works[model].output_tokens),
            }
            for model in self._factors
        }
