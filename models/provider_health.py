"""How a provider does: how its last answers went, and a free question where there were none for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from models.base import Call, ChatModel
from models.errors import (
    ModelUnavailable,
    RateLimited,
    StreamInterrupted,
    SwitchyardError,
    UpstreamFailed,
    is_refusal,
)
from models.messages import ChatRequest, Event

FRESH_S = 30.0
"""How long what was seen last stands for now."""
_FAULTS = (ModelUnavailable, UpstreamFailed, StreamInterrupted)


class Watched:
    """A `ChatModel` that remembers how the one that it wraps did.

    `state` is healthy, limited (it asked us to slow down), unhealthy or unknown. What is wrong with a request says
    nothing about the provider; where one is refused (403), a question after its health tells.
    """

    def __init__(self, model: ChatModel, now_s: Callable[[], float] = time.time) -> None:
        self._model = model
        self._now_s = now_s
        self._state = "unknown"
        self._seen_s: float | None = None
        self._last_error_code: str | None = None
        self._check: asyncio.Task[None] | None = None

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        answered = False
        try:
            async with aclosing(self._model.stream(request, call)) as events:  # type: ignore[type-var]
                async for event in events:
                    if not answered:
                        answered = True
                        self._note(None)
                    yield event
        except SwitchyardError as error:
            if not is_refusal(error):
                self._note(error)
            raise

    async def check_health(self) -> None:
        await self._model.check_health()

    async def close(self) -> None:
        if self._check is not None:
            self._check.cancel()
        await self._model.close()

    async def health(self, wait_s: float) -> dict[str, Any]:
        """state, checked_at (ISO 8601, UTC) and last_error_code, as plain values. What is older than `FRESH_S` is
        looked at anew, for which this waits no longer than `wait_s`: then it says what was known before."""
        if self._seen_s is None or self._now_s() - self._seen_s > FRESH_S:
            if self._check is None or self._check.done():
                self._check = asyncio.create_task(self._look())
            await asyncio.wait({self._check}, timeout=wait_s)
        seen = None if self._seen_s is None else datetime.fromtimestamp(self._seen_s, UTC).isoformat(timespec="seconds")
        return {"state": self._state, "checked_at": seen, "last_error_code": self._last_error_code}

    async def _look(self) -> None:
        try:
            await self._model.check_health()
        except SwitchyardError as error:
            self._note(error)
        except Exception:  # a fault of ours: the next request meets it too, and logs it
            self._note(UpstreamFailed("The provider could not be asked after its health."))
        else:
            self._note(None)

    def _note(self, error: SwitchyardError | None) -> None:
        if error is None:
            self._state = "healthy"
        elif isinstance(error, RateLimited):
            self._state = "limited"
        elif isinstance(error, _FAULTS):
            self._state = "unhealthy"
        else:
            return
        self._seen_s = self._now_s()
        if error is not None:
            self._last_error_code = error.code
