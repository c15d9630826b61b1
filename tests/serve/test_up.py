"""`switchyard up`, `down` and `status` as a user runs them: from any folder, beside other clusters, stopped any way."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from cluster import state
from cluster.state import Cluster

CONFIG = """
applications:
  - name: switchyard
    import_path: deployments.app:build
    route_prefix: /
    args:
      semantic_cache: "off"
      classifier: inline
      local_models:
        - name: sim
          entry: {name: sim, engine: simulated, context_tokens: 4096}
          engine_args: {output_tokens: 4000, tokens_per_s: 20}
"""
QUESTION = {"model": "sim", "max_tokens": 4, "messages": [{"role": "user", "content": "Where is the station?"}]}
START_S, STOP_S = 240.0, 15.0


class Commands:
    """The command line in a folder of its own, with a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.output = folder / "up.out"
        (folder / "serve_config.yaml").write_text(CONFIG)
        (folder / "home" / ".ray").mkdir(parents=True)
        self.environment = {**os.environ, "HOME": str(folder / "home"), "SWITCHYARD_DATA_DIR": str(self.data_dir)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cluster.cli", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=START_S
        )

    @contextmanager
    def up(self, *arguments: str, until: str = "switchyard ready") -> Iterator[subprocess.Popen[bytes]]:
        """`switchyard up` in the background, once it has said `until`; killed afterwards if a test left it running."""
        command = [sys.executable, "-m", "cluster.cli", "up", *arguments]
        with open(self.output, "wb") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            wait_until(lambda: until in self.output.read_text() or process.poll() is not None, START_S)
            assert process.poll() is None, self.output.read_text()
            yield process
        finally:
            process.kill()
            process.wait()
            state.find(self.data_dir)

    def cluster(self) -> Cluster:
        found = state.find(self.data_dir)
        assert found is not None
        return found


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def wait_until(condition: Callable[[], bool], seconds: float) -> float:
    """How long it took, in seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"still waiting after {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - began


def session(leader: int) -> list[int]:
    """The processes of a session, less those that only wait to be collected."""
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            process_state, _, _, sid = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == leader and process_state != "Z":
            members.append(int(path.parent.name))
    return members


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(cluster: Cluster, key: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{cluster.base_url}/v1/chat/completions", json=QUESTION, headers=headers, timeout=30.0)


@contextmanager
def open_stream(cluster: Cluster, key: str) -> Iterator[Iterator[str]]:
    """The lines of an answer that takes minutes, of which the first is here."""
    question = {**QUESTION, "max_tokens": 3000, "stream": True}
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{cluster.base_url}/v1/chat/completions"
    with httpx.stream("POST", url, json=question, headers=headers, timeout=30.0) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        yield lines


def stop(up: subprocess.Popen[bytes], cluster: Cluster, number: signal.Signals) -> None:
    """By a signal, with nothing left afterwards."""
    up.send_signal(number)
    wait_until(lambda: up.poll() is not None, STOP_S)
    assert up.returncode == 0
    assert session(cluster.ray_pid) == []
    assert not Path(cluster.scratch_dir).exists()


@dataclass(frozen=True)
class Listener:
    address: str
    port: int
    command: str

    @property
    def on_loopback(self) -> bool:
        return ip_address(self.address).is_loopback


def listeners(leader: int) -> list[Listener]:
    """The TCP sockets that the processes of a session listen on."""
    return [
        Listener(str(connection.laddr.ip).removeprefix("::ffff:"), connection.laddr.port, " ".join(process.cmdline()))
        for process in map(psutil.Process, session(leader))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]


def test_up_status_and_sigterm_beside_another_cluster(commands: Commands, cluster: Cluster) -> None:
    # Left by some earlier Ray, whose token is not ours.
    (commands.folder / "home" / ".ray" / "auth_token").write_text("of-another-cluster-of-long-ago")
    port = free_port()
    with commands.up("--port", str(port)) as up:
        started = commands.cluster()
        output = commands.output.read_text()
        assert output.splitlines()[-1] == f"switchyard ready http://127.0.0.1:{port}"
        for told in (f"http://127.0.0.1:{port}/v1", started.api_key, started.dashboard_url, str(started.token_path)):
            assert told in output

        assert started.api_key.startswith("sy-") and len(started.api_key) >= 46
        for path in (started.api_key_path, started.token_path, commands.data_dir / state.STATE_FILE):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ask(started, started.api_key).status_code == 200
        assert ask(started, "sy-wrong").status_code == 401
        assert httpx.get(f"{started.dashboard_url}/api/serve/applications/").status_code == 401

        status = commands.run("status")
        assert status.returncode == 0 and "switchyard: RUNNING" in status.stdout and "Ingress: HEALTHY" in status.stdout
        variables = commands.run("env").stdout
        assert f"RAY_ADDRESS={started.ray_address}" in variables and started.api_key in variables

        again = commands.run("up", "--port", "0")
        assert again.returncode == 1 and "switchyard down" in again.stderr and len(again.stderr.splitlines()) == 1
        taken = commands.run("up", "--port", str(port), "--data-dir", str(commands.folder / "second"))
        assert taken.returncode == 1 and f"port {port}" in taken.stderr and len(taken.stderr.splitlines()) == 1

        assert len(session(started.ray_pid)) > 5
        with open_stream(started, started.api_key):
            stop(up, started, signal.SIGTERM)
        assert commands.run("status").returncode == 1

        assert ask(cluster, cluster.api_key).status_code == 200


def test_a_chosen_key_and_ctrl_c_while_an_answer_is_written(commands: Commands, cluster: Cluster) -> None:
    commands.environment["SWITCHYARD_API_KEY"] = chosen = "sy-chosen-by-the-operator"
    with commands.up("--port", "0") as up:
        started = commands.cluster()
        assert chosen not in commands.output.read_text()
        assert ask(started, chosen).status_code == 200
        assert ask(started, cluster.api_key).status_code == 401
        assert ask(cluster, chosen).status_code == 401
        with open_stream(started, chosen):
            stop(up, started, signal.SIGINT)


def test_down_stops_also_what_has_not_started_yet(commands: Commands) -> None:
    with commands.up("--port", "0", until="starting the application") as up:
        started = commands.cluster()
        assert commands.run("down").stdout == "stopped\n"
        assert up.wait(1.0) == 0
        assert session(started.ray_pid) == []
    assert commands.run("down").returncode == 0


def test_nobody_on_the_network_gets_in(cluster: Cluster) -> None:
    """What listens beyond this machine asks for the token: the port of every replica for other deployments' calls, to
    which Ray gives no address."""
    found = listeners(cluster.ray_pid)
    assert len(found) > 10
    beyond = [listener for listener in found if not listener.on_loopback]
    for listener in beyond:
        with grpc.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=10.0)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED, listener


def test_what_a_killed_cluster_leaves_behind_is_cleaned_up(commands: Commands) -> None:
    with commands.up("--port", "0") as up:
        cluster = commands.cluster()
        os.kill(up.pid, signal.SIGKILL)
        up.wait()
        status = commands.run("status")
        assert status.returncode == 1 and "no cluster runs" in status.stderr
        assert session(cluster.ray_pid) == []
        assert not Path(cluster.scratch_dir).exists()


def test_up_ends_when_ray_does(commands: Commands) -> None:
    with commands.up("--port", "0") as up:
        cluster = commands.cluster()
        os.kill(cluster.ray_pid, signal.SIGKILL)
        assert up.wait(STOP_S) == 1
        assert "Ray ended by itself" in commands.output.read_text()
        assert session(cluster.ray_pid) == []
        assert (commands.data_dir / "logs" / "ray.log").exists()


def test_an_application_that_cannot_be_built_is_one_line(commands: Commands) -> None:
    (commands.folder / "serve_config.yaml").write_text(CONFIG.replace("engine: simulated", "engine: steam"))
    done = commands.run("up", "--port", "0")
    assert done.returncode == 1
    assert "engine Input should be" in done.stderr.splitlines()[-1]
