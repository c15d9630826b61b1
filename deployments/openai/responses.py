"""OpenAI's responses: made, streamed, gone on from, fetched and deleted.

Source: https://platform.openai.com/docs/api-reference/responses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.door import Answer, Operation, admitted, read_body
from deployments.openai.pages import page
from deployments.openai.responses_items import Item, read_items
from deployments.openai.responses_schema import ENCRYPTED, ParsedResponse, ResponsesBody, parse_response
from deployments.openai.responses_stream import OpenAIResponses, without_proofs
from models.errors import UnsupportedFeature
from router.archive.responses import StoredResponse
from router.events import Principal, Stopwatch
from router.validation import check_priority

if TYPE_CHECKING:
    from deployments.ingress import Ingress


class ResponsesDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        one = "/v1/responses/{response_id}"
        return (
            Operation("POST", "/v1/responses", self.create, ResponsesBody),
            Operation("GET", one, self.retrieve),
            Operation("DELETE", one, self.delete),
            Operation("GET", f"{one}/input_items", self.input_items),
            Operation("POST", f"{one}/cancel", self.cancel),
        )

    async def create(self, request: Request) -> Response:
        watch = Stopwatch(time.perf_counter, "auth")
        principal = await admitted(self.ingress, request)
        watch.enter("parse")
        parsed = parse_response(await read_body(request, self.ingress.topology.max_body_bytes))
        return await self.respond(principal, parsed, watch)

    async def respond(
        self, principal: Principal, parsed: ParsedResponse, watch: Stopwatch, door: str = "openai-responses"
    ) -> Response:
        """The answer for somebody who has been admitted. Raises `SwitchyardError`."""
        check_priority(parsed.options.priority, principal)
        earlier: list[Item] = []
        if previous := parsed.body.previous_response_id:
            watch.enter("archive")
            for turn in await self.ingress.archive.conversation(principal.org, previous):
                earlier += read_items([*json.loads(turn.input), *json.loads(turn.body)["output"]])
        run = self.ingress.pipeline.run(parsed.request(earlier), principal, parsed.options, door, watch)

        def keep(response: dict[str, Any]) -> None:
            user = run.request.user or principal.user  # as its receipt says it
            self.ingress.archive.store(principal.org, _stored(response, parsed.items, user))

        return Answer(run, OpenAIResponses(parsed, keep if parsed.stored else None), bool(parsed.body.stream))

    async def retrieve(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        if request.query_params.get("stream", "false") != "false":
            raise UnsupportedFeature("A stored response comes whole; leave out 'stream'.", "stream")
        found = await self.ingress.archive.response(principal.org, request.path_params["response_id"])
        body = json.loads(found.body)
        if ENCRYPTED not in request.query_params.getlist("include[]") + request.query_params.getlist("include"):
            body["output"] = without_proofs(body["output"])
        return JSONResponse(body)

    async def delete(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        response_id = request.path_params["response_id"]
        await self.ingress.archive.delete_response(principal.org, response_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        await admitted(self.ingress, request)
        raise UnsupportedFeature(
            "Only responses made in the background can be cancelled, and there are none here; close the connection.",
            "background",
        )

    async def input_items(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        found = await self.ingress.archive.response(principal.org, request.path_params["response_id"])
        return JSONResponse(page(json.loads(found.input), request.query_params))


def _stored(response: dict[str, Any], items: Sequence[dict[str, Any]], user: str) -> StoredResponse:
    """The input as lists of it show it: each item with an id, its text as a part."""
    digits = response["id"].removeprefix("resp_")
    shown = []
    for number, item in enumerate(items):
        full = {"type": "message", "id": f"in_{digits}{number:04x}", "status": "completed", **item}
        if full["type"] == "message" and isinstance(full.get("content"), str):
            part = {"type": "output_text", "annotations": []} if full["role"] == "assistant" else {"type": "input_text"}
            full["content"] = [part | {"text": full["content"]}]
        shown.append({name: value for name, value in full.items() if value is not None})
    previous = response["previous_response_id"]
    made_at_s = float(response["created_at"])
    return StoredResponse(response["id"], previous, made_at_s, json.dumps(response), json.dumps(shown), user)
