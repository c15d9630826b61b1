"""The models under contract. Each is made for one test, on that test's loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.anthropic import AnthropicModel
from models.base import ChatModel
from models.catalog import ModelEntry
from models.openai_compatible import OpenAICompatibleModel
from models.simulated import SimulatedModel
from models.transformers_engine import TransformersChatModel
from tests.vllm_server import CONTEXT_TOKENS, MODEL, running_requests


@dataclass(frozen=True)
class Subject:
    """`running` counts the requests that are being worked on behind the model."""

    model: ChatModel
    entry: ModelEntry
    running: Callable[[], int]


@pytest.fixture
async def simulated() -> AsyncIterator[Subject]:
    entry = ModelEntry(name="sim", engine="simulated", context_tokens=CONTEXT_TOKENS)
    model = SimulatedModel(entry, ttft_ms=1, tokens_per_s=1000, output_tokens=600)
    yield Subject(model, entry, lambda: 0)
    await model.close()


@pytest.fixture
async def transformers(smoke_folder: Path) -> AsyncIterator[Subject]:
    entry = ModelEntry(name="local", engine="transformers", context_tokens=CONTEXT_TOKENS, dtype="float32")
    model = TransformersChatModel(entry, str(smoke_folder), kv_cache_gb=0.05)
    scheduler = model._manager.batch_processor.scheduler
    yield Subject(model, entry, lambda: len(scheduler.active_requests) + len(scheduler.waiting_requests))
    await model.close()


@pytest.fixture
async def openai_compatible(vllm_url: str) -> AsyncIterator[Subject]:
    entry = ModelEntry(name="gpt", engine="openai_compatible", source=MODEL, context_tokens=CONTEXT_TOKENS)
    model = OpenAICompatibleModel({"gpt": entry}, f"{vllm_url}/v1", None)
    yield Subject(model, entry, lambda: running_requests(vllm_url))
    await model.close()


@pytest.fixture
async def anthropic(vllm_url: str) -> AsyncIterator[Subject]:
    entry = ModelEntry(name="claude", engine="anthropic", source=MODEL, context_tokens=CONTEXT_TOKENS)
    model = AnthropicModel({"claude": entry}, None, vllm_url)
    yield Subject(model, entry, lambda: running_requests(vllm_url))
    await model.close()


ENGINES = ["transformers", "openai_compatible", "anthropic"]


@pytest.fixture(params=["simulated", *ENGINES])
def subject(request: pytest.FixtureRequest) -> Subject:
    """Every `ChatModel` but vLLM's, which runs in a replica: `tests/serve/test_llm_server.py`."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Subject:
    """Those with an engine behind them whose running requests can be counted."""
    return request.getfixturevalue(request.param)
