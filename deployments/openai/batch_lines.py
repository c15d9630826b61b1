"""The lines of a batch through the doors whose bodies they hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.types import Message

from deployments.door import DENIALS, PRINCIPAL, Answer, error_response, note_denied, unexpected
from deployments.openai.chat import OpenAIChat
from deployments.openai.chat_schema import parse_chat
from deployments.openai.completions import CompletionsDoor
from deployments.openai.completions_schema import parse_completions
from deployments.openai.embeddings import EmbeddingsDoor
from deployments.openai.errors import openai_error
from deployments.openai.responses import ResponsesDoor
from deployments.openai.responses_schema import parse_response
from models.errors import SwitchyardError, UnsupportedFeature
from router.archive.lines import BATCH_DOOR, LineAnswer
from router.events import Principal, Stopwatch
from router.run import new_request_id

if TYPE_CHECKING:
    from deployments.ingress import Ingress

LAST = 100
"""The priority of a line: everybody else goes first."""

Respond = Callable[["Ingress", Principal, bytes], Awaitable[Response]]


async def answer_line(ingress: Ingress, principal: Principal, endpoint: str, body: bytes) -> LineAnswer:
    """What the door of `endpoint` says to `body`, errors too. Never raises but when cancelled."""
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": BATCH_DOOR, "headers": []}
    scope |= {DENIALS: ingress.denials, PRINCIPAL: principal}
    try:
        ingress.tenants.check_still(principal)
        response = await ENDPOINTS[endpoint](ingress, principal, body)
    except SwitchyardError as error:
        note_denied(scope, error)
        response = error_response(error, openai_error, new_request_id())
    except Exception as error:
        request_id = new_request_id()
        response = error_response(unexpected(error, request_id), openai_error, request_id)
    return await _collected(response, scope)


async def _chat(ingress: Ingress, principal: Principal, body: bytes) -> Response:
    parsed = parse_chat(body)
    _check_whole(parsed.stream)
    options, sampling = replace(parsed.options, priority=LAST), parsed.request.sampling
    run = ingress.pipeline.run(parsed.request, principal, options, BATCH_DOOR)
    return Answer(run, OpenAIChat(False, sampling.n, sampling.top_logprobs is not None), False)


async def _completions(ingress: Ingress, principal: Principal, body: bytes) -> Response:
    parsed = parse_completions(body)
    _check_whole(parsed.stream)
    parsed = replace(parsed, options=replace(parsed.options, priority=LAST))
    return await CompletionsDoor(ingress).respond(principal, parsed, Stopwatch(time.perf_counter), BATCH_DOOR)


async def _responses(ingress: Ingress, principal: Principal, body: bytes) -> Response:
    parsed = parse_response(body)
    _check_whole(parsed.body.stream)
    extra = parsed.body.switchyard.model_copy(update={"priority": LAST})
    parsed = replace(parsed, body=parsed.body.model_copy(update={"switchyard": extra}))
    return await ResponsesDoor(ingress).respond(principal, parsed, Stopwatch(time.perf_counter), BATCH_DOOR)


async def _embeddings(ingress: Ingress, principal: Principal, body: bytes) -> Response:
    return await EmbeddingsDoor(ingress).respond(principal, body, BATCH_DOOR)


ENDPOINTS: dict[str, Respond] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/embeddings": _embeddings,
    "/v1/responses": _responses,
}


def _check_whole(stream: bool | None) -> None:
    if stream:
        raise UnsupportedFeature("An answer in a batch cannot be streamed; leave out 'stream'.", "stream")


async def _collected(response: Response, scope: dict[str, Any]) -> LineAnswer:
    """An answer as it would be sent."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await response(scope, receive, send)
    head, *rest = sent
    headers = {name.decode(): value.decode() for name, value in head["headers"]}
    retry_after = headers.get("retry-after")
    return LineAnswer(
        head["status"],
        b"".join(message.get("body", b"") for message in rest),
        headers.get("x-switchyard-request-id", ""),
        float(retry_after) if retry_after else None,
    )
