"""What becomes of models that scale to zero while `auto` chooses: others answer, and the best one is woken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from router.constraints import Candidate
from router.policy import Circumstances, Decision

Decide = Callable[[Sequence[Candidate], Circumstances], Decision]


def among_awake(known: Sequence[Candidate], circumstances: Circumstances, decide: Decide) -> Decision:
    """The choice among models that run, where one of them may answer; it says whom to wake for the next request. Nobody
    is woken by lot: a replica would be started for a share of all requests, however rarely it is the best."""
    decision = decide(known, circumstances)
    asleep = {candidate.entry.name for candidate in known if candidate.asleep}
    if not asleep or decision.model in asleep:
        return decision
    best = decide([replace(candidate, asleep=False) for candidate in known], replace(circumstances, draw=1.0))
    wanted = (model for model in (best.model, *best.cascade) if model in asleep)
    return replace(decision, wakes=next(wanted, None))
