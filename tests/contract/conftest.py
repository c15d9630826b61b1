"""The models under contract. Each is made for one test, on that test's loop; vLLM's own server is started once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.anthropic import AnthropicModel
from models.base import ChatModel
from models.catalog import ModelEntry
from models.openai_compatible import OpenAICompatibleModel
from models.simulated import SimulatedModel
from models.smoke import ensure_smoke_model
from models.transformers_engine import TransformersChatModel

CONTEXT_TOKENS = 1024
START_TIMEOUT_S = 150.0


@dataclass(frozen=True)
class Subject:
    """`running` counts the requests that are being worked on behind the model."""

    model: ChatModel
    entry: ModelEntry
    running: Callable[[], int]


@pytest.fixture(scope="session")
def smoke_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_smoke_model("small", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def vllm_url(smoke_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of vLLM's own server, which speaks both dialects and was written by others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(smoke_folder)]
    command += ["--served-model-name", "smoke", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", str(CONTEXT_TOKENS), "--max-num-seqs", "16", "--enforce-eager"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, env=os.environ | settings, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        _stop(server)


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_s and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"vLLM's server did not come up:\n{log.read_text(errors='replace')[-4000:]}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ends the whole session of processes that the server started: its engine runs in one of its own."""
    try:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    except ProcessLookupError:
        server.wait()


def _vllm_running(url: str) -> int:
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    kinds = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(kinds))


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
    entry = ModelEntry(name="gpt", engine="openai_compatible", source="smoke", context_tokens=CONTEXT_TOKENS)
    model = OpenAICompatibleModel({"gpt": entry}, f"{vllm_url}/v1", None)
    yield Subject(model, entry, lambda: _vllm_running(vllm_url))
    await model.close()


@pytest.fixture
async def anthropic(vllm_url: str) -> AsyncIterator[Subject]:
    entry = ModelEntry(name="claude", engine="anthropic", source="smoke", context_tokens=CONTEXT_TOKENS)
    model = AnthropicModel({"claude": entry}, None, vllm_url)
    yield Subject(model, entry, lambda: _vllm_running(vllm_url))
    await model.close()


ENGINES = ["transformers", "openai_compatible", "anthropic"]


@pytest.fixture(params=["simulated", *ENGINES])
def subject(request: pytest.FixtureRequest) -> Subject:
    """Every `ChatModel` there is."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Subject:
    """Those with an engine behind them whose running requests can be counted."""
    return request.getfixturevalue(request.param)
