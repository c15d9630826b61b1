"""The product as `switchyard up` starts it: one cluster for all of these tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from cluster.runtime import Config, load_config
from cluster.state import RAY_TOKEN_FILE, Cluster
from router.accounting.keys import hash_key, kept_secret
from tests.commands.commands import Commands, ends, open_stream
from tests.serve.product import TENANTS, Product, key_of
from tests.vllm_server import CHAT_TEMPLATE

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="session")
def operated(vllm_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """`switchyard up` with the whole graph of serve_config.test.yaml, on free ports. In the end Ctrl-C stops it, and
    all that it started, while an answer is on its way."""
    commands = Commands(tmp_path_factory.mktemp("operated"), yaml.safe_dump(_config(vllm_url)))
    commands.environment |= {"ANTHROPIC_API_KEY": "sk-ant-of-the-tests", "PYTHONPATH": str(ROOT)}  # tests.serve.graph
    # This process has read its token once and for all, so the cluster takes the same, not what some earlier Ray left.
    commands.data_dir.mkdir(mode=0o700)
    kept_secret(commands.data_dir / RAY_TOKEN_FILE, lambda: os.environ["RAY_AUTH_TOKEN"])
    (commands.folder / "home" / ".ray" / "auth_token").write_text("of-another-cluster-of-long-ago")
    with commands.up("--port", "0", "--num-cpus", "8") as up:
        yield commands
        cluster = commands.cluster()
        with open_stream(cluster, cluster.api_key, "sim-slow"):
            up.send_signal(signal.SIGINT)
            ends(up, cluster)
        assert commands.run("status").returncode == 1


@pytest.fixture(scope="session")
def cluster(operated: Commands) -> Cluster:
    return operated.cluster()


def _config(vllm_url: str) -> Config:
    config = load_config(HERE / "serve_config.test.yaml")
    application = config["applications"][0]
    for endpoint in application["args"]["cloud"]:
        endpoint["base_url"] = f"{vllm_url}/v1" if endpoint["dialect"] == "openai" else vllm_url
    keys = [{"sha256": hash_key(key_of(org)), "org": org} for org in TENANTS]
    application["deployments"][0]["user_config"]["keys"] = keys
    (smoke_vllm,) = (model for model in application["args"]["local_models"] if model["name"] == "smoke-vllm")
    smoke_vllm["entry"]["chat_template"] = CHAT_TEMPLATE
    return config


@pytest.fixture(scope="session")
def product(cluster: Cluster) -> Iterator[Product]:
    with closing(Product(cluster)) as product:
        yield product


@pytest.fixture(scope="session")
def run_driver(cluster: Cluster) -> Callable[..., str]:
    """Runs Python source, or a file of it, as another program that finds `cluster` by its environment: what it prints.

    A process can be a driver of one Ray cluster only, and this one may be that of `local_ray`.
    """

    def run(source: str | Path, *arguments: str, timeout_s: float = 120.0) -> str:
        environment = {**os.environ, **cluster.driver_environment, "SWITCHYARD_API_KEY": cluster.api_key}
        del environment["RAY_AUTH_TOKEN"]  # it would stand before the path of the cluster's own
        command = ["-c", source] if isinstance(source, str) else [str(source)]
        done = subprocess.run(
            [sys.executable, *command, *arguments], env=environment, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
