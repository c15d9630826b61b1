"""The environment of every test: nothing from the shell may change what is tested, and no test changes a home."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from cluster.ray_process import LOOPBACK_ONLY
from models.smoke import ensure_smoke_model
from tests import postgres_server, vllm_server
from tests.commands.commands import Commands
from tests.lanes import make_scheduler

for name in [*os.environ]:
    # Keys would enable cloud providers, and Ray's variables lead to somebody else's cluster.
    if name.startswith(("RAY_", "SWITCHYARD_", "AWS_")) or "_API_KEY" in name:
        del os.environ[name]

# Before the first import of ray, which reads them once. Without a token of its own Ray would write one into ~/.ray.
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_urlsafe(32),
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # else every replica takes half a minute to go
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    # Tests run beside each other: threads of one process would wait for each other's cores, and burn them meanwhile.
    "OMP_NUM_THREADS": "1",
    **LOOPBACK_ONLY,
}

# How long something takes is for the benchmarks to say: here another test may have the processor.
hypothesis.settings.register_profile("tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def smoke_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_smoke_model("small", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def vllm_url(smoke_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of vLLM's own server, started once for all tests that need it."""
    with vllm_server.serving(smoke_folder, tmp_path_factory.mktemp("vllm") / "log") as url:
        yield url


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Server]:
    """A PostgreSQL of its own, started once for all tests that need it."""
    with postgres_server.serving() as server:
        yield server


@pytest.fixture(scope="session")
def vector_postgres() -> Iterator[postgres_server.Server]:
    """One with pgvector."""
    with postgres_server.serving(vectors=True) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Any]:
    """A Redis of its own, started once for all tests that need it."""
    from tests import redis_server  # the client's library takes half a second

    with redis_server.serving() as server:
        yield server


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    return make_scheduler(config, log)
