"""A shard's log beside its requests: a disk that is full or slow costs no answer that was told to be gone or there."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import pytest

from deployments import cache_disk
from deployments.cache_disk import CacheDisk
from models.errors import ModelUnavailable
from router import cache_log
from router.cache_lines import Gone
from router.cache_log import Stored
from router.invalidation import Selection
from router.sealing import Sealer
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings
from tests.unit.test_cache_log import NOW_S, TENANT, fields, full_disk, kept, read


async def disk_on(folder: Path) -> tuple[SemanticStore, CacheDisk]:
    store = SemanticStore(CacheSettings(audit=0), lambda: NOW_S, judge=lambda text, others: [])
    disk = CacheDisk(store, folder, Sealer())
    await disk.restored()
    return store, disk


async def test_what_was_forgotten_on_a_full_disk_is_not_told_before_it_is_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache_disk, "RETRY_S", 0.1)
    store, disk = await disk_on(tmp_path)
    store.store(*fields(kept("a")))
    await disk.flush()
    everything = Selection("acme")
    with pytest.MonkeyPatch.context() as patch:
        full_disk(patch)
        store.invalidate(everything, dry_run=False)
        await asyncio.sleep(0.25)  # the writer takes it meanwhile, and fails
        with pytest.raises(ModelUnavailable, match="ask again"):
            await disk.forgotten(everything, None)
    assert store.invalidate(everything, dry_run=False) == []
    await disk.forgotten(everything, None)
    assert written_in(tmp_path)[-1] == Gone(TENANT, "exact a")
    await disk.close()
    store, disk = await disk_on(tmp_path)
    assert store.entry_ids() == []
    await disk.close()


async def test_more_than_may_wait_has_the_log_written_anew_from_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache_disk, "RETRY_S", 0.1)
    store, disk = await disk_on(tmp_path)
    for number in range(20):
        store.store(*fields(kept(str(number))))
    await disk.flush()
    monkeypatch.setattr(cache_log, "MAX_WAITING", 5)
    with pytest.MonkeyPatch.context() as patch:
        full_disk(patch)
        for number in range(15):
            store.invalidate(Selection("acme", answer_id=str(number)), dry_run=False)
        with pytest.raises(ModelUnavailable):
            await disk.flush()
    with pytest.raises(ModelUnavailable, match="written anew"):
        await disk.flush()
    async with asyncio.timeout(5):
        while True:
            with suppress(ModelUnavailable):
                await disk.flush()
                break
            await asyncio.sleep(0.02)
    await disk.close()
    assert sorted(record.answer.answer_id for record in read(tmp_path)) == [str(number) for number in range(15, 20)]


async def test_a_shard_that_ends_while_its_disk_is_slow_loses_nothing(tmp_path: Path) -> None:
    store, disk = await disk_on(tmp_path)
    disk._thread.submit(time.sleep, 0.4)
    store.store(*fields(kept("a")))
    await asyncio.sleep(0.2)  # its write waits behind that
    await disk.close()
    assert read(tmp_path) == [kept("a")]


def written_in(folder: Path) -> list[Stored | Gone]:
    """What a process that has it open wrote."""
    found: list[Stored | Gone] = []
    with (folder / "answers.log").open("rb") as file:
        while (body := cache_log.read_frame(file)) is not None:
            found += cache_log.records_of(body)
    return found
