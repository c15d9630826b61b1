"""What a decision went by, in plain JSON values, and back: so that a logged one can be made again by another policy.

No prompt is kept: what the assessment said of it is, and what was known of each model that could have been chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from models.catalog import ModelEntry, Tier
from router.constraints import Candidate
from router.objective import Evidence
from router.ports import Assessment, Outlook


def basis_of(
    assessment: Assessment, eligible: Sequence[Candidate], evidence: Evidence, wished: str | None
) -> dict[str, Any]:
    """`wished`: the strategy that the caller asked for. What is the default of a `Candidate` is left out. The factors
    are the decision's own."""
    said = {name: getattr(assessment, name) for name in ("score", "task", "strategy", "strategy_version", "warning")}
    outlook = assessment.outlook
    return {
        "assessment": {**said, "outlook": asdict(outlook) if outlook else None},
        "models": {candidate.entry.name: _known(candidate, evidence) for candidate in eligible},
        "wished": wished,
    }


def rebuilt(decision: Mapping[str, Any]) -> tuple[Assessment, list[Candidate], dict[str, tuple[float, float]]]:
    """What `policy.decide` was given, of a logged decision that has a `basis`: only those that could have been chosen.

    Raises KeyError, TypeError or ValueError for what is none.
    """
    basis = decision["basis"]
    said = dict(basis["assessment"])
    outlook = said.pop("outlook")
    assessment = Assessment(factors=dict(decision["factors"]), outlook=Outlook(**outlook) if outlook else None, **said)
    models: Mapping[str, Mapping[str, Any]] = basis["models"]
    evidence = {
        name: (float(known["evidence"][0]), float(known["evidence"][1]))
        for name, known in models.items()
        if "evidence" in known
    }
    return assessment, [_candidate(name, known) for name, known in models.items()], evidence


def _known(candidate: Candidate, evidence: Evidence) -> dict[str, Any]:
    entry = candidate.entry
    known: dict[str, Any] = {"tier": entry.tier, "cost": candidate.expected_cost_microusd}
    if entry.quality is not None:
        known["quality"] = entry.quality
    if candidate.first_token_ms is not None:
        known["first_token_ms"] = candidate.first_token_ms
    if candidate.node_factor != 1.0:
        known["node_factor"] = candidate.node_factor
    if candidate.switch_cost_microusd:
        known["switch"] = candidate.switch_cost_microusd
    if entry.name in evidence:
        known["evidence"] = list(evidence[entry.name])
    return known


def _candidate(name: str, known: Mapping[str, Any]) -> Candidate:
    entry = _entry(name, known["tier"], known.get("quality"))
    return Candidate(
        entry,
        "",
        known["cost"],
        known.get("first_token_ms"),
        known.get("switch", 0),
        node_factor=known.get("node_factor", 1.0),
    )


@lru_cache(maxsize=4096)
def _entry(name: str, tier: Tier, quality: float | None) -> ModelEntry:
    """Its engine and its window are not known here, nor asked for: it was eligible."""
    return ModelEntry(name=name, engine="simulated", tier=tier, quality=quality, context_tokens=1)
