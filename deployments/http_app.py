"""The routes of the public door."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from deployments.door import Answer, error_response, read_body, unexpected
from deployments.openai_api import OpenAIChat, models_body
from deployments.openai_schema import ChatBody, parse_chat
from models.errors import NotFound, SwitchyardError
from router.accounting.usage import parse_usage_query, usage_answer
from router.events import Principal, Stopwatch
from router.run import new_request_id
from router.validation import check_priority

if TYPE_CHECKING:
    from deployments.ingress import Ingress

Handler = Callable[[Request], Awaitable[Response]]

HEADERS = ["x-switchyard-request-id", "x-request-id", "retry-after"] + [
    f"x-switchyard-{name}"
    for name in ("model", "cache", "cost-microusd", "expected-cost-microusd", "overhead-ms", "encoder-ms")
]


class Routes:
    """One method a route. Those under /v1 need a key."""

    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    async def chat_completions(self, request: Request) -> Response:
        watch = Stopwatch(time.perf_counter, "auth")
        principal = self._principal(request)
        self.ingress.tenants.check_rate(principal)
        watch.enter("parse")
        parsed = parse_chat(await read_body(request, self.ingress.topology.max_body_bytes))
        check_priority(parsed.options.priority, principal)
        run = self.ingress.pipeline.run(parsed.request, principal, parsed.options, "openai-chat", watch)
        return Answer(run, OpenAIChat(parsed.include_usage), parsed.stream)

    async def route(self, request: Request) -> Response:
        principal = self._principal(request)
        self.ingress.tenants.check_rate(principal)
        parsed = parse_chat(await read_body(request, self.ingress.topology.max_body_bytes))
        return JSONResponse(await self.ingress.pipeline.explain(parsed.request, principal, parsed.options))

    async def models(self, request: Request) -> Response:
        allowed = self.ingress.tenants.allowed_models(self._principal(request).org)
        entries = self.ingress.pipeline.entries.values()
        return JSONResponse(models_body(e for e in entries if allowed is None or e.name in allowed))

    async def receipt(self, request: Request) -> Response:
        principal = self._principal(request)
        self.ingress.tenants.check_rate(principal)
        return JSONResponse(await self.ingress.receipt(principal.org, request.path_params["request_id"]))

    async def usage(self, request: Request) -> Response:
        principal = self._principal(request, "usage")
        self.ingress.tenants.check_rate(principal)
        query = parse_usage_query(dict(request.query_params), int(time.time() * 1000))
        rows = await self.ingress.ledger.usage(principal.org, query.since_unix_ms, query.until_unix_ms, query.group_by)
        return JSONResponse(usage_answer(query, rows))

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        parts = await self.ingress.readiness()
        fine = all(state == "ok" for state in parts.values())
        return JSONResponse({"status": "ok" if fine else "degraded", "parts": parts}, 200 if fine else 503)

    async def metrics(self, _: Request) -> Response:
        return PlainTextResponse(await self.ingress.all_metrics(), media_type="text/plain; version=0.0.4")

    async def docs(self, request: Request) -> Response:
        prefix = request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(openapi_url=f"{prefix}/openapi.json", title="Switchyard")

    async def openapi(self, _: Request) -> Response:
        return Response(openapi(), media_type="application/json")

    def _principal(self, request: Request, scope: str = "infer") -> Principal:
        headers = request.headers
        return self.ingress.tenants.authenticate(headers.get("authorization"), headers.get("x-api-key"), scope)


ROUTES = (
    ("POST", "/v1/chat/completions", Routes.chat_completions),
    ("POST", "/v1/route", Routes.route),
    ("GET", "/v1/models", Routes.models),
    ("GET", "/v1/receipts/{request_id}", Routes.receipt),
    ("GET", "/v1/usage", Routes.usage),
    ("GET", "/health", Routes.health),
    ("GET", "/ready", Routes.ready),
    ("GET", "/metrics", Routes.metrics),
)


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

    routes = Routes(ingress)
    served = [(*route[:2], route[2].__get__(routes)) for route in ROUTES]
    served += [("GET", "/docs", routes.docs), ("GET", "/openapi.json", routes.openapi)]
    router = Router(
        [_Route(path, Endpoint(handler), methods=[method]) for method, path, handler in served],
        redirect_slashes=False,
        default=Endpoint(_unknown_path),
        lifespan=lifespan,
    )
    return Door(router, ingress.topology.cors_allow_origins)


class Door:
    """The router, behind CORS where that is configured. Serve names a request's route after `routes`."""

    def __init__(self, router: Router, cors_allow_origins: Sequence[str]) -> None:
        self.router, self.routes = router, router.routes
        self._app: ASGIApp = router
        if cors_allow_origins:
            self._app = CORSMiddleware(
                router,
                allow_origins=list(cors_allow_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=HEADERS,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class _Route(Route):
    """Another method is answered as all errors are."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.methods is None or scope["method"] in self.methods:
            await self.app(scope, receive, send)
            return
        response = _not_served(Request(scope), 405)
        response.headers["allow"] = ", ".join(sorted(self.methods))
        await response(scope, receive, send)


class Endpoint:
    """A handler as an ASGI app. Errors before a run begins are answered here, in OpenAI's shape."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
            return
        try:
            response = await self._handler(Request(scope, receive))
        except ClientDisconnect:
            return
        except SwitchyardError as error:
            response = error_response(error, OpenAIChat(False), new_request_id())
        except Exception as error:
            request_id = new_request_id()
            response = error_response(unexpected(error, request_id), OpenAIChat(False), request_id)
        await response(scope, receive, send)


async def _unknown_path(request: Request) -> Response:
    return _not_served(request, 404)


def _not_served(request: Request, status: int) -> Response:
    what = NotFound(f"{request.method} {request.url.path} is not served here; GET /docs lists what is.")
    response = error_response(what, OpenAIChat(False), new_request_id())
    response.status_code = status
    return response


@cache
def openapi() -> bytes:
    """The OpenAPI document of this door. Writing it takes 17 ms, so it is written once."""
    paths = {path: {method.lower(): _operation(path, handler.__name__, method)} for method, path, handler in ROUTES}
    chat = ChatBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = {**chat.pop("$defs", {}), "ChatBody": chat}
    document = {
        "openapi": "3.1.0",
        "info": {"title": "Switchyard", "version": version("switchyard")},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }
    return json.dumps(document).encode()


def _operation(path: str, name: str, method: str) -> dict[str, Any]:
    """An OpenAPI operation object."""
    operation: dict[str, Any] = {
        "operationId": name,
        "security": [{"key": []}] if path.startswith("/v1/") else [],
        "responses": {"200": {"description": "OK"}, "default": {"description": "an error in OpenAI's shape"}},
    }
    if method == "POST":
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/ChatBody"}}}
        operation["requestBody"] = {"required": True, "content": content}
    if "{request_id}" in path:
        operation["parameters"] = [{"name": "request_id", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation
