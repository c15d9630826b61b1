"""How a cluster is deployed and waited for, over real sockets: something on loopback stands where Ray's REST API is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from cluster import cli, runtime, state
from cluster.checks import StartError
from cluster.ray_process import Ports, RayProcess
from cluster.runtime import ClusterDied
from cluster.state import Cluster

Answer = tuple[int, str]
RUNNING: Answer = (200, json.dumps({"applications": {"switchyard": {"status": "RUNNING", "deployments": {}}}}))
FAILURE = "The deployment failed.\nray::Replica.__init__() (pid=1)\n  raise\nmodels.errors.ModelUnavailable: set source"
FAILED: Answer = (200, json.dumps({"applications": {"sy": {"status": "DEPLOY_FAILED", "message": FAILURE}}}))
NONSENSE: list[Answer] = [(200, "<html>not Ray</html>"), (200, "[]"), (200, "{}"), (500, "no"), (401, "no token")]


def refusing_url() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def serving(answer: Callable[[str, str], Answer | None]) -> Iterator[str]:
    """A server that answers a method and a path so; None: it hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told = answer(self.command, self.path)
            if told is None:
                self.close_connection = True
                return
            body = told[1].encode()
            self.send_response(told[0])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def reach(tmp_path: Path) -> Callable[[str], Cluster]:
    """A cluster whose REST API and door are at an address."""
    state.make_secrets(tmp_path)

    def cluster(url: str) -> Cluster:
        return Cluster(os.getpid(), 0, url, "127.0.0.1:1", url, str(tmp_path), "/nowhere", False)

    return cluster


class Other(RayProcess):
    """Another program in the place of Ray's."""

    program = "exec sleep 600"

    def _command(self) -> list[str]:
        return ["sh", "-c", self.program]


@pytest.fixture
def ray(tmp_path: Path) -> Iterator[RayProcess]:
    process = Other(tmp_path, Ports.free(), tmp_path / "ray_token", None)
    process.start({})
    yield process
    process.stop()


