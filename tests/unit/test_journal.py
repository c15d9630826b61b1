from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from models.errors import InternalError, Overloaded
from models.messages import Usage
from router.accounting.journal import Journal, decode, encode, names, orphans
from router.events import Attempt, RequestClosed, RequestOpened, as_json

OPENED = RequestOpened("req_1", 1_780_000_000_000, "acme", "web", "k", "ann", "m", 500)
CLOSED = RequestClosed(
    request_id="req_1",
    opened_at_unix_ms=1_780_000_000_000,
    closed_at_unix_ms=1_780_000_000_900,
    org="acme",
    team="web",
    key_id="k",
    user="Ann \ud800 \n é",
    door="openai",
    status="ok",
    error_code=None,
    requested_model="auto",
    model="m",
    provider="simulated",
    cache_verdict="miss",
    cached_from=None,
    cache_similarity=None,
    finish_reason="stop",
    usage=Usage(10, 5, 3),
    estimated=False,
    cost_microusd=123,
    saved_microusd=0,
    price_version="v",
    price={"input": "1"},
    attempts=(Attempt("m", "b", "ok", 0.5, 1.5, 9.0, 123),),
    decision={"eligible": ("m", "n"), "propensity": 1.0, "strategy": "complexity", "factors": {"length": 0.1}},
    stage_ms={"parse": 0.1},
    ttft_ms=1.5,
    total_ms=9.0,
    overhead_ms=0.4,
)


def ids(data: bytes) -> list[str]:
    records, torn = decode(data)
    assert not torn
    return [record["request_id"] for record in records]


def drained(journal: Journal, limit_bytes: int) -> list[str]:
    found = []
    while chunk := journal.unshipped(limit_bytes):
        found += ids(chunk.data)
        journal.acknowledge(chunk.end)
    return found


@pytest.mark.parametrize("record", [OPENED, CLOSED])
def test_a_line_is_the_json_of_the_record(record: RequestOpened | RequestClosed) -> None:
    assert decode(encode(record)) == ([json.loads(json.dumps(as_json(record)))], 0)
    assert encode(record).count(b"\n") == 1


def test_records_come_back_in_order_until_acknowledged(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    assert journal.unshipped() is None
    for number in range(10):
        journal.append(replace(OPENED, request_id=f"r{number}"))
    first = journal.unshipped(1)
    assert first is not None and ids(first.data) == ["r0"]
    assert journal.unshipped(1) == first
    journal.acknowledge(first.end)
    journal.acknowledge(first.end)
    rest = journal.unshipped()
    assert rest is not None and ids(rest.data) == [f"r{number}" for number in range(1, 10)]
    journal.acknowledge(rest.end)
    journal.acknowledge(first.end)
    assert journal.unshipped() is None and journal.unshipped_bytes == 0
    journal.close()


@pytest.mark.parametrize("limit_bytes", [1, 500, 10**6])
def test_segments_rotate_and_acknowledged_ones_go(tmp_path: Path, limit_bytes: int) -> None:
    journal = Journal(tmp_path, "a", segment_bytes=1000)
    wanted = []
    for number in range(100):
        wanted.append(f"r{number}")
        journal.append(replace(OPENED, request_id=wanted[-1]))
    assert len(list(tmp_path.glob("a/*.log"))) > 10
    assert drained(journal, limit_bytes) == wanted
    for number in range(100):  # and when it is shipped as it grows
        journal.append(replace(OPENED, request_id=f"s{number}"))
        assert drained(journal, limit_bytes) == [f"s{number}"]
        assert sum(path.stat().st_size for path in tmp_path.glob("a/*.log")) < 1500
    journal.close()


def test_with_a_full_journal_nothing_more_is_opened_but_all_is_closed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a", segment_bytes=500, max_bytes=1000)
    with pytest.raises(Overloaded):
        for _ in range(100):
            journal.append(OPENED)
    journal.append(CLOSED)
    drained(journal, 10**6)
    journal.append(OPENED)
    journal.close()


def test_a_next_segment_that_cannot_be_begun_is_told_as_a_disk_that_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, "a", segment_bytes=1)
    journal.append(OPENED)

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(Overloaded, match="No space left"):
        journal.append(CLOSED)
    monkeypatch.undo()
    journal.append(CLOSED)
    journal.close()


def test_what_is_delivered_while_the_disk_is_full_stays_delivered_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, "a", segment_bytes=1)
    journal.append(OPENED)
    chunk = journal.unshipped()
    assert chunk is not None

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    journal.acknowledge(chunk.end)
    assert journal.unshipped() is None and journal.unshipped_bytes == 0
    with pytest.raises(Overloaded, match="No space left"):
        journal.append(CLOSED)
    monkeypatch.undo()
    journal.append(CLOSED)
    assert drained(journal, 10**6) == [CLOSED.request_id]
    assert len(list(tmp_path.glob("a/*.log"))) == 1
    journal.close()


def test_a_name_is_one_journals(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    journal.append(OPENED)
    assert list(orphans(tmp_path)) == []
    journal.close()
    with pytest.raises(InternalError):
        Journal(tmp_path, "a")


def test_what_comes_after_the_end_is_refused_and_reaches_no_other_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    journal.close()
    others = [tmp_path / name for name in "bcd"]
    with ExitStack() as opened:
        for path in others:  # one of them gets the number that the journal's file had
            opened.enter_context(path.open("wb"))
        with pytest.raises(Overloaded):
            journal.append(CLOSED)
    assert [path.read_bytes() for path in others] == [b"", b"", b""]


def test_torn_lines_are_skipped_and_counted() -> None:
    whole = encode(OPENED)
    assert decode(whole + whole[:-20]) == (decode(whole)[0], 1)
    assert decode(whole + whole[:-20] + b"\n" + whole) == (decode(whole)[0] * 2, 1)
    assert decode(whole.replace(b"acme", b"evil")) == ([], 1)
    for cut in range(1, len(whole) - 1):
        assert decode(whole[:cut]) == ([], 1)


def test_a_killed_process_loses_no_record_and_its_journal_is_taken_over(tmp_path: Path) -> None:
    """A real process, killed without a chance to clean up."""
    child = f"""
import os, signal, sys
from pathlib import Path
from dataclasses import replace
from router.accounting.journal import Journal
from tests.unit.test_journal import OPENED
journal = Journal(Path({str(tmp_path)!r}), "child", segment_bytes=2000)
for number in range(50):
    journal.append(replace(OPENED, request_id=f"r{{number}}"))
print("written", flush=True)
sys.stdin.read()
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, env=environment
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"written\n"
        assert list(orphans(tmp_path)) == [] and names(tmp_path) == {"child"}
        process.kill()
    newest = max(tmp_path.glob("child/*.log"))
    newest.write_bytes(newest.read_bytes() + encode(OPENED)[:40])  # what a torn write would leave
    (orphan,) = orphans(tmp_path)
    assert orphan.name == "child"
    for found in orphans(tmp_path):
        assert list(orphans(tmp_path)) == []  # one taker at a time
        data = [decode(chunk) for chunk in found.chunks(limit_bytes=700)]
        assert [r["request_id"] for records, _ in data for r in records] == [f"r{number}" for number in range(50)]
        assert sum(torn for _, torn in data) == 1
        found.remove()
    assert names(tmp_path) == set() and list(orphans(tmp_path)) == []


def test_no_folder_no_orphans(tmp_path: Path) -> None:
    assert list(orphans(tmp_path / "none")) == []
