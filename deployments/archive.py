"""`Archive`: what callers leave here for later (`router.archive`), as a deployment of one replica, and the way to it.

It lives where its files are, as the Ledger does: on a cluster of several nodes pin it to the node with the data folder.
Prompts and answers are in its database, and nowhere in the Ledger's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.hop import call, method
from deployments.live_settings import LiveSettings
from models.errors import DeadlineExceeded, ModelUnavailable, SwitchyardError
from router.archive.archive import Archive as Keeper
from router.archive.batches import Batch
from router.archive.files import StoredFile
from router.archive.lines import LineAnswer
from router.archive.responses import StoredResponse
from router.events import Principal
from router.sealing import Sealer
from router.settings import ArchiveSettings

LOCK_WAIT_S = 120.0
NO_KEY = SecretStr("")
CALL_TIMEOUT_S = 30.0
ARRIVAL_S = 2.0
"""How long who asks for a response waits for one that is on its way to the archive."""

LINE_TIMEOUT_S = 660.0
"""For a line of a batch: the longest request (600 s) and a minute."""

IDLE_FOR_S, IDLE_TIMEOUT_S = 0.25, 2.0
"""For how long it counts that nobody waited, and how long the Batcher may take to say so."""

_METHODS = (
    *("put_response", "response", "conversation", "delete_response"),
    *("begin_file", "append_file", "finish_file", "abort_file", "list_files", "file", "read_file", "delete_file"),
    *("create_batch", "batch", "list_batches", "cancel_batch"),
    *("erase", "facts"),
)

MAX_UNSENT = 256
"""Responses on their way from one ingress. More are not stored, and counted."""


@serve.deployment(
    name="Archive",
    num_replicas=1,
    user_config={},
    max_ongoing_requests=2048,  # who waits for a response must not keep its arrival out
    max_queued_requests=2048,
    graceful_shutdown_timeout_s=15,
    graceful_shutdown_wait_loop_s=0.5,
    health_check_period_s=5,
    health_check_timeout_s=30,
    ray_actor_options={"num_cpus": 0.1},
)
class Archive:
    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, data_dir: str, batcher: DeploymentHandle, max_line_bytes: int, encryption: SecretStr = NO_KEY
    ) -> None:
        """Waits for an older replica, which a roll-out lets run on for a while, to let go of the files. encryption: the
        keys that what is stored is sealed with, as `Sealer.of` takes them."""
        self._settings = LiveSettings(ArchiveSettings)
        self._loads = method(batcher, "snapshot")
        self._line: DeploymentHandle | None = None
        self._is_idle, self._asked_s = False, 0.0
        self._keeper = await Keeper.open(
            Path(data_dir) / "archive", LOCK_WAIT_S, Sealer.of(encryption.get_secret_value())
        )
        runner = self._keeper.runner(self._answer, self._idle, max_line_bytes)
        self._working = [asyncio.create_task(self._keeper.run()), asyncio.create_task(runner.run())]

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        if settings := self._settings.accept(user_config):
            self._keeper.settings = settings

    async def put_response(self, org: str, response: StoredResponse) -> None:
        await self._keeper.put_response(org, response)

    async def response(self, org: str, response_id: str) -> StoredResponse:
        return await self._keeper.response(org, response_id, ARRIVAL_S)

    async def conversation(self, org: str, response_id: str) -> list[StoredResponse]:
        return await self._keeper.conversation(org, response_id, ARRIVAL_S)

    async def delete_response(self, org: str, response_id: str) -> None:
        await self._keeper.delete_response(org, response_id)

    # ---- files -----------------------------------------------------------------------------------------------------

    async def begin_file(self, org: str) -> tuple[str, int]:
        return await self._keeper.begin_file(org)

    async def append_file(self, file_id: str, chunk: bytes) -> None:
        await self._keeper.append_file(file_id, chunk)

    async def finish_file(self, file_id: str, filename: str, purpose: str) -> StoredFile:
        return await self._keeper.finish_file(file_id, filename, purpose)

    async def abort_file(self, file_id: str) -> None:
        await self._keeper.abort_file(file_id)

    async def list_files(self, org: str, purpose: str | None) -> list[StoredFile]:
        return await self._keeper.list_files(org, purpose)

    async def file(self, org: str, file_id: str) -> StoredFile:
        return await self._keeper.file(org, file_id)

    async def read_file(self, org: str, file_id: str, offset: int, limit: int) -> bytes:
        return await self._keeper.read_file(org, file_id, offset, limit)

    async def delete_file(self, org: str, file_id: str) -> None:
        await self._keeper.delete_file(org, file_id)

    # ---- batches ---------------------------------------------------------------------------------------------------

    async def create_batch(self, batch: Batch) -> dict[str, Any]:
        return await self._keeper.create_batch(batch)

    async def batch(self, org: str, batch_id: str) -> dict[str, Any]:
        return await self._keeper.batch(org, batch_id)

    async def list_batches(self, org: str, limit: int, after: str | None) -> list[dict[str, Any]]:
        return await self._keeper.list_batches(org, limit, after)

    async def cancel_batch(self, org: str, batch_id: str) -> dict[str, Any]:
        return await self._keeper.cancel_batch(org, batch_id)

    async def _answer(self, principal: Principal, endpoint: str, body: bytes) -> LineAnswer:
        """A line, through the pipeline of an ingress."""
        if self._line is None:
            here = serve.get_replica_context()
            self._line = method(serve.get_deployment_handle("Ingress", here.app_name), "batch_line")
        try:
            async with asyncio.timeout(LINE_TIMEOUT_S):
                answer: LineAnswer = await call(self._line, principal, endpoint, body)
        except TimeoutError:
            raise DeadlineExceeded("The line had no answer in time.") from None
        return answer

    async def _idle(self) -> bool:
        """Whether nobody waits for a place on any backend. Not known is no."""
        now_s = time.monotonic()
        if now_s - self._asked_s > IDLE_FOR_S:
            try:
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    loads = await call(self._loads)
                self._is_idle = not any(load.queued for load in loads.values())
            except (SwitchyardError, TimeoutError):
                self._is_idle = False
            self._asked_s = time.monotonic()
        return self._is_idle

    # ---- all of it -------------------------------------------------------------------------------------------------

    async def erase(self, org: str, user: str | None, response_ids: Sequence[str]) -> dict[str, int]:
        return await self._keeper.erase(org, user, response_ids)

    async def facts(self) -> dict[str, Any]:
        return await self._keeper.facts()

    async def counts(self) -> dict[str, int]:
        return self._keeper.counts

    async def check_health(self) -> None:
        if any(task.done() for task in self._working):
            raise ModelUnavailable("The archive no longer works on batches or sweeps; it will be replaced.")
        async with asyncio.timeout(20):
            await self._keeper.check()

    async def __del__(self) -> None:
        working = getattr(self, "_working", None)
        if working is None:
            return
        for task in working:
            task.cancel()
        await asyncio.wait(working)
        await self._keeper.close()


class ArchiveHandle:
    """The archive as an ingress sees it. Everything raises `models.errors` only."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._methods = {name: method(handle, name) for name in _METHODS}
        self._storing: set[asyncio.Task[None]] = set()
        self.responses_lost = 0

    def store(self, org: str, response: StoredResponse) -> None:
        """Begin to keep `response`. Returns at once and never fails; one that cannot be kept is counted."""
        if len(self._storing) >= MAX_UNSENT:
            self.responses_lost += 1
            return
        task = asyncio.create_task(self._store(org, response))
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def _store(self, org: str, response: StoredResponse) -> None:
        try:
            await self._call("put_response", org, response)
        except SwitchyardError:
            self.responses_lost += 1

    async def response(self, org: str, response_id: str) -> StoredResponse:
        found: StoredResponse = await self._call("response", org, response_id)
        return found

    async def conversation(self, org: str, response_id: str) -> list[StoredResponse]:
        found: list[StoredResponse] = await self._call("conversation", org, response_id)
        return found

    async def delete_response(self, org: str, response_id: str) -> None:
        await self._call("delete_response", org, response_id)

    async def begin_file(self, org: str) -> tuple[str, int]:
        """The id of a file that is to come in pieces, and how many bytes it may have."""
        begun: tuple[str, int] = await self._call("begin_file", org)
        return begun

    async def append_file(self, file_id: str, chunk: bytes) -> None:
        await self._call("append_file", file_id, chunk)

    async def finish_file(self, file_id: str, filename: str, purpose: str) -> StoredFile:
        stored: StoredFile = await self._call("finish_file", file_id, filename, purpose)
        return stored

    async def abort_file(self, file_id: str) -> None:
        """Never fails: what nobody finishes is removed after a while anyway."""
        with suppress(SwitchyardError):
            await self._call("abort_file", file_id)

    async def list_files(self, org: str, purpose: str | None) -> list[StoredFile]:
        found: list[StoredFile] = await self._call("list_files", org, purpose)
        return found

    async def file(self, org: str, file_id: str) -> StoredFile:
        found: StoredFile = await self._call("file", org, file_id)
        return found

    async def read_file(self, org: str, file_id: str, offset: int, limit: int) -> bytes:
        found: bytes = await self._call("read_file", org, file_id, offset, limit)
        return found

    async def delete_file(self, org: str, file_id: str) -> None:
        await self._call("delete_file", org, file_id)

    async def create_batch(self, batch: Batch) -> dict[str, Any]:
        created: dict[str, Any] = await self._call("create_batch", batch)
        return created

    async def batch(self, org: str, batch_id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self._call("batch", org, batch_id)
        return found

    async def list_batches(self, org: str, limit: int, after: str | None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._call("list_batches", org, limit, after)
        return found

    async def cancel_batch(self, org: str, batch_id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self._call("cancel_batch", org, batch_id)
        return found

    async def erase(self, org: str, user: str | None, response_ids: Sequence[str]) -> dict[str, int]:
        """See `router.archive.archive.Archive.erase`."""
        erased: dict[str, int] = await self._call("erase", org, user, response_ids)
        return erased

    async def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._call("facts")
        return found

    async def close(self, timeout_s: float) -> None:
        """Wait for what is on its way."""
        if self._storing:
            await asyncio.wait(self._storing, timeout=timeout_s)

    async def _call(self, name: str, *args: Any) -> Any:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await call(self._methods[name], *args)
        except TimeoutError:
            raise DeadlineExceeded("The archive did not answer in time; try again.", None, 1.0) from None


def archive_deployment(
    data_dir: str, batcher: Application, max_line_bytes: int, encryption: SecretStr = NO_KEY
) -> Application:
    """The bound app. `data_dir` is on the node that the archive runs on; `max_line_bytes` is of a batch's file.
    encryption: see `Sealer.of`, which raises ValueError here for keys that are none."""
    Sealer.of(encryption.get_secret_value())
    bound: Application = Archive.bind(  # type: ignore[attr-defined]  # the decorator makes a Deployment of it
        data_dir, batcher, max_line_bytes, encryption
    )
    return bound