def said(error: pytest.ExceptionInfo[StartError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- deploying -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "DEPLOY_S", 0.2)
    monkeypatch.setattr(runtime, "POLL_S", 0.01)


@pytest.mark.usefixtures("no_patience")
def test_an_api_that_cannot_be_reached_is_a_start_error(reach: Callable[[str], Cluster], ray: RayProcess) -> None:
    with pytest.raises(StartError) as error:
        runtime._deploy(reach(refusing_url()), ray, {})
    assert "Serve did not answer" in said(error) and "ConnectError" in said(error)


@pytest.mark.usefixtures("no_patience")
def test_an_api_that_hangs_up_is_a_start_error(reach: Callable[[str], Cluster], ray: RayProcess) -> None:
    with serving(lambda *_: None) as url, pytest.raises(StartError) as error:
        runtime._deploy(reach(url), ray, {})
    assert "Serve did not answer" in said(error) and "RemoteProtocolError" in said(error)


@pytest.mark.usefixtures("no_patience")
@pytest.mark.parametrize("status", [400, 401, 500, 503])
def test_a_configuration_that_is_refused_is_a_start_error_with_what_was_said(
    reach: Callable[[str], Cluster], ray: RayProcess, status: int
) -> None:
    with (
        serving(lambda *_: (status, "wrong:\n  import_path\n" + 1000 * "x")) as url,
        pytest.raises(StartError) as error,
    ):
        runtime._deploy(reach(url), ray, {})
    assert "refused the configuration: wrong: import_path xxx" in said(error) and len(said(error)) < 700


def test_an_api_that_is_not_whole_yet_is_asked_again(
    reach: Callable[[str], Cluster], ray: RayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "POLL_S", 0.0)
    answers: list[Answer | None] = [None, (500, "Server got itself in trouble"), (200, "")]
    with serving(lambda *_: answers.pop(0)) as url:
        runtime._deploy(reach(url), ray, {})
    assert answers == []


def test_what_is_wrong_is_not_asked_again(reach: Callable[[str], Cluster], ray: RayProcess) -> None:
    asked: list[str] = []

    def answer(method: str, _: str) -> Answer:
        asked.append(method)
        return 400, "no such field"

    with serving(answer) as url, pytest.raises(StartError, match="no such field"):
        runtime._deploy(reach(url), ray, {})
    assert asked == ["PUT"]


# ---- waiting for Ray -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [None, (500, "no"), (404, "not Ray")])
def test_ray_that_never_answers_is_a_start_error(
    reach: Callable[[str], Cluster], ray: RayProcess, monkeypatch: pytest.MonkeyPatch, answer: Answer | None
) -> None:
    monkeypatch.setattr(runtime, "START_S", 0.05)
    monkeypatch.setattr(runtime, "POLL_S", 0.01)
    monkeypatch.setattr(ray, "has_started", lambda: True)
    with serving(lambda *_: answer) as url, pytest.raises(StartError, match="Ray did not start within"):
        runtime._wait_for_ray(reach(url), ray)


def test_ray_that_answers_before_it_is_whole_is_waited_for(
    reach: Callable[[str], Cluster], ray: RayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "POLL_S", 0.0)
    looks = iter([False, False, True])
    monkeypatch.setattr(ray, "has_started", lambda: next(looks))
    with serving(lambda *_: (200, "{}")) as url:
        assert runtime._wait_for_ray(reach(url), ray)
    assert next(looks, None) is None


@pytest.mark.parametrize(
    ("words", "tries"),
    [("out of ports", 1), ("Exception: The current node timed out during startup. This could happen because", 3)],
)
def test_ray_that_ends_is_a_start_error_with_its_last_words_and_tried_again_where_it_was_too_slow(
    reach: Callable[[str], Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, tries: int
) -> None:
    monkeypatch.setattr(runtime, "POLL_S", 0.01)
    monkeypatch.setattr(Other, "program", f"echo no luck; echo '{words}' >&2; exit 1")
    ray = Other(tmp_path, Ports.free(), tmp_path / "ray_token", None)
    told: list[str] = []
    cluster = reach(refusing_url())
    with state.owned(tmp_path) as state_file, pytest.raises(StartError, match=f"Ray did not start: {words}"):
        runtime._start_ray(cluster, ray, state_file, told.append)
    assert told.count("starting Ray") == tries
    assert not runtime._wait_for_ray(reach(refusing_url()), ray)
    with pytest.raises(StartError, match=f"Ray stopped while the application was starting: {words}"):
        runtime._wait_for_applications(reach(refusing_url()), ray, print)


# ---- waiting for the applications ----------------------------------------------------------------------------------


def test_an_application_that_cannot_start_is_a_start_error_with_its_reason(
    reach: Callable[[str], Cluster], ray: RayProcess
) -> None:
    with serving(lambda *_: FAILED) as url, pytest.raises(StartError) as error:
        runtime._wait_for_applications(reach(url), ray, print)
    assert said(error) == "the application 'sy' cannot start: ModelUnavailable: set source"


def test_a_rest_api_that_is_gone_for_long_is_a_start_error(
    reach: Callable[[str], Cluster], ray: RayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "SILENT_S", -1.0)
    with pytest.raises(StartError, match=r"Ray has not answered for .*ConnectError"):
        runtime._wait_for_applications(reach(refusing_url()), ray, print)


@pytest.mark.parametrize("answer", NONSENSE)
def test_an_answer_that_is_none_of_rays_is_none(
    reach: Callable[[str], Cluster], ray: RayProcess, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setattr(runtime, "SILENT_S", -1.0)
    with serving(lambda *_: answer) as url:
        with pytest.raises(httpx.HTTPError):
            runtime.applications(reach(url))
        with pytest.raises(StartError) as error:
            runtime._wait_for_applications(reach(url), ray, print)
    assert "Ray has not answered" in said(error)


def test_a_short_silence_and_a_door_that_is_late_are_waited_for(
    reach: Callable[[str], Cluster], ray: RayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "POLL_S", 0.0)
    answers = {"/ready": [None, (503, ""), (200, "")], runtime.APPLICATIONS: [None, *NONSENSE, *[RUNNING] * 3]}
    asked: list[str] = []

    def answer(_: str, path: str) -> Answer | None:
        asked.append(path)
        return answers[path].pop(0)

    with serving(answer) as url:
        runtime._wait_for_applications(reach(url), ray, lambda line: None)
    assert answers == {"/ready": [], runtime.APPLICATIONS: []}


# ---- the commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [None, *NONSENSE])
def test_status_of_a_cluster_whose_ray_does_not_answer(
    reach: Callable[[str], Cluster], tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: Any
) -> None:
    with serving(lambda *_: answer) as url, state.owned(tmp_path) as file:
        state.write(file, reach(url))
        assert cli.main(["status", "--data-dir", str(tmp_path)]) == 1
    assert "Ray does not answer yet" in capsys.readouterr().out


def test_a_cluster_whose_ray_is_gone_is_said_so(reach: Callable[[str], Cluster]) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(ClusterDied, match="Ray ended by itself"):
        runtime.watch(replace(reach(refusing_url()), ray_pid=ended.pid), print)
