"""What runs in `CloudModel:<name>`, without Serve around it: adapters, keys, wrappers and their live settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from deployments.cloud import CloudModel
from models.base import Call
from models.catalog import ModelEntry
from models.errors import DeadlineExceeded, RateLimited
from models.messages import ChatRequest, Message, Sampling, TextPart, UsageReport, fold
from router.topology import CloudEndpoint
from tests.contract.fault_server import OPENAI, FaultServer, fault_server

CALL = Call("r", timeout_s=10.0)
QUICK = {"retries": {"base_s": 0.01, "max_wait_s": 1}}


@asynccontextmanager
async def running(keys: int = 1, **settings: Any) -> AsyncIterator[tuple[CloudModel, FaultServer]]:
    async with fault_server(OPENAI) as server:
        entry = ModelEntry(name="m", engine="openai_compatible", context_tokens=1024)
        endpoint = CloudEndpoint(
            name="acme", dialect="openai", base_url=f"{server.url}/v1", api_key_env=None, models=(entry,)
        )
        model = CloudModel(endpoint, [SecretStr(f"sk-{number}") for number in range(keys)])
        model.reconfigure({"reliability": {**QUICK, **settings}})
        yield model, server
        await model._model.close()


def ask(plan: str) -> ChatRequest:
    return ChatRequest("m", (Message("user", (TextPart(f"plan={plan}#1"),)),), Sampling(max_tokens=16))


async def test_a_provider_that_fails_twice_is_asked_three_times() -> None:
    async with running() as (model, server):
        events = await model.complete(ask("503,hang_up,good"), CALL)
        assert fold(events).text == "Hé" and events[-1] == UsageReport(OPENAI.usage)
        assert server.requests[1] == 3 and (await model.stats())["retries"] == {"m": 2}
        assert (await model.provider_health())["state"] == "healthy"


async def test_a_limited_key_gives_way_to_the_next_without_a_wait() -> None:
    async with running(keys=2) as (model, server):
        assert fold(await model.complete(ask("429_late,good"), CALL)).text == "Hé"
        stats = await model.stats()
        assert (stats["key_rests"], stats["keys_resting"], stats["retries"]) == ({"limited": 1}, {"": 1}, {})
    async with running(keys=2) as (model, server):
        with pytest.raises(RateLimited) as limited:
            await model.complete(ask("429_late"), CALL)
        assert limited.value.retry_after_s and server.requests[1] == 2


async def test_new_settings_hold_for_the_next_request_and_wrong_ones_not_at_all() -> None:
    async with running() as (model, _):
        model.reconfigure({"reliability": {**QUICK, "timeouts": {"total_s": 0.2}}})
        for wrong in ({"reliability": {"timeouts": {"total_s": -1}}}, {"unknown": 1}):
            model.reconfigure(wrong)
            with pytest.raises(DeadlineExceeded):
                await model.complete(ask("silence"), CALL)
        assert (await model.stats())["timeouts"] == {"total": 2}


async def test_wrong_settings_keep_a_replica_from_starting() -> None:
    async with running() as (model, _):
        fresh = CloudModel(CloudEndpoint(name="x", dialect="openai", api_key_env=None, models=_entries()), [])
        with pytest.raises(ValueError, match="max_attempts"):
            fresh.reconfigure({"reliability": {"retries": {"max_attempts": 0}}})
        await fresh._model.close()
        assert fold(await model.complete(ask("good"), CALL)).text == "Hé"


def _entries() -> tuple[ModelEntry, ...]:
    return (ModelEntry(name="m", engine="openai_compatible", context_tokens=1024),)
