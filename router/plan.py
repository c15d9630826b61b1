"""Which models a request tries, in which order, and what a failure or an answer that does not convince changes."""

from __future__ import annotations

from collections.abc import Mapping

from models.catalog import ModelEntry
from models.errors import (
    BudgetExceeded,
    ContentRefused,
    ContextLengthExceeded,
    ModelUnavailable,
    StreamInterrupted,
    SwitchyardError,
)
from models.reliability.circuit_breaker import CircuitOpen
from router.policy import Decision
from router.settings import GateSettings, RoutingSettings
from router.steps import stronger


class Plan:
    """Of one request. `left` are the models that were not tried yet, or are to be tried again."""

    def __init__(self, decision: Decision, entries: Mapping[str, ModelEntry], routing: RoutingSettings) -> None:
        self.left = [decision.model, *decision.fallbacks]
        self._entries, self._routing = entries, routing
        self._steps, self._asleep = decision.cascade, decision.wakes
        self._tried: list[str] = []
        self._escalated: list[str] = []  # whose answer was only not good enough

    def next(self) -> str:
        """The model to try now."""
        model = self.left.pop(0)
        self._tried.append(model)
        return model

    def gate(self, model: str) -> GateSettings | None:
        """By what the answer of `model` is judged: in a cascade, as long as a stronger step could be asked instead."""
        return self._routing.gate_of(model) if set(self._steps) & set(self._stronger(model)) else None

    def filter_escalates(self) -> bool:
        """Whether an answer that a content filter ends before its first text is left for another model's."""
        return self._routing.content_filter_falls_back and bool(self.left)

    def failed(self, model: str, error: SwitchyardError, began: bool) -> None:
        """`model` failed with `error` before anything of its answer was given out. began: it had sent something."""
        if isinstance(error, BudgetExceeded):
            # Who cannot pay for those that run may have enough for the one that would have been chosen.
            self.left = [other for other in self.left if other in self._escalated or other == self._asleep]
        elif isinstance(error, ContextLengthExceeded):
            room, able = self._entries[model].context_tokens, self._escalated
            self.left = [other for other in self.left if other in able or self._entries[other].context_tokens > room]
        elif isinstance(error, ContentRefused) and self._routing.content_filter_falls_back:
            pass  # as an answer that a filter ends before its first text
        elif not (error.retryable or isinstance(error, StreamInterrupted)):
            self.left = []
        elif self._died(error) and not (began or error.abandoned) and self._tried.count(model) == 1:
            self.left.insert(0, model)  # its replica died: another one, or its successor, may take it

    def escalate(self, model: str) -> None:
        """The answer of `model` does not convince: a stronger model next, the cascade's own steps first. Should all of
        those fail, it is better than none."""
        self._escalated.append(model)
        better = sorted(self._stronger(model), key=lambda other: other not in self._steps)
        self.left = [*better, model, *(other for other in self.left if other not in better)]

    def _stronger(self, model: str) -> list[str]:
        return [other for other in self.left if stronger(self._entries[other], self._entries[model])]

    @staticmethod
    def _died(error: SwitchyardError) -> bool:
        return isinstance(error, ModelUnavailable) and not isinstance(error, CircuitOpen)
