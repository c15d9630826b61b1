"""A provider that keeps failing is asked only now and then, so that others are tried at once.

The states are those of M. Nygard's Release It! (https://martinfowler.com/bliki/CircuitBreaker.html):

    closed ──share of failures too high──> open ──cool-down over──> half-open ──first event of a probe──> closed
                                            ^                          │
                                            └──── a probe fails: twice the cool-down
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Literal

from models.base import Call, ChatModel
from models.errors import (
    DeadlineExceeded,
    ModelUnavailable,
    StreamInterrupted,
    SwitchyardError,
    UpstreamFailed,
    is_refusal,
)
from models.messages import ChatRequest, Event
from models.reliability.settings import BreakerSettings
from models.reliability.tally import Tally

State = Literal["closed", "open", "half-open"]
_SLOTS = 10


class CircuitOpen(ModelUnavailable):
    """Nothing was sent. Not retried here: another model may answer at once."""


class CircuitBreaker:
    """Of one model. `on_open` is called each time that it opens."""

    def __init__(
        self,
        settings: Callable[[], BreakerSettings],
        on_open: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._on_open, self._clock = settings, on_open, clock
        self._slots: deque[list[int]] = deque(maxlen=_SLOTS)  # number of the slot, requests, failures
        self._open_until_s: float | None = None  # None: closed
        self._openings = 0  # one after the other, without a success
        self._probes = 0
        self.last_failure = ""
        self.era = 0
        """Counts the changes of state: how a request that began before one ended says nothing about the time since."""

    @property
    def state(self) -> State:
        if self._open_until_s is None or not self._settings().enabled:
            return "closed"
        return "open" if self._clock() < self._open_until_s else "half-open"

    def enter(self, model: str) -> Passage:
        """A request wants through. Raises `CircuitOpen`, which says when to come back."""
        state = self.state
        if state == "closed":
            return Passage(self, probe=False)
        assert self._open_until_s is not None
        if state == "half-open" and self._probes < self._settings().probes:
            self._probes += 1
            return Passage(self, probe=True)
        wait_s = max(1.0, self._open_until_s - self._clock())
        raise CircuitOpen(
            f"Model '{model}' is not asked for {wait_s:.0f} s, since its provider kept failing; choose another model "
            f"or send the request again then. The last failure: {self.last_failure}",
            None,
            round(wait_s, 1),
        )

    def count(self, failed: bool) -> None:
        """A request has ended while the breaker was closed."""
        settings = self._settings()
        if not settings.enabled:
            return
        now = int(self._clock() / settings.window_s * _SLOTS)
        if not self._slots or self._slots[-1][0] != now:
            self._slots.append([now, 0, 0])
        self._slots[-1][1] += 1
        self._slots[-1][2] += failed
        recent = [slot for slot in self._slots if now - slot[0] < _SLOTS]
        requests, failures = sum(slot[1] for slot in recent), sum(slot[2] for slot in recent)
        if failed and requests >= settings.min_requests and failures >= settings.failure_share * requests:
            self.open()

    def open(self) -> None:
        settings = self._settings()
        cooldown_s = min(settings.max_cooldown_s, settings.cooldown_s * 2 ** min(self._openings, 30))
        self._openings += 1
        self._change(self._clock() + cooldown_s)
        self._on_open()

    def close(self) -> None:
        self._openings = 0
        self._change(None)

    def release_probe(self) -> None:
        self._probes -= 1

    def _change(self, open_until_s: float | None) -> None:
        self._open_until_s = open_until_s
        self._slots.clear()
        self._probes = 0
        self.era += 1


class Passage:
    """One request on its way through a breaker. It ends exactly once; `left` when its end says nothing: the caller
    left, was at fault, or the provider limits the rate."""

    def __init__(self, breaker: CircuitBreaker, probe: bool) -> None:
        self._breaker, self._probe, self._era = breaker, probe, breaker.era
        self._ended = False

    def answered(self) -> None:
        """The first event has come, which is all that a probe has to show: its answer may take minutes."""
        if self._probe and self._era == self._breaker.era:
            self._breaker.close()
            self._probe, self._era = False, self._breaker.era

    def failed(self, message: str) -> None:
        """`message`: of our own error, for those who are refused after it."""
        self._breaker.last_failure = message
        self.ended("failed")

    def ended(self, how: Literal["ok", "failed", "left"]) -> None:
        if self._ended:
            return
        self._ended = True
        if self._era != self._breaker.era:
            return
        if self._probe and how == "failed":
            self._breaker.open()
        elif self._probe:
            self._breaker.release_probe()
        elif how != "left" and self._breaker.state == "closed":
            self._breaker.count(how == "failed")


class CircuitBroken:
    """A breaker for each of the endpoint's models (`names`): providers run out of one model's capacity, not of all."""

    def __init__(
        self,
        model: ChatModel,
        names: Iterable[str],
        settings: Callable[[], BreakerSettings],
        tally: Tally,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        def breaker(name: str) -> CircuitBreaker:
            return CircuitBreaker(settings, lambda: tally.add("breaker_opened", name), clock)

        self._model, self._settings, self._tally, self._clock = model, settings, tally, clock
        self._breakers = {name: breaker(name) for name in names}

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        passage = self._enter(request.model)
        began_s, started = self._clock(), False
        try:
            async with aclosing(self._model.stream(request, call)) as events:  # type: ignore[type-var]
                async for event in events:
                    if not started:
                        started = True
                        passage.answered()
                    yield event
            passage.ended("ok")
        except SwitchyardError as error:
            waited_s = 0.0 if started else self._clock() - began_s
            if self._is_fault(error, waited_s):
                passage.failed(error.message)
            raise
        finally:
            passage.ended("left")

    def _enter(self, model: str) -> Passage:
        breaker = self._breakers.get(model)
        if breaker is None:  # of no model of this endpoint, which the adapter says better
            return Passage(CircuitBreaker(self._settings, lambda: None, self._clock), probe=False)
        try:
            return breaker.enter(model)
        except CircuitOpen:
            self._tally.add("breaker_refused", model)
            raise

    def _is_fault(self, error: SwitchyardError, waited_s: float) -> bool:
        """Whether the provider is to blame. A caller's 4xx is none, 429 says how much is too much, and 403 what it will
        not do: not that anything is broken."""
        if isinstance(error, DeadlineExceeded):
            return waited_s >= self._settings().slow_s
        return isinstance(error, UpstreamFailed | StreamInterrupted | ModelUnavailable) and not is_refusal(error)

    def states(self) -> dict[str, State]:
        """By model."""
        return {name: breaker.state for name, breaker in self._breakers.items()}

    async def check_health(self) -> None:
        """Raises `CircuitOpen` when no model of the endpoint is asked just now."""
        states = self.states()
        if states and all(state == "open" for state in states.values()):
            self._breakers[next(iter(states))].enter(", ".join(states))
        await self._model.check_health()

    async def close(self) -> None:
        await self._model.close()
