"""A cache shard's log beside its requests: written every tenth of a second, on a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from router.cache_log import CHUNK, FLUSH_S, CacheLog
from router.sealing import Sealer
from router.semantic_cache import SemanticStore

LOCK_WAIT_S = 60.0
"""For an earlier replica of the shard that is still going."""

logger = logging.getLogger("ray.serve")


class CacheDisk:
    """Made where an event loop runs; `close` it."""

    def __init__(self, store: SemanticStore, folder: Path, sealer: Sealer) -> None:
        """Restores what is there beside the requests that come. Raises `InternalError` when another process has the
        folder."""
        self._store = store
        self._log = CacheLog(folder, sealer, LOCK_WAIT_S)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache-log")
        steps = store.restore(self._log)
        self._restoring = asyncio.get_running_loop().create_task(self._restore(steps))
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def restored(self) -> None:
        """Returns when all is there that will be: nothing can be forgotten for good before that."""
        await asyncio.wait({self._restoring})

    async def _restore(self, steps: Iterable[None]) -> None:
        began_s = time.monotonic()
        for _ in steps:
            await asyncio.sleep(0)
        took_s = time.monotonic() - began_s
        logger.info("%d answers were read from disk in %.1f s", self._store.stats()["restored"], took_s)

    async def flush(self) -> None:
        """Returns when all that was stored or forgotten so far is on disk."""
        await self._do(self._log.write, self._log.take(), True)

    async def close(self) -> None:
        tasks = {self._running, self._restoring}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._do(self._log.close)
        self._thread.shutdown()

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
            await self._do(self._log.add, self._store.records(entry_ids[start : start + CHUNK]))
            await self._do(self._log.write, self._log.take())
        await self._do(self._log.finish, self._log.take())

    async def _do(self, work: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
