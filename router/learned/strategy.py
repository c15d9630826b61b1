"""The learned classifier's word on a whole conversation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.messages import Message
from router.features import excerpt, focus_of
from router.learned.model import WEIGHTS, Chances, Classifier
from router.ports import Assessment, Outlook
from router.settings import ClassifierSettings

SHORT_FOLLOW_UP_CHARS = 400
EARLIER_WEIGHT = 0.5


class LearnedStrategy:
    """What was said before counts half as far as it needs a large model more than the last user turn does; for a short
    follow-up ("and in Rust?") three quarters: it is about what was asked before."""

    name = "learned"

    def __init__(self, settings: ClassifierSettings) -> None:
        """Raises ValueError, saying which file and why, for weights that cannot be used."""
        self._classifier = Classifier(Path(settings.weights) if settings.weights else WEIGHTS)
        self.version = self._classifier.version

    def outlook(self, messages: Sequence[Message]) -> Outlook:
        part = excerpt(messages)
        focus = focus_of(part)
        here = self._classifier.chances(part[focus].text if part else "")
        asked = [m for i, m in enumerate(part) if i != focus and m.role == "user"]
        earlier = [self._classifier.chances(message.text) for message in asked]
        hardest = max(earlier, key=lambda chances: chances.need, default=here)
        short = bool(part) and len(part[focus].text) <= SHORT_FOLLOW_UP_CHARS and here.kind == "open"
        weight = EARLIER_WEIGHT * (1.5 if short else 1.0) if hardest.need > here.need else 0.0
        return _between(here, hardest, weight, self.version)

    def assess(self, messages: Sequence[Message], domain: str | None = None) -> Assessment:
        outlook = self.outlook(messages)
        factors = {"small": outlook.small, "large": outlook.large}
        return Assessment(outlook.score, outlook.work, factors, self.name, self.version, outlook)


def _between(here: Chances, earlier: Chances, weight: float, version: str) -> Outlook:
    small = here.small + weight * (earlier.small - here.small)
    large = here.large + weight * (earlier.large - here.large)
    return Outlook(small, large, here.work, here.abstains, version)
