"""An application that does nothing but answer: the yardstick of `cluster/bench/overhead.py`.

It is what one would write for a single model on Ray Serve: a FastAPI ingress, a dictionary or one hop, JSON. It calls
the very replica that Switchyard calls, with the same batches of events, so the difference is what Switchyard adds.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from deployments.hop import call, stream
from models.base import Call
from models.messages import ChatRequest, Event, Message, TextDelta, TextPart, UsageReport, fold


@serve.ingress()
class Bare:
    """`deployment` of the application `app` serves `model`."""

    def __init__(self, app: str, deployment: str, model: str) -> None:
        handle = serve.get_deployment_handle(deployment, app)
        self._complete = handle.options(method_name="complete")
        self._stream = handle.options(method_name="stream", stream=True)
        self._model = model
        self._answers: dict[bytes, bytes] = {}

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = FastAPI()
        app.add_api_route("/hit", self.hit, methods=["POST"])
        app.add_api_route("/hop", self.hop, methods=["POST"])
        return app

    async def hit(self, request: Request) -> Response:
        """The answer of the first time, from memory."""
        body = await request.body()
        answer = self._answers.get(body)
        if answer is None:
            answer = self._answers[body] = await self._unary(json.loads(body))
        return Response(answer, media_type="application/json")

    async def hop(self, request: Request) -> Response:
        body = json.loads(await request.body())
        if body["stream"]:
            return StreamingResponse(self._chunks(body), media_type="text/event-stream")
        return Response(await self._unary(body), media_type="application/json")

    async def _unary(self, body: dict[str, Any]) -> bytes:
        completion = fold(await call(self._complete, self._question(body), Call("bare")))
        message = {"role": "assistant", "content": completion.text}
        choice = {"index": 0, "message": message, "finish_reason": completion.finish_reason}
        usage = {"completion_tokens": completion.usage.output_tokens, "prompt_tokens": completion.usage.input_tokens}
        return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()

    async def _chunks(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        async for events in stream(self._stream, self._question(body), Call("bare")):
            yield b"".join(map(_chunk, events))
        yield b"data: [DONE]\n\n"

    def _question(self, body: dict[str, Any]) -> ChatRequest:
        messages = tuple(Message(m["role"], (TextPart(m["content"]),)) for m in body["messages"])
        return ChatRequest(self._model, messages)


def _chunk(event: Event) -> bytes:
    if isinstance(event, UsageReport):
        return b""
    delta = {"content": event.text} if isinstance(event, TextDelta) else {}
    body = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def build(args: dict[str, Any]) -> Application:
    """`args`: app, deployment, model."""
    bare = serve.deployment(
        name="Bare",
        max_ongoing_requests=1024,
        max_queued_requests=1024,
        ray_actor_options={"num_cpus": 0.1},
    )(Bare)
    return bare.bind(args["app"], args["deployment"], args["model"])
