"""What a shard has from the start: answers of a file, where it has none of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import SecretStr

from deployments import cache, cache_outside
from models.errors import ModelUnavailable
from models.messages import Usage
from router.cache_transfer import answer_line, end_line, head_line
from router.fingerprint import partition
from router.invalidation import Selection
from router.ports import CachedAnswer, CacheKey
from router.topology import Encoder as EncoderPlace
from router.topology import Topology, WarmUp
from tests.unit.test_cache_log import YES
from tests.unit.test_cache_outside import Rows

WHOLE = cache.Part()


class Shard(cache.SemanticCache):
    def __del__(self) -> None:
        """Serve awaits the other one, Python does not."""

    async def started(self) -> Shard:
        await self.reconfigure({})
        assert self._warming is not None
        await self._warming
        return self

    def held(self) -> list[tuple[str, str]]:
        return sorted((r.key.tenant, r.answer.answer_id) for r in self._store.records(self._store.entry_ids()))


@pytest.fixture(autouse=True)
def without_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "Encoder", lambda *given, **named: SimpleNamespace(identity="mini"))


def line(name: str, org: str = "somebody", namespace: str = "", **changes: object) -> bytes:
    key = CacheKey(partition(org, namespace), f"{name.encode().hex():0>64}", None)
    answer = CachedAnswer(name, "m", YES, Usage(1, 2), 5, time.time(), 3600.0, (), time.time())
    return answer_line(key, replace(answer, **changes))  # type: ignore[arg-type]


def files(path: Path, *lines: bytes, ended: bool = True) -> tuple[WarmUp, ...]:
    path.write_bytes(head_line("somebody", 0) + b"".join(lines) + (end_line(len(lines)) if ended else b""))
    return (WarmUp(file=str(path), org="acme"),)


async def shard(warm_up: tuple[WarmUp, ...], folder: Path | None = None, part: cache.Part = WHOLE) -> Shard:
    return await Shard(EncoderPlace(), folder and str(folder), part=part, warm_up=warm_up).started()


async def test_it_is_the_organisations_whatever_the_file_says(tmp_path: Path) -> None:
    given = files(tmp_path / "a", line("a"), line("b", namespace="wiki"), line("old", ttl_s=0.0))
    assert (await shard(given)).held() == [(partition("acme", ""), "a"), (partition("acme", "wiki"), "b")]


async def test_each_shard_takes_its_own(tmp_path: Path) -> None:
    given = files(tmp_path / "a", *(line(f"{number}", namespace=f"{number}") for number in range(40)))
    names = ("one", "two")
    held = [(await shard(given, part=cache.Part(name, names))).held() for name in names]
    assert sorted(held[0] + held[1]) == (await shard(given)).held() and min(map(len, held)) > 5


async def test_a_shard_with_answers_takes_none_and_what_was_forgotten_stays_away(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    first = await shard(files(tmp_path / "a", line("a")), folder)
    await first._disk.close()
    again = await shard(files(tmp_path / "b", line("b")), folder)
    assert [name for _, name in again.held()] == ["a"]
    await again.invalidate(Selection("acme"), dry_run=False)
    await again._disk.close()
    empty = await shard(files(tmp_path / "a", line("a", opened_at_unix_s=time.time() - 60)), folder)
    assert empty.held() == []
    await empty._disk.close()


async def test_what_was_forgotten_stays_away_where_the_log_that_says_so_does_not_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(cache.logger, "warning", lambda text, *_: told.append(text))
    given, folder = files(tmp_path / "a", line("a", opened_at_unix_s=time.time() - 60)), tmp_path / "disk"

    async def held(key: str) -> list[tuple[str, str]]:
        made = Shard(EncoderPlace(), str(folder), SecretStr(key * 64), warm_up=given)
        found = (await made.started()).held()
        await made.invalidate(Selection("acme"), dry_run=False)
        await made._disk.close()
        return found

    assert len(await held("1")) == 1
    assert await held("2") == [] == await held("2"), "nor at the start after that"
    assert ["may say that they were forgotten" in text for text in told] == [True, True]
    (folder / "answers.log.unreadable").unlink()
    (folder / "answers.log").unlink()
    assert len(await held("2")) == 1


async def test_what_was_forgotten_stays_away_while_a_store_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away(Rows):
        away = False

        def tenants(self) -> list[str]:
            if self.away:
                raise ModelUnavailable("away")
            return super().tenants()

        def read(self, tenant: str, at_once: int = 128):  # type: ignore[no-untyped-def]
            self.tenants()
            return super().read(tenant, at_once)

        def put(self, rows) -> None:  # type: ignore[no-untyped-def]
            self.tenants()
            super().put(rows)

    rows = Away()
    monkeypatch.setattr(cache, "open_store", lambda url: rows)
    monkeypatch.setattr(cache_outside, "RETRY_S", (0.02,))
    given = files(tmp_path / "a", line("a", opened_at_unix_s=time.time() - 60))

    def started() -> Shard:
        return Shard(EncoderPlace(), None, store_url=SecretStr("redis://there"), warm_up=given)

    first = await started().started()
    assert [name for _, name in first.held()] == ["a"]
    await first.invalidate(Selection("acme"), dry_run=False)
    await first._disk.close()
    rows.away = True
    second = started()
    await second.reconfigure({})
    await asyncio.sleep(0.1)
    brought = CacheKey(partition("acme", ""), f"{'61':0>64}", None)
    answer = CachedAnswer("a", "m", YES, Usage(1, 2), 5, time.time(), 3600.0, (), time.time() - 60)
    assert await second.take_in([(brought, answer)], False) == ["kept"]  # nobody can know better yet
    rows.away = False
    assert second._warming is not None
    await second._warming
    assert second.held() == [] and second._store.stats()["entries"] == 0
    await second._disk.close()


@pytest.mark.parametrize(
    ("lines", "ended", "kept", "said"),
    [
        ([b"junk\n", line("a"), b'{"object": "cache.answer"}\n', b"[]\n"], True, 1, "3 lines are no answers"),
        ([line("a"), line("b")[:-30]], False, 1, "1 lines are no answers, and its end is missing"),
        ([b"[" * 100_000], False, 0, "no answers"),
    ],
)
async def test_what_is_broken_is_told_and_the_rest_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lines: list[bytes], ended: bool, kept: int, said: str
) -> None:
    with caplog.at_level(logging.WARNING, "ray.serve"):
        found = await shard(files(tmp_path / "a", *lines, ended=ended))
    assert len(found.held()) == kept and said in caplog.text


async def test_a_file_that_is_missing_or_another_is_no_reason_not_to_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "other").write_bytes(b"a letter\n" + line("a"))
    (tmp_path / "newer").write_bytes(b'{"object": "cache.export", "version": 9}\n' + line("a"))
    missing = [WarmUp(file=str(tmp_path / name), org="acme") for name in ("none", "other", "newer", "")]
    with caplog.at_level(logging.WARNING, "ray.serve"):
        found = await shard((*missing, *files(tmp_path / "a", line("a"))))
    assert len(found.held()) == 1
    for why in ("No such file", "no JSON", "not of version 1", "Is a directory"):
        assert why in caplog.text


def test_it_is_configured_by_file_and_organisation() -> None:
    (given,) = Topology(cache_warm_up=[{"file": "answers.jsonl", "org": "acme"}]).cache_warm_up
    assert (given.file, given.org) == ("answers.jsonl", "acme")
    with pytest.raises(ValueError, match="org"):
        Topology(cache_warm_up=[{"file": "answers.jsonl"}])
