"""Brings journals to the ledger: a process's own as it grows, and those that dead processes left behind."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from models.errors import SwitchyardError
from router.accounting.journal import CHUNK_BYTES, Journal, orphans
from router.events import AuditEntry, Record

logger = logging.getLogger(__name__)

LINGER_S = 0.1
"""How long records gather before they leave together. A hop costs both ends about a millisecond, so one after the other
would take half a core from the requests; a receipt that is asked for sooner is waited for by whoever asks."""
_FIRST_RETRY_S, _LAST_RETRY_S = 0.05, 5.0


class LedgerInbox(Protocol):
    """Where journals are taken in. Both calls may be repeated."""

    async def ingest(self, holder: str, chunk: bytes) -> int: ...

    async def retire(self, holder: str) -> None: ...


class Shipper:
    """Owns a process's journal. `sink` is where its records go in; `run` brings them to the ledger.

    The first record leaves after a moment, together with those that came meanwhile. They stay in the journal until the
    ledger has them, so a ledger that is down costs disk, not memory, and nothing is lost.
    """

    def __init__(self, journal: Journal, ledger: LedgerInbox, patience_s: float = 60.0) -> None:
        self._journal, self._ledger, self._patience_s = journal, ledger, patience_s
        self._arrived = asyncio.Event()
        self._hurried = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def sink(self, record: Record | AuditEntry) -> None:
        """Keep `record`; raises what `Journal.append` raises. Does not wait for anything but the kernel."""
        self._journal.append(record)
        self._idle.clear()
        self._arrived.set()

    @property
    def backlog_bytes(self) -> int:
        return self._journal.unshipped_bytes

    async def run(self) -> None:
        """Deliver for ever. Raises OSError when the journal cannot be read for `patience_s`: what checks this process's
        health sees that, and another one takes its place."""
        failures, began_s = 0, 0.0
        while True:
            try:
                if (chunk := self._journal.unshipped()) is not None:
                    await self._ledger.ingest(self._journal.name, chunk.data)
            except (SwitchyardError, OSError) as error:
                failures += 1
                began_s = time.monotonic() if failures == 1 else began_s
                if isinstance(error, OSError) and time.monotonic() - began_s >= self._patience_s:
                    raise
                if failures == 1:
                    why = error.code if isinstance(error, SwitchyardError) else f"the journal: {error.strerror}"
                    logger.warning("the ledger takes no records (%s); they stay in the journal until it does", why)
                longest_s = min(_LAST_RETRY_S, _FIRST_RETRY_S * 2 ** min(failures, 10))
                await asyncio.sleep(random.uniform(0, longest_s))
                continue
            if failures:
                logger.info("the ledger takes records again, after %d failures", failures)
            failures = 0
            if chunk is None:
                self._idle.set()
                await self._arrived.wait()
                self._arrived.clear()
                await self._gather()
                continue
            self._journal.acknowledge(chunk.end)
            if len(chunk.data) < CHUNK_BYTES:
                await self._gather()

    async def _gather(self) -> None:
        """Let more records come, unless somebody waits for those that are there."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._hurried.wait()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until the ledger has everything (True) or `timeout_s` is over. Needs `run` to be running."""
        self._hurried.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        finally:
            self._hurried.clear()
        return True

    async def close(self, timeout_s: float) -> None:
        """Deliver what is left if that can be done in time, and let go of the journal: the ledger takes in the rest.
        Nothing may be sunk after this, and `run` is to be cancelled then."""
        await self.drain(timeout_s)
        self._journal.close()


async def take_in_orphans(folder: Path, ledger: LedgerInbox) -> int:
    """Deliver, close and remove every journal in `folder` whose owner is gone. Returns how many."""
    taken = 0
    for orphan in orphans(folder):
        for chunk in orphan.chunks():
            await ledger.ingest(orphan.name, chunk)
        await ledger.retire(orphan.name)
        orphan.remove()
        taken += 1
    return taken
