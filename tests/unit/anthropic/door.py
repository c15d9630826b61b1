"""The door over a whole pipeline in this process, asked by Anthropic's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import httpx2
from anthropic import AsyncAnthropic

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
