"""The wrappers around one endpoint's adapter, in their order, with one set of settings and one set of counts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from models.base import Call, ChatModel
from models.catalog import ModelEntry
from models.messages import ChatRequest, Event
from models.reliability.circuit_breaker import CircuitBroken
from models.reliability.hedging import Hedged
from models.reliability.key_rotation import KeyRotation
from models.reliability.plausible_usage import PlausibleUsage
from models.reliability.retry_budget import RetryBudget
from models.reliability.retrying import Retrying
from models.reliability.settings import ReliabilitySettings
from models.reliability.tally import Tally
from models.reliability.timeouts import TimeBound


class ReliableModel:
    """A `ChatModel` around `models`: the same endpoint with each of its keys.

    `settings` may be replaced at any time; attempts that begin later follow them. The budget and the breakers are this
    object's own, so each process of an endpoint has its own.
    """

    def __init__(
        self,
        name: str,
        models: Sequence[ChatModel],
        entries: Iterable[ModelEntry],
        settings: ReliabilitySettings | None = None,
    ) -> None:
        entries = list(entries)
        names = [entry.name for entry in entries]
        self.settings = settings or ReliabilitySettings()
        self._first = models[0]
        self._tally = tally = Tally()
        budget = RetryBudget(lambda: self.settings.retries)
        attempts = [
            TimeBound(PlausibleUsage(model, entries, tally), lambda: self.settings.timeouts, tally) for model in models
        ]
        self._keys = KeyRotation(attempts, name, lambda: self.settings.keys, tally) if len(attempts) > 1 else None
        self._broken = CircuitBroken(self._keys or attempts[0], names, lambda: self.settings.breaker, tally)
        hedged = Hedged(self._broken, names, lambda: self.settings.hedging, budget, tally)
        self._outermost = Retrying(hedged, lambda: self.settings.retries, budget, tally)

    def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        return self._outermost.stream(request, call)

    async def count_tokens(self, request: ChatRequest, call: Call) -> int | None:
        """How long the provider finds the question, which costs nothing; None where it does not count."""
        counter = getattr(self._first, "count_tokens", None)
        return await counter(request, call) if counter else None

    def stats(self) -> dict[str, dict[str, Any]]:
        """Counts since the start by name and label, and what is so now: plain values, for the metrics."""
        states = self._broken.states()
        return {
            **self._tally.snapshot(),
            "breaker_open": {model: int(state != "closed") for model, state in states.items()},
            "keys_resting": {"": self._keys.resting()} if self._keys else {},
        }

    async def check_health(self) -> None:
        """Raises `ModelUnavailable` when the provider is down or no model of it is asked just now."""
        await self._outermost.check_health()

    async def close(self) -> None:
        await self._outermost.close()
