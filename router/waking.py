"""What becomes of models that scale to zero while `auto` chooses: others answer, and the best one is woken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from router.constraints import Candidate
from router.policy import Decision


def among_awake(known: Sequence[Candidate], decide: Callable[[Sequence[Candidate]], Decision]) -> Decision:
    """The choice among models that run, where one of them may answer; it says whom to wake for the next request."""
    decision = decide(known)
    asleep = {candidate.entry.name for candidate in known if candidate.asleep}
    if not asleep or decision.model in asleep:
        return decision
    best = decide([replace(candidate, asleep=False) for candidate in known]).model
    return replace(decision, wakes=best) if best in asleep else decision
