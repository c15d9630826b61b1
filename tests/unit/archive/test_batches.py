"""Files and batches on a real archive; what answers the lines is a function of the test."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from models.errors import BodyTooLarge, ModelUnavailable, NotFound, RateLimited
from router.archive import runner as runner_module
from router.archive.archive import Archive
from router.archive.batches import Batch, new_batch
from router.archive.lines import LineAnswer
from router.events import Principal
from router.settings import ArchiveSettings

CHAT = "/v1/chat/completions"
ME = Principal("acme", "web", "key1", "ann", frozenset({"infer"}))


def line(name: str, **changes: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": name}]}
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": body, **changes}).encode() + b"\n"


class Endpoint:
    """Answers after a turn of the loop, as it is told to for a line."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.under_way = self.most = 0
        self.statuses: dict[str, list[int]] = {}
        self.gone: set[str] = set()
        self.open = asyncio.Event()
        self.open.set()
        self.stops_after = 10**6
        self.idle = True
        self.principals: set[Principal] = set()

    async def answer(self, principal: Principal, endpoint: str, body: bytes) -> LineAnswer:
        name = json.loads(body)["messages"][0]["content"]
        self.asked[name] += 1
        if self.asked.total() > self.stops_after:
            self.open.clear()
        self.principals.add(principal)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0)
            await self.open.wait()
        finally:
            self.under_way -= 1
        if name in self.gone:
            self.gone.discard(name)
            raise ModelUnavailable("the ingress went away")
        status = (self.statuses.get(name) or [200]).pop(0)
        return LineAnswer(status, json.dumps({"said": name}).encode(), f"req_{name}")

    async def is_idle(self) -> bool:
        return self.idle


class Case:
    def __init__(self, archive: Archive, endpoint: Endpoint) -> None:
        self.archive, self.endpoint = archive, endpoint
        self.runner = archive.runner(endpoint.answer, endpoint.is_idle, 10_000)
        self.running = asyncio.create_task(self.runner.run())

    async def stop(self) -> None:
        """As a process that ends."""
        self.running.cancel()
        await asyncio.wait({self.running})
        await self.archive.close()

    async def upload(self, content: bytes, org: str = "acme") -> str:
        file_id, _ = await self.archive.begin_file(org)
        await self.archive.append_file(file_id, content)
        return (await self.archive.finish_file(file_id, "lines.jsonl", "batch")).file_id

    async def submit(self, *lines: bytes) -> Batch:
        batch = new_batch(ME, await self.upload(b"".join(lines)), CHAT, {"a": "b"})
        await self.archive.create_batch(batch)
        return batch

    async def over(self, batch: Batch, *, ok: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any]:
        over = ok or (lambda body: body["status"] in ("completed", "failed", "cancelled", "expired"))
        give_up_s = time.monotonic() + 20
        while not over(body := await self.archive.batch("acme", batch.batch_id)):
            assert time.monotonic() < give_up_s, body
            await asyncio.sleep(0.01)
        return body

    async def results(self, file_id: str | None) -> dict[str, Any]:
        if file_id is None:
            return {}
        content = await self.archive.read_file("acme", file_id, 0, 10**6)
        rows = [json.loads(row) for row in content.splitlines()]
        assert len({row["custom_id"] for row in rows}) == len(rows)
        return {row["custom_id"]: row for row in rows}


Open = Callable[[], Awaitable[Case]]


