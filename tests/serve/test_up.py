"""`switchyard up`, `status` and `env` beside another cluster, and what listens on the network."""

from __future__ import annotations

import signal
import stat
from dataclasses import dataclass
from ipaddress import ip_address

import grpc
import httpx
import psutil
import pytest

from cluster import state
from cluster.state import Cluster
from tests.commands.commands import Commands, ask, free_port, open_stream, session, stop


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


def test_up_status_and_ctrl_c_beside_another_cluster(commands: Commands, cluster: Cluster) -> None:
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
        assert ask(started, "sy-wrong").status_code == ask(started, cluster.api_key).status_code == 401
        assert ask(cluster, started.api_key).status_code == 401
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
            stop(up, started, signal.SIGINT)
        assert commands.run("status").returncode == 1

        assert ask(cluster, cluster.api_key).status_code == 200


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
