"""What operators and their tools ask: receipts, usage, health, metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from deployments.door import Operation, admitted
from router.accounting.usage import parse_usage_query, usage_answer

if TYPE_CHECKING:
    from deployments.ingress import Ingress


class OperatorsDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("GET", "/v1/receipts/{request_id}", self.receipt),
            Operation("GET", "/v1/usage", self.usage),
            Operation("GET", "/health", self.health),
            Operation("GET", "/ready", self.ready),
            Operation("GET", "/metrics", self.metrics),
        )

    async def receipt(self, request: Request) -> Response:
        principal = admitted(self.ingress, request)
        return JSONResponse(await self.ingress.receipt(principal.org, request.path_params["request_id"]))

    async def usage(self, request: Request) -> Response:
        principal = admitted(self.ingress, request, "usage")
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
