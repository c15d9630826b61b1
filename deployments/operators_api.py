"""What operators and their tools ask: receipts, budgets, the audit log, health, metrics."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from deployments.door import Operation, admitted, authenticated
from deployments.openai.pages import page_limit
from models.errors import InvalidRequest, PermissionDenied
from router.accounting.alerts import MAX_PAGE, Alert
from router.accounting.balances import Standing
from router.accounting.directory import DEFAULT_ORG
from router.accounting.limits import Limit, iso
from router.events import Principal

if TYPE_CHECKING:
    from deployments.ingress import Ingress

MAX_AUDIT_PAGE = 1000


class OperatorsDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("GET", "/v1/receipts/{request_id}", self.receipt),
            Operation("GET", "/v1/budget", self.budget),
            Operation("GET", "/v1/alerts", self.alerts),
            Operation("POST", "/v1/alerts/test", self.test_alert),
            Operation("GET", "/v1/audit", self.audit),
            Operation("GET", "/v1/audit/verify", self.verify_audit),
            Operation("GET", "/health", self.health),
            Operation("GET", "/ready", self.ready),
            Operation("GET", "/metrics", self.metrics),
        )

    async def receipt(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        return JSONResponse(await self.ingress.receipt(principal.org, request.path_params["request_id"]))

    async def budget(self, request: Request) -> Response:
        """Every budget and limit that the caller's requests may count for, and how it stands."""
        headers = request.headers
        principal = self.ingress.tenants.identify(headers.get("authorization"), headers.get("x-api-key"))
        limits = self.ingress.tenants.limits_over(principal)
        standings = await self.ingress.ledger.standings(limits)
        data = [budget_entry(*pair) for pair in zip(limits, standings, strict=True)]
        return JSONResponse({"object": "list", "data": data})

    async def alerts(self, request: Request) -> Response:
        """What operators were told of the caller's organisation, for the operator of all, the newest first. To which
        channels is the operator's matter alone."""
        org = _seen_by(await admitted(self.ingress, request, "usage"))
        found = await self.ingress.ledger.alerts(org, page_limit(request.query_params, MAX_PAGE))
        if org is not None:
            found = [_without(each, "deliveries") for each in found]
        return JSONResponse({"object": "list", "data": found})

    async def test_alert(self, request: Request) -> Response:
        """Send one to every channel, so that the operator sees whether it arrives."""
        principal = authenticated(self.ingress, request, "admin")
        if principal.org != DEFAULT_ORG or principal.team:
            raise PermissionDenied("Only the operator sends test alerts.")
        now = int(time.time() * 1000)
        text = "If you read this, alerts arrive here."
        alert = Alert(DEFAULT_ORG, f"test {now}", now, "test", "info", "A test of Switchyard's alerts", text)
        if not await self.ingress.ledger.tell(alert):
            raise InvalidRequest("There is no channel to tell: set `alerts.channels` in the Ledger's user_config.")
        return JSONResponse(alert.body(), 202)

    async def audit(self, request: Request) -> Response:
        """Entries after the one with the id `after`, oldest first: of the caller's organisation, of all for the
        operator, who alone sees their numbers (`sequence`): they say how much others do."""
        org = _seen_by(authenticated(self.ingress, request, "audit"))
        query = request.query_params
        limit = page_limit(query, MAX_AUDIT_PAGE)
        found = await self.ingress.ledger.audit_page(org, query.get("after", ""), limit)
        shown = [{"object": "audit.entry", "id": entry["entry_id"], **entry} for entry in found]
        if org is not None:
            shown = [_without(entry, "sequence") for entry in shown]
        return JSONResponse({"object": "list", "data": shown, "has_more": len(shown) == limit})

    async def verify_audit(self, request: Request) -> Response:
        """Whether the whole log is as it was written; with `head`, whether an entry with that hash is in it. Counted
        are the caller's own entries, for the operator all."""
        org = _seen_by(authenticated(self.ingress, request, "audit"))
        verdict = await self.ingress.ledger.audit_verdict(request.query_params.get("head"), org)
        told = {"object": "audit.verdict", "valid": verdict.broken_at is None, **asdict(verdict)}
        return JSONResponse(told if org is None else _without(told, "broken_at"))

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        parts = await self.ingress.readiness()
        fine = all(state == "ok" for state in parts.values())
        told = {"status": "ok" if fine else "degraded", "parts": parts, "warnings": await self.ingress.warnings()}
        return JSONResponse(told, 200 if fine else 503)

    async def metrics(self, _: Request) -> Response:
        return PlainTextResponse(await self.ingress.all_metrics(), media_type="text/plain; version=0.0.4")


def _seen_by(principal: Principal) -> str | None:
    """Whose alerts and audit entries; None: everybody's, for the operator. A team of the operator's is not it."""
    return None if principal.org == DEFAULT_ORG and not principal.team else principal.org


def _without(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return {each: value for each, value in entry.items() if each != name}


def budget_entry(limit: Limit, standing: Standing) -> dict[str, Any]:
    """`held` is what requests under way, and the ingresses for those that come, have set aside."""
    account = asdict(limit.account)
    resets_at = standing.resets_at_unix_ms
    return {
        "object": "budget",
        **{"key" if name == "key_id" else name: value for name, value in account.items()},
        "hard": limit.hard,
        "limit": limit.amount,
        "used": standing.used,
        "held": standing.held,
        "left": standing.left,
        "resets_at": None if resets_at is None else iso(resets_at),
    }
