"""Answers that a shard of the cache has from the start: those of files that `switchyard cache export` wrote."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import BinaryIO

from models.errors import InvalidRequest
from router.cache_transfer import END, HEAD, VERSION, TakenIn, read_answer
from router.ports import CachedAnswer, CacheKey
from router.topology import WarmUp

AT_ONCE = 32
MAX_LINE_BYTES = 8 * 1024**2
"""Of what is longer no piece is an answer."""

TakeIn = Callable[[Sequence[tuple[CacheKey, CachedAnswer]], bool], Awaitable[list[TakenIn]]]
logger = logging.getLogger("ray.serve")


async def warm_up(files: Sequence[WarmUp], mine: Callable[[str], bool], take_in: TakeIn) -> None:
    """Beside the requests that come. A file that is missing or broken is told in the log, and no reason not to start.
    mine: whether this shard has a partition."""
    for each in files:
        began_s = time.monotonic()
        try:
            counts = await _taken_in(each, mine, take_in)
        except Exception as error:  # whatever it is: the shard answers without them
            why = error.strerror if isinstance(error, OSError) else error
            logger.warning("answers were not taken in from %s of 'cache_warm_up': %s", each.file, why)
            continue
        if counts["invalid"] or not counts["end"]:
            short = "" if counts["end"] else ", and its end is missing"
            logger.warning("%s of 'cache_warm_up': %d lines are no answers%s", each.file, counts["invalid"], short)
        took_s = time.monotonic() - began_s
        logger.info("%d answers were taken in from %s in %.1f s", counts["kept"], each.file, took_s)


async def _taken_in(given: WarmUp, mine: Callable[[str], bool], take_in: TakeIn) -> Counter[str]:
    """What came of the lines. Raises OSError, and `InvalidRequest` for a file of another version."""
    counts: Counter[str] = Counter()
    with await asyncio.to_thread(open, given.file, "rb") as file:
        while lines := await asyncio.to_thread(_some, file):
            answers = []
            for line in lines:
                try:
                    found = _read(line, given.org)
                except InvalidRequest:
                    if counts.total() == 0:
                        raise
                    counts["invalid"] += 1
                    continue
                if isinstance(found, str):
                    counts[found] += 1
                elif mine(found[0].tenant):
                    answers.append(found)
            counts.update(await take_in(answers, False))
    return counts


def _some(file: BinaryIO) -> list[bytes]:
    return list(islice(iter(lambda: file.readline(MAX_LINE_BYTES), b""), AT_ONCE))


def _read(line: bytes, org: str) -> tuple[CacheKey, CachedAnswer] | str:
    """An answer, or which end of the file this is. Raises `InvalidRequest`."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidRequest("this is no JSON") from None
    kind = told.get("object") if isinstance(told, dict) else None
    if kind == HEAD:
        if told.get("version") != VERSION:
            raise InvalidRequest(f"this file is not of version {VERSION}; this Switchyard reads no other")
        return "head"
    if kind == END:
        return "end"
    return read_answer(told, org, time.time())
