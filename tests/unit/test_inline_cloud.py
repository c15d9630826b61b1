"""A provider in the Ingress's own process, against a server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.bench.upstream import TEXT, USAGE, Upstream
from deployments.cloud import CloudModel, inline_cloud
from models.errors import ModelUnavailable
from models.messages import TextDelta, UsageReport
from router.topology import CloudEndpoint
from tests.unit.models.reliability.scripted import CALL, REQUEST

ENTRY = {"name": "m", "source": "bench", "context_tokens": 8192}


def opened(url: str) -> CloudModel:
    endpoint = CloudEndpoint(
        name="near", dialect="openai", base_url=url, api_key_env="KEY", models=[ENTRY], placement="inline"
    )
    return inline_cloud(endpoint, ["sk-secret"]).open()


@pytest.fixture
async def model() -> AsyncIterator[CloudModel]:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    async with server:
        model = opened(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        yield model
        await model.close()


async def test_it_answers_as_a_deployment_would(model: CloudModel) -> None:
    streamed = [event async for batch in model.stream(REQUEST, CALL) for event in batch]
    whole = await model.complete(REQUEST, CALL)
    for events in (streamed, whole):
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == TEXT
        (report,) = [event for event in events if isinstance(event, UsageReport)]
        assert report.usage.output_tokens == USAGE["completion_tokens"] and not report.estimated
    assert (await model.provider_health())["state"] == "healthy"


async def test_its_wrappers_work_and_take_settings() -> None:
    model = opened("http://127.0.0.1:9/v1")
    model.reconfigure({"reliability": {"retries": {"max_attempts": 2, "base_s": 0.001}}})
    with pytest.raises(ModelUnavailable):
        await model.complete(REQUEST, CALL)
    assert (await model.stats())["retries"] == {"m": 1}
    assert (await model.provider_health())["state"] == "unhealthy"
    await model.close()


def test_its_keys_are_not_printed() -> None:
    endpoint = CloudEndpoint(name="near", dialect="openai", api_key_env="KEY", models=[ENTRY], placement="inline")
    assert "sk-secret" not in repr(inline_cloud(endpoint, ["sk-secret"]))
