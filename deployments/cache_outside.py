"""A cache shard's store outside the cluster beside its requests: written behind, on a thread of its own, and read at
the start, in the background. While it cannot be reached the shard answers from memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from models.errors import ModelUnavailable
from router.invalidation import Selection
from router.outside import OutsideLog
from router.semantic_cache import SemanticStore

FLUSH_S = 0.2
RETRY_S = (1.0, 2.0, 5.0, 15.0)
"""Waits between tries to reach a store, the last one again and again."""

RESTORED_S = 10.0
"""For which somebody who has answers forgotten waits until all are read. Those that are read later are compared with
what was forgotten, but for its question."""

CLOSE_S = 3.0
logger = logging.getLogger("ray.serve")


class CacheOutside:
    """Made where an event loop runs; `close` it. `mine`: whether this shard has a partition."""

    def __init__(self, store: SemanticStore, log: OutsideLog, mine: Callable[[str], bool]) -> None:
        self._store, self._log, self._mine = store, log, mine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache-outside")
        self._down = False
        store.log = log
        loop = asyncio.get_running_loop()
        self._order = asyncio.Lock()
        self._restoring = loop.create_task(self._restore())
        self._running = loop.create_task(self._run())

    async def restored(self) -> None:
        """Returns when all is here that will be, or after a while."""
        await asyncio.wait({self._restoring}, timeout=RESTORED_S)

    async def forgotten(self, selection: Selection, embedding: bytes | None) -> None:
        """Returns when what is meant is gone outside too. Raises `ModelUnavailable` where that cannot be reached: then
        it may come back to a shard that starts, and has to be forgotten again."""
        async with self._order:
            await self._write()
            await self._do(self._log.forget, selection, embedding, self._mine)

    async def close(self) -> None:
        """What waits is written if that goes at once."""
        tasks = {self._running, self._restoring}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._write()
                await self._do(self._log.close)
        except (ModelUnavailable, TimeoutError) as error:
            logger.warning("the last answers were not written outside (%s)", type(error).__name__)
        self._thread.shutdown(wait=False)

    async def _restore(self) -> None:
        began_s, tries = time.monotonic(), 0
        while True:
            try:
                await self._read()
                break
            except ModelUnavailable as error:
                self._note(error)
                await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
        took_s = time.monotonic() - began_s
        logger.info("%d answers were read from the outside store in %.1f s", self._store.stats()["restored"], took_s)

    async def _read(self) -> None:
        """A page at a time, and between the answers of each there may be requests. What was forgotten meanwhile is
        forgotten outside too."""
        pages = self._log.read(self._mine)
        while (page := await self._do(next, pages, None)) is not None:
            for record in page:
                told = self._store.take_in(record.key, record.answer, record.embedding, logged=True)
                if told == "forgotten":
                    self._log.gone(record.key)
                await asyncio.sleep(0)

    async def _run(self) -> None:
        tries = 0
        while True:
            await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S)) - 1] if tries else FLUSH_S)
            try:
                async with self._order:
                    await self._write()
                tries = 0
                self._note(None)
            except ModelUnavailable as error:
                tries += 1
                self._note(error)

    async def _write(self) -> None:
        if not (records := self._log.take()):
            return
        try:
            await self._do(self._log.write, records)
        except BaseException:
            self._log.give_back(records)
            raise

    def _note(self, error: ModelUnavailable | None) -> None:
        """Once when it is gone, and once when it is back."""
        if (error is not None) != self._down:
            self._down = error is not None
            told = f"cannot be reached, answers live in memory: {error.message}" if error else "can be reached again"
            logger.log(logging.WARNING if error else logging.INFO, "the outside store of answers %s", told)

    async def _do(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
