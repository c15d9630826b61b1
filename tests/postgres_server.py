"""A real PostgreSQL for tests. Where none is installed, Debian's packages are unpacked into a cache folder, without
installing anything."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.bench import postgres_server
from cluster.bench.postgres_server import Server, installed, packaged

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "switchyard-tests" / "postgresql"
_LIBRARIES = ("libpq5", "libicu72", "libllvm14", "libxml2", "libxslt1.1", "libldap-2.5-0", "liblz4-1", "libsasl2-2")


@contextlib.contextmanager
def serving(vectors: bool = False) -> Iterator[Server]:
    """`vectors`: one that has pgvector; else that of the machine. Skips the test, saying why, where there is none and
    none can be had."""
    with tempfile.TemporaryDirectory(prefix="switchyard-postgres-", dir="/tmp") as folder:
        binaries = packaged(Path(folder)) if vectors else _binaries()
        with postgres_server.serving(binaries, _libraries(binaries)) as server:
            yield server


def _binaries() -> Path:
    found = None if "SWITCHYARD_TESTS_UNPACK_POSTGRES" in os.environ else installed()
    return found or _unpacked()


def _unpacked() -> Path:
    """Debian's packages, in the cache."""
    if not (folders := list(CACHE.glob("usr/lib/postgresql/*/bin"))):
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            pytest.skip("PostgreSQL is not installed, and there is no Debian to get it from: install postgresql")
        _unpack()
        folders = list(CACHE.glob("usr/lib/postgresql/*/bin"))
    return folders[0]


def _unpack() -> None:
    shown = subprocess.run(["apt-cache", "depends", "postgresql"], capture_output=True, text=True).stdout.split()
    server = next((word for word in shown if word.startswith("postgresql-") and word[11:].isdigit()), "")
    with tempfile.TemporaryDirectory() as folder:
        for package in (server, f"postgresql-client-{server[11:]}", *_LIBRARIES):
            done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True)
            if done.returncode and package == server:
                pytest.skip("PostgreSQL is not installed and cannot be downloaded: install postgresql")
        CACHE.mkdir(parents=True, exist_ok=True)
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, CACHE], check=True)


def _libraries(binaries: Path) -> str:
    return ":".join(map(str, CACHE.glob("usr/lib/*-linux-gnu"))) if CACHE in binaries.parents else ""
