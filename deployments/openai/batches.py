"""OpenAI's batches: many requests in a file, answered within a day while nobody else waits.

Source: https://platform.openai.com/docs/api-reference/batch. The Archive works on them (`router.archive.runner`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.door import Operation, admitted, read_body
from deployments.openai.body import Body, read_json
from deployments.openai.pages import listed, page_limit
from router.archive.batches import new_batch

if TYPE_CHECKING:
    from deployments.ingress import Ingress


class BatchBody(Body):
    """Body of POST /v1/batches."""

    input_file_id: str = Field(min_length=1, max_length=100)
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(None, max_length=16)


class BatchesDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        one = "/v1/batches/{batch_id}"
        return (
            Operation("POST", "/v1/batches", self.create, BatchBody),
            Operation("GET", "/v1/batches", self.list),
            Operation("GET", one, self.retrieve),
            Operation("POST", f"{one}/cancel", self.cancel),
        )

    async def create(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        body = read_json(BatchBody, await read_body(request, self.ingress.topology.max_body_bytes))
        batch = new_batch(principal, body.input_file_id, body.endpoint, body.metadata)
        return JSONResponse(await self.ingress.archive.create_batch(batch))

    async def list(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        limit = page_limit(request.query_params)
        after = request.query_params.get("after")
        found = await self.ingress.archive.list_batches(principal.org, limit + 1, after)
        return JSONResponse(listed(found[:limit], len(found) > limit))

    async def retrieve(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        return JSONResponse(await self.ingress.archive.batch(principal.org, request.path_params["batch_id"]))

    async def cancel(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        return JSONResponse(await self.ingress.archive.cancel_batch(principal.org, request.path_params["batch_id"]))
