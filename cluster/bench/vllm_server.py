"""vLLM's own server on loopback: the yardstick of `cluster/bench/streams.py`, and in the tests a real provider in both
dialects and vLLM's own word on what a model says."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.bench.server_process import free_port, running_server

START_S = 300.0
_SETTINGS = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@contextmanager
def serving(
    model: Path, name: str, arguments: Mapping[str, object], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The address of a server for the model in a folder, which it calls `name`. Leaving the block ends it.

    `arguments` are vLLM's engine and server arguments by their Python names. Raises StartError with the end of its log.
    """
    url = f"http://127.0.0.1:{(port := free_port())}"
    own = {"model": model, "served_model_name": name, "host": "127.0.0.1", "port": port}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *_flags({**own, **arguments})]
    settings = {**_SETTINGS, **(environment or {})}
    with running_server("vLLM's server", command, f"{url}/health", log, settings, START_S):
        yield url


def _flags(arguments: Mapping[str, object]) -> list[str]:
    flags: list[str] = []
    for argument, value in arguments.items():
        flag = argument.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags
