from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.errors import InternalError, NotFound
from router.archive.archive import ARCHIVE_FILE, Archive
from router.archive.responses import StoredResponse
from router.settings import ArchiveSettings


def made(name: str, previous: str | None = None, ago_s: float = 0.0, size: int = 10) -> StoredResponse:
    return StoredResponse(name, previous, time.time() - ago_s, "b" * size, "[]")


def new_id(ago_s: float = 0.0) -> str:
    return f"resp_{int((time.time() - ago_s) * 1000):012x}{os.urandom(10).hex()}"


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    opened = await Archive.open(tmp_path / "archive")
    yield opened
    await opened.close()


async def test_what_is_put_is_found_by_its_org_only_and_after_a_restart(tmp_path: Path) -> None:
    archive = await Archive.open(tmp_path)
    await archive.put_response("acme", made("resp_1"))
    await archive.put_response("acme", made("resp_1", size=99))
    with pytest.raises(NotFound):
        await archive.response("globex", "resp_1", 0.0)
    with pytest.raises(InternalError):
        await Archive.open(tmp_path)
    await archive.close()
    again = await Archive.open(tmp_path)
    assert (await again.response("acme", "resp_1", 0.0)).body == "b" * 10
    await again.close()
    assert (tmp_path / ARCHIVE_FILE).stat().st_mode & 0o777 == 0o600


async def test_who_asks_for_one_on_its_way_waits_for_it(archive: Archive) -> None:
    name = new_id()
    asking = asyncio.create_task(archive.response("acme", name, 5.0))
    await asyncio.sleep(0.05)
    assert not asking.done()
    await archive.put_response("acme", made(name))
    assert (await asking).response_id == name
    began_s = time.monotonic()
    with pytest.raises(NotFound):
        await archive.response("acme", new_id(ago_s=3600), 5.0)
    assert time.monotonic() - began_s < 4.0
    assert archive._arrivals == {} and archive._waiting == 0


async def test_a_conversation_is_whole_or_not_there(archive: Archive) -> None:
    for name, previous in (("resp_a", None), ("resp_b", "resp_a"), ("resp_c", "resp_b"), ("resp_x", "resp_x")):
        await archive.put_response("acme", made(name, previous))
    turns = await archive.conversation("acme", "resp_c", 0.0)
    assert [turn.response_id for turn in turns] == ["resp_a", "resp_b", "resp_c"]
    with pytest.raises(NotFound):
        await archive.conversation("acme", "resp_x", 0.0)  # goes in a circle
    await archive.delete_response("acme", "resp_a")
    with pytest.raises(NotFound):
        await archive.conversation("acme", "resp_c", 0.0)


async def test_the_oldest_go_when_there_are_too_many_and_others_stay(archive: Archive) -> None:
    archive.settings = ArchiveSettings(max_response_bytes_per_org=300, max_response_bytes=500)
    await archive.put_response("globex", made("resp_g", ago_s=90, size=100))
    for number in range(5):
        await archive.put_response("acme", made(f"resp_{number}", ago_s=50 - number, size=98))
    for gone in ("resp_0", "resp_1"):
        with pytest.raises(NotFound):
            await archive.response("acme", gone, 0.0)
    assert (await archive.response("acme", "resp_4", 0.0)).response_id == "resp_4"
    assert (await archive.response("globex", "resp_g", 0.0)).response_id == "resp_g"
    assert archive.counts["responses_evicted"] == 2


async def test_what_has_had_its_time_is_not_found_and_is_removed(archive: Archive) -> None:
    archive.settings = ArchiveSettings(response_ttl_s=60)
    await archive.put_response("acme", made("resp_old", ago_s=61))
    await archive.put_response("acme", made("resp_new"))
    with pytest.raises(NotFound):
        await archive.response("acme", "resp_old", 0.0)
    await archive.sweep()
    names = [name for (name,) in archive._file.writer.execute("SELECT response_id FROM responses")]
    assert names == ["resp_new"]
