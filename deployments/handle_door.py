"""The door for Python in the cluster: what `serve.get_app_handle("switchyard")` can be asked."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from deployments.door import too_large
from deployments.openai.chat_schema import ParsedChat, parse_chat
from deployments.reply import Reply
from models.messages import ChatRequest, Event
from router.accounting.budget import Budgets
from router.accounting.denials import Denials
from router.accounting.tenants import Tenants
from router.events import Actor, Principal, Stopwatch
from router.pipeline import Options, Pipeline
from router.topology import Topology
from router.validation import check_priority, check_request, size_chars

HANDLE = "handle"
"""What receipts and the audit log call it."""


class HandleDoor:
    """Of the Ingress, which has the rest: the same pipeline and the same rules as over HTTP."""

    topology: Topology
    tenants: Tenants
    budgets: Budgets
    denials: Denials
    pipeline: Pipeline

    async def chat(
        self, request: ChatRequest | dict[str, Any], api_key: str | None = None, options: Options | None = None
    ) -> Reply:
        """A whole answer. `request` is an OpenAI-shaped body (with a `switchyard` object in place of `options`), or a
        `ChatRequest`. Raises `models.errors`."""
        parsed, principal, watch = await self._admitted(request, api_key, options)
        with self.denials.watching(Actor.of(principal), HANDLE):
            return await self._chat(parsed, principal, watch)

    async def _chat(self, parsed: ParsedChat, principal: Principal, watch: Stopwatch) -> Reply:
        async with self.pipeline.run(parsed.request, principal, parsed.options, HANDLE, watch) as run:
            head = await run.begin(stream=False)
            completion = await run.completion()
        return Reply(head.request_id, head.model, head.verdict, run.cost_microusd, completion)

    async def stream(
        self, request: ChatRequest | dict[str, Any], api_key: str | None = None, options: Options | None = None
    ) -> AsyncIterator[list[Event]]:
        """The answer as batches of events; needs `handle.options(stream=True)`. Raises `models.errors`."""
        parsed, principal, watch = await self._admitted(request, api_key, options)
        async with self.pipeline.run(parsed.request, principal, parsed.options, HANDLE, watch) as run:
            with self.denials.watching(Actor.of(principal), HANDLE):
                await run.begin(stream=True)
            async for batch in run.batches():
                yield list(batch)

    async def explain(
        self, request: ChatRequest | dict[str, Any], api_key: str | None = None, options: Options | None = None
    ) -> dict[str, Any]:
        """What would be done with a request, and why. Nothing is executed."""
        parsed, principal, _ = await self._admitted(request, api_key, options)
        return await self.pipeline.explain(parsed.request, principal, parsed.options)

    async def _admitted(
        self, request: ChatRequest | dict[str, Any], api_key: str | None, options: Options | None
    ) -> tuple[ParsedChat, Principal, Stopwatch]:
        watch = Stopwatch(time.perf_counter)
        with self.denials.watching(Actor(), HANDLE):
            principal = self.tenants.identify(None, api_key)
        with self.denials.watching(Actor.of(principal), HANDLE):
            self.tenants.require(principal, "infer")
            await self.budgets.enter(principal)
        watch.enter("parse")
        if isinstance(request, ChatRequest):
            check_request(request)
            parsed = ParsedChat(request, options or Options(), False, False)
        else:
            parsed = parse_chat(request)
        if size_chars(parsed.request) > self.topology.max_body_bytes:
            raise too_large(self.topology.max_body_bytes)
        check_priority(parsed.options.priority, principal)
        return parsed, principal, watch
