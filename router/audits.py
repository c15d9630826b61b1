"""The audits of a shard: which hits are asked of the model anyway, and what was learned from the answers that came.

A lookup that found a candidate and goes to the model all the same (a near miss, or a hit drawn for an audit) is pending
until the model's answer is stored, under the same question. Then the two answers are compared, and the tenant's bound
hears of it.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass

from router.error_bound import NEVER, ErrorBound, start_for
from router.settings import CacheSettings

MAX_PENDING = 4096
MAX_TENANTS = 4096
PATIENCE = 8
"""Audits without a single comparison after which a tenant is audited no more: they would only cost."""

TIGHTER = 0.01
"""By how much the score of a wrong candidate has to be exceeded by the next that the same entry answers."""


@dataclass(frozen=True, slots=True)
class Pending:
    """`entry_id`: the candidate that could have answered, `score`: what the verifier said of it. `drawn`: it would have
    answered, but for an audit."""

    tenant: str
    entry_id: int
    score: float
    drawn: bool = False

    @property
    def least_score(self) -> float:
        """Of the next question that the candidate may answer, when it was wrong for this one."""
        return min(NEVER, self.score + TIGHTER)


@dataclass(slots=True)
class Spent:
    """`asked`: hits that were sent to a model, `microusd`: what the answers cost that came."""

    asked: int = 0
    microusd: int = 0


class Audits:
    """Not for several threads. What is more than the bounds allow is forgotten, oldest first; the tenant then starts
    from the configured threshold again."""

    def __init__(self, settings: CacheSettings, seed: int | None = None) -> None:
        self._settings = settings
        self._rng = random.Random(seed)
        self._bounds: OrderedDict[str, ErrorBound] = OrderedDict()
        self._pending: OrderedDict[str, Pending] = OrderedDict()
        self._spent: dict[str, Spent] = {}
        self._all_spent = Spent()
        self.lost = 0

    def reconfigure(self, settings: CacheSettings) -> None:
        """Other settings for the bound begin it anew."""
        if (settings.delta, settings.min_score, settings.audit) != (
            self._settings.delta,
            self._settings.min_score,
            self._settings.audit,
        ):
            self._bounds.clear()
            self._spent.clear()
            self._pending.clear()
        self._settings = settings

    def threshold(self, tenant: str, delta: float | None = None) -> float:
        """The score from which a candidate may answer. A request that allows fewer wrong answers than the operator gets
        no more than what a cache of that `delta` begins with."""
        settings = self._settings
        allowed = min(delta or settings.delta, settings.delta)
        start = start_for(allowed, settings.min_score)
        if not settings.audit:
            return start
        learned = self._bound(tenant).threshold
        return max(learned, start) if allowed < settings.delta else learned

    def draws(self, tenant: str, score: float) -> bool:
        """Whether this hit is to be audited."""
        if not self._settings.audit:
            return False
        bound, spent = self._bound(tenant), self._spent[tenant]
        if bound.compared == 0 and spent.asked >= PATIENCE:
            return False
        drawn = self._rng.random() < bound.audit_share(score)
        spent.asked += drawn
        self._all_spent.asked += drawn
        return drawn

    def served(self, tenant: str, score: float | None) -> None:
        """A hit that was given out, or (None) a request without any candidate."""
        if self._settings.audit:
            self._bound(tenant).see(score, None)

    def wait(self, exact: str, pending: Pending) -> None:
        """The model is asked now, under this exact key."""
        if not self._settings.audit:
            return
        self._pending[exact] = pending
        self._pending.move_to_end(exact)
        while len(self._pending) > MAX_PENDING:
            self._pending.popitem(last=False)
            self.lost += 1

    def waiting(self, exact: str) -> Pending | None:
        """What waits for the answer to this question."""
        return self._pending.get(exact)

    def take(self, exact: str) -> Pending | None:
        """The same, which then waits no more."""
        return self._pending.pop(exact, None)

    def paid(self, pending: Pending, cost_microusd: int) -> None:
        """What the model's answer cost, which an audit had it give although there was one."""
        if pending.drawn:
            self._bound(pending.tenant)
            for spent in (self._spent[pending.tenant], self._all_spent):
                spent.microusd += cost_microusd

    def compared(self, pending: Pending, same: bool | None) -> None:
        self._bound(pending.tenant).see(pending.score, same, pending.drawn)

    def stats(self, tenant: str) -> dict[str, float | int]:
        """Of one tenant: what may be wrong at most, how sure that is, what it cost."""
        bound = self._bounds.get(tenant)
        if bound is None:
            return {"threshold": start_for(self._settings.delta, self._settings.min_score), "requests": 0}
        spent = self._spent[tenant]
        return {
            "delta": bound.delta,
            "threshold": bound.threshold,
            "requests": bound.requests,
            "served_similar": bound.served,
            "audits": spent.asked,
            "audit_cost_microusd": spent.microusd,
            "audited": bound.audited,
            "compared": bound.compared,
            "other_answers": bound.wrong,
            "retreats": bound.retreats,
            "wrong_per_request_at_most": bound.upper_bound(),
            "confidence": 0.95,
        }

    def totals(self) -> dict[str, float]:
        """Over all tenants, for the metrics: sums, and the largest of the bounds that say anything."""
        bounds = self._bounds.values()
        said = [most for bound in bounds if (most := bound.last_upper_bound) < 1]
        return {
            "wrong_at_most": max(said, default=1.0),
            "unbounded": len(bounds) - len(said),
            "audits": self._all_spent.asked,
            "audit_microusd": self._all_spent.microusd,
            "audited": sum(bound.audited for bound in bounds),
            "compared": sum(bound.compared for bound in bounds),
            "other_answers": sum(bound.wrong for bound in bounds),
            "retreats": sum(bound.retreats for bound in bounds),
            "audits_lost": self.lost,
        }

    def _bound(self, tenant: str) -> ErrorBound:
        bound = self._bounds.get(tenant)
        if bound is None:
            settings, self._spent[tenant] = self._settings, Spent()
            start = start_for(settings.delta, settings.min_score)
            bound = self._bounds[tenant] = ErrorBound(settings.delta, start, settings.audit)
            while len(self._bounds) > MAX_TENANTS:
                gone, _ = self._bounds.popitem(last=False)
                del self._spent[gone]
        self._bounds.move_to_end(tenant)
        return bound
