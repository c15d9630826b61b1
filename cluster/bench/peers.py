"""LiteLLM proxy and Portkey gateway, where `make bench-peers` has installed them: what `cluster/bench/gateway.py` puts
beside Switchyard. Each runs with its own defaults, as one process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.bench.server_process import free_port, running_server

FOLDER = Path(__file__).parents[2] / ".peers"
START_S = 180.0
MODEL = "bench"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a gateway takes chat completions, as whom and with what to ask it."""

    name: str
    url: str
    model: str
    key: str
    peer: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def litellm(upstream_url: str, scratch: Path, folder: Path = FOLDER) -> Iterator[Target]:
    """With a master key, so that it authenticates, and without a database, so that it writes its spend nowhere.

    upstream_url: without a path. Raises StartError.
    """
    key, port = "sk-bench", free_port()
    served = {"model": f"openai/{MODEL}", "api_base": f"{upstream_url}/v1", "api_key": "sk-upstream"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": served}],
        "general_settings": {"master_key": key},
    }
    path = scratch / "litellm.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    command: list[str | Path] = [
        folder / "litellm/bin/litellm",
        "--config",
        path,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    # It would look for prices on the internet, and for a worse or better second before it gives up.
    settings = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    url = f"http://127.0.0.1:{port}"
    name = "LiteLLM proxy"
    log = scratch / "litellm.log"
    with running_server(name, command, f"{url}/health/liveliness", log, settings, START_S):
        yield Target(name, f"{url}/v1/chat/completions", MODEL, key, True)


@contextmanager
def portkey(upstream_url: str, scratch: Path, folder: Path = FOLDER) -> Iterator[Target]:
    """It has no keys and no accounts of its own: the caller's key goes on to the provider. Raises StartError."""
    port = free_port()
    script = folder / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    url = f"http://127.0.0.1:{port}"
    name = "Portkey gateway"
    command: list[str | Path] = ["node", script, "--headless", f"--port={port}"]
    with running_server(name, command, url, scratch / "portkey.log", {}, START_S):
        headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{upstream_url}/v1"}
        yield Target(name, f"{url}/v1/chat/completions", MODEL, "sk-upstream", True, headers)


PEERS = {"litellm": litellm, "portkey": portkey}


def installed(name: str, folder: Path = FOLDER) -> bool:
    """Whether `make bench-peers` has finished with it."""
    return (folder / f".{name}").exists()
