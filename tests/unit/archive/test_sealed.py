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
from router.archive.lines import Results
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


@pytest.mark.parametrize("keys", [(NEW,), ()], ids=["sealed", "plain"])
@pytest.mark.parametrize("size", [10, 2 * PIECE_BYTES + 5])
async def test_a_file_that_was_cut_or_replaced_does_not_open(
    reopened: Open, tmp_path: Path, keys: tuple[bytes, ...], size: int
) -> None:
    archive = await reopened(*keys)
    file_id = await upload(archive, b"x" * size)
    path = tmp_path / "archive" / "files" / file_id
    whole = path.read_bytes()
    forged = b"y" * (size if keys else size + 1)
    for wrong in (b"", whole[:-1], whole[: PIECE_BYTES + 44], whole + b"x", forged):
        if wrong == whole:
            continue
        path.write_bytes(wrong)
        for offset in (0, size - 1, size):
            with pytest.raises(InternalError, match="does not open"):
                await archive.read_file("acme", file_id, offset, 10)
        with pytest.raises(InternalError, match="does not open"):
            archive.files.opener("acme", file_id)()
    path.write_bytes(whole)
    assert await archive.read_file("acme", file_id, size - 1, 9) == b"x"


async def test_a_file_from_before_it_was_written_down_is_known_to_be_sealed_soon(
    reopened: Open, tmp_path: Path
) -> None:
    archive = await reopened(NEW)
    file_id = await upload(archive, b"x" * 10)
    archive._file.writer.execute("UPDATE files SET sealed = 0")
    assert await archive.reseal() == 0
    (tmp_path / "archive" / "files" / file_id).write_bytes(b"y" * 10)
    with pytest.raises(InternalError, match="does not open"):
        await archive.read_file("acme", file_id, 0, 10)


async def test_what_does_not_open_stops_no_change_of_keys_and_is_counted(reopened: Open, tmp_path: Path) -> None:
    archive = await reopened(OLD)
    for number in range(120):
        await archive.put_response("acme", StoredResponse(f"resp_{number}", None, 1.9e9, "body", "[]"))
    good, bad = await upload(archive, b"good"), await upload(archive, b"bad")
    archive._file.writer.execute("UPDATE responses SET body = substr(body, 1, 40) WHERE response_id < 'resp_5'")
    (tmp_path / "archive" / "files" / bad).write_bytes(b"")
    ((broken,),) = archive._file.writer.execute("SELECT COUNT(*) FROM responses WHERE length(body) = 40").fetchall()
    archive = await reopened(NEW, OLD)
    assert (await archive.reseal(), await archive.reseal()) == (121 - broken, 0) and broken > 50
    facts, new = await archive.facts(), archive.sealer.first
    assert facts["unreadable"] == broken + 1 and facts["responses"]["sealed_by"][new] == 120 - broken
    assert await archive.read_file("acme", good, 0, 9) == b"good"


async def test_results_under_way_are_told_until_they_are_handed_over(reopened: Open, tmp_path: Path) -> None:
    archive = await reopened(NEW, OLD)
    path = tmp_path / "archive" / "batches" / "batch_1.output"
    path.parent.mkdir()
    old = Results(Sealer([OLD]))
    path.write_bytes(old.line(path, b'{"custom_id": "1"}\n') + old.line(path, b'{"custom_id": "2"}\n') + b"{}\n")
    assert (await archive.facts())["results"]["sealed_by"] == {Sealer([OLD]).first: 2, "none": 1}


@pytest.mark.parametrize("keys", [[OLD], []], ids=["sealed", "plain"])
def test_a_torn_line_is_asked_again_and_the_others_are_not(tmp_path: Path, keys: list[bytes]) -> None:
    results, path = Results(Sealer(keys)), tmp_path / "batch_1.output"
    lines = [results.line(path, json.dumps({"custom_id": str(number)}).encode() + b"\n") for number in range(4)]
    for torn in (1, 5, 17):
        path.write_bytes(lines[0] + lines[1][:torn] + lines[2] + lines[3])
        assert results.written_ids(path) in ({"0", "3"}, {"0", "2", "3"})
        assert {json.loads(raw)["custom_id"] for raw in results.read(path)} == results.written_ids(path)
    if keys:
        with pytest.raises(InternalError, match="add that key"):
            Results(Sealer([NEW])).written_ids(path)


def test_what_a_full_disk_did_not_take_whole_is_cut_off_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "batch_1.output", os.write
    runner_module._append(path, b"first\n")

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 7:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:3])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        runner_module._append(path, b"second\n")
    monkeypatch.undo()
    runner_module._append(path, b"third\n")
    assert path.read_bytes() == b"first\nthird\n"
