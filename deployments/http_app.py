"""The routes of the public door."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

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

    def _principal(self, request: Request, scope: str = "infer") -> Principal:
        headers = request.headers
        return self.ingress.tenants.authenticate(headers.get("authorization"), headers.get("x-api-key"), scope)


def build_http_app(ingress: Ingress) -> FastAPI:
    """The ASGI app of one ingress replica."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await ingress.startup()
        yield
        await ingress.shutdown()

    app = FastAPI(title="Switchyard", lifespan=lifespan)
    routes = Routes(ingress)
    described: dict[str, Any] = {}
    for method, path, handler in (
        ("POST", "/v1/chat/completions", routes.chat_completions),
        ("POST", "/v1/route", routes.route),
        ("GET", "/v1/models", routes.models),
        ("GET", "/v1/receipts/{request_id}", routes.receipt),
        ("GET", "/v1/usage", routes.usage),
        ("GET", "/health", routes.health),
        ("GET", "/ready", routes.ready),
        ("GET", "/metrics", routes.metrics),
    ):
        # Plain routes: the handlers read the request themselves, and FastAPI's own way would cost 0.1 ms of each.
        app.add_route(path, _guarded(handler), methods=[method])
        described[path] = {method.lower(): _operation(path, handler.__name__, method == "POST")}
    app.openapi_schema = _openapi(described)
    app.add_exception_handler(HTTPException, _unrouted)
    if ingress.topology.cors_allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(ingress.topology.cors_allow_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=HEADERS,
        )
    return app


def _guarded(handler: Handler) -> Handler:
    """Errors before a run begins, in OpenAI's shape."""

    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except SwitchyardError as error:
            return error_response(error, OpenAIChat(False), new_request_id())
        except Exception as error:
            request_id = new_request_id()
            return error_response(unexpected(error, request_id), OpenAIChat(False), request_id)

    endpoint.__name__ = handler.__name__
    return endpoint


async def _unrouted(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    what = NotFound(f"{request.method} {request.url.path} is not served here; GET /docs lists what is.")
    response = error_response(what, OpenAIChat(False), new_request_id())
    response.status_code = error.status_code
    return response


def _openapi(paths: dict[str, Any]) -> dict[str, Any]:
    chat = ChatBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = {**chat.pop("$defs", {}), "ChatBody": chat}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Switchyard", "version": version("switchyard")},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(path: str, name: str, has_body: bool) -> dict[str, Any]:
    """An OpenAPI operation object."""
    operation: dict[str, Any] = {
        "operationId": name,
        "security": [{"key": []}] if path.startswith("/v1/") else [],
        "responses": {"200": {"description": "OK"}, "default": {"description": "an error in OpenAI's shape"}},
    }
    if has_body:
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/ChatBody"}}}
        operation["requestBody"] = {"required": True, "content": content}
    if "{request_id}" in path:
        operation["parameters"] = [{"name": "request_id", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation
