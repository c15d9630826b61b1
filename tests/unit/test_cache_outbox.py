"""Answers on their way to the shared cache. The handle stands in for Serve."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deployments import cache_handle
from deployments.cache_handle import CacheHandle
from models.errors import ModelUnavailable
from models.messages import Usage
from router.ports import CachedAnswer, CacheKey


class Shard:
    """Keeps what it is sent once `open` is set. `answer` is how many it says it could not keep, or what it raises."""

    deployment_name = "SemanticCache"

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.hops: list[list[str]] = []
        self.answer: int | Exception = 0

    def options(self, **_: Any) -> Shard:
        return self

    def remote(self, answers: list[Any]) -> Shard:
        self.hops.append([answer.answer_id for _, answer, _ in answers])
        return self

    def cancel(self) -> None: ...

    def __await__(self):
        return self._stored().__await__()

    async def _stored(self) -> int:
        await self.open.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def put(handle: CacheHandle, name: str) -> asyncio.Task[bool]:
    answer = CachedAnswer(name, "m", (), Usage(), 0, 0.0, 60.0)
    return asyncio.create_task(handle.store(CacheKey("t", name), answer, None))


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_comes_while_a_hop_is_under_way_goes_with_the_next() -> None:
    shard = Shard()
    handle = CacheHandle([shard])  # type: ignore[list-item]
    first = put(handle, "1")
    await turn()
    others = [put(handle, name) for name in "234"]
    await turn()
    others[0].cancel()  # its request has left: the answer arrives all the same
    shard.open.set()
    await asyncio.gather(first, *others[1:])
    assert shard.hops == [["1"], ["2", "3", "4"]]
    assert (handle.stores_dropped, handle.stores_failed) == (0, 0)


async def test_too_many_are_dropped_and_counted() -> None:
    shard = Shard()
    handle = CacheHandle([shard])  # type: ignore[list-item]
    tasks = [put(handle, "first")]
    await turn()
    tasks += [put(handle, str(number)) for number in range(cache_handle.MAX_UNSENT + 3)]
    await turn()
    shard.open.set()
    await asyncio.gather(*tasks)
    assert handle.stores_dropped == 3 and len(shard.hops[1]) == cache_handle.MAX_UNSENT


@pytest.mark.parametrize(("answer", "failed"), [(1, 1), (ModelUnavailable("gone"), 2)])
async def test_what_does_not_arrive_is_counted_and_fails_nobody(answer: int | Exception, failed: int) -> None:
    shard = Shard()
    shard.answer = answer
    shard.open.set()
    handle = CacheHandle([shard])  # type: ignore[list-item]
    arrived = await asyncio.gather(put(handle, "a"), put(handle, "b"))
    assert arrived == [isinstance(answer, int)] * 2  # what a shard could not keep, it has ended the claim of
    assert shard.hops == [["a", "b"]] and handle.stores_failed == failed


async def test_a_hop_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_handle, "STORE_TIMEOUT_S", 0.01)
    handle = CacheHandle([Shard()])  # type: ignore[list-item]
    await put(handle, "a")
    await put(handle, "b")
    assert handle.stores_failed == 2
