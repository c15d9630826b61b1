"""Stored answers in a file, from a shell: what is left behind when something goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from cluster.cache_command import Export, Import, import_lines
from cluster.checks import StartError
from router.cache_transfer import end_line, head_line

WHOLE = head_line("acme", 1) + b'{"object": "cache.answer"}\n' + end_line(1)


def client(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return httpx.Client(base_url="http://door", transport=httpx.MockTransport(answer))


def test_an_export_is_there_as_a_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    asked: list[httpx.Request] = []
    file = tmp_path / "answers.jsonl"
    told = Export(file, "acme", "").send(client(lambda r: asked.append(r) or httpx.Response(200, content=WHOLE)))
    assert told.json() == {"object": "cache.export", "file": str(file), "count": 1}
    assert file.read_bytes() == WHOLE and file.stat().st_mode & 0o077 == 0
    assert dict(asked[0].url.params) == {"org": "acme", "namespace": ""}
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


@pytest.mark.parametrize(
    "body", [b"", b"\n", WHOLE[:-1], WHOLE[:-20], b'{"object": "error", "message": "shard down"}\n']
)
def test_an_export_that_breaks_off_leaves_what_was_there_before(tmp_path: Path, body: bytes) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b"before")
    with pytest.raises(StartError, match="broke off"):
        Export(file, None, None).send(client(lambda r: httpx.Response(200, content=body)))
    refused = Export(file, None, None).send(client(lambda r: httpx.Response(403, json={"error": {"message": "no"}})))
    assert refused.status_code == 403 and refused.json()["error"]["message"] == "no"
    assert file.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(StartError, match="cannot be written"):
        Export(tmp_path / "no" / "folder", None, None).send(client(lambda r: httpx.Response(200, content=WHOLE)))


def test_a_file_is_sent_as_it_is_and_what_came_of_it_is_said(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(WHOLE * 3000)
    sent: list[bytes] = []
    Import(file, "acme", True).send(client(lambda r: sent.append(r.read()) or httpx.Response(200, json={})))
    assert sent == [WHOLE * 3000]
    with pytest.raises(StartError, match="cannot be read"):
        Import(tmp_path / "none", None, False).send(client(lambda r: httpx.Response(200)))
    told = {name: 0 for name in ("kept", "expired", "held", "forgotten", "refused", "not_served", "invalid")}
    errors = [{"line": 3, "message": "this is no JSON object"}]
    lines = list(import_lines({**told, "kept": 2, "invalid": 1, "dry_run": True, "complete": False, "errors": errors}))
    assert lines[0] == "2 answers would be kept" and lines[-1] == "line 3: this is no JSON object" and len(lines) == 4
