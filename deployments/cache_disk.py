"""A cache shard's log beside its requests: written every tenth of a second, on a thread of its own; and the indexes of
its large scopes, whenever much of one has changed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from router.cache_log import CHUNK, FLUSH_S, CacheLog
from router.index_files import IndexFiles
from router.invalidation import Selection
from router.sealing import Sealer
from router.semantic_cache import SemanticStore
from router.vector_index import SAVE_FROM, SavedIndex

LOCK_WAIT_S = 60.0
"""For an earlier replica of the shard that is still going."""

SAVE_EVERY_S = 10.0
"""How often is asked which indexes have changed. A copy of one stops the shard for 0.1 s each 100,000 vectors."""

logger = logging.getLogger("ray.serve")


class CacheDisk:
    """Made where an event loop runs; `close` it."""

    def __init__(self, store: SemanticStore, folder: Path, sealer: Sealer) -> None:
        """Restores what is there beside the requests that come. Raises `InternalError` when another process has the
        folder."""
        self._store = store
        self._log = CacheLog(folder, sealer, LOCK_WAIT_S)
        self._indexes = IndexFiles(folder / "indexes", sealer)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache-log")
        self._index_thread = ThreadPoolExecutor(1, thread_name_prefix="cache-indexes")  # a log cannot wait for those
        saved: list[SavedIndex] = []
        steps = store.restore(self._log, saved)
        self._restoring = asyncio.get_running_loop().create_task(self._restore(steps, saved))
        self._running = asyncio.get_running_loop().create_task(self._run())
        self._saving = asyncio.get_running_loop().create_task(self._save_often())

    async def restored(self) -> None:
        """Returns when all is there that will be: nothing can be forgotten for good before that."""
        await asyncio.wait({self._restoring})

    async def _restore(self, steps: Iterable[None], saved: list[SavedIndex]) -> None:
        began_s = time.monotonic()
        await self._do_with_indexes(lambda: saved.extend(self._indexes.read()))
        for _ in steps:
            await asyncio.sleep(0)
        took_s = time.monotonic() - began_s
        logger.info("%d answers were read from disk in %.1f s", self._store.stats()["restored"], took_s)

    async def flush(self) -> None:
        """Returns when all that was stored or forgotten so far is on disk."""
        await self._do(self._log.write, self._log.take(), True)

    async def forgotten(self, selection: Selection, embedding: bytes | None) -> None:
        """Returns when what is meant, and was forgotten, cannot come back."""
        await self.flush()

    async def close(self) -> None:
        whole = self._restoring.done()
        tasks = {self._running, self._restoring, self._saving}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._do(self._log.write, self._log.take(), True)
        if whole:
            await self._save_indexes(SAVE_FROM)
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
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self._do(self._log.write, self._log.take())
                if self._log.wants_rewrite and self._restoring.done():
                    await self._rewrite()
            except OSError as error:
                logger.error("answers were not written to the cache's log (%s); they go with this process", error)

    async def _rewrite(self) -> None:
        """Piece by piece, with what comes meanwhile written in between."""
        await self._do(self._log.begin, self._log.take())
        entry_ids = self._store.entry_ids()
        for start in range(0, len(entry_ids), CHUNK):
            await self._do(self._log.add, self._store.stored(entry_ids[start : start + CHUNK]))
            await self._do(self._log.write, self._log.take())
        await self._do(self._log.finish, self._log.take())

    async def _do(self, work: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def _do_with_indexes(self, work: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._index_thread, work, *args)
