"""A real Redis for tests: on loopback, in a folder of its own, ended with them. Where none is installed, Debian's
packages are unpacked into a cache folder, without installing anything."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "switchyard-tests" / "redis"
_PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")


@dataclass
class Server:
    """Its answers are in memory and, in between, in a file: a killed one has them again, as a managed Redis would."""

    port: int
    start: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    numbers: Iterator[int] = field(default_factory=lambda: itertools.cycle(range(16)))

    def new_database(self) -> str:
        """The URL of an empty database, one of sixteen."""
        url = f"redis://127.0.0.1:{self.port}/{next(self.numbers)}"
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            client.flushdb()
        return url

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Stands still: connections stay open, and nothing answers."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        self.process = subprocess.Popen(self.start, env=self.environment, stdout=subprocess.DEVNULL)
        self.wait()

    def wait(self) -> None:
        for _ in range(300):
            with contextlib.suppress(redis.RedisError), contextlib.closing(redis.Redis(port=self.port)) as client:
                client.ping()
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"Redis ended with {self.process.wait(0.1)}")
        raise AssertionError("Redis did not start")


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Skips the test, saying why, where there is no Redis and none can be had."""
    binary = _binary()
    libraries = ":".join(map(str, CACHE.glob("usr/lib/*-linux-gnu"))) if CACHE in binary.parents else ""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="switchyard-redis-") as folder:
        start = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        start += ["--appendonly", "yes", "--appendfsync", "no", "--loglevel", "warning"]
        environment = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": libraries}
        process = subprocess.Popen(start, env=environment, stdout=subprocess.DEVNULL)
        server = Server(port, start, environment, process)
        try:
            server.wait()
            yield server
        finally:
            server.kill()


def _binary() -> Path:
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return Path(found)
    if not (binary := CACHE / "usr/bin/redis-server").exists():
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            pytest.skip("Redis is not installed, and there is no Debian to get it from: install redis-server")
        _unpack()
    return binary


def _unpack() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for package in _PACKAGES:
            done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True)
            if done.returncode and package == _PACKAGES[0]:
                pytest.skip("Redis is not installed and cannot be downloaded: install redis-server")
        CACHE.mkdir(parents=True, exist_ok=True)
        for package in sorted(Path(folder).glob("*.deb"), key=lambda path: "redis" in path.name):  # its libraries first
            subprocess.run(["dpkg-deb", "-x", package, CACHE], check=True)
