"""What is kept of whom: erasing a user or an organisation, and the report of what is stored. Needs scope `admin`."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.admin_api import MAX_BODY_BYTES, Authority, Name
from deployments.door import Operation, actor_of, authenticated, read_body
from deployments.openai.body import Body, read_json
from models.errors import PermissionDenied
from router.accounting.alerts import ALERT_DAYS
from router.accounting.limits import iso
from router.accounting.registrar import Done, Forget
from router.invalidation import Selection

if TYPE_CHECKING:
    from deployments.ingress import Ingress

KEPT = (
    "sums of requests, tokens and money, without users",
    "the audit log, which nobody can change: acts of administrators, and denials, with the user where one was known",
    "of an organisation, bare rows of the last 35 days (when, key, model, tokens, money), which budgets count",
    "what requests under way bring in when they end: erase again an hour later",
)
_BY_DISK = "no: by the disk's or the database's own means"
_DAY_S = 86_400


class ErasureBody(Body):
    """Body of POST /v1/admin/erasures: an organisation, or one of its users."""

    org: Name
    user: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None


class DataDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("POST", "/v1/admin/erasures", self.erase, ErasureBody),
            Operation("GET", "/v1/admin/compliance", self.compliance),
        )

    async def erase(self, request: Request) -> Response:
        """Forget a user of an organisation, or all of it, which the operator alone can. It cannot be undone, and may
        be asked again. All cached answers of the organisation go: the cache does not know whose they were."""
        authority = Authority(authenticated(self.ingress, request, "admin"))
        body = read_json(ErasureBody, await read_body(request, MAX_BODY_BYTES) or b"{}")
        if body.user is None and not authority.operator:
            raise PermissionDenied("Only the operator erases an organisation.")
        authority.check(body.org, "")
        digest = hashlib.sha256(body.user.encode("utf-8", "replace")).hexdigest() if body.user else None
        detail = {} if digest is None else {"user_sha256": digest}  # the log cannot be changed, so no name goes into it
        ledger = self.ingress.ledger
        done: Done = await ledger.administer(Forget(body.org, body.user), actor_of(request), detail)
        await self.ingress.catch_up_everywhere(done.version)
        erased = await self._erased(body.org, body.user)
        forgotten = await self.ingress.invalidate_everywhere(Selection(body.org), False)
        forgotten.check()
        erased["cached_answers"] = forgotten.count
        told = {"object": "erasure", "org": body.org, "erased": erased, "kept": list(KEPT)}
        return JSONResponse(told | {"replicas_missed": forgotten.replicas_missed})

    async def _erased(self, org: str, user: str | None) -> dict[str, int]:
        """What each part had of it. The archive forgets before the books, which alone know whose the responses are that
        were stored without a user: what stops half-way can be asked again, and nothing is out of reach."""
        ledger, archive = self.ingress.ledger, self.ingress.archive
        if user is None:
            counts = await archive.erase(org, None, ())
            counts["requests"] = await ledger.forget_org(org)
        else:
            counts = await archive.erase(org, user, ())
            counts["requests"] = 0
            while ids := await ledger.requests_of(org, user):
                responses = [f"resp_{request_id.removeprefix('req_')}" for request_id in ids]
                counts["responses"] += (await archive.erase(org, user, responses))["responses"]
                await ledger.forget_user(org, user, ids)
                counts["requests"] += len(ids)
            await ledger.forget_user(org, user, ())
        return counts

    async def compliance(self, request: Request) -> Response:
        """What is stored, where, for how long, and how it is encrypted. For the operator."""
        if not Authority(authenticated(self.ingress, request, "admin")).operator:
            raise PermissionDenied("Only the operator reads what the whole cluster stores.")
        books, archive = await self.ingress.ledger.facts(), await self.ingress.archive.facts()
        told = {"object": "compliance", "encryption_keys": archive["keys"], "stores": _stores(books, archive)}
        told["unreadable"] = archive["unreadable"]
        return JSONResponse(told | {"retention": books["retention"]})


def _stores(books: dict[str, Any], archive: dict[str, Any]) -> list[dict[str, Any]]:
    rows, settings, books_at, archive_at = books["rows"], archive["settings"], books.get("where", ""), archive["where"]
    days, by_org, oldest = books["retention"]["days"], books["retention"]["days_by_org"], books["oldest_unix_ms"]
    kept = (f"{days} days" if days else "for ever") + (", some organisations otherwise" if by_org else "")
    since = f"; the oldest is of {iso(oldest)}" if oldest is not None else ""
    in_books = (
        ("requests: who, when, model, tokens, cost; no prompt, no answer", kept + since, "requests"),
        ("receipts of requests", kept, "receipts"),
        ("feedback with its comments", kept, "feedback"),
        ("sums of usage", f"for ever; by user {kept}, or until they are erased", "usage_by"),
        ("organisations, teams, keys (as keyed hashes) and policies", "for ever", "directory"),
        ("audit log", "for ever; it cannot be changed", "audit"),
        ("alerts", f"{ALERT_DAYS} days", "alerts"),
    )
    in_archive = (
        ("stored responses: questions and answers", "response_ttl_s", "responses"),
        ("files: inputs and outputs of batches", "file_ttl_s", "files"),
    )
    results = archive["results"]
    return [
        *(_store(what, books_at, how_long, _BY_DISK, rows[table]) for what, how_long, table in in_books),
        *(
            _store(
                *(what, archive_at, _days(settings[ttl], settings["ttl_s_by_org"])),
                *(_sealed(archive[part]["sealed_by"], archive["keys"]), archive[part]["count"]),
            )
            for what, ttl, part in in_archive
        ),
        _store(
            *("results of batches under way", archive_at, "until the batch is over"),
            *(_sealed(results["sealed_by"], archive["keys"]), results["count"]),
        ),
        _store(
            "cached answers",
            "SemanticCache and each ingress; see docs/cache.md for the disk and 'cache_store'",
            "ttl_s of their settings",
            "see docs/cache.md",
            None,
        ),
        _store(
            "records on their way to the books", "the data folder of each node", "until they are there", _BY_DISK, None
        ),
    ]


def _store(what: str, where: str, kept: str, encrypted: str, entries: int | None) -> dict[str, Any]:
    return {"what": what, "where": where, "kept": kept, "encrypted": encrypted, "entries": entries}


def _days(ttl_s: float, by_org: dict[str, float]) -> str:
    return f"{ttl_s / _DAY_S:g} days at most" + (", some organisations otherwise" if by_org else "")


def _sealed(by_key: dict[str, int], keys: list[str]) -> str:
    """Such as `AES-256-GCM: 12 by the first key (ab12cd34), 3 not yet`."""
    if not keys:
        plain = sum(by_key.values())
        return "no: set SWITCHYARD_ENCRYPTION_KEY" if plain == by_key.get("none", 0) else "by keys that are not there"
    parts = [f"{by_key.get(keys[0], 0)} by the first key ({keys[0]})"]
    for key, count in by_key.items():
        if key not in (keys[0], "none"):
            parts.append(f"{count} by {key}" + ("" if key in keys else ", which is not there"))
    if by_key.get("none"):
        parts.append(f"{by_key['none']} not yet")
    return f"AES-256-GCM: {', '.join(parts)}"
