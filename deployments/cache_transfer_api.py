"""Stored answers taken to a file and brought from one: GET /v1/cache/export, POST /v1/cache/import."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from deployments.admin_api import Authority
from deployments.cache_api import audit
from deployments.door import Operation, authenticated
from deployments.openai.recorded import recorded_answer
from models.errors import InvalidRequest, ModelNotFound, SwitchyardError
from router.cache_transfer import ANSWER, END, HEAD, VERSION, answer_line, end_line, head_line, read_answer
from router.invalidation import Selection
from router.ports import CachedAnswer, CacheKey
from router.recall import kept_for_s

if TYPE_CHECKING:
    from deployments.ingress import Ingress

AT_ONCE, AT_ONCE_BYTES = 32, 1024**2
"""Answers that an ingress has in its hands while it imports, and lines of how many bytes, but for the last."""

MAX_SHOWN = 20
MAX_NAME_CHARS = 128
OUTCOMES = ("kept", "expired", "held", "forgotten", "refused", "not_served", "invalid")


class CacheTransferDoor:
    """For who has scope `admin` and administers the whole organisation: its questions and answers are in there."""

    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("GET", "/v1/cache/export", self.export_answers),
            Operation("POST", "/v1/cache/import", self.import_answers),
        )

    async def export_answers(self, request: Request) -> Response:
        """JSON lines, as they are read from the shards. A last line without `cache.export.end` is an error: some of the
        answers are missing."""
        org = self._org(request, "namespace")
        namespace = request.query_params.get("namespace")
        selection, cache = Selection(org, namespace), self.ingress.shared_cache

        async def lines() -> AsyncIterator[bytes]:
            yield head_line(org, int(time.time() * 1000))
            count, outcome = 0, "failed"
            try:
                async for some in cache.answers(selection):
                    yield b"".join(answer_line(*each) for each in some)
                    count += len(some)
                outcome = "done"
                yield end_line(count)
            except SwitchyardError as error:  # the status is sent
                yield json.dumps({"object": "error", "message": error.message}).encode() + b"\n"
            finally:
                named = {} if namespace is None else {"namespace": namespace}
                audit(self.ingress, request, org, "cache.export", {**named, "count": count, "whole": outcome == "done"})

        return StreamingResponse(lines(), 200, media_type="application/x-ndjson")

    async def import_answers(self, request: Request) -> Response:
        """JSON lines: what the export gave, or questions with their answers. They become the organisation's own."""
        org, dry_run = self._org(request, "dry_run"), request.query_params.get("dry_run", "false")
        if dry_run not in ("true", "false"):
            raise InvalidRequest("'dry_run' is 'true' or 'false'.", "dry_run")
        taking = TakingIn(self.ingress, org, dry_run == "true")
        try:
            async for line in _lines(request, self.ingress.topology.max_body_bytes):
                await taking.line(line)
            await taking.flush()
        except SwitchyardError as error:
            done = f"{taking.counts['kept']} answers were kept before that; bring them all again, none is kept twice."
            raise type(error)(f"{error.message} {done}", error.param, error.retry_after_s) from None
        finally:
            if not taking.dry_run:
                audit(self.ingress, request, org, "cache.import", dict(taking.counts))
        return JSONResponse({"object": "cache.import", "org": org, "dry_run": taking.dry_run, **taking.told})

    def _org(self, request: Request, also: str) -> str:
        """`also`: what else may be given. Raises `InvalidRequest`, `PermissionDenied`, or `NotFound` where there is no
        shared cache."""
        authority = Authority(authenticated(self.ingress, request, "admin"))
        if unknown := set(request.query_params) - {"org", also}:
            raise InvalidRequest(f"'{min(unknown)[:MAX_NAME_CHARS]}' is not known here.")
        org = request.query_params.get("org", authority.org)
        if not 0 < len(org) <= MAX_NAME_CHARS:
            raise InvalidRequest(f"'org' has 1 to {MAX_NAME_CHARS} characters.", "org")
        authority.check(org, "")
        _ = self.ingress.shared_cache
        return org


