"""OpenAI's embeddings.

Source: https://platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from deployments.door import Operation, admitted, read_body
from deployments.openai.body import Body, read_json
from models.errors import InvalidRequest, UnsupportedFeature
from router.embeddings import Embedding, EmbeddingRequest
from router.events import Principal

if TYPE_CHECKING:
    from deployments.ingress import Ingress

MAX_INPUTS = 2048
"""As OpenAI's. The length of each is the model's affair, of all of them `max_body_bytes`."""


class EmbeddingsBody(Body):
    """Body of POST /v1/embeddings."""

    model: str = Field(min_length=1, max_length=200)
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=65_536)
    user: str | None = Field(None, max_length=256)


class EmbeddingsDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        return (Operation("POST", "/v1/embeddings", self.embeddings, EmbeddingsBody),)

    async def embeddings(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        return await self.respond(principal, await read_body(request, self.ingress.topology.max_body_bytes))

    async def respond(self, principal: Principal, body: bytes, door: str = "openai-embeddings") -> Response:
        """The answer to a body, of somebody who has been admitted."""
        asked, encoding_format = parse_embeddings(body)
        work = Embedding(self.ingress.pipeline, self.ingress.embedders, asked, principal, door)
        vectors = await work.vectors()
        headers = {
            "x-switchyard-request-id": work.request_id,
            "x-switchyard-model": asked.model,
            "x-switchyard-cache": "bypass",
            "x-switchyard-cost-microusd": str(work.cost_microusd),
        }
        answer = embeddings_body(asked.model, vectors, work.tokens, encoding_format)
        return Response(json.dumps(answer), 200, headers, "application/json")


def parse_embeddings(body: bytes) -> tuple[EmbeddingRequest, str]:
    """The request in a body and its `encoding_format`. Raises `InvalidRequest` naming the field."""
    parsed = read_json(EmbeddingsBody, body)
    texts = [parsed.input] if isinstance(parsed.input, str) else parsed.input
    if len(texts) > MAX_INPUTS:
        raise InvalidRequest(f"'input' takes up to {MAX_INPUTS} texts; send the others in another request.", "input")
    if not texts or not all(texts):
        raise InvalidRequest("'input' is empty or has an empty text in it; leave that out.", "input")
    checked = tuple(text for text in texts if isinstance(text, str))
    if len(checked) != len(texts):
        raise UnsupportedFeature("'input' takes texts: token numbers are those of one tokenizer only.", "input")
    return EmbeddingRequest(parsed.model, checked, parsed.dimensions, parsed.user), parsed.encoding_format


def embeddings_body(model: str, vectors: list[bytes], tokens: int, encoding_format: str) -> dict[str, Any]:
    """`base64` is the little-endian float32 numbers, as OpenAI's."""

    def shown(vector: bytes) -> str | list[float]:
        if encoding_format == "base64":
            return base64.b64encode(vector).decode()
        return list(struct.unpack(f"<{len(vector) // 4}f", vector))

    data = [{"object": "embedding", "index": number, "embedding": shown(v)} for number, v in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}
