"""What every HTTP door shares: bounded bodies, who asks, headers, and answers that end with their client."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.openai.errors import openai_error
from models.errors import BodyTooLarge, InternalError, SwitchyardError
from models.messages import Completion, Event
from router.events import Actor, Principal
from router.run import Head, Run

if TYPE_CHECKING:
    from deployments.ingress import Ingress

log = logging.getLogger("ray.serve")
PRINCIPAL, DENIALS = "switchyard.principal", "switchyard.denials"
"""Where, in the scope of a request, is who asks, and the audit log's `Denials`."""

Handler = Callable[[Request], Awaitable[Response]]
ErrorBody = Callable[[SwitchyardError, str], bytes]
"""Writes an error, of the request with this id, in the shape of one API."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One route of a door. Those under /v1 need a key.

    body: of a POST, for the OpenAPI document. error_body: the shape of its errors.
    """

    method: str
    path: str
    handler: Handler
    body: type[BaseModel] | None = None
    error_body: ErrorBody = openai_error


def authenticated(ingress: Ingress, request: Request, scope: str = "infer") -> Principal:
    """Who asks. Raises what `Tenants.authenticate` raises."""
    headers = request.headers
    principal = ingress.tenants.identify(headers.get("authorization"), headers.get("x-api-key"))
    request.scope[PRINCIPAL] = principal  # for the audit log, should they be denied what they ask
    ingress.tenants.require(principal, scope)
    return principal


async def admitted(ingress: Ingress, request: Request, scope: str = "infer") -> Principal:
    """Who asks, within their rate. Raises `RateLimited` too."""
    principal = authenticated(ingress, request, scope)
    await ingress.budgets.enter(principal)
    return principal


def actor_of(request: Request) -> Actor:
    """Who asks, as far as it is known by now, and from where."""
    who: Principal = request.scope.get(PRINCIPAL) or Principal("")
    address = request.client.host if request.client else ""
    forwarded = request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    plain = "".join(letter for letter in forwarded[:64] if letter.isalnum() or letter in ".:[]_-")
    return Actor.of(who, address[:64], plain)


def note_denied(scope: Scope, error: SwitchyardError) -> None:
    """For the audit log, if `error` denied somebody something."""
    if (denials := scope.get(DENIALS)) is not None:
        request = Request(scope)
        denials.note(actor_of(request), f"{request.method} {request.url.path}", error)


class Dialect(Protocol):
    """How one API writes an answer. One object per request."""

    def unary(self, run: Run, head: Head, completion: Completion) -> bytes: ...

    def first(self, head: Head) -> bytes:
        """What opens a stream."""

    def chunk(self, events: Sequence[Event]) -> bytes: ...

    def last(self, run: Run) -> bytes:
        """What ends a complete stream."""

    def error(self, error: SwitchyardError, request_id: str) -> bytes:
        """The body of an error response."""

    def error_event(self, error: SwitchyardError, request_id: str) -> bytes:
        """The same inside a stream that has begun."""


class Answer(Response):
    """Runs a request when it is sent, so that leaving it in any way closes the run."""

    def __init__(self, run: Run, dialect: Dialect, stream: bool) -> None:
        self.run, self.dialect, self.stream = run, dialect, stream
        self.background = None
        self._status_sent = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        run = self.run
        try:
            if self.stream:
                await self._send_stream(send)
            else:
                await self._send_unary(send)
        except Exception as error:
            if self._status_sent and isinstance(error, OSError):
                return  # the client has gone
            known = error if isinstance(error, SwitchyardError) else unexpected(error, run.request_id)
            if not self._status_sent:
                note_denied(scope, known)
                await error_response(known, self.dialect.error, run.request_id)(scope, receive, send)

    async def _send_unary(self, send: Send) -> None:
        async with self.run as run:
            head = await run.begin(stream=False)
            completion = await run.completion()
        headers = answer_headers(head) | {"x-switchyard-cost-microusd": str(run.cost_microusd)}
        body = self.dialect.unary(run, head, completion)
        self._status_sent = True
        await _send_head(send, headers | {"content-type": "application/json", "content-length": str(len(body))})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _send_stream(self, send: Send) -> None:
        async with self.run as run:
            head = await run.begin(stream=True)
            headers = answer_headers(head) | {
                "x-switchyard-expected-cost-microusd": str(head.expected_cost_microusd),
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",
            }
            self._status_sent = True
            try:
                await _send_head(send, headers)
                opening = self.dialect.first(head)
                async for batch in run.batches():
                    body = opening + self.dialect.chunk(batch)
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    opening = b""
                ending = self.dialect.last(run)
            except OSError:
                return  # the client has gone, so the run closes as cancelled
            except Exception as error:
                # The status is sent: all that is left is to say so in the stream.
                known = error if isinstance(error, SwitchyardError) else unexpected(error, run.request_id)
                run.fail(known)
                ending = self.dialect.error_event(known, run.request_id)
        await send({"type": "http.response.body", "body": ending, "more_body": False})


async def _send_head(send: Send, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})


def unexpected(error: Exception, request_id: str) -> InternalError:
    """A fault of ours. The log gets where it happened, not its text, which may quote a prompt."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("request %s failed with %s\n%s", request_id, type(error).__name__, where)
    return InternalError("Something went wrong inside Switchyard; the request id leads to the log. Try again.")


def error_response(error: SwitchyardError, error_body: ErrorBody, request_id: str) -> Response:
    headers = {"x-switchyard-request-id": request_id, "request-id": request_id}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(error_body(error, request_id), error.http_status, headers, "application/json")


def answer_headers(head: Head) -> dict[str, str]:
    return {
        "x-switchyard-request-id": head.request_id,
        "request-id": head.request_id,  # where Anthropic's SDK looks for it
        "x-switchyard-model": head.model,
        "x-switchyard-cache": head.verdict,
        "x-switchyard-overhead-ms": f"{head.overhead_ms:.2f}",
        "x-switchyard-encoder-ms": f"{head.encoder_ms:.2f}",
    }


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, refused with 413 as soon as it is known to be over the limit. Raises `ClientDisconnect`."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise too_large(max_bytes)
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)


def too_large(max_bytes: int) -> BodyTooLarge:
    """For whoever sent more than `max_bytes`."""
    return BodyTooLarge(f"The body is larger than {max_bytes} bytes; send less or raise max_body_bytes.")
