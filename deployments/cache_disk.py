"""A cache shard's log beside its requests: written every tenth of a second, on a thread of its own; and the indexes of
its large scopes, whenever much of one has changed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from models.errors import ModelUnavailable
from router.cache_log import CHUNK, FLUSH_S, CacheLog
from router.cache_records import Record
from router.index_files import IndexFiles
from router.invalidation import Selection
from router.sealing import Sealer
from router.semantic_cache import SemanticStore
from router.vector_index import SAVE_FROM, SavedIndex

LOCK_WAIT_S = 60.0
"""For an earlier replica of the shard that is still going."""

SAVE_EVERY_S = 10.0
"""How often is asked which indexes have changed. A copy of one stops the shard for 0.1 s each 100,000 vectors."""

RETRY_S, REWRITE_AGAIN_S = 1.0, 15.0
"""After a disk took nothing: until it is asked again, and until the log is written anew again."""

logger = logging.getLogger("ray.serve")


class CacheDisk:
    """Made where an event loop runs; `close` it."""

    def __init__(self, store: SemanticStore, folder: Path, sealer: Sealer, encoder: str = "") -> None:
        """Restores what is there beside the requests that come; encoder: see `CacheLog`. Raises `InternalError` when
        another process has the folder."""
        self._store = store
        self._log = CacheLog(folder, sealer, LOCK_WAIT_S, encoder)
        self._indexes = IndexFiles(folder / "indexes", sealer, encoder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache-log")
        self._index_thread = ThreadPoolExecutor(1, thread_name_prefix="cache-indexes")  # a log cannot wait for those
        self._order = asyncio.Lock()  # of what is taken from the log and written: no later act before an earlier one
        self._stopping = asyncio.Event()
        self._failing = False
        self._whole = True
        self._rewrite_from_s = 0.0
        saved: list[SavedIndex] = []
        steps = store.restore(self._log, saved)
        self._restoring = asyncio.get_running_loop().create_task(self._restore(steps, saved))
        self._running = asyncio.get_running_loop().create_task(self._run())
        self._saving = asyncio.get_running_loop().create_task(self._save_often())

    async def restored(self) -> None:
        """Returns when all is there that will be: nothing can be forgotten for good before that."""
        await asyncio.wait({self._restoring})

    async def all_known(self) -> bool:
        """Returns when `restored` does: whether all that was ever forgotten is known. A part of the log that could not
        be read may have said so."""
        await self.restored()
        return self._whole and self._log.is_whole

    async def _restore(self, steps: Iterable[None], saved: list[SavedIndex]) -> None:
        began_s = time.monotonic()
        try:
            await self._do_with_indexes(lambda: saved.extend(self._indexes.read()))
        except OSError as error:
            logger.error("indexes of the cache were not read (%s) and are built anew", error)
        try:
            for _ in steps:
                await asyncio.sleep(0)
        except Exception as error:
            self._whole = False
            self._log.fall_behind()  # what was not read must not come back later: it cannot be forgotten now
            logger.error("the cache's log was not read to its end (%s)", type(error).__name__)
        took_s = time.monotonic() - began_s
        logger.info("%d answers were read from disk in %.1f s", self._store.stats()["restored"], took_s)

    async def flush(self) -> None:
        """Returns when all that was stored or forgotten so far is on disk. Raises `ModelUnavailable` when it is not."""
        try:
            await self._hand_over(self._log.write, True)
        except Exception as error:
            why = error.strerror if isinstance(error, OSError) else type(error).__name__
            raise ModelUnavailable(f"The cache's log cannot be written ({why}); ask again.") from None
        if self._log.behind:
            raise ModelUnavailable("The cache's log is being written anew; ask again.")

    async def forgotten(self, selection: Selection, embedding: bytes | None) -> None:
        """Returns when what is meant, and was forgotten, cannot come back. Raises `ModelUnavailable`: it could, after a
        restart, until it was forgotten again."""
        await self.flush()

    async def close(self) -> None:
        whole = self._restoring.done()
        self._stopping.set()  # no write is cut off by this
        for task in (self._restoring, self._saving):
            task.cancel()
        await asyncio.wait({self._running, self._restoring, self._saving})
        try:
            await self._hand_over(self._log.write, True)
        except Exception as error:
            logger.error("the last answers were not written to the cache's log (%s)", type(error).__name__)
        if whole:
            await self._save_indexes(SAVE_FROM)
        with suppress(OSError):  # which was said
            await self._do(self._log.close)
        self._thread.shutdown()
        self._index_thread.shutdown()

    async def _save_often(self) -> None:
        await self.restored()
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            await self._save_indexes()

    async def _save_indexes(self, least_changes: int | None = None) -> None:
        vectors = self._store.vectors
        try:
            for place in vectors.unsaved(least_changes):
                if (saved := vectors.save(*place)) is not None:
                    await self._do_with_indexes(self._indexes.write, saved)
            await self._do_with_indexes(self._indexes.keep_only, vectors.places())
        except OSError as error:
            logger.error("indexes of the cache were not written (%s); a restart builds them anew", error)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), RETRY_S if self._failing else FLUSH_S)
            try:
                await self._hand_over(self._log.write)
                if self._log.wants_rewrite and self._restoring.done() and time.monotonic() >= self._rewrite_from_s:
                    await self._rewrite()
                self._failing = False
            except Exception as error:  # whatever it is: without this task nothing is written any more
                if not self._failing:
                    why = error if isinstance(error, OSError) else type(error).__name__
                    logger.error("the cache's log cannot be written (%s); what comes waits, or lives in memory", why)
                self._failing = True

    async def _rewrite(self) -> None:
        """Piece by piece, with what comes meanwhile written in between."""
        try:
            await self._hand_over(self._log.begin)
            await self._do(self._log.add, self._store.bars.all())
            entry_ids = self._store.entry_ids()
            for start in range(0, len(entry_ids), CHUNK):
                await self._do(self._log.add, self._store.stored(entry_ids[start : start + CHUNK]))
                await self._hand_over(self._log.write)
                if self._stopping.is_set():
                    await self._do(self._log.abandon)
                    return
            await self._hand_over(self._log.finish)
        except Exception:
            self._rewrite_from_s = time.monotonic() + REWRITE_AGAIN_S
            await self._do(self._log.abandon)
            raise

    async def _hand_over(self, write: Callable[..., None], *args: Any) -> None:
        """What has gathered. What is not written is there again for the next one."""
        async with self._order:
            records: list[Record] = self._log.take()
            try:
                await self._do(write, records, *args)
            except (OSError, asyncio.CancelledError):
                self._log.give_back(records)
                raise
            except Exception:
                self._log.fall_behind()  # it would fail again and again
                raise

    async def _do(self, work: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def _do_with_indexes(self, work: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._index_thread, work, *args)
