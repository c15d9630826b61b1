"""A new attempt after a failure that passes, before the first event only."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace

from models.base import Call, ChatModel
from models.errors import ModelUnavailable, SwitchyardError
from models.messages import ChatRequest, Event
from models.reliability.circuit_breaker import CircuitOpen
from models.reliability.prompt_usage import AbandonedAttempts
from models.reliability.retry_budget import RetryBudget
from models.reliability.settings import RetrySettings
from models.reliability.tally import Tally


class Retrying:
    """Exponential back-off with full jitter
    (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/).

    Only what is `retryable` and no caller's fault. Retry-After is honoured where it fits into the caller's time; else
    the error goes out with it. A retry costs one of `budget`. After an attempt that was given up unanswered, and so may
    have cost its prompt, only as often as the call's `spare_attempts` have money for.
    """

    def __init__(
        self,
        model: ChatModel,
        settings: Callable[[], RetrySettings],
        budget: RetryBudget,
        tally: Tally,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._model, self._settings, self._budget, self._tally = model, settings, budget, tally
        self._random = random

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        clock = asyncio.get_running_loop().time
        deadline_s = clock() + call.timeout_s
        abandoned = AbandonedAttempts(request)
        self._budget.earn()
        attempts, started = 1, False
        while True:
            left_s = max(0.0, deadline_s - clock())
            attempt = replace(call, timeout_s=left_s, spare_attempts=call.spare_attempts - abandoned.count)
            try:
                async with aclosing(self._model.stream(request, attempt)) as events:  # type: ignore[type-var]
                    async for event in events:
                        yield abandoned.added(event)
                        if not started:
                            started = True
                            for early in abandoned.early():
                                yield early
                return
            except SwitchyardError as error:
                if started:
                    raise
                abandoned.count += error.abandoned
                error.abandoned = abandoned.count
                wait_s = self._wait_s(error, attempts, deadline_s - clock(), call.spare_attempts)
                if wait_s is None or not self._may_retry(request.model):
                    raise
            await asyncio.sleep(wait_s)
            attempts += 1

    def _wait_s(self, error: SwitchyardError, attempts: int, left_s: float, spare_attempts: int) -> float | None:
        """How long to wait before the next attempt; None: there is none."""
        settings = self._settings()
        if attempts >= settings.max_attempts or error.abandoned > spare_attempts or not _passes(error):
            return None
        if error.retry_after_s is not None:
            if error.retry_after_s > settings.max_wait_s:
                return None
            # Not all at the same moment that the provider named.
            wait_s = error.retry_after_s + self._random() * settings.base_s
        else:
            wait_s = self._random() * min(settings.max_backoff_s, settings.base_s * 2 ** (attempts - 1))
        return wait_s if wait_s < left_s else None

    def _may_retry(self, model: str) -> bool:
        allowed = self._budget.spend()
        self._tally.add("retries" if allowed else "retries_over_budget", model)
        return allowed

    async def check_health(self) -> None:
        await self._model.check_health()

    async def close(self) -> None:
        await self._model.close()


def _passes(error: SwitchyardError) -> bool:
    """Whether the same request may succeed in a moment. A provider that refuses the key, knows no such model or wants
    to be paid will do so again, and an open breaker stays open."""
    settled = isinstance(error, ModelUnavailable) and "provider_status" in error.details
    return error.retryable and not settled and not isinstance(error, CircuitOpen)
