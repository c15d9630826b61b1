"""The learned classifier's word on a whole conversation, and that of the heads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from models.messages import Message
from router.features import excerpt, focus_of
from router.learned.hashing import Sparse, asked_terms
from router.learned.heads import Head, load_head
from router.learned.model import WEIGHTS, Chances, Classifier
from router.ports import Assessment, Outlook
from router.settings import ClassifierSettings

SHORT_FOLLOW_UP_CHARS = 400
EARLIER_WEIGHT = 0.5


class LearnedStrategy:
    """What was said before counts half as far as it needs a large model more than the last user turn does; for a short
    follow-up ("and in Rust?") three quarters: it is about what was asked before. Models with a head have a chance of
    their own.

    `warning` names the heads that cannot be used, and what is done instead; empty when all can.
    """

    name = "learned"

    def __init__(self, settings: ClassifierSettings) -> None:
        """Raises ValueError, saying which file and why, for weights that cannot be used."""
        self._classifier = Classifier(Path(settings.weights) if settings.weights else WEIGHTS)
        self._heads, self.warning = _loaded(settings.heads)
        self.version = _version(self._classifier, self._heads)

    def outlook(self, messages: Sequence[Message]) -> Outlook:
        part = excerpt(messages)
        focus = focus_of(part)
        here = self._classifier.chances(part[focus].text if part else "")
        asked = [m for i, m in enumerate(part) if i != focus and m.role == "user"]
        earlier = [self._classifier.chances(message.text) for message in asked]
        hardest = max(earlier, key=lambda chances: chances.need, default=here)
        short = bool(part) and len(part[focus].text) <= SHORT_FOLLOW_UP_CHARS and here.kind == "open"
        weight = EARLIER_WEIGHT * (1.5 if short else 1.0) if hardest.need > here.need else 0.0
        outlook = _between(here, hardest, weight, self.version)
        if not self._heads:
            return outlook
        terms = terms_of(part)
        said = {name: head.chance(terms) for name, head in self._heads.items()}
        return replace(outlook, heads={name: chance for name, chance in said.items() if chance is not None})

    def assess(self, messages: Sequence[Message], domain: str | None = None) -> Assessment:
        outlook = self.outlook(messages)
        factors = {"small": outlook.small, "large": outlook.large}
        return Assessment(outlook.score, outlook.work, factors, self.name, self.version, outlook)


def terms_of(messages: Sequence[Message]) -> Sparse:
    """What heads go by: the last user turn, and those before it as such."""
    part = excerpt(messages)
    focus = focus_of(part)
    earlier = [message.text for message in part[:focus] if message.role == "user"]
    return asked_terms(part[focus].text if part else "", earlier)


def _loaded(files: Mapping[str, str | None]) -> tuple[dict[str, Head], str]:
    heads: dict[str, Head] = {}
    warnings = []
    for model, file in files.items():
        if file is not None:
            try:
                heads[model] = load_head(file)
            except ValueError as error:
                warnings.append(f"{error}. Until then `{model}` is placed by its quality.")
    return heads, " ".join(warnings)


def _version(classifier: Classifier, heads: Mapping[str, Head]) -> str:
    if not heads:
        return classifier.version
    named = sorted((model, head.version) for model, head in heads.items())
    return f"{classifier.version}-{hashlib.sha256(repr(named).encode()).hexdigest()[:8]}"


def _between(here: Chances, earlier: Chances, weight: float, version: str) -> Outlook:
    small = here.small + weight * (earlier.small - here.small)
    large = here.large + weight * (earlier.large - here.large)
    return Outlook(small, large, here.work, here.abstains, version)
