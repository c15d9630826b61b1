"""A shard's log beside its requests: a disk that is full or slow costs no answer that was told to be gone or there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from deployments import cache, cache_disk
from deployments.cache_disk import CacheDisk
from models.errors import ModelUnavailable
from router import cache_log
from router.cache_lines import Gone
from router.cache_records import Stored, read_frame, records_of
from router.invalidation import Selection
from router.ports import CacheKey
from router.sealing import Sealer
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings
from router.topology import Encoder as EncoderPlace
from router.vector_index import VectorIndex
from router.verifier import Judgement
from tests.unit.test_cache_log import NOW_S, TENANT, fields, full_disk, kept, read, unit, written


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
    assert Gone(TENANT, "exact a") in written_in(tmp_path)
    await disk.close()
    store, disk = await disk_on(tmp_path)
    assert store.entry_ids() == []
    await disk.close()


async def test_what_comes_before_all_that_was_forgotten_is_read_goes_again(tmp_path: Path) -> None:
    store, disk = await disk_on(tmp_path)
    store.invalidate(Selection("acme", tag="tag"), dry_run=False)
    await disk.close()
    store = SemanticStore(CacheSettings(audit=0), lambda: NOW_S + 1, judge=lambda text, others: [])
    disk = CacheDisk(store, tmp_path, Sealer())
    for name, opened_unix_s in (("a", NOW_S - 5), ("b", NOW_S + 0.5)):
        key, answer, vector = fields(kept(name))
        store.store(key, replace(answer, tags=("tag",), opened_at_unix_s=opened_unix_s), vector)
    await disk.restored()
    assert [record.answer.answer_id for record in store.records(store.entry_ids())] == ["b"]
    await disk.close()
    assert Gone(TENANT, "exact a") in written_in(tmp_path)


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
    await written_anew(disk)
    await disk.close()
    left = sorted(record.answer.answer_id for record in read(tmp_path) if isinstance(record, Stored))
    assert left == [str(number) for number in range(15, 20)]


async def test_an_act_is_known_after_the_log_was_written_anew_while_it_came(tmp_path: Path, monkeypatch) -> None:
    store, disk = await disk_on(tmp_path)
    for number in range(600):
        store.store(*fields(kept(str(number))))
    await disk.flush()
    monkeypatch.setattr(cache_log, "REWRITE_FROM_BYTES", 1000)
    for number in range(30):
        store.invalidate(Selection("acme", tag=f"odd {number}"), dry_run=False)
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)  # the log is written anew
    await disk.close()
    store, disk = await disk_on(tmp_path)
    assert {bar.selection and bar.selection.tag for bar in store.bars.all()} == {
        f"odd {number}" for number in range(30)
    }
    assert len(store.entry_ids()) == 600 and store.stats()["log_torn"] == 0
    await disk.close()


async def test_a_shard_that_ends_while_its_disk_is_slow_loses_nothing(tmp_path: Path) -> None:
    store, disk = await disk_on(tmp_path)
    disk._thread.submit(time.sleep, 0.4)
    store.store(*fields(kept("a")))
    await asyncio.sleep(0.2)  # its write waits behind that
    await disk.close()
    assert read(tmp_path) == [kept("a")]


async def test_records_that_cannot_be_taken_over_are_said_and_cost_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, *(kept(str(number)) for number in range(40)), kept("bad"))
    put = SemanticStore._put

    def failing(self: SemanticStore, key: CacheKey, *rest: object) -> object:
        if key.exact == "exact bad":
            raise RuntimeError("a secret question")
        return put(self, key, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(SemanticStore, "_put", failing)
    store, disk = await disk_on(tmp_path)
    assert len(store.entry_ids()) == 40
    assert "passed over (RuntimeError)" in caplog.text and "secret" not in caplog.text
    await written_anew(disk)
    await disk.close()
    assert len(read(tmp_path)) == 40


async def test_a_writer_outlives_whatever_fails_while_the_log_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, *(kept(str(number), vector=unit(number)) for number in range(40)))
    monkeypatch.setattr(cache_disk, "RETRY_S", 0.1)
    monkeypatch.setattr(cache_log, "REWRITE_FROM_BYTES", 1000)

    failed = asyncio.Event()

    def failing(*given: object) -> None:
        failed.set()
        raise TypeError("a secret question")

    with monkeypatch.context() as patch:
        patch.setattr(VectorIndex, "codes", failing)
        store, disk = await disk_on(tmp_path)
        async with asyncio.timeout(30):
            await failed.wait()
            await asyncio.sleep(0.1)
    assert "TypeError" in caplog.text and "secret" not in caplog.text
    store.store(*fields(kept("new")))
    await asyncio.sleep(0.4)
    assert written_in(tmp_path)[-1] == kept("new")
    await disk.close()


async def test_indexes_that_cannot_be_read_cost_time_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, kept("a", vector=unit(1)))
    (tmp_path / "indexes" / "of-nobody.new").mkdir(parents=True)  # it cannot be unlinked
    store, disk = await disk_on(tmp_path)
    assert len(store.entry_ids()) == store.vectors.count == 1
    assert "indexes of the cache were not read" in caplog.text
    await disk.flush()
    await disk.close()


class Shard(cache.SemanticCache):
    def __del__(self) -> None:
        """Serve awaits the other one, Python does not."""


async def test_an_import_waits_until_the_log_is_read_and_is_not_replaced_by_what_is_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cache, "Encoder", lambda *given, **named: SimpleNamespace(identity="")
    )  # nothing here is compared by meaning
    record = kept("a")
    made = replace(record.answer, created_at_unix_s=time.time() - 100)
    written(tmp_path, Stored(record.key.exact_only(), made, None))
    shard = Shard(EncoderPlace(), str(tmp_path))
    await shard.reconfigure({})
    newer = replace(made.opened(), answer_id="newer", created_at_unix_s=time.time() - 10)
    assert await shard.take_in([(record.key.exact_only(), newer)], dry_run=False) == ["kept"]
    assert (found := await shard.lookup(record.key.exact_only())).answer and found.answer.answer_id == "newer"
    await shard._disk.close()


def test_an_answer_that_another_version_packed_is_a_miss_and_goes() -> None:
    def judge(text: str, others: Sequence[tuple[float, str]]) -> list[Judgement]:
        return [Judgement(1.0) for _ in others]

    records = [kept(name, vector=unit(1)) for name in "abc"]
    for record in records[:2]:
        record.answer.body = record.answer.body.replace(b'"Finish"', b'"Finale"')
    store = SemanticStore(CacheSettings(audit=0), lambda: NOW_S, judge=judge)
    store.replay(records, NOW_S)
    assert store.exact(records[0].key) is None
    assert [each.answer.answer_id for each in store.records(store.entry_ids())] == ["c"]
    assert len(store.entry_ids()) == store.vectors.count == 1
    store.replay(records[:1], NOW_S)
    store.invalidate(Selection("acme", answer_id="c"), dry_run=False)
    near = replace(kept("d").key, surface=None)
    assert store.lookup(near, fields(kept("d", vector=unit(1)))[2]).kind == "miss"
    assert store.entry_ids() == [] and store.vectors.count == 0


async def written_anew(disk: CacheDisk) -> None:
    async with asyncio.timeout(30):
        while True:
            with suppress(ModelUnavailable):
                await disk.flush()
                return
            await asyncio.sleep(0.02)


def written_in(folder: Path) -> list[Stored | Gone]:
    """What a process that has it open wrote."""
    found: list[Stored | Gone] = []
    with (folder / "answers.log").open("rb") as file:
        while (body := read_frame(file)) is not None:
            found += records_of(body)
    return found
