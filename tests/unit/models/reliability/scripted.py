"""A model that does what a test says. tests/contract/test_faults.py has a real adapter and a real wire in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from models.base import Call, ChatModel
from models.errors import SwitchyardError
from models.messages import ChatRequest, Event, Finish, Message, Sampling, TextDelta, TextPart, Usage, UsageReport

REQUEST = ChatRequest("m", (Message("user", (TextPart("x" * 40),)),), Sampling(max_tokens=10))
CALL = Call("r", timeout_s=5.0)
GOOD: tuple[Event, ...] = (TextDelta("Hi"), Finish("stop"), UsageReport(Usage(9, 2)))

Step = Event | float | SwitchyardError


@dataclass
class Scripted:
    """One attempt after the other does the steps of its script, the last script again and again: yields events, sleeps
    for numbers, raises errors."""

    scripts: Sequence[Sequence[Step]]
    calls: list[Call] = field(default_factory=list)
    under_way: int = 0
    closed: int = 0

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        script = self.scripts[min(len(self.calls), len(self.scripts) - 1)]
        self.calls.append(call)
        self.under_way += 1
        try:
            for step in script:
                if isinstance(step, SwitchyardError):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    yield step
        finally:
            self.under_way -= 1

    async def check_health(self) -> None: ...

    async def close(self) -> None:
        self.closed += 1


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def collect(model: ChatModel, call: Call = CALL, request: ChatRequest = REQUEST) -> list[Event]:
    async with aclosing(model.stream(request, call)) as events:
        return [event async for event in events]


async def failure(model: ChatModel, call: Call = CALL, into: list[Event] | None = None) -> SwitchyardError:
    """The error that ends a stream; what came before it goes into `into`."""
    try:
        async with aclosing(model.stream(REQUEST, call)) as events:
            async for event in events:
                if into is not None:
                    into.append(event)
    except SwitchyardError as error:
        return error
    raise AssertionError("the stream ended well")