class TakingIn:
    """Lines that one request brings for one organisation. `flush` after the last."""

    def __init__(self, ingress: Ingress, org: str, dry_run: bool) -> None:
        self.dry_run, self.counts = dry_run, Counter[str]()
        self._cache, self._pipeline, self._org = ingress.shared_cache, ingress.pipeline, org
        self._ttl_s = kept_for_s(ingress.pipeline.settings, org)
        if not self._ttl_s:
            raise InvalidRequest(f"Organisation '{org}' keeps no answers: its 'cache_ttl_s' is 0.")
        self._answers: list[tuple[CacheKey, CachedAnswer]] = []
        self._errors: list[dict[str, Any]] = []
        self._read = self._announced = -1
        self._numbered = self._held_bytes = 0

    @property
    def told(self) -> dict[str, Any]:
        """complete: whether a file of `export` was there to its end; None: it is none, or only a part of one."""
        complete = None if self._read < 0 else self._read == self._announced
        return {**{name: self.counts[name] for name in OUTCOMES}, "complete": complete, "errors": self._errors}

    async def line(self, line: bytes) -> None:
        """Raises `InvalidRequest` for a file of another version, `SwitchyardError` where a shard is down."""
        self._numbered += 1
        if not line.strip():
            return
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            told = None
        try:
            if not isinstance(told, dict):
                raise InvalidRequest("this is no JSON object")
            self._take(told, len(line))
        except ModelNotFound:
            self.counts["not_served"] += 1
        except InvalidRequest as error:
            if self._numbered == 1 and isinstance(told, dict) and told.get("object") == HEAD:
                raise
            self.counts["invalid"] += 1
            if len(self._errors) < MAX_SHOWN:
                self._errors.append({"line": self._numbered, "message": error.message})
        if len(self._answers) >= AT_ONCE or self._held_bytes >= AT_ONCE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        answers, self._answers, self._held_bytes = self._answers, [], 0
        if answers:
            self.counts.update(await self._cache.take_in(answers, self.dry_run))

    def _take(self, told: dict[str, Any], size_bytes: int) -> None:
        kind = told.get("object")
        if kind == HEAD:
            if told.get("version") != VERSION:
                raise InvalidRequest(f"This file is not of version {VERSION}; this Switchyard reads no other.")
            self._read = 0
            return
        if kind == END:
            self._announced = told.get("count", -1)
            return
        settings = self._pipeline.settings
        found: tuple[CacheKey, CachedAnswer] | None
        if kind == ANSWER:
            self._read += self._read >= 0
            found = read_answer(told, self._org, time.time())
        else:
            found = recorded_answer(told, self._org, settings, self._pipeline.prices)
        if found is None:
            self.counts["refused"] += 1
            return
        key, answer = found
        entry = self._pipeline.entries.get(answer.model)
        if entry is None:
            raise ModelNotFound(answer.model)
        # What an answer cost is what it is kept for, at the expense of others, so nobody may say just anything.
        most = self._pipeline.prices.worst_case_microusd(answer.model, entry.context_tokens, size_bytes)
        cost, ttl_s = min(answer.cost_microusd, most), min(answer.ttl_s, self._ttl_s)
        self._answers.append((key, replace(answer, cost_microusd=cost, ttl_s=ttl_s)))
        self._held_bytes += size_bytes


async def _lines(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The lines of a body of any size. Raises `InvalidRequest` for a line of more than `max_bytes`, and
    `ClientDisconnect`."""
    rest = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        rest += message.get("body", b"")
        *lines, last = bytes(rest).split(b"\n")
        rest = bytearray(last)
        if max(map(len, (*lines, last))) > max_bytes:
            raise InvalidRequest(f"A line has more than {max_bytes} bytes; this is no file of stored answers.")
        for line in lines:
            yield line
        if not message.get("more_body"):
            if rest:
                yield bytes(rest)
            return
