"""The door over a whole pipeline in this process, asked by Anthropic's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import Any

import httpx
import httpx2
from anthropic import AsyncAnthropic

from models.base import Call, Capabilities
from models.messages import ChatRequest, Event
from tests.unit.test_http_app import KEY, open_door
from tests.unit.test_pipeline import World, make_world


@dataclass
class Anthropic:
    world: World
    http: httpx.AsyncClient
    sdk: AsyncAnthropic

    async def post(self, path: str = "/v1/messages", **fields: Any) -> httpx.Response:
        body = {"model": "auto", "max_tokens": 32, "messages": [{"role": "user", "content": "hi there"}]} | fields
        return await self.http.post(path, json=body, headers={"x-api-key": KEY})


@asynccontextmanager
async def anthropic_door(world: World | None = None, **settings: Any) -> AsyncIterator[Anthropic]:
    opened = open_door(world or make_world(), **settings)
    transport = httpx2.ASGITransport(app=opened.client._transport.app)
    sdk = AsyncAnthropic(
        api_key=KEY,
        base_url="http://door",
        http_client=httpx2.AsyncClient(transport=transport),
        max_retries=0,
        open_telemetry=False,
    )
    async with opened.client, sdk:
        yield Anthropic(opened.world, opened.client, sdk)
    opened.world.books_are_shut()


class Script:
    """A model that answers with `events`, and keeps what it was asked."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.asked: list[ChatRequest] = []

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        self.asked.append(request)
        for event in self.events:
            yield event


EVERYTHING = Capabilities(**{field.name: True for field in fields(Capabilities)})


def scripted(*events: Event, capabilities: Capabilities = EVERYTHING) -> tuple[World, Script]:
    """A world in which `small-1` answers with `events`."""
    world, script = make_world(), Script(events)
    world.small.model = script
    entries = world.pipeline.entries
    entries["small-1"] = entries["small-1"].model_copy(update={"capabilities": capabilities})
    return world, script
