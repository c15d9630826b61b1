"""The deployment and its handle in one process; what is between them pickles everything, as Serve does."""

from __future__ import annotations

import asyncio
import json
import pickle
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import archive as archive_module
from deployments.archive import Archive, ArchiveHandle
from deployments.part_metrics import PartMetrics
from models.errors import InvalidRequest, ModelUnavailable, NotFound
from router.admission import BackendLoad
from router.archive.batches import new_batch
from router.archive.lines import LineAnswer
from router.archive.responses import StoredResponse
from router.events import Principal

ME = Principal("acme", "", "key1", "", frozenset({"infer"}))
CHAT = "/v1/chat/completions"


class Hop:
    """A Serve handle to `target`."""

    deployment_name = "Archive"

    def __init__(self, target: Any, name: str = "", args: tuple[Any, ...] = ()) -> None:
        self.target, self.name, self.args = target, name, args

    def options(self, method_name: str, **_: Any) -> Hop:
        return Hop(self.target, method_name)

    def remote(self, *args: Any) -> Hop:
        return Hop(self.target, self.name, pickle.loads(pickle.dumps(args)))

    def cancel(self) -> None: ...

    def __await__(self) -> Any:
        return self._run().__await__()

    async def _run(self) -> Any:
        return pickle.loads(pickle.dumps(await getattr(self.target, self.name)(*self.args)))


class Shell(Archive.func_or_class):  # type: ignore[misc,name-defined]
    def __del__(self) -> None:
        """Serve awaits the deployment's own; Python would not."""


class Batcher:
    def __init__(self) -> None:
        self.queued = 0

    async def snapshot(self) -> dict[str, BackendLoad]:
        return {"b": BackendLoad(1, 8, 0, self.queued, 0.0, 0, {}, 0)}


class Ingress:
    async def batch_line(self, principal: Principal, endpoint: str, body: bytes) -> LineAnswer:
        assert principal == ME
        return LineAnswer(200, body, "req_1")


@pytest.fixture
async def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Any, ArchiveHandle, Batcher]]:
    monkeypatch.setattr(archive_module, "IDLE_FOR_S", 0.0)
    here = SimpleNamespace(
        get_replica_context=lambda: SimpleNamespace(app_name="app"),
        get_deployment_handle=lambda name, app: Hop({"Ingress": Ingress()}[name]),
    )
    monkeypatch.setattr(archive_module, "serve", here)
    batcher = Batcher()
    shell: Any = object.__new__(Shell)
    await shell.__init__(str(tmp_path), Hop(batcher), 10_000)
    shell.reconfigure({"batch_concurrency": 2})
    yield shell, ArchiveHandle(Hop(shell)), batcher
    await Archive.func_or_class.__del__(shell)


async def until(condition: Any) -> Any:
    give_up_s = time.monotonic() + 20
    while not (found := await condition()):
        assert time.monotonic() < give_up_s
        await asyncio.sleep(0.02)
    return found


async def test_a_response_is_stored_behind_the_answer_and_found(case: Any) -> None:
    _, handle, _ = case
    made_ms = int(time.time() * 1000)
    first = StoredResponse(f"resp_{made_ms:012x}{1:020x}", None, made_ms / 1000, "{}", "[]")
    handle.store("acme", first)
    assert await handle.response("acme", first.response_id) == first
    assert await handle.conversation("acme", first.response_id) == [first]
    await handle.delete_response("acme", first.response_id)
    with pytest.raises(NotFound):
        await handle.delete_response("acme", first.response_id)
    assert handle.responses_lost == 0


async def test_a_file_goes_there_and_back_and_a_batch_is_worked_when_it_is_quiet(case: Any) -> None:
    shell, handle, batcher = case
    row = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "m"}}
    file_id, most = await handle.begin_file("acme")
    assert most == 200 * 1024**2
    await handle.append_file(file_id, json.dumps(row).encode())
    stored = await handle.finish_file(file_id, "a.jsonl", "batch")
    assert await handle.file("acme", file_id) == stored
    assert await handle.list_files("acme", None) == [stored]
    batcher.queued = 1
    batch = new_batch(ME, file_id, CHAT, None)
    await handle.create_batch(batch)

    async def begun() -> bool:
        return (await handle.batch("acme", batch.batch_id))["status"] == "in_progress"

    await until(begun)
    await asyncio.sleep(0.1)
    assert (await handle.batch("acme", batch.batch_id))["request_counts"]["completed"] == 0
    batcher.queued = 0

    async def over() -> Any:
        body = await handle.batch("acme", batch.batch_id)
        return body["status"] == "completed" and body

    body = await until(over)
    (line,) = (await handle.read_file("acme", body["output_file_id"], 0, 10_000)).splitlines()
    assert json.loads(line)["response"]["body"] == {"model": "m"}
    assert (await handle.list_batches("acme", 5, None))[0]["id"] == batch.batch_id
    assert (await handle.cancel_batch("acme", batch.batch_id))["status"] == "completed"
    await handle.delete_file("acme", file_id)
    await handle.abort_file("file-none")
    with pytest.raises(InvalidRequest):
        await handle.list_batches("acme", 5, "nobody")
    await shell.check_health()
    quiet = Hop(SimpleNamespace(counts=none, snapshot=none))
    text = await PartMetrics(quiet, quiet, [], Hop(shell)).text()
    assert "switchyard_archive_batch_lines_answered_total 1.0" in text
    assert "switchyard_archive_evicted_responses_total 0.0" in text


async def none() -> dict[str, int]:
    return {}


async def test_what_cannot_be_stored_is_counted_and_a_stopped_worker_is_unhealthy(case: Any) -> None:
    shell, handle, _ = case

    async def broken(*_: Any) -> None:
        raise ModelUnavailable("gone")

    shell.put_response = broken
    handle.store("acme", StoredResponse("resp_1", None, 1.0, "{}", "[]"))
    await handle.close(5.0)
    assert handle.responses_lost == 1
    shell._working[1].cancel()
    await asyncio.wait({shell._working[1]})
    with pytest.raises(ModelUnavailable):
        await shell.check_health()
