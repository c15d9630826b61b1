"""What callers say about answers: POST /v1/feedback, and what was said so far."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.door import Operation, admitted, read_body
from deployments.openai.body import Body, read_json
from models.errors import InvalidRequest
from router.accounting.feedback import LABELS, Feedback

if TYPE_CHECKING:
    from deployments.ingress import Ingress

MAX_BODY_BYTES = 16 * 1024


class FeedbackBody(Body):
    """Body of POST /v1/feedback: about the answer of `request_id`, a `score` in [0, 1] or a `label`."""

    request_id: str = Field(min_length=1, max_length=100)
    score: float | None = Field(None, ge=0, le=1)
    label: Literal["good", "bad"] | None = None
    tags: list[Annotated[str, StringConstraints(max_length=64)]] = Field(default=[], max_length=16)
    comment: str = Field("", max_length=4_000)


class FeedbackDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("POST", "/v1/feedback", self.give, FeedbackBody),
            Operation("GET", "/v1/feedback", self.summary),
        )

    async def give(self, request: Request) -> Response:
        """The newest word of a key on a request counts. 404 for a request that is not of the caller's organisation."""
        principal = await admitted(self.ingress, request)
        body = read_json(FeedbackBody, await read_body(request, MAX_BODY_BYTES) or b"{}")
        if (body.score is None) == (body.label is None):
            raise InvalidRequest("Give either 'score', from 0 to 1, or 'label', 'good' or 'bad'.", "score")
        receipt = await self.ingress.receipt(principal.org, body.request_id)
        given = feedback_of(receipt, principal.key_id, body, int(time.time() * 1000))
        await self.ingress.feedback(given, (receipt.get("decision") or {}).get("work") or "")
        told = {"object": "feedback", "request_id": given.request_id, "model": given.model, "score": given.score}
        return JSONResponse(told)

    async def summary(self, request: Request) -> Response:
        """By model, or with `by=answer` by replayed answer; `low` and `high` bound the share of good (Wilson, 95 %)."""
        principal = await admitted(self.ingress, request, "usage")
        by = request.query_params.get("by", "model")
        if by not in ("model", "answer"):
            raise InvalidRequest("'by' is 'model' or 'answer'.", "by")
        data = await self.ingress.ledger.feedback(principal.org, "model" if by == "model" else "cached_from")
        return JSONResponse({"object": "list", "data": data})


def feedback_of(receipt: dict[str, Any], key_id: str, body: FeedbackBody, now_unix_ms: int) -> Feedback:
    decision = receipt.get("decision") or {}
    score = body.score if body.score is not None else LABELS[body.label or "bad"]
    return Feedback(
        org=receipt["org"],
        request_id=receipt["request_id"],
        key_id=key_id,
        given_at_unix_ms=now_unix_ms,
        model=receipt.get("model") or "",
        task=decision.get("task") or "",
        cached_from=receipt.get("cached_from") or "",
        score=score,
        label=body.label or "",
        tags=tuple(body.tags),
        comment=body.comment,
    )
