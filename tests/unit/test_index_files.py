"""Saved indexes: what a restart takes from them, and that nothing torn, foreign or out of date is ever taken."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest

from deployments import cache_disk
from deployments.cache_disk import CacheDisk
from models.messages import Finish, TextDelta, Usage
from router import vector_index
from router.cache_log import CacheLog
from router.fingerprint import partition
from router.index_files import IndexFiles
from router.invalidation import Selection
from router.ports import CachedAnswer, CacheKey
from router.scope_index import PROMOTE_AT, ScopeIndex, quantised, unit
from router.sealing import Sealer
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings
from router.vector_index import SavedIndex
from router.verifier import Judgement

NOW_S = 1_800_000_000.0
TENANT = partition("acme", "")
COUNT = PROMOTE_AT + 40


def vector(seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal(32).astype("<f4")
    return found / np.linalg.norm(found)


def keep(store: SemanticStore, number: int) -> None:
    key = CacheKey(TENANT, f"exact {number}", "scope", f"question {number}")
    answer = CachedAnswer(f"req {number}", "m", (TextDelta("yes", 1), Finish("stop")), Usage(1, 1), 5, NOW_S, 3600.0)
    store.store(key, answer, vector(number).tobytes())


def ask(store: SemanticStore, number: int) -> str | None:
    found = store.lookup(CacheKey(TENANT, "new", "scope", "new"), vector(number).tobytes())
    return found.answer.answer_id if found.answer is not None else None


def new_store() -> SemanticStore:
    def judge(text: str, others: object) -> list[Judgement]:
        return [Judgement(1.0 if cosine > 0.99 else 0.0) for cosine, _ in others]  # type: ignore[attr-defined]

    return SemanticStore(CacheSettings(audit=0), lambda: NOW_S, judge=judge)


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Sealer]:
    """A folder with a log of `COUNT` answers and the index of all but the last twenty, of which ten went later."""
    monkeypatch.setattr(vector_index, "SAVE_FROM", PROMOTE_AT)
    sealer = Sealer([os.urandom(32)])
    store, log = new_store(), CacheLog(tmp_path, sealer)
    for _ in store.restore(log):
        pass
    for number in range(COUNT - 20):
        keep(store, number)
    (place,) = store.vectors.unsaved(1)
    IndexFiles(tmp_path / "indexes", sealer).write(store.vectors.save(*place))
    assert store.vectors.unsaved(1) == []
    for number in range(COUNT - 20, COUNT):
        keep(store, number)
    for number in range(10):
        store.invalidate(Selection("acme", answer_id=f"req {number}"), dry_run=False)
    log.close()
    return tmp_path, sealer


def restarted(folder: Path, sealer: Sealer) -> tuple[SemanticStore, int, int]:
    """The store, the vectors that it had to put in their places, and how many files could not be read."""
    files, store = IndexFiles(folder / "indexes", sealer), new_store()
    log = CacheLog(folder, sealer)
    for _ in store.restore(log, list(files.read())):
        pass
    log.close()
    (index,) = store.vectors._graphs.values()
    return store, index.changes, files.torn


def test_a_saved_index_is_taken_up_and_what_came_or_went_since_is_made_up_for(filled: tuple[Path, Sealer]) -> None:
    store, changes, _ = restarted(*filled)
    assert changes == 20 + 10  # those that came, and those that went
    assert store.vectors.count == len(store.entry_ids()) == COUNT - 10
    found = [ask(store, number) for number in range(COUNT)]
    assert found[:10] == [None] * 10
    assert sum(name == f"req {number}" for number, name in enumerate(found)) >= 0.99 * (COUNT - 10)
    store.reconfigure(CacheSettings(audit=0, max_bytes=0))
    assert store.used_bytes == store.vectors.count == 0


def test_a_file_that_was_cut_changed_or_sealed_with_another_key_is_built_anew(filled: tuple[Path, Sealer]) -> None:
    folder, sealer = filled
    (path,) = (folder / "indexes").iterdir()
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-100] ^= 1
    for data in (b"", whole[:10], whole[:200], whole[:-1], bytes(changed)):
        path.write_bytes(data)
        store, changes, torn = restarted(folder, sealer)
        assert torn == 1 and not path.exists()
        assert changes >= COUNT - 10 and store.vectors.count == COUNT - 10
    path.write_bytes(whole)
    assert list(IndexFiles(folder / "indexes", Sealer([os.urandom(32)])).read()) == []
    assert not path.exists()


async def test_another_encoder_finds_what_an_earlier_one_read_only_by_the_very_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it has as many dimensions."""
    for module in (vector_index, cache_disk):
        monkeypatch.setattr(module, "SAVE_FROM", PROMOTE_AT)

    async def started(encoder: str) -> tuple[SemanticStore, CacheDisk]:
        store = new_store()
        disk = CacheDisk(store, tmp_path, Sealer(), encoder)
        await disk.restored()
        return store, disk

    store, disk = await started("mini")
    for number in range(PROMOTE_AT):
        keep(store, number)
    await disk.close()
    assert len(list((tmp_path / "indexes").iterdir())) == 1
    store, disk = await started("large")
    assert store.vectors.count == 0 and ask(store, 5) is None
    assert store.lookup(CacheKey(TENANT, "exact 5", "scope", "question 5")).kind == "hit-exact"
    keep(store, 5)
    assert ask(store, 5) == "req 5"
    await disk.close()
    store, disk = await started("mini")
    assert store.vectors.count == PROMOTE_AT - 1 and ask(store, 5) is None and ask(store, 6) == "req 6"
    await disk.close()


