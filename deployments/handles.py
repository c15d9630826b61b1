"""Switchyard for Python in the same cluster: drivers, Ray tasks and actors, other Serve applications.

    switchyard = connect()
    reply = switchyard.chat({"model": "auto", "messages": [{"role": "user", "content": "hi"}]})
    print(reply.text, reply.model, reply.cost_microusd)

The calls go through the same pipeline as HTTP, with the same key, limits, caches and receipts.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.hop import call, hop_errors, method, stream
from deployments.reply import Reply
from models.messages import ChatRequest, Event
from router.pipeline import Options

Question = ChatRequest | dict[str, Any]
"""A `ChatRequest`, or the body that POST /v1/chat/completions takes."""


class Switchyard:
    """The application's handle with types. Sync methods block their thread; inside an event loop use the async ones."""

    def __init__(self, handle: DeploymentHandle, api_key: str | None) -> None:
        self._api_key = api_key
        self._chat = method(handle, "chat")
        self._explain = method(handle, "explain")
        self._stream = method(handle, "stream", stream=True)

    def chat(self, question: Question, options: Options | None = None) -> Reply:
        """A whole answer. `options` go with a `ChatRequest`; a body has a `switchyard` object."""
        with hop_errors("Ingress"):
            reply: Reply = self._chat.remote(question, self._api_key, options).result()
        return reply

    def stream(self, question: Question, options: Options | None = None) -> Iterator[list[Event]]:
        """Batches of events as they come. Closing the iterator stops the model. Raises `models.errors`."""
        batches: Any = self._stream.remote(question, self._api_key, options)
        try:
            with hop_errors("Ingress"):
                yield from batches
        finally:
            batches.cancel()

    def explain(self, question: Question, options: Options | None = None) -> dict[str, Any]:
        """What would be done, and why; nothing is executed."""
        with hop_errors("Ingress"):
            told: dict[str, Any] = self._explain.remote(question, self._api_key, options).result()
        return told

    async def achat(self, question: Question, options: Options | None = None) -> Reply:
        reply: Reply = await call(self._chat, question, self._api_key, options)
        return reply

    def astream(self, question: Question, options: Options | None = None) -> AsyncIterator[list[Event]]:
        return stream(self._stream, question, self._api_key, options)

    async def aexplain(self, question: Question, options: Options | None = None) -> dict[str, Any]:
        told: dict[str, Any] = await call(self._explain, question, self._api_key, options)
        return told


def connect(api_key: str | None = None, app_name: str = "switchyard") -> Switchyard:
    """The running application, from any process of its Ray cluster. `api_key` None: SWITCHYARD_API_KEY.

    Raises ValueError when the cluster runs no such application.
    """
    handle = serve.get_app_handle(app_name)
    if not handle.is_initialized:  # Serve keeps one handle per application and process
        # Without its own loop its sync calls fail where Serve is set up for throughput ("No event loop running").
        handle._init(_run_router_in_separate_loop=True)
    return Switchyard(handle, api_key or os.environ.get("SWITCHYARD_API_KEY"))
