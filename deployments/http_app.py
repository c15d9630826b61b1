"""The routes of the public door."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from deployments.admin_api import AdminDoor
from deployments.analytics_api import AnalyticsDoor
from deployments.anthropic.messages import MessagesDoor
from deployments.cache_api import CacheDoor
from deployments.cache_transfer_api import CacheTransferDoor
from deployments.data_api import DataDoor
from deployments.door import DENIALS, ErrorBody, Handler, Operation, error_response, note_denied, unexpected
from deployments.experiments_api import ExperimentsDoor
from deployments.feedback_api import FeedbackDoor
from deployments.openai.batches import BatchesDoor
from deployments.openai.chat import ChatDoor
from deployments.openai.completions import CompletionsDoor
from deployments.openai.embeddings import EmbeddingsDoor
from deployments.openai.errors import openai_error
from deployments.openai.files import FilesDoor
from deployments.openai.models import ModelsDoor
from deployments.openai.responses import ResponsesDoor
from deployments.openapi import openapi
from deployments.operators_api import OperatorsDoor
from deployments.providers_api import ProvidersDoor
from models.errors import NotFound, SwitchyardError
from router.accounting.denials import Denials
from router.run import new_request_id

if TYPE_CHECKING:
    from deployments.ingress import Ingress

DOORS = (
    AdminDoor,
    AnalyticsDoor,
    BatchesDoor,
    CacheDoor,
    CacheTransferDoor,
    ChatDoor,
    CompletionsDoor,
    DataDoor,
    EmbeddingsDoor,
    ExperimentsDoor,
    FeedbackDoor,
    FilesDoor,
    MessagesDoor,
    ModelsDoor,
    OperatorsDoor,
    ProvidersDoor,
    ResponsesDoor,
)
"""Each is made with the ingress and has `operations()`."""

HEADERS = ["x-switchyard-request-id", "request-id", "x-request-id", "retry-after"] + [
    f"x-switchyard-{name}"
    for name in ("model", "cache", "cost-microusd", "expected-cost-microusd", "overhead-ms", "encoder-ms")
]


def build_http_app(ingress: Ingress) -> Door:
    """The ASGI app of one ingress replica.

    A router and nothing around it: the handlers read, check and answer by themselves, and every layer that FastAPI puts
    between costs a few per cent of an exact hit, and of every chunk of a stream.
    """

    @asynccontextmanager
    async def lifespan(_: Router) -> AsyncIterator[None]:
        await ingress.startup()
        yield
        await ingress.shutdown()

    operations = [operation for door in DOORS for operation in door(ingress).operations()]
    router = Router(
        [*_routes(operations), *_routes(_Documents(operations).operations())],
        redirect_slashes=False,
        default=Endpoint(_unknown_path),
        lifespan=lifespan,
    )
    return Door(router, ingress.denials, ingress.topology.cors_allow_origins)


class Door:
    """The router, behind CORS where that is configured. Serve names a request's route after `routes`."""

    def __init__(self, router: Router, denials: Denials, cors_allow_origins: Sequence[str]) -> None:
        self.router, self.routes = router, router.routes
        self._denials = denials
        self._app: ASGIApp = router
        if cors_allow_origins:
            self._app = CORSMiddleware(
                router,
                allow_origins=list(cors_allow_origins),
                allow_methods=["GET", "POST", "PUT", "DELETE"],
                allow_headers=["*"],
                expose_headers=HEADERS,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[DENIALS] = self._denials
        await self._app(scope, receive, send)


def _routes(operations: Iterable[Operation]) -> list[Route]:
    """A route for each path, whatever its methods."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    return [_Route(path, methods) for path, methods in by_path.items()]


class _Route(Route):
    """Another method than those of `operations` is answered as all errors are."""

    def __init__(self, path: str, operations: Mapping[str, Operation]) -> None:
        super().__init__(path, Endpoint(_unknown_path), methods=list(operations))
        self._error_body = next(iter(operations.values())).error_body
        self._endpoints = {method: Endpoint(o.handler, o.error_body) for method, o in operations.items()}
        if "GET" in self._endpoints:
            self._endpoints["HEAD"] = self._endpoints["GET"]

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["method"])
        if endpoint is not None:
            await endpoint(scope, receive, send)
            return
        response = _not_served(Request(scope), 405, self._error_body)
        response.headers["allow"] = ", ".join(sorted(self._endpoints))
        await response(scope, receive, send)


class Endpoint:
    """A handler as an ASGI app. Errors before a run begins are answered here."""

    def __init__(self, handler: Handler, error_body: ErrorBody = openai_error) -> None:
        self._handler, self._error_body = handler, error_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
            return
        try:
            response = await self._handler(Request(scope, receive))
        except ClientDisconnect:
            return
        except SwitchyardError as error:
            note_denied(scope, error)
            response = error_response(error, self._error_body, new_request_id())
        except Exception as error:
            request_id = new_request_id()
            response = error_response(unexpected(error, request_id), self._error_body, request_id)
        await response(scope, receive, send)


async def _unknown_path(request: Request) -> Response:
    return _not_served(request, 404)


def _not_served(request: Request, status: int, error_body: ErrorBody = openai_error) -> Response:
    what = NotFound(f"{request.method} {request.url.path} is not served here; GET /docs lists what is.")
    response = error_response(what, error_body, new_request_id())
    response.status_code = status
    return response


class _Documents:
    """The OpenAPI document of `operations`, and a page to read it on."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._document: bytes | None = None

    def operations(self) -> tuple[Operation, ...]:
        return Operation("GET", "/docs", self.docs), Operation("GET", "/openapi.json", self.openapi)

    async def docs(self, request: Request) -> Response:
        prefix = request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(openapi_url=f"{prefix}/openapi.json", title="Switchyard")

    async def openapi(self, _: Request) -> Response:
        self._document = self._document or openapi(self._operations)  # writing it takes 17 ms
        return Response(self._document, media_type="application/json")