def test_no_vector_lies_open_on_disk_and_a_file_in_the_place_of_another_is_not_read(
    filled: tuple[Path, Sealer],
) -> None:
    folder, sealer = filled
    (path,) = (folder / "indexes").iterdir()
    assert quantised(vector(30)).tobytes() not in path.read_bytes() and b"acme" not in path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0
    path.rename(path.with_name("0" * 32 + ".index"))
    files = IndexFiles(folder / "indexes", sealer)
    assert list(files.read()) == [] and files.torn == 1


def test_without_a_key_it_lies_as_it_is_and_with_one_it_is_not_believed(tmp_path: Path) -> None:
    files = IndexFiles(tmp_path, Sealer())
    saved = SavedIndex("t", "s", b"x" * 100)
    files.write(saved)
    assert [bytes(each.data) for each in files.read()] == [saved.data]
    assert list(IndexFiles(tmp_path, Sealer([os.urandom(32)])).read()) == []


def test_what_is_no_index_is_passed_over_and_indexes_of_no_scope_are_deleted(tmp_path: Path) -> None:
    store = new_store()
    for _ in store.restore(CacheLog(tmp_path), [SavedIndex(TENANT, "scope", b"nonsense" * 50)]):
        pass
    keep(store, 1)
    assert ask(store, 1) == "req 1"
    files = IndexFiles(tmp_path / "indexes", Sealer())
    files.write(SavedIndex("t", "s", b"1"))
    files.write(SavedIndex("t", "other", b"2"))
    files.keep_only({("t", "s")})
    assert [each.scope for each in files.read()] == ["s"]


def test_what_came_before_the_index_was_read_is_kept(filled: tuple[Path, Sealer]) -> None:
    folder, sealer = filled
    store, log = new_store(), CacheLog(folder, sealer)
    steps = store.restore(log, list(IndexFiles(folder / "indexes", sealer).read()))
    keep(store, 15)  # again
    keep(store, 10_000)
    for _ in steps:
        pass
    log.close()
    assert ask(store, 15) == "req 15" and ask(store, 10_000) == "req 10000"
    assert store.vectors.count == len(store.entry_ids()) == COUNT - 9


def test_a_shard_saves_its_indexes_when_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.cache_disk.SAVE_FROM", 1)
    monkeypatch.setattr(vector_index, "SAVE_FROM", PROMOTE_AT)

    async def run() -> None:
        store = new_store()
        disk = CacheDisk(store, tmp_path, Sealer())
        await disk.restored()
        for number in range(COUNT):
            keep(store, number)
        await disk.close()

    asyncio.run(run())
    store, changes, _ = restarted(tmp_path, Sealer())
    assert changes == 0 and store.vectors.count == COUNT


