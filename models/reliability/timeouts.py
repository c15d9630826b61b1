"""No wait for a provider without an end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace

from models.base import Call, ChatModel
from models.errors import DeadlineExceeded, StreamInterrupted, SwitchyardError, UpstreamFailed
from models.messages import ChatRequest, Event
from models.reliability.settings import TimeoutSettings
from models.reliability.tally import Tally


class TimeBound:
    """One attempt with its limits: `UpstreamFailed` when the answer does not begin in time, `StreamInterrupted` when it
    stalls, `DeadlineExceeded` at the end of the caller's time or of `total_s`.

    An attempt that is given up unanswered may cost its prompt all the same: the error's `abandoned` says so.
    """

    def __init__(self, model: ChatModel, settings: Callable[[], TimeoutSettings], tally: Tally) -> None:
        self._model, self._settings, self._tally = model, settings, tally

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        settings, clock = self._settings(), asyncio.get_running_loop().time
        total_s = min(call.timeout_s, settings.total_s or math.inf)
        deadline_s = clock() + total_s
        started = False
        async with aclosing(self._model.stream(request, replace(call, timeout_s=total_s))) as events:  # type: ignore[type-var]
            while True:
                limit_s = settings.stall_s if started else settings.first_event_s
                wait_until_s = min(deadline_s, clock() + limit_s)
                try:
                    # Around each wait and never across a `yield`: there it would strike whatever the consumer does.
                    async with asyncio.timeout_at(wait_until_s):
                        event = await anext(events)
                except StopAsyncIteration:
                    return
                except (TimeoutError, DeadlineExceeded) as error:
                    late = wait_until_s == deadline_s or isinstance(error, DeadlineExceeded)
                    raise self._given_up(request.model, started, total_s if late else limit_s, late) from None
                started = True
                yield event

    def _given_up(self, model: str, started: bool, limit_s: float, late: bool) -> SwitchyardError:
        error: SwitchyardError
        if late:
            self._tally.add("timeouts", "total")
            error = DeadlineExceeded(
                f"Model '{model}' had not finished after {limit_s:g} s; allow more time or fewer tokens."
            )
        elif started:
            self._tally.add("timeouts", "stall")
            error = StreamInterrupted(
                f"The provider of model '{model}' sent nothing more for {limit_s:g} s; what came is incomplete. "
                "Send the request again."
            )
        else:
            self._tally.add("timeouts", "first_event")
            error = UpstreamFailed(
                f"The provider of model '{model}' did not begin its answer within {limit_s:g} s; send the request "
                "again or choose another model."
            )
        error.abandoned = 0 if started else 1
        return error

    async def check_health(self) -> None:
        await self._model.check_health()

    async def close(self) -> None:
        await self._model.close()
