"""`switchyard place`: where a new model stands, from labelled outcomes."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.labels import labelled
from cluster.logged import logged
from models.catalog import TIERS
from models.errors import InvalidRequest
from router.placing import place
from router.ports import Outlook

LEAST_OUTCOMES = 24
TELLING = 0.05
"""What a large model has to add to the chance of a good answer. Where it adds nothing, an outcome says nothing of where
a model stands, only how far the classifier is off there."""


def place_model(model: str, tier: str, labels: Path | None, log: Path | None) -> str:
    """From JSON lines `{"prompt", "good"}` (good in [0, 1], or true and false), and from an export of the books, of
    what callers said about answers of `model`. Raises `InvalidRequest` for files that cannot be used."""
    outcomes = [*(_labelled(labels) if labels else ()), *(_rated(log, model) if log else ())]
    telling = [(outlook, good) for outlook, good in outcomes if outlook.large - outlook.small >= TELLING]
    if len(telling) < LEAST_OUTCOMES:
        raise InvalidRequest(
            f"{len(telling)} of {len(outcomes)} outcomes tell a small model from a large one, which are too few to "
            f"place a model: give {LEAST_OUTCOMES} or more of questions that a large model answers better, with "
            "--labels or --log."
        )
    found = place(telling, TIERS.index(tier) / (len(TIERS) - 1))
    return "\n".join(
        (
            f"{found.outcomes} of {len(outcomes)} outcomes tell a small model from a large one; of these "
            f"{found.good:.0%} are good (expected at the place found: {found.expected:.0%})",
            f"quality {found.quality:g} (95 %: {found.low:g} to {found.high:g}; 0 is a small model, 1 a large one)",
            "For the user_config of Ingress:",
            f"routing: {{quality: {{{json.dumps(model)}: {found.quality:g}}}}}",
        )
    )


def _labelled(path: Path) -> list[tuple[Outlook, float]]:
    from router.learned.strategy import LearnedStrategy
    from router.settings import ClassifierSettings

    strategy = LearnedStrategy(ClassifierSettings())
    return [(strategy.outlook(messages), good) for messages, good in labelled(path)]


def _rated(path: Path, model: str) -> list[tuple[Outlook, float]]:
    found = []
    for row in logged(path):
        outlook = ((row.decision.get("basis") or {}).get("assessment") or {}).get("outlook")
        if outlook and row.quality is not None and row.action == model and row.answered:
            found.append((Outlook(**outlook), row.quality))
    return found
