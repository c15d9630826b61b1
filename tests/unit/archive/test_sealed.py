"""What is stored is sealed with the newest key, whatever it was sealed with before, and opens for its organisation."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from models.errors import InternalError
from router.archive import runner as runner_module
from router.archive.archive import ARCHIVE_FILE, Archive
from router.archive.responses import StoredResponse
from router.sealing import PIECE_BYTES, Sealer
from tests.unit.archive.test_batches import Case, Endpoint, line

PLANTED = "the launch code is swordfish"
OLD, NEW = os.urandom(32), os.urandom(32)
ANSWER = StoredResponse("resp_1", None, 1.9e9, json.dumps({"said": PLANTED, "half": "\ud800"}), f'["{PLANTED}"]')

Open = Callable[..., Awaitable[Archive]]


@pytest.fixture
async def reopened(tmp_path: Path) -> AsyncIterator[Open]:
    """The same archive, anew with other keys; the one before is closed."""
    opened: list[Archive] = []

    async def open_with(*keys: bytes) -> Archive:
        while opened:
            await opened.pop().close()
        opened.append(await Archive.open(tmp_path / "archive", sealer=Sealer(keys)))
        return opened[-1]

    yield open_with
    while opened:
        await opened.pop().close()


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def upload(archive: Archive, content: bytes) -> str:
    file_id, _ = await archive.begin_file("acme")
    for start in range(0, len(content), 30_000):
        await archive.append_file(file_id, content[start : start + 30_000])
    return (await archive.finish_file(file_id, "lines.jsonl", "batch")).file_id


async def test_nothing_of_it_is_readable_on_disk_and_all_of_it_at_the_door(reopened: Open, tmp_path: Path) -> None:
    archive = await reopened(NEW)
    content = (PLANTED * 4_000).encode()
    file_id = await upload(archive, content)
    await archive.put_response("acme", ANSWER)
    assert await archive.response("acme", "resp_1", 0) == ANSWER
    assert (await archive.file("acme", file_id)).size_bytes == len(content)
    for offset in (0, PIECE_BYTES - 3, len(content) - 5, len(content)):
        assert await archive.read_file("acme", file_id, offset, 100) == content[offset : offset + 100]
    assert PLANTED.encode() not in on_disk(tmp_path)
    archive = await reopened()
    for asked in (archive.response("acme", "resp_1", 0), archive.read_file("acme", file_id, 0, 10)):
        with pytest.raises(InternalError, match="SWITCHYARD_ENCRYPTION_KEY"):
            await asked


async def test_what_was_stored_before_is_sealed_and_keys_can_be_changed(reopened: Open, tmp_path: Path) -> None:
    archive = await reopened()
    content = (PLANTED * 4_000).encode()
    file_id = await upload(archive, content)
    await archive.put_response("acme", ANSWER)
    assert await archive.reseal() == 0 and PLANTED.encode() in on_disk(tmp_path)
    for keys in ([OLD], [NEW, OLD]):
        archive = await reopened(*keys)
        assert await archive.response("acme", "resp_1", 0) == ANSWER  # before it is sealed anew, too
        assert (await archive.reseal(), await archive.reseal()) == (2, 0)
        assert PLANTED.encode() not in on_disk(tmp_path)
    archive = await reopened(NEW)
    assert await archive.response("acme", "resp_1", 0) == ANSWER
    assert await archive.read_file("acme", file_id, 0, 10**6) == content


async def test_a_row_or_a_file_in_anothers_place_does_not_open(reopened: Open, tmp_path: Path) -> None:
    archive = await reopened(NEW)
    await archive.put_response("acme", ANSWER)
    await archive.put_response("globex", ANSWER)
    one, two = await upload(archive, b"first"), await upload(archive, b"other")
    files = tmp_path / "archive" / "files"
    (files / one).write_bytes((files / two).read_bytes())
    with archive._file.transaction() as writer:
        body = writer.execute("SELECT body FROM responses WHERE org = 'acme'").fetchone()[0]
        writer.execute("UPDATE responses SET body = ? WHERE org = 'globex'", (body,))
    for asked in (archive.response("globex", "resp_1", 0), archive.read_file("acme", one, 0, 9)):
        with pytest.raises(InternalError, match="does not open"):
            await asked
    assert (tmp_path / "archive" / ARCHIVE_FILE).stat().st_mode & 0o777 == 0o600


async def test_a_batch_goes_on_over_a_change_of_keys(
    reopened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "SAVE_EVERY_S", 0.0)
    endpoint = Endpoint()
    endpoint.stops_after = 6
    case = Case(await reopened(OLD), endpoint)
    batch = await case.submit(*(line(f"{PLANTED} {number}") for number in range(12)))
    await case.over(batch, ok=lambda body: body["request_counts"]["completed"] >= 4)
    case.running.cancel()
    case.endpoint.stops_after = 10**6
    case.endpoint.open.set()
    assert PLANTED.encode() not in on_disk(tmp_path)
    again = Case(await reopened(NEW, OLD), endpoint)
    body = await again.over(batch)
    assert body["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
    assert len(await again.results(body["output_file_id"])) == 12
    assert PLANTED.encode() not in on_disk(tmp_path)
    again.running.cancel()
