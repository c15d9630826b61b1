"""All that is said about a question before a model is chosen: the operator's or the four factors' score, and the
learned classifier's chances where its weights load."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from models.messages import Message
from router.ports import Assessment
from router.settings import ClassifierSettings
from router.strategies import ComplexityStrategy, Strategy, custom_strategy

if TYPE_CHECKING:
    from router.learned.strategy import LearnedStrategy

log = logging.getLogger(__name__)


class Assessor:
    """`warning` says what is done without, and what to do about it; empty when nothing is."""

    def __init__(self, settings: ClassifierSettings) -> None:
        self.warning = ""
        self._strategy: Strategy = ComplexityStrategy(settings)
        self._learned: LearnedStrategy | None = None
        try:
            if settings.custom:
                self._strategy = custom_strategy(settings)
            if settings.learned:
                from router.learned.strategy import LearnedStrategy

                self._learned = LearnedStrategy(settings)
                self.warning = self._learned.warning
        except ValueError as error:
            self.warning = f"{error}. Until then the strategy `complexity` stands in."
        if self.warning:
            log.error("router: %s", self.warning)

    def assess(self, messages: Sequence[Message], domain: str | None = None) -> Assessment:
        """Pure. An `outlook` only where the learned classifier works."""
        assessment = self._strategy.assess(messages, domain)
        if self._learned is None:
            return replace(assessment, warning=self.warning)
        return replace(assessment, outlook=self._learned.outlook(messages), warning=self.warning)
