"""OpenAI's list of models.

Source: https://platform.openai.com/docs/api-reference/models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.door import Operation, authenticated
from models.catalog import ModelEntry

if TYPE_CHECKING:
    from deployments.ingress import Ingress


class ModelsDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        return (Operation("GET", "/v1/models", self.models),)

    async def models(self, request: Request) -> Response:
        """Those that the caller may use."""
        allowed = self.ingress.tenants.allowed_models(authenticated(self.ingress, request))
        entries = self.ingress.pipeline.entries.values()
        embedders = [entry for entry, _ in self.ingress.embedders.values()]
        body = models_body(e for e in entries if allowed is None or e.name in allowed)
        body["data"] += [_embedder_body(e) for e in embedders if allowed is None or e.name in allowed]
        return JSONResponse(body)


def models_body(entries: Iterable[ModelEntry]) -> dict[str, Any]:
    """`auto` first, then what may be named."""
    auto = {"id": "auto", "object": "model", "created": 0, "owned_by": "switchyard"}
    return {"object": "list", "data": [auto, *map(_model_body, entries)]}


def _embedder_body(entry: ModelEntry) -> dict[str, Any]:
    return _model_body(entry) | {"tier": None, "capabilities": {"embeddings": True}}


def _model_body(entry: ModelEntry) -> dict[str, Any]:
    return {
        "id": entry.name,
        "object": "model",
        "created": 0,
        "owned_by": entry.provider or entry.engine,
        "tier": entry.tier,
        "context_tokens": entry.context_tokens,
        "capabilities": entry.model_dump(mode="json")["capabilities"],
        "note": entry.note,
    }
