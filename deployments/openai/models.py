"""The models that may be named, in a list or one by one.

The paths are OpenAI's (https://platform.openai.com/docs/api-reference/models) and Anthropic's
(https://platform.claude.com/docs/en/api/models), and so are the fields: a model has those of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.door import Operation, authenticated
from models.catalog import ModelEntry
from models.errors import ModelNotFound
from router.events import Principal

if TYPE_CHECKING:
    from deployments.ingress import Ingress


class ModelsDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        # The names of some have a slash in them.
        return Operation("GET", "/v1/models", self.models), Operation("GET", "/v1/models/{model:path}", self.model)

    async def models(self, request: Request) -> Response:
        """Those that the caller may use."""
        listed = self._listed(authenticated(self.ingress, request))
        ids = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]}
        return JSONResponse({"object": "list", "data": listed, "has_more": False, **ids})

    async def model(self, request: Request) -> Response:
        """One of those that the caller may use; any other is as unknown to them as one that there is not."""
        name = request.path_params["model"]
        for listed in self._listed(authenticated(self.ingress, request)):
            if listed["id"] == name:
                return JSONResponse(listed)
        raise ModelNotFound(f"There is no model '{name[:200]}' here; GET /v1/models lists what there is.", "model")

    def _listed(self, principal: Principal) -> list[dict[str, Any]]:
        """`auto` first, then what may be named."""
        allowed = self.ingress.tenants.allowed_models(principal)
        entries = self.ingress.pipeline.entries.values()
        embedders = [entry for entry, _ in self.ingress.embedders.values()]
        return [
            _named("auto", "switchyard"),
            *(_model_body(entry) for entry in entries if allowed is None or entry.name in allowed),
            *(_embedder_body(entry) for entry in embedders if allowed is None or entry.name in allowed),
        ]


def _named(name: str, owner: str) -> dict[str, Any]:
    """When a model was made is not known; the epoch says so in both APIs."""
    openais = {"id": name, "object": "model", "created": 0, "owned_by": owner}
    created = "1970-01-01T00:00:00Z"
    return openais | {"type": "model", "display_name": name, "created_at": created, "lifecycle": "active"}


def _embedder_body(entry: ModelEntry) -> dict[str, Any]:
    return _model_body(entry) | {"tier": None, "capabilities": {"embeddings": True}}


def _model_body(entry: ModelEntry) -> dict[str, Any]:
    return _named(entry.name, entry.provider or entry.engine) | {
        "tier": entry.tier,
        "context_tokens": entry.context_tokens,
        "capabilities": entry.model_dump(mode="json")["capabilities"],
        "note": entry.note,
    }
