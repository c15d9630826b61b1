"""Runs batches: line by line, a few at once, while nobody waits for an answer; goes on after a restart where it was.

A line is done when its result is in the batch's file of results, which outlives this process. A line that was under way
when the process died is asked again; one that was done never is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from models.errors import NotFound, SwitchyardError
from router.archive.batches import Batch, BatchStore
from router.archive.files import FileStore
from router.archive.lines import Line, LineAnswer, Opener, Results, check_lines, failure, read_lines, result
from router.events import Principal
from router.settings import ArchiveSettings

T = TypeVar("T")
logger = logging.getLogger(__name__)

MAX_ACTIVE = 4
"""Batches that are worked on at once; of those that wait, the organisation with the fewest has the next turn."""

LOOK_EVERY_S = 5.0
BUSY_PAUSE_S = 0.5
SAVE_EVERY_S = 1.0
AFTER_FAULT_S = 30.0
MAX_TRIES = 8
_LONGEST_PAUSE_S = 60.0
_RETRIED = (429, 502, 503, 504)

Answerer = Callable[[Principal, str, bytes], Awaitable[LineAnswer]]
"""Asks an endpoint for somebody. Raises `SwitchyardError` when nobody could be asked."""


class BatchRunner:
    """`write` and `read` run work in the threads that own the files. `idle` says whether nobody waits for an answer."""

    def __init__(
        self,
        folder: Path,
        batches: BatchStore,
        files: FileStore,
        write: Callable[[Callable[[], Any]], Awaitable[Any]],
        read: Callable[[Callable[[], Any]], Awaitable[Any]],
        settings: Callable[[], ArchiveSettings],
        answer: Answerer,
        idle: Callable[[], Awaitable[bool]],
        max_line_bytes: int,
        results: Results,
    ) -> None:
        self._lines = results
        self._folder, self._batches, self._files = folder, batches, files
        self._write, self._read, self._settings = write, read, settings
        self._answer, self._idle, self._max_line_bytes = answer, idle, max_line_bytes
        self._active: dict[str, tuple[Batch, asyncio.Task[None]]] = {}
        self._saved_s: dict[str, float] = {}
        self._choosing = asyncio.Lock()  # who takes up a batch and who cancels it mean the same object
        self.counts = {"lines_answered": 0, "lines_failed": 0}
        self._running = 0
        self._freed = asyncio.Event()
        self._woken = asyncio.Event()
        folder.mkdir(exist_ok=True, mode=0o700)

    def wake(self) -> None:
        """There is a new batch."""
        self._woken.set()

    async def run(self) -> None:
        """Work for ever."""
        try:
            while True:
                self._woken.clear()
                await self._start_some()
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._woken.wait()
                except TimeoutError:
                    pass
        finally:
            tasks = [task for _, task in self._active.values()]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def cancel(self, org: str, batch_id: str) -> dict[str, Any]:
        """The batch, which begins nothing new from now on; one that is over stays as it is. Raises `NotFound`."""
        async with self._choosing:
            body: dict[str, Any] = await self._read(lambda: self._batches.get(org, batch_id))
            known = [batch for batch, _ in self._active.values()] + await self._open()
            batch = next((each for each in known if each.batch_id == batch_id), None)
            if batch is None:
                return body
            if batch.status in ("validating", "in_progress"):
                batch.enter("cancelling")
                await self._save(batch)
        self.wake()
        return batch.body

    async def _start_some(self) -> None:
        async with self._choosing:
            waiting = [batch for batch in await self._open() if batch.batch_id not in self._active]
            while waiting and len(self._active) < MAX_ACTIVE:
                under_way = Counter(batch.org for batch, _ in self._active.values())
                batch = min(waiting, key=lambda each: (under_way[each.org], each.body["created_at"]))
                waiting.remove(batch)
                task = asyncio.create_task(self._work(batch))
                self._active[batch.batch_id] = (batch, task)

    async def _open(self) -> list[Batch]:
        found: list[Batch] = await self._write(self._batches.open)
        return found

    # ---- one batch -------------------------------------------------------------------------------------------------

    async def _work(self, batch: Batch) -> None:
        try:
            if batch.status == "validating":
                await self._validate(batch)
            if batch.status == "in_progress":
                await self._ask_all(batch)
            if batch.status != "failed":
                await self._finish(batch)
        except NotFound:
            await self._fail(batch, [_error("file_not_found", "The input file is not there any more.")])
        except Exception:
            logger.exception("batch %s could not go on; it is tried again", batch.batch_id)
            await asyncio.sleep(AFTER_FAULT_S)
        finally:
            del self._active[batch.batch_id]
            self._saved_s.pop(batch.batch_id, None)
            self.wake()

    async def _validate(self, batch: Batch) -> None:
        settings, endpoint = self._settings(), batch.body["endpoint"]
        opener = await self._input(batch)
        total, errors = await asyncio.to_thread(
            check_lines, opener, endpoint, settings.max_batch_requests, self._max_line_bytes
        )
        if batch.status != "validating":  # cancelled meanwhile
            return
        if errors:
            await self._fail(batch, errors)
            return
        batch.body["request_counts"]["total"] = total
        batch.enter("in_progress")
        await self._save(batch)

    async def _ask_all(self, batch: Batch) -> None:
        counts, opener = batch.body["request_counts"], await self._input(batch)
        completed = await asyncio.to_thread(self._lines.written_ids, self._results(batch, "output"))
        failed = await asyncio.to_thread(self._lines.written_ids, self._results(batch, "error"))
        counts |= {"completed": len(completed), "failed": len(failed)}
        lines = read_lines(opener, completed | failed)
        tasks: set[asyncio.Task[None]] = set()
        try:
            while (line := await asyncio.to_thread(next, lines, None)) is not None:
                await self._place(batch)
                if batch.status != "in_progress":
                    break
                if _expired(batch):
                    await self._record(batch, "error", failure(line, "batch_expired", "The batch's window is over."))
                    continue
                self._running += 1
                task = asyncio.create_task(self._ask(batch, line))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _place(self, batch: Batch) -> None:
        """Wait until fewer lines than allowed are under way and nobody else waits for an answer."""
        while batch.status == "in_progress" and not _expired(batch):
            if self._running < self._settings().batch_concurrency:
                if await self._idle():
                    return
                await asyncio.sleep(BUSY_PAUSE_S)
                continue
            self._freed.clear()
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._freed.wait()
            except TimeoutError:
                pass

    async def _ask(self, batch: Batch, line: Line) -> None:
        """Ask for one line until there is an answer that stays, and write that down."""
        try:
            for tried in range(1, MAX_TRIES + 1):
                pause_s = min(_LONGEST_PAUSE_S, 2.0**tried)
                try:
                    answer = await self._answer(batch.principal, batch.body["endpoint"], line.body)
                except SwitchyardError as error:
                    written, kind = failure(line, error.code, error.message), "error"
                else:
                    written, kind = result(line, answer), "output" if answer.status == 200 else "error"
                    if answer.status not in _RETRIED:
                        break
                    pause_s = max(pause_s, min(_LONGEST_PAUSE_S, answer.retry_after_s or 0.0))
                if batch.status != "in_progress" or _expired(batch):
                    break
                if tried < MAX_TRIES:
                    await asyncio.sleep(pause_s)
            await self._record(batch, kind, written)
        except Exception:
            logger.exception("the result of a line of batch %s could not be written", batch.batch_id)
        finally:
            self._running -= 1
            self._freed.set()

    async def _record(self, batch: Batch, kind: str, written: bytes) -> None:
        path = self._results(batch, kind)
        await self._write(lambda: _append(path, self._lines.line(path, written)))
        batch.body["request_counts"]["completed" if kind == "output" else "failed"] += 1
        self.counts["lines_answered" if kind == "output" else "lines_failed"] += 1
        if time.monotonic() - self._saved_s.get(batch.batch_id, 0.0) > SAVE_EVERY_S:
            self._saved_s[batch.batch_id] = time.monotonic()
            await self._save(batch)

    async def _finish(self, batch: Batch) -> None:
        """Hand the results over; doing so again after a crash changes nothing."""
        cancelled = batch.status == "cancelling"
        if batch.status == "in_progress":
            batch.enter("finalizing")
            await self._save(batch)
        for kind in ("output", "error"):
            batch.body[f"{kind}_file_id"] = await self._hand_over(batch, kind)
        late = batch.body["finalizing_at"] is not None and batch.body["finalizing_at"] > batch.body["expires_at"]
        batch.enter("cancelled" if cancelled else "expired" if late else "completed")
        await self._save(batch)

    async def _hand_over(self, batch: Batch, kind: str) -> str | None:
        path, digits = self._results(batch, kind), batch.batch_id.removeprefix("batch_")
        file_id, name = f"file-{digits}-{kind}", f"{batch.batch_id}_{kind}.jsonl"
        adopted: bool = await self._write(
            lambda: self._files.adopt(batch.org, path, self._lines.read(path), file_id, name, "batch_output")
        )
        return file_id if adopted else None

    async def _fail(self, batch: Batch, errors: list[dict[str, Any]]) -> None:
        batch.body["errors"] = {"object": "list", "data": errors}
        await self.drop_results(batch)
        batch.enter("failed")
        await self._save(batch)

    async def drop_results(self, batch: Batch) -> None:
        """What was answered and is handed over to nobody."""
        for kind in ("output", "error"):
            path = self._results(batch, kind)
            await self._write(lambda path=path: path.unlink(missing_ok=True))  # type: ignore[misc]

    async def sweep(self) -> None:
        """Results that no batch under way needs: a crash, or an earlier version, left them."""
        paths = await asyncio.to_thread(lambda: [*self._folder.glob("batch_*")])
        needed = {batch.batch_id for batch in await self._open()}
        for path in paths:
            if path.name.partition(".")[0] not in needed:
                await self._write(lambda path=path: path.unlink(missing_ok=True))  # type: ignore[misc]

    async def _input(self, batch: Batch) -> Opener:
        opener: Opener = await self._read(lambda: self._files.opener(batch.org, batch.body["input_file_id"]))
        return opener

    async def _save(self, batch: Batch) -> None:
        await self._write(lambda: self._batches.save(batch))

    def _results(self, batch: Batch, kind: str) -> Path:
        return self._folder / f"{batch.batch_id}.{kind}"


def _append(path: Path, written: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        before, view = os.fstat(descriptor).st_size, memoryview(written)
        try:
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError:  # the disk is full: a torn line would spoil the next one
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def _expired(batch: Batch) -> bool:
    expires_at: int = batch.body["expires_at"]
    return time.time() > expires_at


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "line": None, "message": message, "param": None}
