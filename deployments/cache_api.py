"""What is asked of the cache itself: how often it may be wrong, and to forget answers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.admin_api import Authority, Name
from deployments.door import Operation, actor_of, admitted, authenticated, read_body
from deployments.openai.body import Body, read_json
from models.catalog import ModelEntry
from models.errors import InvalidRequest
from router.events import AuditEntry
from router.fingerprint import MAX_SIMILAR_CHARS, partition
from router.invalidation import Match, Selection, version_of

if TYPE_CHECKING:
    from deployments.ingress import Ingress

MAX_BODY_BYTES = 64 * 1024
Word = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class InvalidationBody(Body):
    """Body of POST /v1/cache/invalidate: answers to which all that is given applies. Nothing is dropped before
    `dry_run` is false."""

    org: Name | None = None
    namespace: Annotated[str, StringConstraints(max_length=128)] | None = None
    id: Word | None = Field(None, description="the request that the answer was made for")
    model: Word | None = None
    version: Word | None = Field(None, description="of the model, as this call shows it")
    outdated: bool = Field(False, description="made by another version of a model than that which is served now")
    tag: Word | None = None
    question: Annotated[str, StringConstraints(min_length=1, max_length=MAX_SIMILAR_CHARS)] | None = None
    similarity: float = Field(0.9, ge=0.5, le=1, description="cosine, of a question that is as near as is meant")
    all: bool = Field(False, description="every answer of the organisation, where nothing else is given")
    dry_run: bool = True

    def selection(self, org: str, served: Iterable[ModelEntry]) -> Selection:
        """`served`: the models there are now. Raises `InvalidRequest` when nothing is said but `org`."""
        given = (self.namespace, self.id, self.model, self.version, self.tag, self.question, self.outdated or None)
        if self.all == any(each is not None for each in given):
            raise InvalidRequest(
                "Say which answers: one or more of 'namespace', 'id', 'model', 'version', 'outdated', 'tag' and "
                "'question', or 'all'.",
                "all",
            )
        current = frozenset((entry.name, version_of(entry)) for entry in served) if self.outdated else None
        named = (self.namespace, self.id, self.model, self.tag, self.question, self.similarity)
        return Selection(org, *named, self.version, current)


class CacheDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("GET", "/v1/cache/stats", self.cache_stats),
            Operation("POST", "/v1/cache/invalidate", self.invalidate, InvalidationBody),
        )

    async def cache_stats(self, request: Request) -> Response:
        """How often the cache may be wrong for the caller's organisation, in the `namespace` that is given."""
        principal = await admitted(self.ingress, request, "usage")
        namespace = request.query_params.get("namespace", "")
        found = await self.ingress.shared_cache.audit(partition(principal.org, namespace))
        return JSONResponse({"object": "cache.stats", "namespace": namespace, **found})

    async def invalidate(self, request: Request) -> Response:
        """Have all replicas forget the answers that the body means, or say which those are."""
        authority = Authority(authenticated(self.ingress, request, "admin"))
        body = read_json(InvalidationBody, await read_body(request, MAX_BODY_BYTES) or b"{}")
        org = body.org or authority.org
        authority.check(org, "")
        selection = body.selection(org, self.ingress.pipeline.entries.values())
        found = await self.ingress.invalidate_everywhere(selection, body.dry_run)
        if not body.dry_run:
            detail: dict[str, Any] = {
                **body.model_dump(exclude_none=True, exclude={"question", "dry_run", "org"}),  # no question of anybody
                "by_question": body.question is not None,
                "count": found.count,
                "shards_missed": len(found.lost),
                "replicas_missed": found.replicas_missed,
            }
            audit(self.ingress, request, org, "cache.invalidate", detail)
        found.check()
        told = {"object": "cache.invalidation", "org": org, "dry_run": body.dry_run, "count": found.count}
        told["replicas_missed"] = found.replicas_missed
        return JSONResponse({**told, "data": [_shown(match) for match in found.shown]})


def audit(ingress: Ingress, request: Request, org: str, act: str, detail: dict[str, Any]) -> None:
    """Note in the audit log what was done to the stored answers of `org`."""
    now_unix_ms, actor = int(time.time() * 1000), actor_of(request)
    entry = AuditEntry(secrets.token_hex(12), now_unix_ms, org, act, f"cache:{org}", actor, "done", detail)
    ingress.shipper.sink(entry)


def _shown(match: Match) -> dict[str, Any]:
    return {
        "id": match.answer_id,
        "namespace": match.namespace,
        "model": match.model,
        "version": match.version,
        "created_at_unix_ms": round(match.created_at_unix_s * 1000),
        "similarity": None if match.similarity is None else round(match.similarity, 4),
    }