@pytest.fixture
async def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    monkeypatch.setattr(runner_module, "BUSY_PAUSE_S", 0.01)
    monkeypatch.setattr(runner_module, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(runner_module, "_LONGEST_PAUSE_S", 0.01)
    cases: list[Case] = []

    async def make() -> Case:
        cases.append(Case(await Archive.open(tmp_path), cases[-1].endpoint if cases else Endpoint()))
        return cases[-1]

    yield make
    if not cases[-1].running.done():
        await cases[-1].stop()


async def test_a_batch_is_worked_and_its_results_are_files(opened: Open) -> None:
    case = await opened()
    case.endpoint.statuses = {"wrong": [400], "busy": [503, 429, 200]}
    case.endpoint.gone = {"away"}
    names = ["wrong", "busy", "away", *map(str, range(20))]
    batch = await case.submit(*(line(name) for name in names), b"\n")
    body = await case.over(batch)
    assert body["status"] == "completed" and body["metadata"] == {"a": "b"}
    assert body["request_counts"] == {"total": 23, "completed": 22, "failed": 1}
    assert all(body[f"{moment}_at"] for moment in ("created", "in_progress", "finalizing", "completed"))
    output, errors = await case.results(body["output_file_id"]), await case.results(body["error_file_id"])
    assert set(output) == {*names} - {"wrong"} and set(errors) == {"wrong"}
    assert output["7"]["response"] == {"status_code": 200, "request_id": "req_7", "body": {"said": "7"}}
    assert errors["wrong"]["response"]["status_code"] == 400
    assert case.endpoint.asked["busy"] == 3 and case.endpoint.asked["away"] == 2 and case.endpoint.asked["7"] == 1
    assert case.endpoint.principals == {ME}
    assert case.endpoint.most <= ArchiveSettings().batch_concurrency
    listed = await case.archive.list_files("acme", "batch_output")
    assert {file.file_id for file in listed} == {body["output_file_id"], body["error_file_id"]}


async def test_wrong_files_fail_and_say_where(opened: Open) -> None:
    case = await opened()
    wrong = [
        line("same"),
        line("same"),
        b"{\n",
        line("other", url="/v1/embeddings"),
        line("get", method="GET"),
        line("stream", body={"stream": True}),
        line("long", body={"x": "y" * 20_000}),
    ]
    body = await case.over(await case.submit(*wrong))
    assert body["status"] == "failed"
    found = [(error["line"], error["code"]) for error in body["errors"]["data"]]
    assert found == [
        (2, "duplicate_custom_id"),
        (3, "invalid_json_line"),
        (4, "invalid_url"),
        (5, "invalid_line"),
        (6, "invalid_line"),
        (7, "line_too_long"),
    ]
    assert (await case.over(await case.submit(b"\n")))["errors"]["data"][0]["code"] == "empty_file"
    assert case.endpoint.asked == Counter()


async def test_after_a_restart_no_finished_line_is_asked_again(opened: Open, tmp_path: Path) -> None:
    case = await opened()
    case.archive.settings = ArchiveSettings(batch_concurrency=1)
    case.endpoint.stops_after = 5
    names = [str(number) for number in range(12)]
    batch = await case.submit(*map(line, names))
    await case.over(batch, ok=lambda body: body["request_counts"]["completed"] == 5)
    await case.stop()
    (results,) = (tmp_path / "batches").glob("*.output")
    finished = [json.loads(row)["custom_id"] for row in results.read_bytes().splitlines()]
    assert finished == names[:5]
    with results.open("ab") as file:
        file.write(b'{"torn": ')
    before = case.endpoint.asked.copy()
    case.endpoint.stops_after = 10**6
    case.endpoint.open.set()
    again = await opened()
    body = await again.over(batch)
    assert body["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
    assert {*await again.results(body["output_file_id"])} == {*names}
    assert all(again.endpoint.asked[name] == before[name] == 1 for name in finished)
    assert (tmp_path / "files" / body["output_file_id"]).stat().st_mode & 0o777 == 0o600


async def test_a_cancelled_batch_keeps_what_is_done_and_begins_nothing(opened: Open) -> None:
    case = await opened()
    case.archive.settings = ArchiveSettings(batch_concurrency=2)
    case.endpoint.stops_after = 2
    batch = await case.submit(*(line(str(number)) for number in range(50)))
    await case.over(batch, ok=lambda body: body["request_counts"]["completed"] == 2)
    body = await case.archive.cancel_batch("acme", batch.batch_id)
    assert body["status"] == "cancelling"
    case.endpoint.stops_after = 10**6
    case.endpoint.open.set()
    body = await case.over(batch)
    assert body["status"] == "cancelled"
    assert 2 <= body["request_counts"]["completed"] <= 4
    assert len(await case.results(body["output_file_id"])) == body["request_counts"]["completed"]
    assert (await case.archive.cancel_batch("acme", batch.batch_id))["status"] == "cancelled"
    with pytest.raises(NotFound):
        await case.archive.cancel_batch("globex", batch.batch_id)


async def test_it_waits_while_others_wait_for_answers_and_ends_with_its_window(opened: Open) -> None:
    case = await opened()
    case.endpoint.idle = False
    batch = await case.submit(line("a"), line("b"))
    await case.over(batch, ok=lambda body: body["status"] == "in_progress")
    await asyncio.sleep(0.1)
    assert case.endpoint.asked == Counter()
    active, _ = case.runner._active[batch.batch_id]
    active.body["expires_at"] = int(time.time()) - 2
    body = await case.over(batch)
    assert (body["status"], body["request_counts"]["failed"]) == ("expired", 2)
    errors = await case.results(body["error_file_id"])
    assert errors["a"]["error"]["code"] == "batch_expired" and errors["a"]["response"] is None


async def test_files_are_their_orgs_own_and_bounded(opened: Open, tmp_path: Path) -> None:
    case = await opened()
    archive = case.archive
    file_id = await case.upload(b"x" * 100)
    assert (tmp_path / "files" / file_id).stat().st_mode & 0o777 == 0o600
    assert await archive.read_file("acme", file_id, 90, 50) == b"x" * 10
    for work in (archive.file, archive.delete_file):
        with pytest.raises(NotFound):
            await work("globex", file_id)
    assert await archive.list_files("globex", None) == []
    archive.settings = ArchiveSettings(max_file_bytes=150, max_file_bytes_per_org=200, max_open_batches_per_org=1)
    with pytest.raises(BodyTooLarge, match="A file may have 150"):
        await case.upload(b"x" * 151)
    with pytest.raises(BodyTooLarge, match="more room"):
        await case.upload(b"x" * 101)
    assert await case.upload(b"x" * 101, "globex")
    half, _ = await archive.begin_file("acme")
    await archive.append_file(half, b"abc")
    case.endpoint.idle = False
    first = new_batch(ME, file_id, CHAT, None)
    with pytest.raises(NotFound):
        await archive.create_batch(new_batch(Principal("globex"), file_id, CHAT, None))
    await archive.create_batch(first)
    await archive.delete_file("acme", file_id)
    assert (await case.over(first))["status"] == "failed"
    await case.stop()
    names = {path.name for path in (tmp_path / "files").iterdir()}
    assert len(names) == 1  # only globex's: what was not whole is gone


async def test_too_many_batches_of_one_org_are_refused(opened: Open) -> None:
    case = await opened()
    case.archive.settings = ArchiveSettings(max_open_batches_per_org=1)
    case.endpoint.idle = False
    batch = await case.submit(line("a"))
    with pytest.raises(RateLimited):
        await case.submit(line("b"))
    assert [body["id"] for body in await case.archive.list_batches("acme", 10, None)] == [batch.batch_id]
    assert await case.archive.list_batches("acme", 10, batch.batch_id) == []


async def test_no_answer_is_left_of_a_batch_whose_input_is_gone(opened: Open, tmp_path: Path) -> None:
    case = await opened()
    case.archive.settings = ArchiveSettings(batch_concurrency=1)
    case.endpoint.stops_after = 2
    batch = await case.submit(*map(line, "abcd"))
    await case.over(batch, ok=lambda body: body["request_counts"]["completed"] == 2)
    await case.stop()
    orphan = tmp_path / "batches" / "batch_0.output"
    orphan.write_bytes(b"{}\n")
    again = await opened()
    await again.archive.delete_file("acme", batch.body["input_file_id"])
    assert (await again.over(batch))["errors"]["data"][0]["code"] == "file_not_found"
    await again.archive.sweep()
    assert [*(tmp_path / "batches").iterdir()] == []


async def test_batches_of_an_organisation_may_have_their_own_time(opened: Open) -> None:
    case = await opened()
    await case.over(await case.submit(line("a")))
    case.archive.settings = ArchiveSettings(ttl_s_by_org={"acme": 0.001})
    await asyncio.sleep(0.01)
    await case.archive.sweep()
    assert await case.archive.list_batches("acme", 10, None) == []
