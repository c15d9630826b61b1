"""The doors of files and batches over a whole pipeline and a real archive, driven by OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from deployments.openai.batch_lines import answer_line
from models.errors import NotFound
from router.archive.archive import Archive
from router.archive.lines import LineAnswer
from router.archive.responses import StoredResponse
from router.embeddings import encoder_entry
from router.events import Principal
from router.settings import ArchiveSettings
from router.topology import Encoder
from tests.unit.openai.test_embeddings import NAME, Lengths
from tests.unit.test_http_app import KEY, Door, open_door
from tests.unit.test_pipeline import make_world

CHAT = "/v1/chat/completions"
AUTH = {"authorization": f"Bearer {KEY}"}


class Near(Archive):
    """With the one method that `deployments.archive.ArchiveHandle` has besides."""

    def store(self, org: str, response: StoredResponse) -> None:
        self.stored = (org, response)


@dataclass
class Case:
    door: Door
    archive: Near
    client: openai.AsyncOpenAI

    async def over(self, batch_id: str) -> Any:
        give_up_s = time.monotonic() + 20
        while (batch := await self.client.batches.retrieve(batch_id)).status not in ("completed", "failed"):
            assert time.monotonic() < give_up_s, batch
            await asyncio.sleep(0.01)
        return batch

    async def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id is not None
        return [json.loads(row) for row in (await self.client.files.content(file_id)).text.splitlines()]


@pytest.fixture
async def case(tmp_path: Path) -> AsyncIterator[Case]:
    door = open_door(make_world())
    archive = await Near.open(tmp_path)
    assert isinstance(archive, Near)
    door.ingress.archive = archive
    door.ingress.embedders = {NAME: (encoder_entry(Encoder()), Lengths())}

    async def answer(principal: Principal, endpoint: str, body: bytes) -> LineAnswer:
        return await answer_line(door.ingress, principal, endpoint, body)

    async def idle() -> bool:
        return True

    running = asyncio.create_task(archive.runner(answer, idle, 100_000).run())
    client = openai.AsyncOpenAI(base_url="http://door/v1", api_key=KEY, http_client=door.client, max_retries=0)
    yield Case(door, archive, client)
    running.cancel()
    await asyncio.wait({running})
    await archive.close()
    await door.client.aclose()
    door.world.books_are_shut()


def jsonl(endpoint: str, *bodies: dict[str, Any]) -> bytes:
    rows = [{"custom_id": str(n), "method": "POST", "url": endpoint, "body": body} for n, body in enumerate(bodies)]
    return "\n".join(json.dumps(row) for row in rows).encode()


async def test_a_batch_from_upload_to_results(case: Case) -> None:
    hello = [{"role": "user", "content": "hi there"}]
    bodies = [
        {"model": "auto", "messages": hello},
        {"model": "gpt-9", "messages": hello},
        {"model": "small-1", "messages": hello, "max_tokens": 3, "switchyard": {"priority": -5}},
        {"model": "small-1", "messages": hello, "stream_options": {"include_usage": True}, "stream": False},
    ]
    content = jsonl(CHAT, *bodies)
    file = await case.client.files.create(file=("asks.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.status) == (len(content), "asks.jsonl", "batch", "processed")
    made = await case.client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"for": "a test"}
    )
    assert made.status == "validating" and made.metadata == {"for": "a test"}
    batch = await case.over(made.id)
    assert batch.request_counts is not None
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 3, 1)
    results = {row["custom_id"]: row["response"] for row in await case.lines(batch.output_file_id)}
    assert set(results) == {"0", "2", "3"}
    assert results["2"]["body"]["usage"]["completion_tokens"] == 3
    (wrong,) = await case.lines(batch.error_file_id)
    assert (wrong["custom_id"], wrong["response"]["status_code"]) == ("1", 404)
    assert wrong["response"]["body"]["error"]["code"] == "model_not_found"
    closes = {close.request_id: close for close in case.door.world.closes() if close.status == "ok"}
    assert {row["request_id"] for row in results.values()} == set(closes)
    assert {close.door for close in closes.values()} == {"openai-batch"}
    listed = [file.filename async for file in case.client.files.list(purpose="batch_output")]
    assert sorted(listed) == [f"{batch.id}_error.jsonl", f"{batch.id}_output.jsonl"]
    assert [batch.id async for batch in case.client.batches.list()] == [made.id]


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/completions", {"model": "auto", "prompt": "Go on"}, "text_completion"),
        ("/v1/embeddings", {"model": NAME, "input": ["a", "b"]}, "list"),
        ("/v1/responses", {"model": "auto", "input": "hi"}, "response"),
    ],
)
async def test_every_endpoint_works_in_a_batch(case: Case, endpoint: Any, body: dict[str, Any], kind: str) -> None:
    file = await case.client.files.create(file=("asks.jsonl", jsonl(endpoint, body)), purpose="batch")
    made = await case.client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    (row,) = await case.lines((await case.over(made.id)).output_file_id)
    assert (row["response"]["status_code"], row["response"]["body"]["object"]) == (200, kind)
    assert {close.door for close in case.door.world.closes()} == {"openai-batch"}


async def test_files_are_listed_read_and_deleted(case: Case) -> None:
    files = [await case.client.files.create(file=(f"{n}.jsonl", b"x" * n), purpose="batch") for n in (1, 2, 3)]
    page = await case.client.files.list(limit=2)
    assert [file.filename for file in page.data] == ["3.jsonl", "2.jsonl"] and page.has_more
    assert [file.id async for file in case.client.files.list(limit=2)] == [file.id for file in files[::-1]]
    assert (await case.client.files.content(files[2].id)).content == b"xxx"
    assert (await case.client.files.retrieve(files[1].id)).bytes == 2
    assert (await case.client.files.delete(files[0].id)).deleted
    with pytest.raises(openai.NotFoundError):
        await case.client.files.retrieve(files[0].id)
    for path in ("../archive.sqlite3", "%2e%2e%2farchive.sqlite3"):
        assert (await case.door.client.get(f"/v1/files/{path}", headers=AUTH)).status_code == 404
    with pytest.raises(NotFound):
        await case.archive.file("globex", files[1].id)


async def test_wrong_uploads_are_refused_and_leave_nothing(case: Case, tmp_path: Path) -> None:
    async def post(**fields: Any) -> httpx.Response:
        return await case.door.client.post("/v1/files", headers=AUTH, **fields)

    file = {"file": ("a.jsonl", b"{}")}
    for fields, status, param in (
        ({"json": {"purpose": "batch"}}, 400, "file"),
        ({"files": file, "data": {"purpose": "fine-tune"}}, 400, "purpose"),
        ({"files": file}, 400, "purpose"),
        ({"files": {"purpose": (None, "batch")}}, 400, "file"),
        (
            {"files": file, "data": {"purpose": "batch", "expires_after[seconds]": "3600"}},
            400,
            "expires_after[seconds]",
        ),
        ({"files": [("file", ("a", b"1")), ("file", ("b", b"2"))], "data": {"purpose": "batch"}}, 400, "file"),
    ):
        refused = await post(**fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (status, param), refused.text
    broken = {**AUTH, "content-type": "multipart/form-data"}
    assert (await case.door.client.post("/v1/files", headers=broken, content=b"--x")).status_code == 400
    case.archive.settings = ArchiveSettings(max_file_bytes=1000)
    for size in (1001, 200_000):  # refused by the archive, and while it still comes
        large = await post(files={"file": ("a.jsonl", b"x" * size)}, data={"purpose": "batch"})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
    assert list((tmp_path / "files").iterdir()) == []
    assert (await case.door.client.post("/v1/files")).status_code == 401


async def test_wrong_batches_are_refused(case: Case) -> None:
    file = await case.client.files.create(file=("a.jsonl", jsonl(CHAT, {"model": "m"})), purpose="batch")
    for changes, status in (
        ({"input_file_id": "file-000000000000000000000000"}, 404),
        ({"endpoint": "/v1/moderations"}, 400),
        ({"completion_window": "1h"}, 400),
        ({"output_expires_after": {}}, 400),
    ):
        body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"} | changes
        refused = await case.door.client.post("/v1/batches", json=body, headers=AUTH)
        assert refused.status_code == status, refused.text
    assert (await case.door.client.get("/v1/batches/batch_0", headers=AUTH)).status_code == 404
    assert (await case.door.client.post("/v1/batches/batch_0/cancel", headers=AUTH)).status_code == 404
    assert (await case.door.client.get("/v1/batches?after=batch_0", headers=AUTH)).status_code == 400


async def test_a_cancelled_batch_says_so(case: Case) -> None:
    case.archive.settings = ArchiveSettings(batch_concurrency=1)
    bodies = [{"model": "auto", "messages": [{"role": "user", "content": str(n)}]} for n in range(300)]
    file = await case.client.files.create(file=("a.jsonl", jsonl(CHAT, *bodies)), purpose="batch")
    made = await case.client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert (await case.client.batches.cancel(made.id)).status == "cancelling"
    give_up_s = time.monotonic() + 20
    while (batch := await case.client.batches.retrieve(made.id)).status != "cancelled":
        assert time.monotonic() < give_up_s, batch
        await asyncio.sleep(0.01)
    assert batch.request_counts is not None and batch.request_counts.completed < 300
