"""The archive: one process that keeps what callers leave for later. All work with files is in two threads."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from models.errors import NotFound, Overloaded
from router.archive.batches import OPEN, Batch, BatchStore
from router.archive.files import FileStore, StoredFile
from router.archive.lines import Results
from router.archive.responses import ResponseStore, StoredResponse
from router.archive.runner import Answerer, BatchRunner
from router.sealing import NO_SEALER, Sealer
from router.settings import ArchiveSettings
from router.sqlite_file import SQLiteFile

T = TypeVar("T")
logger = logging.getLogger(__name__)

ARCHIVE_FILE = "archive.sqlite3"
"""In the archive's folder."""

SWEEP_EVERY_S = 600.0
FRESH_S = 30.0
"""A response may still be on its way to here for so long after it was made; who asks for an older one is not kept
waiting."""

_MIGRATIONS = Path(__file__).parent / "migrations"
ERASE_WAIT_S = 15.0
_RESEALED_ROWS = 50
_MAX_READS = 512
_MAX_WAITERS = 1024


class Archive:
    """Use `await Archive.open(...)`. `folder` is its own."""

    def __init__(self, file: SQLiteFile, folder: Path, writer: ThreadPoolExecutor, sealer: Sealer = NO_SEALER) -> None:
        self.settings, self.folder, self.sealer = ArchiveSettings(), folder, sealer
        self._file, self._writer = file, writer
        self._reader = ThreadPoolExecutor(1, "archive-read")
        self._responses, self.batches = ResponseStore(file, sealer=sealer), BatchStore(file)
        self.files = FileStore(file, folder / "files", sealer=sealer)
        self._runner: BatchRunner | None = None
        self._arrivals: dict[tuple[str, str], list[asyncio.Future[None]]] = {}
        self._waiting = self._reading = self._unreadable = 0

    @classmethod
    async def open(cls, folder: Path, lock_wait_s: float = 0.0, sealer: Sealer = NO_SEALER) -> Archive:
        """Raises what `SQLiteFile` raises."""
        writer = ThreadPoolExecutor(1, "archive-write")

        def make() -> Archive:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return cls(SQLiteFile(folder / ARCHIVE_FILE, _MIGRATIONS, lock_wait_s), folder, writer, sealer)

        return await asyncio.get_running_loop().run_in_executor(writer, make)

    # ---- responses -------------------------------------------------------------------------------------------------

    async def put_response(self, org: str, response: StoredResponse) -> None:
        """It is found by whoever asks once this has returned."""
        await self._write(lambda: self._responses.put(org, response, self.settings))
        for waiter in self._arrivals.get((org, response.response_id), ()):
            if not waiter.done():
                waiter.set_result(None)

    async def response(self, org: str, response_id: str, wait_s: float) -> StoredResponse:
        """Raises `NotFound`: the same, and after the same time, for another's response as for none."""
        turns = await self._arrived(
            org, response_id, wait_s, lambda: self._responses.get(org, response_id, self.settings)
        )
        if turns is None:
            raise _no_response()
        return turns

    async def conversation(self, org: str, response_id: str, wait_s: float) -> list[StoredResponse]:
        """All turns up to a response, oldest first. Raises `NotFound`."""
        turns = await self._arrived(
            org, response_id, wait_s, lambda: self._responses.conversation(org, response_id, self.settings)
        )
        if turns is None:
            raise _no_response()
        return turns

    async def delete_response(self, org: str, response_id: str) -> None:
        """Raises `NotFound`."""
        if not await self._write(lambda: self._responses.delete(org, response_id)):
            raise _no_response()

    async def _arrived(self, org: str, response_id: str, wait_s: float, look: Callable[[], T | None]) -> T | None:
        """What `look` finds, also if it comes within `wait_s`."""
        found = await self._read(look)
        if found is not None or not _is_fresh(response_id) or self._waiting >= _MAX_WAITERS:
            return found
        key = (org, response_id)
        arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals.setdefault(key, []).append(arrival)
        self._waiting += 1
        try:
            found = await self._read(look)  # it may have come between the first look and the waiting
            if found is None:
                await asyncio.wait({arrival}, timeout=wait_s)
                found = await self._read(look)
            return found
        finally:
            self._waiting -= 1
            self._arrivals[key].remove(arrival)
            if not self._arrivals[key]:
                del self._arrivals[key]

    # ---- files -----------------------------------------------------------------------------------------------------

    async def begin_file(self, org: str) -> tuple[str, int]:
        """The id of a file that is to come, and how large it may be."""
        return await self._write(lambda: self.files.begin(org)), self.settings.max_file_bytes

    async def append_file(self, file_id: str, chunk: bytes) -> None:
        await self._write(lambda: self.files.append(file_id, chunk, self.settings))

    async def finish_file(self, file_id: str, filename: str, purpose: str) -> StoredFile:
        return await self._write(lambda: self.files.finish(file_id, filename, purpose))

    async def abort_file(self, file_id: str) -> None:
        await self._write(lambda: self.files.abort(file_id))

    async def list_files(self, org: str, purpose: str | None) -> list[StoredFile]:
        return await self._read(lambda: self.files.list(org, purpose))

    async def file(self, org: str, file_id: str) -> StoredFile:
        return await self._read(lambda: self.files.get(org, file_id))

    async def read_file(self, org: str, file_id: str, offset: int, limit: int) -> bytes:
        return await self._read(lambda: self.files.read(org, file_id, offset, limit))

    async def delete_file(self, org: str, file_id: str) -> None:
        await self._write(lambda: self.files.delete(org, file_id))

    # ---- batches ---------------------------------------------------------------------------------------------------

    def runner(self, answer: Answerer, idle: Callable[[], Awaitable[bool]], max_line_bytes: int) -> BatchRunner:
        """What works on the batches of this archive. Make one, and run it."""
        self._runner = BatchRunner(
            self.folder / "batches",
            self.batches,
            self.files,
            self._write,
            self._read,
            lambda: self.settings,
            answer,
            idle,
            max_line_bytes,
            Results(self.sealer),
        )
        return self._runner

    async def create_batch(self, batch: Batch) -> dict[str, Any]:
        """Raises `NotFound` for its file, `RateLimited`."""
        await self.file(batch.org, batch.body["input_file_id"])
        await self._write(lambda: self.batches.create(batch, self.settings))
        if self._runner is not None:
            self._runner.wake()
        return batch.body

    async def batch(self, org: str, batch_id: str) -> dict[str, Any]:
        return await self._read(lambda: self.batches.get(org, batch_id))

    async def list_batches(self, org: str, limit: int, after: str | None) -> list[dict[str, Any]]:
        return await self._read(lambda: self.batches.list(org, limit, after))

    async def cancel_batch(self, org: str, batch_id: str) -> dict[str, Any]:
        assert self._runner is not None
        return await self._runner.cancel(org, batch_id)

    # ---- what is to be forgotten -----------------------------------------------------------------------------------

    async def erase(self, org: str, user: str | None, response_ids: Sequence[str]) -> dict[str, int]:
        """Everything of an org, or of one of its users their responses and these, their batches and the files of those.

        Batches under way are cancelled first. Raises `Overloaded` while one has not ended.
        """
        batches = await self._write(lambda: self.batches.of(org, user))
        for batch in batches:
            if batch.status in OPEN and self._runner is not None:
                await self._runner.cancel(org, batch.batch_id)
        until_s = time.monotonic() + ERASE_WAIT_S
        while any(batch.status in OPEN for batch in await self._write(lambda: self.batches.of(org, user))):
            if time.monotonic() > until_s:
                raise Overloaded("A batch of theirs still comes to its end; erase again in a minute.", None, 60.0)
            await asyncio.sleep(0.1)
        batches = await self._write(lambda: self.batches.of(org, user))
        names = ("input_file_id", "output_file_id", "error_file_id")
        theirs = [batch.body[name] for batch in batches for name in names if batch.body[name]]
        files = await self._write(lambda: self.files.erase(org, None if user is None else theirs))
        responses = await self._write(lambda: self._responses.erase(org, user, response_ids))
        if self._runner is not None:
            for batch in batches:
                await self._runner.drop_results(batch)
        await self._write(lambda: self.batches.delete(batches))
        await self._write(self._file.scrub)
        return {"responses": responses, "files": files, "batches": len(batches)}

    async def facts(self) -> dict[str, Any]:
        """What is stored here, for how long, and by which keys it is sealed."""
        return {
            "where": str(self.folder),
            "keys": list(self.sealer.ids),
            "responses": await self._write(self._responses.facts),
            "files": await self._write(self.files.facts),
            "results": await asyncio.to_thread(Results(self.sealer).facts, self.folder / "batches"),
            "unreadable": self._unreadable,
            "settings": self.settings.model_dump(),
        }

    # ---- all of it -------------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Remove what has had its time."""
        for store in (self._responses, self.files, self.batches):
            removed = await self._write(partial(store.sweep, self.settings))
            if removed:
                logger.info("%d entries of %s have had their time", removed, type(store).__name__)
        if self._runner is not None:
            await self._runner.sweep()

    async def reseal(self) -> int:
        """Seal what is not sealed by the key that seals now, a little at a time. Returns how many there were. What does
        not open is left as it is, counted and named in the log; results of batches under way are sealed anew when they
        are handed over."""
        total, broken = 0, list[str]()
        for reseal, at_once in ((self._responses.reseal, _RESEALED_ROWS), (self.files.reseal, 1)):
            after: int | None = 0
            while after is not None:
                done, wrong, after = await self._write(partial(reseal, after, at_once))
                total, broken = total + done, broken + wrong
        self._unreadable = len(broken)
        if broken:
            named = ", ".join(broken[:10])
            logger.error("%d stored responses and files do not open, so no new key seals them: %s", len(broken), named)
        if total:
            await self._write(self._file.scrub)
            logger.info("%d stored responses and files are sealed with the newest key now", total)
        return total

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            try:
                await self.sweep()
                await self.reseal()
            except Exception:
                logger.exception("the archive could not remove what has had its time; it tries again")
            await asyncio.sleep(SWEEP_EVERY_S)

    @property
    def counts(self) -> dict[str, int]:
        worked = self._runner.counts if self._runner else {}
        return {"responses_evicted": self._responses.evicted, **worked}

    async def check(self) -> None:
        """Returns once the thread that writes has."""
        await self._write(lambda: None)

    async def close(self) -> None:
        """Finish what is being written and let go of the files."""
        await asyncio.to_thread(self._reader.shutdown)
        await self._write(self.files.close)
        await self._write(self._file.close)
        await asyncio.to_thread(self._writer.shutdown)

    async def _write(self, work: Callable[[], T]) -> T:
        # Shielded: who leaves does not leave the memory behind the disk.
        done = asyncio.get_running_loop().run_in_executor(self._writer, work)
        return await asyncio.shield(done)

    async def _read(self, work: Callable[[], T]) -> T:
        if self._reading >= _MAX_READS:
            raise Overloaded("Too many questions to the archive wait already; try again.", None, 1.0)
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, work)
        finally:
            self._reading -= 1


def _is_fresh(response_id: str) -> bool:
    """Whether a response of this id, which begins with when it was made, may still be on its way."""
    try:
        made_at_unix_ms = int(response_id.removeprefix("resp_")[:12], 16)
    except ValueError:
        return False
    return abs(time.time() * 1000 - made_at_unix_ms) < FRESH_S * 1000


def _no_response() -> NotFound:
    return NotFound(
        "No response with this id, or one before it is gone: responses are kept unless they are made with 'store': "
        "false, deleted or too old. Send the whole conversation as 'input'.",
        "response_id",
    )
