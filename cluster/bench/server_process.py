"""Another server on loopback, for as long as a benchmark or a test needs it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.checks import StartError

STOP_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def running_server(
    name: str,
    command: Sequence[str | Path],
    health_url: str,
    log: Path,
    environment: Mapping[str, str],
    start_s: float,
) -> Iterator[None]:
    """From when `health_url` answers 2xx. Leaving the block ends it and all that it started.

    environment: what differs from this process's. Raises StartError with the end of its log when it is not up within
    `start_s`.
    """
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_healthy(name, health_url, server, log, start_s)
        yield
    finally:
        _stop(server)


def _wait_until_healthy(name: str, url: str, server: subprocess.Popen[bytes], log: Path, start_s: float) -> None:
    open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # a proxy knows no loopback of ours
    give_up_s = time.monotonic() + start_s
    while time.monotonic() < give_up_s and server.poll() is None:
        try:
            with open_url(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise StartError(f"{name} did not come up:\n{log.read_text(errors='replace')[-4000:]}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ends the whole session of processes that the server started."""
    try:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    except ProcessLookupError:
        server.wait()
