"""Where a cluster is: the state file `cluster.json` in its data folder, by which other commands find it.

Its owner holds a lock on the file for life. The kernel releases the lock with the process, so a file whose lock is free
is what a dead one left behind, and a process id in a file whose lock is held is not somebody else's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from cluster.checks import StartError
from cluster.ray_process import LOOPBACK_ONLY, kill_session
from router.accounting.keys import KEY_FILE, kept_secret, new_key, new_secret

STATE_FILE = "cluster.json"
RAY_TOKEN_FILE = "ray_token"


@dataclass(frozen=True)
class Cluster:
    """A cluster that starts or runs. `pid` is its owner's, `ray_pid` that of Ray, which leads a session."""

    pid: int
    ray_pid: int
    base_url: str
    ray_address: str
    dashboard_url: str
    data_dir: str
    scratch_dir: str
    key_from_environment: bool
    """The API key is the SWITCHYARD_API_KEY that its owner found, not the one in the file."""

    @property
    def api_key(self) -> str:
        """Raises KeyError when it is known only to those who have it in their environment, and we have not."""
        return os.environ["SWITCHYARD_API_KEY"] if self.key_from_environment else self.api_key_path.read_text().strip()

    @property
    def api_key_path(self) -> Path:
        return Path(self.data_dir) / KEY_FILE

    @property
    def token_path(self) -> Path:
        """The file with the token that Ray's dashboard, REST API and drivers need."""
        return Path(self.data_dir) / RAY_TOKEN_FILE

    @property
    def driver_environment(self) -> dict[str, str]:
        """What a Python program needs in its environment for `ray.init()` to find this cluster and be let in."""
        return {
            **LOOPBACK_ONLY,
            "RAY_ADDRESS": self.ray_address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_path),
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        }


def find(data_dir: Path) -> Cluster | None:
    """The cluster that runs with this data folder. What a killed one left behind is cleaned up on the way."""
    with contextlib.suppress(FileNotFoundError), open(data_dir / STATE_FILE, "r+") as state:
        if not _lock(state):
            return _read(state)
        _clean_up_after(state)
    return None


@contextlib.contextmanager
def owned(data_dir: Path) -> Iterator[IO[str]]:
    """The state file, locked until the block is left. Raises StartError when a cluster runs with this data folder."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        opened = os.open(data_dir / STATE_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartError(f"cannot write to {data_dir} ({error.strerror}): choose a folder with --data-dir") from None
    with os.fdopen(opened, "r+") as state:
        if not _lock(state):
            raise StartError(
                f"a cluster runs with the data folder {data_dir} already: stop it with `switchyard down`, "
                "or choose another folder with --data-dir"
            )
        _clean_up_after(state)
        try:
            yield state
        finally:
            state.truncate(0)


def write(state: IO[str], cluster: Cluster) -> None:
    state.seek(0)
    state.truncate()
    json.dump(asdict(cluster), state, indent=1)
    state.flush()


def make_secrets(data_dir: Path) -> None:
    """The API key and Ray's token, where the data folder does not have them yet. Raises StartError."""
    try:
        kept_secret(data_dir / KEY_FILE, new_key)
        kept_secret(data_dir / RAY_TOKEN_FILE, new_secret)
    except (OSError, ValueError) as error:
        raise StartError(f"the secrets in {data_dir} cannot be used: {error}") from None


def _lock(state: IO[str]) -> bool:
    try:
        fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(state: IO[str]) -> Cluster | None:
    state.seek(0)
    try:
        return Cluster(**json.loads(state.read()))
    except (ValueError, TypeError):  # empty: stopped cleanly, or only just starting
        return None


def _clean_up_after(state: IO[str]) -> None:
    dead = _read(state)
    if dead is not None:
        kill_session(dead.ray_pid, Path(dead.scratch_dir))
        shutil.rmtree(dead.scratch_dir, ignore_errors=True)
        state.truncate(0)
