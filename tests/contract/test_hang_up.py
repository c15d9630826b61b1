"""Whoever leaves early leaves no connection behind."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest

from models.base import Call
from models.messages import ChatRequest, Message, Sampling, TextPart
from tests.contract.fault_server import DIALECTS, Dialect, fault_server


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_requests_that_are_cancelled_at_any_moment_are_gone_at_the_provider(dialect: Dialect) -> None:
    draw = random.Random(7)
    async with fault_server(dialect) as server:
        model = dialect.model(server.url)

        async def ask(number: int) -> None:
            request = ChatRequest(
                "m", (Message("user", (TextPart(f"plan=silence#{number}"),)),), Sampling(max_tokens=5)
            )
            async with aclosing(model.stream(request, Call("r"))) as events:
                async for _ in events:
                    pass

        for number in range(300):
            asking = asyncio.create_task(ask(number))
            for _ in range(draw.randrange(60)):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
        if server.tasks:
            await asyncio.wait(server.tasks, timeout=30)
        left, requests = len(server.tasks), len(server.requests)
        await model.close()
    assert requests > 10 and left == 0
