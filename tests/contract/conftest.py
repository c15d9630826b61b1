"""The models under contract. Each is made for one test; vLLM's engine, which takes half a minute to start, for all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from models.anthropic import AnthropicModel
from models.base import ChatModel
from models.catalog import ModelEntry
from models.openai_compatible import OpenAICompatibleModel
from models.simulated import SimulatedModel
from models.transformers_engine import TransformersChatModel
from models.vllm_engine import VllmModel
from tests.contract import vllm_engine
from tests.vllm_server import CONTEXT_TOKENS, MODEL, running_requests


@dataclass(frozen=True)
class Subject:
    """`running` counts the requests that are being worked on behind the model."""

    model: ChatModel
    entry: ModelEntry
    running: Callable[[], int]


@pytest_asyncio.fixture(loop_scope="session")
async def simulated() -> AsyncIterator[Subject]:
    entry = ModelEntry(name="sim", engine="simulated", context_tokens=CONTEXT_TOKENS)
    model = SimulatedModel(entry, ttft_ms=1, tokens_per_s=1000, output_tokens=600)
    yield Subject(model, entry, lambda: 0)
    await model.close()


@pytest_asyncio.fixture(loop_scope="session")
async def transformers(smoke_folder: Path) -> AsyncIterator[Subject]:
    entry = ModelEntry(name="local", engine="transformers", context_tokens=CONTEXT_TOKENS, dtype="float32")
    model = TransformersChatModel(entry, str(smoke_folder), kv_cache_gb=0.05)
    scheduler = model._manager.batch_processor.scheduler
    yield Subject(model, entry, lambda: len(scheduler.active_requests) + len(scheduler.waiting_requests))
    await model.close()


class VllmEngine:
    """Runs from the first test that needs it to the last of this folder, and starts anew when a test has closed it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._serving: Any = None
        self._stack = AsyncExitStack()

    async def serving(self) -> Any:
        if self._serving is None or self._serving.engine_client.errored:
            await self._stack.aclose()
            self._serving = await self._stack.enter_async_context(vllm_engine.serving(self._folder))
        return self._serving

    async def close(self) -> None:
        await self._stack.aclose()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def vllm_in_process(smoke_folder: Path) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(smoke_folder)
    yield engine
    await engine.close()


@pytest_asyncio.fixture(loop_scope="session")
async def vllm(vllm_in_process: VllmEngine) -> Subject:
    entry = ModelEntry(name="local", engine="vllm", context_tokens=CONTEXT_TOKENS, dtype="float32")
    serving = await vllm_in_process.serving()
    return Subject(VllmModel(entry, serving), entry, serving.engine_client.get_num_unfinished_requests)


@pytest_asyncio.fixture(loop_scope="session")
async def openai_compatible(vllm_url: str) -> AsyncIterator[Subject]:
    entry = ModelEntry(name="gpt", engine="openai_compatible", source=MODEL, context_tokens=CONTEXT_TOKENS)
    model = OpenAICompatibleModel({"gpt": entry}, f"{vllm_url}/v1", None)
    yield Subject(model, entry, lambda: running_requests(vllm_url))
    await model.close()


@pytest_asyncio.fixture(loop_scope="session")
async def anthropic(vllm_url: str) -> AsyncIterator[Subject]:
    entry = ModelEntry(name="claude", engine="anthropic", source=MODEL, context_tokens=CONTEXT_TOKENS)
    model = AnthropicModel({"claude": entry}, None, vllm_url)
    yield Subject(model, entry, lambda: running_requests(vllm_url))
    await model.close()


# vLLM's own code reads the field that it has declared deprecated.
_VLLM = pytest.param("vllm", marks=pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning"))
ENGINES = ["transformers", _VLLM, "openai_compatible", "anthropic"]


@pytest.fixture(params=["simulated", *ENGINES])
def subject(request: pytest.FixtureRequest) -> Subject:
    """Every `ChatModel`."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Subject:
    """Those with an engine behind them whose running requests can be counted."""
    return request.getfixturevalue(request.param)


@pytest_asyncio.fixture(params=["folder", "redis", "postgresql", "pgvector"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """Where a shard's answers are kept (a `Place`)."""
    from tests.contract.answer_places import Place

    names = {"redis": "redis_server", "postgresql": "postgres", "pgvector": "vector_postgres"}
    server: Any = request.getfixturevalue(names[request.param]) if request.param in names else None
    url = "" if server is None else server.new_database(*(["vector"] if request.param == "pgvector" else []))
    place = Place(request.param, tmp_path / "cache", url, server)
    yield place
    await place.close()
