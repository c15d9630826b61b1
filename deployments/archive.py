"""`Archive`: what callers leave here for later (`router.archive`), as a deployment of one replica, and the way to it.

It lives where its files are, as the Ledger does: on a cluster of several nodes pin it to the node with the data folder.
Prompts and answers are in its database, and nowhere in the Ledger's.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.hop import call, method
from deployments.live_settings import LiveSettings
from models.errors import DeadlineExceeded, ModelUnavailable, SwitchyardError
from router.archive.archive import Archive as Keeper
from router.archive.responses import StoredResponse
from router.config import ArchiveSettings

LOCK_WAIT_S = 120.0
CALL_TIMEOUT_S = 30.0
ARRIVAL_S = 2.0
"""How long who asks for a response waits for one that is on its way to the archive."""

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
    async def __init__(self, data_dir: str) -> None:
        """Waits for an older replica, which a roll-out lets run on for a while, to let go of the files."""
        self._settings = LiveSettings(ArchiveSettings)
        self._keeper = await Keeper.open(Path(data_dir) / "archive", LOCK_WAIT_S)
        self._sweeping = asyncio.create_task(self._keeper.run())

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

    async def counts(self) -> dict[str, int]:
        return self._keeper.counts

    async def check_health(self) -> None:
        if self._sweeping.done():
            raise ModelUnavailable("The archive's sweeper has stopped; this replica is to be replaced.")
        async with asyncio.timeout(20):
            await self._keeper.check()

    async def __del__(self) -> None:
        sweeping = getattr(self, "_sweeping", None)
        if sweeping is None:
            return
        sweeping.cancel()
        await asyncio.wait({sweeping})
        await self._keeper.close()


class ArchiveHandle:
    """The archive as an ingress sees it. Everything raises `models.errors` only."""

    def __init__(self, handle: DeploymentHandle) -> None:
        names = ("put_response", "response", "conversation", "delete_response")
        self._methods = {name: method(handle, name) for name in names}
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


def archive_deployment(data_dir: str) -> Application:
    """The bound app. `data_dir` is on the node that the archive runs on."""
    return Archive.bind(data_dir)
