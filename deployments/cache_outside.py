"""A cache shard's store outside the cluster beside its requests: written behind, on a thread of its own, and read at
the start, in the background. While it cannot be reached the shard answers from memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from models.errors import ModelUnavailable
from router.cache_records import Stored
from router.invalidation import Bar, Selection
from router.outside import OutsideLog
from router.scope_index import codes_of
from router.semantic_cache import SemanticStore

FLUSH_S = 0.2
RETRY_S = (1.0, 2.0, 5.0, 15.0)
"""Waits between tries to reach a store, the last one again and again."""

RESTORED_S = 10.0
"""For which somebody who has answers forgotten waits until all are read. Those that are read later are compared with
what was forgotten, but for its question."""

CLOSE_S = 3.0
Encode = Callable[[str], Awaitable[bytes | None]]
logger = logging.getLogger("ray.serve")


class CacheOutside:
    """Made where an event loop runs; `close` it."""

    def __init__(self, store: SemanticStore, log: OutsideLog, mine: Callable[[str], bool], encode: Encode) -> None:
        """mine: whether this shard has a partition. encode: the vector of a question that another encoder read."""
        self._store, self._log, self._mine, self._encode = store, log, mine, encode
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache-outside")
        self._missed = asyncio.Event()  # the store, which was there when it was last asked, or not
        store.log = log
        loop = asyncio.get_running_loop()
        self._order = asyncio.Lock()
        self._restoring = loop.create_task(self._restore())
        self._running = loop.create_task(self._run())

    async def restored(self) -> None:
        """Returns when all is here that will be, or after a while, or when the store cannot be reached."""
        waiting = asyncio.ensure_future(self._missed.wait())
        await asyncio.wait({self._restoring, waiting}, timeout=RESTORED_S, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def all_known(self) -> bool:
        """Returns when the store was read, however long that takes: whether all that is filed as forgotten is known."""
        await asyncio.wait({self._restoring})
        return not self._log.acts_torn

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
        began_s, began_unix_s, tries = time.monotonic(), time.time(), 0
        acts: list[Bar] | None = None
        while True:
            try:
                if acts is None:
                    acts = await self._do(self._log.acts, began_unix_s)
                    for act in acts:
                        self._store.bars.put(act)
                    self._store.recheck(0.0)
                async with self._order:
                    await self._write()  # what had to go by that, or since an earlier try, must not be read again
                await self._read(began_unix_s)
                break
            except Exception as error:  # also one that nobody thought of: else nothing would be read any more
                self._note(error)
                await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
        took_s = time.monotonic() - began_s
        logger.info("%d answers were read from the outside store in %.1f s", self._store.stats()["restored"], took_s)

    async def _read(self, began_unix_s: float) -> None:
        """A page at a time, and between the answers of each there may be requests. What was forgotten meanwhile is
        forgotten outside too."""
        pages = self._log.read(self._mine)
        while (page := await self._do(next, pages, None)) is not None:
            self._note(None)
            for record in page:
                await self._take_back(record, began_unix_s)

    async def _take_back(self, record: Stored, began_unix_s: float) -> None:
        if record.codes is None and record.key.scope:
            vector = await self._encode(record.key.text)
            record = replace(record, codes=codes_of(vector) if vector else None)
        if self._store.bars.against(record.tenant, record.answer, began_unix_s):  # since it was read, or before
            self._log.gone(record.key)
            return
        self._store.replay([record], began_unix_s)
        await asyncio.sleep(0)

    async def _run(self) -> None:
        tries = 0
        while True:
            await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S)) - 1] if tries else FLUSH_S)
            try:
                async with self._order:
                    await self._write()
                tries = 0
            except Exception as error:  # as above: nothing would be written any more
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
        self._note(None)

    def _note(self, error: Exception | None) -> None:
        """Once when it is gone, and once when it is back."""
        if error is not None and not self._missed.is_set():
            self._missed.set()
            why = error.message if isinstance(error, ModelUnavailable) else type(error).__name__
            logger.warning("the outside store of answers is gone, they live in memory: %s", why)
        elif error is None and self._missed.is_set():
            self._missed.clear()
            logger.info("the outside store of answers is back")

    async def _do(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
