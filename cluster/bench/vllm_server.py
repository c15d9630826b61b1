"""vLLM's own server on loopback: the yardstick of `cluster/bench/streams.py`, and in the tests a real provider in both
dialects and vLLM's own word on what a model says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.checks import StartError

START_S = 300.0
_SETTINGS = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@contextmanager
def serving(
    model: Path, name: str, arguments: Mapping[str, object], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The address of a server for the model in a folder, which it calls `name`. Leaving the block ends it.

    `arguments` are vLLM's engine and server arguments by their Python names. Raises StartError with the end of its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"model": model, "served_model_name": name, "host": "127.0.0.1", "port": port}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *_flags({**own, **arguments})]
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env={**os.environ, **_SETTINGS, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        _stop(server)


def _flags(arguments: Mapping[str, object]) -> list[str]:
    flags: list[str] = []
    for argument, value in arguments.items():
        flag = argument.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    give_up_s = time.monotonic() + START_S
    while time.monotonic() < give_up_s and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise StartError(f"vLLM's server did not come up:\n{log.read_text(errors='replace')[-4000:]}")


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
