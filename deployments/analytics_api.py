"""What the books tell besides receipts: usage, and what follows from it. Needs the scope `usage`."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from deployments.door import Operation, admitted
from models.errors import InvalidRequest, PermissionDenied
from router.accounting.advice import Words, recommendations, savings
from router.accounting.directory import DEFAULT_ORG
from router.accounting.forecast import LEAST_DAYS
from router.accounting.limits import iso
from router.accounting.node_time import NODE_SUMS, node_rows, step_of, whole_hours
from router.accounting.usage import parse_usage_query, usage_answer, usage_csv
from router.accounting.usage_sql import UsageQuery
from router.events import Principal

if TYPE_CHECKING:
    from deployments.ingress import Ingress
    from router.accounting.prices import Quote

MOST_FORECAST_DAYS = 92
ALL_ORGS = "*"
_DAY_MS = 86_400_000


class AnalyticsDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("GET", "/v1/usage", self.usage),
            Operation("GET", "/v1/usage/forecast", self.forecast),
            Operation("GET", "/v1/usage/anomalies", self.anomalies),
            Operation("GET", "/v1/usage/savings", self.savings),
            Operation("GET", "/v1/usage/nodes", self.nodes),
            Operation("GET", "/v1/usage/recommendations", self.recommendations),
        )

    async def usage(self, request: Request) -> Response:
        query = await self._query(request)
        rows = await self.ingress.ledger.usage(query)
        if request.query_params.get("format") == "csv":
            return PlainTextResponse(usage_csv(query, rows), media_type="text/csv; charset=utf-8")
        told = usage_answer(query, rows)
        if query.latency and query.group_by:
            whole = await self.ingress.ledger.usage(replace(query, group_by=()))
            told["total"] |= {name: whole[0][name] for name in ("ttft_ms", "total_ms")}
        elif query.latency:
            told["total"] |= {name: rows[0][name] for name in ("ttft_ms", "total_ms")}
        return JSONResponse(told)

    async def forecast(self, request: Request) -> Response:
        """What the next `days` (30) will cost, and what this month will have cost, with 95 % intervals."""
        params = dict(request.query_params)
        days = params.pop("days", "30")
        if not (days.isdecimal() and 1 <= int(days) <= MOST_FORECAST_DAYS):
            raise InvalidRequest(f"'days' is a whole number from 1 to {MOST_FORECAST_DAYS}.", "days")
        org = await self._org(request, params)
        _nothing_else(params)
        ahead, outlook = await self.ingress.ledger.forecast(org, int(days)), await self.ingress.ledger.outlook(org)
        month: dict[str, Any] = {"month": outlook.month, "spent_microusd": outlook.spent_microusd}
        if outlook.ahead is not None:
            sums = {name: outlook.spent_microusd + getattr(outlook.ahead, name) for name in ("expected", "low", "high")}
            month |= {f"{name}_microusd": round(value) for name, value in sums.items()}
        told: dict[str, Any] = {"object": "usage.forecast", "days": int(days), "this_month": month}
        if ahead is None:
            return JSONResponse(told | {"reason": f"There are fewer than {LEAST_DAYS} whole days to go by."})
        named = {f"{name}_microusd": round(getattr(ahead, name)) for name in ("expected", "low", "high")}
        daily = [round(each) for each in ahead.daily]
        return JSONResponse(told | named | {"daily_microusd": daily, "basis_days": ahead.basis_days})

    async def anomalies(self, request: Request) -> Response:
        """Hours, or with `step=day` days, that were unlike those before; by default of the last two days, or weeks."""
        params = dict(request.query_params)
        step = params.pop("step", "hour")
        if step not in ("hour", "day"):
            raise InvalidRequest("'step' is 'hour' or 'day'.", "step")
        org = await self._org(request, params)
        now = int(time.time() * 1000)
        params.setdefault("since", str((now - (2 if step == "hour" else 14) * _DAY_MS) // 1000))
        query = parse_usage_query(params, now)
        if query.until_unix_ms - query.since_unix_ms > 92 * _DAY_MS:
            raise InvalidRequest("Ask for 92 days at the most.", "since")
        until = min(query.until_unix_ms, now)
        found = await self.ingress.ledger.anomalies(org, step, query.since_unix_ms, until)
        data = [{**asdict(each), "at": iso(each.at_unix_ms)} for each in found]
        return JSONResponse({"object": "list", "step": step, "data": data})

    async def savings(self, request: Request) -> Response:
        """What the caches saved, and what the routing saved against named baselines."""
        query = await self._query(request)
        by_verdict = await self._rows(query, "cache_verdict")
        by_model = await self._rows(query, "model", "strategy", "status")
        span = {"since": iso(query.since_unix_ms), "until": iso(query.until_unix_ms)}
        return JSONResponse(
            {"object": "usage.savings", **span, **savings(by_verdict, by_model, self._quotes(query.org))}
        )

    async def nodes(self, request: Request) -> Response:
        """What the nodes of local models cost, at work and idle, and what their requests were charged, in whole hours.
        For the operator."""
        principal = await admitted(self.ingress, request, "usage")
        if principal.org != DEFAULT_ORG or principal.team:
            raise PermissionDenied("What nodes cost is for the operator; GET /v1/usage says what your requests do.")
        query = whole_hours(parse_usage_query(dict(request.query_params), int(time.time() * 1000)))
        hours = await self.ingress.ledger.node_hours(query.since_unix_ms, query.until_unix_ms, step_of(query))
        rows = node_rows(hours, await self.ingress.ledger.usage(query), query)
        return JSONResponse({**usage_answer(query, rows, NODE_SUMS), "object": "usage.nodes"})

    async def recommendations(self, request: Request) -> Response:
        """What would have saved money in that time, the most first, with the numbers behind each."""
        query = await self._query(request)
        by_task = await self._rows(query, "model", "task", "status")
        judged = await self.ingress.ledger.judged(query.org) if query.org is not None else []
        words = {(model, task): Words(count, good) for model, task, count, good in judged}
        data = recommendations(by_task, self._quotes(query.org), words)
        return JSONResponse({"object": "list", "data": data})

    async def _query(self, request: Request) -> UsageQuery:
        params = dict(request.query_params)
        org = await self._org(request, params)
        return parse_usage_query(params, int(time.time() * 1000), org)

    async def _org(self, request: Request, params: dict[str, str]) -> str | None:
        """Whose usage is asked for, out of `params`: the caller's own, any for the operator. None: of all orgs."""
        principal = await admitted(self.ingress, request, "usage")
        org = params.pop("org", "") or principal.org
        if org != principal.org and (principal.org != DEFAULT_ORG or principal.team):
            raise PermissionDenied("A key reads the usage of its own organisation; leave out 'org'.")
        return None if org == ALL_ORGS else org

    async def _rows(self, query: UsageQuery, *groups: str) -> list[dict[str, Any]]:
        return await self.ingress.ledger.usage(replace(query, group_by=groups, latency=False))

    def _quotes(self, org: str | None) -> dict[str, Quote]:
        """The prices of the models that may answer this org now. Those without a price are compared with nothing."""
        pipeline = self.ingress.pipeline
        names = [name for name in pipeline.entries if org is None or pipeline.may_use(Principal(org), name)]
        quotes = {name: pipeline.prices.quote(name) for name in names}
        return {name: quote for name, quote in quotes.items() if any(quote.numerators)}


def _nothing_else(params: dict[str, str]) -> None:
    if params:
        raise InvalidRequest(f"Unknown parameter '{min(params)}'; there are 'days' and 'org'.", min(params))
