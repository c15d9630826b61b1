"""The records of a run: what is written down when it opens, when it closes, and when its process died in between."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from models.messages import Completion, Usage
from router.events import RequestClosed, RequestOpened, Status

if TYPE_CHECKING:
    from router.accounting.store import OpenRequest
    from router.policy import Decision
    from router.run import Run


def opened(run: Run, model: str, reserved_microusd: int) -> RequestOpened:
    who = run.principal
    return RequestOpened(
        run.request_id,
        run.opened_at_unix_ms,
        who.org,
        who.team,
        who.key_id,
        run.request.user or who.user,
        model,
        reserved_microusd,
    )


def closed(
    run: Run, status: Status, code: str | None, completion: Completion, usage: Usage, estimated: bool, now_unix_ms: int
) -> RequestClosed:
    who, hit, model = run.principal, run.answer, run.model
    followed = run.boarding.follows
    entry = run.pipeline.entries.get(model) if model else None
    quote = run.prices.quote(entry.name) if entry else None
    saved = hit.cost_microusd if hit else 0
    if followed and status == "ok":
        saved = run.prices.cost_microusd(followed.model, usage)
    return RequestClosed(
        request_id=run.request_id,
        opened_at_unix_ms=run.opened_at_unix_ms,
        closed_at_unix_ms=now_unix_ms,
        org=who.org,
        team=who.team,
        key_id=who.key_id,
        user=run.request.user or who.user,
        door=run.door,
        status=status,
        error_code=code,
        requested_model=run.request.model,
        model=model,
        provider=entry.engine if entry else None,
        cache_verdict=run.recall.verdict,
        cached_from=hit.answer_id if hit else followed.request_id if followed else None,
        cache_similarity=run.recall.similarity,
        finish_reason=completion.finish_reason,
        usage=usage,
        estimated=estimated,
        cost_microusd=run.cost_microusd,
        saved_microusd=saved,
        price_version=quote.version if quote else "",
        price=quote.details if quote else {},
        attempts=tuple(run.attempts),
        decision=_decided(run),
        stage_ms={stage: round(ms, 3) for stage, ms in run.watch.stage_ms.items()},
        ttft_ms=run.ttft_ms,
        total_ms=round(run.watch.entered_ms, 3),
        overhead_ms=round(run.overhead_ms, 3),
        degraded=tuple(run.degraded),
        changes=run.changes,
    )


def abandoned(request: OpenRequest, now_unix_ms: int) -> RequestClosed:
    """The close of a request whose process died. It may have cost up to what was reserved, so that is what it counts
    for, marked as estimated: the books may say too much then, never too little."""
    return RequestClosed(
        request_id=request.request_id,
        opened_at_unix_ms=request.opened_at_unix_ms,
        closed_at_unix_ms=now_unix_ms,
        org=request.org,
        team=request.team,
        key_id=request.key_id,
        user=request.end_user,
        door="",
        status="abandoned",
        error_code="abandoned",
        requested_model=request.model,
        model=request.model,
        provider=None,
        cache_verdict="miss",
        cached_from=None,
        cache_similarity=None,
        finish_reason=None,
        usage=Usage(),
        estimated=True,
        cost_microusd=request.reserved_microusd,
        saved_microusd=0,
        price_version="",
        price={},
        attempts=(),
        decision=None,
        stage_ms={},
        ttft_ms=None,
        total_ms=float(max(0, now_unix_ms - request.opened_at_unix_ms)),
        overhead_ms=0.0,
    )


def _decided(run: Run) -> dict[str, Any] | None:
    """An arm under which nobody could answer has failed: so its part in the experiment is told without a decision."""
    if run.decision is not None:
        return _shallow(run.decision)
    return {"experiment": asdict(run.trial)} if run.trial is not None else None


def _shallow(decision: Decision) -> dict[str, Any]:
    """Its fields as they are: none changes any more, so `asdict`'s deep copy is not needed."""
    return {field.name: getattr(decision, field.name) for field in fields(decision)}