def test_a_vector_in_signed_bytes_says_nearly_the_same() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 384)).astype("<f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    again = unit(quantised(vectors))
    assert np.array_equal(quantised(again), quantised(vectors))
    others = vectors + 0.6 * rng.standard_normal(vectors.shape).astype("<f4") / np.sqrt(384)
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert np.abs((others * vectors).sum(1) - (others * again).sum(1)).max() < 0.002


def test_vectors_come_in_any_number_and_a_few_at_once_are_as_one_by_one() -> None:
    index = ScopeIndex(32)
    codes = np.stack([quantised(vector(number)) for number in range(600)])
    for start, stop in ((0, 1), (1, 250), (250, 251), (251, 600)):
        index.add(range(start, stop), codes[start:stop])
    assert len(index) == 600 and sorted(index) == list(range(600))
    nearest = [index.nearest(vector(number), 0.9)[:1] for number in range(600)]
    assert sum(bool(found) and found[0][1] == number for number, found in enumerate(nearest)) >= 570


@pytest.mark.parametrize("count", [5, COUNT])
def test_vectors_of_another_encoder_make_room_for_those_of_this_one(tmp_path: Path, count: int) -> None:
    store, log = new_store(), CacheLog(tmp_path)
    for _ in store.restore(log):
        pass
    for number in range(count):
        keep(store, number)
    wide = np.ones(48, dtype="<f4") / np.sqrt(np.float32(48))
    key = CacheKey(TENANT, "exact wide", "scope", "question wide")
    answer = CachedAnswer("req wide", "m", (TextDelta("yes", 1), Finish("stop")), Usage(1, 1), 5, NOW_S, 3600.0)
    store.store(key, answer, wide.tobytes())
    near = CacheKey(TENANT, "new", "scope", "new")
    assert store.lookup(near, wide.tobytes()).answer.answer_id == "req wide"
    assert ask(store, 1) is None  # nothing is near a vector of another length
    assert store.exact(CacheKey(TENANT, "exact 1")).answer.answer_id == "req 1"
    assert [each.codes is None for each in store.stored(store.entry_ids())] == [True] * count + [False]
    store.judge("acme", "req 2", "ann", 0.0)
    log.close()
    again, log = new_store(), CacheLog(tmp_path)
    for _ in again.restore(log):
        pass
    assert again.lookup(near, wide.tobytes()).answer.answer_id == "req wide"
    assert len(again.entry_ids()) == count
    log.close()


@pytest.mark.parametrize("count", [3, COUNT])
def test_what_was_replaced_or_forgotten_soon_after_it_came_is_in_its_place_once(tmp_path: Path, count: int) -> None:
    store, log = new_store(), CacheLog(tmp_path)
    for _ in store.restore(log):
        pass
    for number in range(count):
        keep(store, number)
        keep(store, number)
        if number % 3 == 1:
            store.invalidate(Selection("acme", answer_id=f"req {number}"), dry_run=False)
    exact_only = CacheKey(TENANT, f"exact {count - 1}")
    answer = CachedAnswer(
        "exact", "m", (TextDelta("yes", 1), Finish("stop")), Usage(1, 1), 5, NOW_S, 3600.0, (), NOW_S + 1
    )
    store.store(exact_only, answer)
    log.close()
    again, log = new_store(), CacheLog(tmp_path)
    for _ in again.restore(log):
        pass
    log.close()
    assert sorted(again.entry_ids()) == sorted(store.entry_ids())
    assert again.vectors.count == store.vectors.count == len(store.entry_ids()) - 1
    again.reconfigure(CacheSettings(audit=0, max_bytes=0))
    assert again.used_bytes == again.vectors.count == 0


def test_vectors_of_a_replaced_encoder_that_are_read_late_do_not_push_out_what_came_since(tmp_path: Path) -> None:
    store, log = new_store(), CacheLog(tmp_path)
    for _ in store.restore(log):
        pass
    keep(store, 1)
    log.close()
    again, log = new_store(), CacheLog(tmp_path)
    steps = again.restore(log)
    wide = np.ones(48, dtype="<f4") / np.sqrt(np.float32(48))
    key = CacheKey(TENANT, "exact wide", "scope", "question wide")
    answer = CachedAnswer("req wide", "m", (TextDelta("yes", 1), Finish("stop")), Usage(1, 1), 5, NOW_S, 3600.0)
    again.store(key, answer, wide.tobytes())
    for _ in steps:
        pass
    log.close()
    found = again.lookup(CacheKey(TENANT, "new", "scope", "new"), wide.tobytes()).answer
    assert found is not None and found.answer_id == "req wide"
    assert again.exact(CacheKey(TENANT, "exact 1")) is not None
