"""Denied requests on their way into the audit log: merged by the second, so a flood of them stays bounded."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from models.errors import SwitchyardError
from router.events import Actor, AuditEntry

logger = logging.getLogger(__name__)

DENIED = frozenset({401, 402, 403, 429})
"""The statuses that mean: you, or your organisation, may not (now)."""
FLUSH_EVERY_S = 1.0
MAX_DISTINCT = 64
"""Different denials that are told apart in a second; all further ones are one entry."""
_MAX_TARGET = 200
_Same = tuple[Actor, str, str, int]


class Denials:
    """One per ingress. sink: takes an entry to the ledger (the journal); raises `SwitchyardError` when it cannot."""

    def __init__(self, sink: Callable[[AuditEntry], None], unix_s: Callable[[], float] = time.time) -> None:
        self._sink, self._unix_s = sink, unix_s
        self._counts: dict[_Same, int] = {}

    def note(self, actor: Actor, target: str, error: SwitchyardError) -> None:
        """Remember that `error` was somebody's answer, if it denied them something."""
        if error.http_status not in DENIED:
            return
        same = (actor, target[:_MAX_TARGET], error.code, error.http_status)
        if same not in self._counts and len(self._counts) >= MAX_DISTINCT:
            same = (Actor(), "(many)", error.code, error.http_status)
        self._counts[same] = self._counts.get(same, 0) + 1

    @contextmanager
    def watching(self, actor: Actor, target: str) -> Iterator[None]:
        """Note what is raised within."""
        try:
            yield
        except SwitchyardError as error:
            self.note(actor, target, error)
            raise

    def flush(self) -> None:
        """Write down what was noted. What cannot be written now is kept for the next time."""
        now_unix_ms = int(self._unix_s() * 1000)
        for same, count in list(self._counts.items()):
            actor, target, code, status = same
            entry = AuditEntry(
                *(secrets.token_hex(12), now_unix_ms, actor.org, "request.denied", target, actor, "denied"),
                {"code": code, "status": status},
                count,
            )
            try:
                self._sink(entry)
            except SwitchyardError as error:
                logger.error("denied requests could not be written down (%s); tried again", error.code)
                return
            del self._counts[same]

    async def run(self) -> None:
        """Flush for ever."""
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            self.flush()
