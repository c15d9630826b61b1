"""The audits of a shard: which hits are asked of the model anyway, and what was learned from the answers that came.

A lookup that found a candidate and goes to the model all the same (a near miss, or a hit drawn for an audit) is pending
until the model's answer is stored, under the same question. Then the two answers are compared, and the tenant's bound
hears of it.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass

from router.error_bound import ErrorBound
from router.settings import CacheSettings

MAX_PENDING = 4096
MAX_TENANTS = 4096
PATIENCE = 8
"""Audits without a single comparison after which a tenant is audited no more: they would only cost."""

TIGHTER = 0.01
"""By how much the score of a wrong candidate has to be exceeded by the next that the same entry answers."""


@dataclass(frozen=True, slots=True)
class Pending:
    """`entry_id`: the candidate that could have answered, `score`: what the verifier said of it."""

    tenant: str
    entry_id: int
    score: float

    @property
    def least_score(self) -> float:
        """Of the next question that the candidate may answer, when it was wrong for this one."""
        return min(1.01, self.score + TIGHTER)


class Audits:
    """Not for several threads. What is more than the bounds allow is forgotten, oldest first; the tenant then starts
    from the configured threshold again."""

    def __init__(self, settings: CacheSettings, seed: int | None = None) -> None:
        self._settings = settings
        self._rng = random.Random(seed)
        self._bounds: OrderedDict[str, ErrorBound] = OrderedDict()
        self._pending: OrderedDict[str, Pending] = OrderedDict()
        self._drawn: dict[str, int] = {}
        self.lost = 0

    def reconfigure(self, settings: CacheSettings) -> None:
        """Other settings for the bound begin it anew."""
        if (settings.delta, settings.min_score, settings.audit) != (
            self._settings.delta,
            self._settings.min_score,
            self._settings.audit,
        ):
            self._bounds.clear()
            self._drawn.clear()
        self._settings = settings

    def threshold(self, tenant: str, delta: float | None = None) -> float:
        """The score from which a candidate may answer. A request that allows fewer wrong answers than the operator gets
        no more than what the operator began with."""
        settings = self._settings
        if not settings.audit:
            return settings.min_score
        learned = self._bound(tenant).threshold
        return learned if delta is None or delta >= settings.delta else max(learned, settings.min_score)

    def draws(self, tenant: str, score: float) -> bool:
        """Whether this hit is to be audited."""
        if not self._settings.audit:
            return False
        bound = self._bound(tenant)
        if bound.compared == 0 and self._drawn.get(tenant, 0) >= PATIENCE:
            return False
        drawn = self._rng.random() < bound.audit_share(score)
        self._drawn[tenant] = self._drawn.get(tenant, 0) + drawn
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

    def take(self, exact: str) -> Pending | None:
        """What waited for the answer to this question."""
        return self._pending.pop(exact, None)

    def compared(self, pending: Pending, same: bool | None) -> None:
        self._bound(pending.tenant).see(pending.score, same)

    def stats(self, tenant: str) -> dict[str, float | int]:
        """Of one tenant: what may be wrong at most, how sure that is, what it cost."""
        bound = self._bounds.get(tenant)
        if bound is None:
            return {"threshold": self._settings.min_score, "requests": 0}
        return {
            "delta": bound.delta,
            "threshold": bound.threshold,
            "requests": bound.requests,
            "served_similar": bound.served,
            "audited": bound.audited,
            "compared": bound.compared,
            "other_answers": bound.wrong,
            "retreats": bound.retreats,
            "wrong_per_request_at_most": bound.upper_bound(),
            "confidence": 0.95,
        }

    def totals(self) -> dict[str, int]:
        """Over all tenants, for the metrics."""
        bounds = self._bounds.values()
        return {
            "audited": sum(bound.audited for bound in bounds),
            "compared": sum(bound.compared for bound in bounds),
            "other_answers": sum(bound.wrong for bound in bounds),
            "retreats": sum(bound.retreats for bound in bounds),
            "audits_lost": self.lost,
        }

    def _bound(self, tenant: str) -> ErrorBound:
        bound = self._bounds.get(tenant)
        if bound is None:
            settings = self._settings
            bound = self._bounds[tenant] = ErrorBound(settings.delta, settings.min_score, settings.audit)
            while len(self._bounds) > MAX_TENANTS:
                gone, _ = self._bounds.popitem(last=False)
                self._drawn.pop(gone, None)
        self._bounds.move_to_end(tenant)
        return bound
