"""`switchyard up`, `status` and `env`, and what listens on the network."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

import grpc
import httpx
import psutil
import pytest

from cluster import state
from cluster.state import Cluster
from tests.commands.commands import Commands, ask, session


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


def test_what_up_status_and_env_say(operated: Commands, cluster: Cluster) -> None:
    output = operated.output.read_text()
    assert f"switchyard ready {cluster.base_url}" in output.splitlines()
    for told in (f"{cluster.base_url}/v1", cluster.api_key, cluster.dashboard_url, str(cluster.token_path)):
        assert told in output
    assert cluster.api_key.startswith("sy-") and len(cluster.api_key) >= 46
    for path in (cluster.api_key_path, cluster.token_path, operated.data_dir / state.STATE_FILE):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    status = operated.run("status")
    assert status.returncode == 0 and "switchyard: RUNNING" in status.stdout and "Ingress: HEALTHY" in status.stdout
    variables = operated.run("env").stdout
    assert f"RAY_ADDRESS={cluster.ray_address}" in variables and cluster.api_key in variables
    again = operated.run("up", "--port", "0")
    assert again.returncode == 1 and "switchyard down" in again.stderr and len(again.stderr.splitlines()) == 1


def test_another_one_cannot_have_its_port(commands: Commands, cluster: Cluster) -> None:
    port = urlsplit(cluster.base_url).port
    taken = commands.run("up", "--port", str(port))
    assert taken.returncode == 1 and f"port {port}" in taken.stderr and len(taken.stderr.splitlines()) == 1


def test_neither_door_nor_dashboard_opens_to_another_key(cluster: Cluster) -> None:
    assert ask(cluster, cluster.api_key).status_code == 200
    assert ask(cluster, "sy-of-another-cluster").status_code == 401
    assert httpx.get(f"{cluster.dashboard_url}/api/serve/applications/").status_code == 401


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
