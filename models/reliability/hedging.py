"""A second attempt beside one that is slow to begin. The first to answer is the answer.

J. Dean, L. A. Barroso: The Tail at Scale (https://research.google/pubs/the-tail-at-scale/).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace

from models.base import Call, ChatModel
from models.errors import SwitchyardError
from models.messages import ChatRequest, Event
from models.reliability.prompt_usage import AbandonedAttempts
from models.reliability.retry_budget import RetryBudget
from models.reliability.settings import HedgeSettings
from models.reliability.tally import Tally

_MEASURED = 200
_ENOUGH = 20


class Hedged:
    """Off by default. Hedges only where the call has a spare attempt, so that money is set aside for both, and takes
    each hedge from the retry budget. The loser is cancelled at once; the prompt it may have cost is added to the usage.
    """

    def __init__(
        self,
        model: ChatModel,
        names: Iterable[str],
        settings: Callable[[], HedgeSettings],
        budget: RetryBudget,
        tally: Tally,
    ) -> None:
        self._model, self._settings, self._budget, self._tally = model, settings, budget, tally
        self._ttfts_s = {name: deque[float](maxlen=_MEASURED) for name in names}

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        delay_s = self._delay_s(request.model) if call.spare_attempts > 0 else None
        if delay_s is None or delay_s >= call.timeout_s:
            clock = asyncio.get_running_loop().time
            began_s, started = clock(), False
            async with aclosing(self._model.stream(request, call)) as events:  # type: ignore[type-var]
                async for event in events:
                    if not started:
                        started = True
                        self._measure(request.model, clock() - began_s)
                    yield event
            return
        race = _Race(self._model, request, replace(call, spare_attempts=0))
        try:
            first = await race.first(delay_s, self._may_hedge)
            if race.winner > 0:
                self._tally.add("hedges_won", request.model)
            self._measure(request.model, race.waited_s)
            if first is None:
                return
            yield first
            for early in race.abandoned.early():
                yield early
            async for event in race.rest():
                yield race.abandoned.added(event)
        finally:
            await race.close()

    def _may_hedge(self, model: str) -> bool:
        allowed = self._budget.spend()
        self._tally.add("hedges" if allowed else "retries_over_budget", model)
        return allowed

    def _delay_s(self, model: str) -> float | None:
        """How long the first attempt has for itself; None: there is no second one."""
        settings = self._settings()
        if settings.mode == "off":
            return None
        ttfts_s = self._ttfts_s.get(model, ())
        if settings.mode == "fixed" or len(ttfts_s) < _ENOUGH:
            return settings.after_s
        return sorted(ttfts_s)[int(0.95 * len(ttfts_s))]

    def _measure(self, model: str, ttft_s: float) -> None:
        if model in self._ttfts_s:
            self._ttfts_s[model].append(ttft_s)

    async def check_health(self) -> None:
        await self._model.check_health()

    async def close(self) -> None:
        await self._model.close()


class _Race:
    """Up to two attempts at one request."""

    def __init__(self, model: ChatModel, request: ChatRequest, call: Call) -> None:
        self._model, self._request, self._call = model, request, call
        self._clock = asyncio.get_running_loop().time
        self._began_s = self._clock()
        self._streams: list[AsyncIterator[Event]] = []
        self._firsts: list[asyncio.Task[Event | None]] = []
        self._leaving: dict[int, asyncio.Task[None]] = {}
        self.abandoned = AbandonedAttempts(request)
        self.winner = 0

    @property
    def waited_s(self) -> float:
        """Of the first attempt, until there was an answer: of a slow one that lost, what is known."""
        return self._clock() - self._began_s

    async def first(self, delay_s: float, may_hedge: Callable[[str], bool]) -> Event | None:
        """The first event of the winner; None when it ended without one. Raises when all attempts have failed."""
        self._start()
        await asyncio.wait(self._firsts, timeout=delay_s)
        if not self._firsts[0].done() and may_hedge(self._request.model):
            self._start()
        errors: list[SwitchyardError] = []
        while pending := [task for task in self._firsts if not (task.done() and task.exception())]:
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for number, task in enumerate(self._firsts):
                if task.done() and not task.exception():
                    self.winner = number
                    self._leave_others(number)
                    return task.result()
        for task in self._firsts:
            error = task.exception()
            if not isinstance(error, SwitchyardError):
                assert error is not None
                raise error
            errors.append(error)
        errors[0].abandoned = sum(error.abandoned for error in errors)
        raise errors[0]

    def rest(self) -> AsyncIterator[Event]:
        return self._streams[self.winner]

    async def close(self) -> None:
        """Leave nothing behind, in whatever state."""
        for number in range(len(self._streams)):
            self._leave(number)
        await asyncio.gather(*self._leaving.values())

    def _leave(self, number: int) -> None:
        if number not in self._leaving:
            self._firsts[number].cancel()
            self._leaving[number] = asyncio.create_task(self._closed(number))

    async def _closed(self, number: int) -> None:
        await asyncio.gather(self._firsts[number], return_exceptions=True)
        await self._streams[number].aclose()  # type: ignore[attr-defined]

    def _start(self) -> None:
        left_s = self._call.timeout_s - self.waited_s
        stream = self._model.stream(self._request, replace(self._call, timeout_s=left_s))
        self._streams.append(stream)
        self._firsts.append(asyncio.create_task(_first_of(stream)))

    def _leave_others(self, winner: int) -> None:
        for number, task in enumerate(self._firsts):
            if number == winner:
                continue
            error = task.exception() if task.done() else None
            # One that failed by itself cost nothing, unless it says so.
            self.abandoned.count += error.abandoned if isinstance(error, SwitchyardError) else 1
            self._leave(number)


async def _first_of(stream: AsyncIterator[Event]) -> Event | None:
    return await anext(stream, None)
