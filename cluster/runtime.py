"""One Switchyard cluster on this machine: Ray as a child process, and the application on it.

Nothing here imports Ray: it is driven by its command line and its REST API, as from any other machine.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import httpx
import yaml

from cluster import state
from cluster.checks import (
    StartError,
    check_engines_are_installed,
    check_memory,
    check_port_is_free,
    leave_out_what_has_no_room,
)
from cluster.ray_process import IMPATIENT, START_S, Ports, RayProcess, is_running
from cluster.state import Cluster

STOP_APPLICATIONS_S = 8.0
"""Of the 15 seconds that stopping may take: for Serve to close its replicas, before Ray is stopped all the same."""
TRIES = 3
POLL_S = 0.5
WATCH_EVERY_S = 5
DEPLOY_S = 120.0
"""For Serve to start and to take a configuration."""
SILENT_S = 60.0
"""While an application starts, a busy machine may leave Ray's REST API without an answer, but not for longer."""
APPLICATIONS = "/api/serve/applications/"


Config = dict[str, Any]
"""A Serve config, the content of the file that `serve deploy` takes too."""


_ERROR = re.compile(r"^(?:\w+\.)*(?P<name>[A-Z]\w+): ", re.MULTILINE)
"""The line of a traceback that names the exception: not indented, its class after the modules it is from."""


class ClusterDied(Exception):
    """A cluster that ran ended by itself. The message is one line for the operator."""


# ---- configuration -------------------------------------------------------------------------------------------------


def load_config(path: Path) -> Config:
    """A Serve config file. Raises StartError when it cannot be read or is not one."""
    try:
        config: Config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise StartError(f"cannot read {path} ({error.strerror}): name a configuration with --config") from None
    except yaml.YAMLError as error:
        raise StartError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    applications = config.get("applications") if isinstance(config, dict) else None
    if not isinstance(applications, list) or not all(isinstance(application, dict) for application in applications):
        raise StartError(f"{path} is not a Serve configuration: it needs a list of 'applications'")
    if not all(isinstance(application.get("args") or {}, dict) for application in applications):
        raise StartError(f"{path} is not a configuration of Switchyard: 'args' names values, as in `data_dir: /data`")
    return config


def data_dir_of(config: Mapping[str, Any], chosen: Path | None = None) -> Path:
    """The data folder: as chosen, else from SWITCHYARD_DATA_DIR, else from the config, else `~/.switchyard`."""
    configured = ((application.get("args") or {}).get("data_dir") for application in config["applications"])
    path = chosen or os.environ.get("SWITCHYARD_DATA_DIR") or next(filter(None, configured), "~/.switchyard")
    return Path(path).expanduser().resolve()


def _as_deployed(config: Mapping[str, Any], data_dir: Path, port: int | None) -> dict[str, Any]:
    """The config with what `up` decides: the data folder as an absolute path, and the port."""
    deployed = copy.deepcopy(dict(config))
    http = {"host": "127.0.0.1", "port": 8000, **(deployed.get("http_options") or {})}
    deployed["http_options"] = http if port is None else {**http, "port": port}
    for application in deployed["applications"]:
        application["args"] = {**(application.get("args") or {}), "data_dir": str(data_dir)}
    return deployed


# ---- start and stop ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(
    config: Mapping[str, Any] | Path,
    *,
    data_dir: Path | None = None,
    port: int | None = None,
    num_cpus: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[Cluster]:
    """A cluster that is ready, with the application of `config` on it. Leaving the block stops it, in 15 s at most.

    `port` 0 takes a free one, None the config's. `report` is told each step. Raises StartError when it cannot start.
    """
    if isinstance(config, Path):
        config = load_config(config)
    data_dir = data_dir_of(config, data_dir)
    ports = Ports.free()
    deployed = _as_deployed(config, data_dir, ports.door if port == 0 else port)
    http = deployed["http_options"]
    with state.owned(data_dir) as state_file, _scratch_folder() as scratch:
        check_port_is_free(http["host"], http["port"])
        from cluster.config_check import check_config  # all settings, for this command alone

        check_config(deployed)
        check_engines_are_installed(deployed)
        for name in leave_out_what_has_no_room(deployed):
            report(f"leaving out '{name}': too little memory is free")
        check_memory(deployed)
        state.make_secrets(data_dir)
        ray = RayProcess(scratch, ports, data_dir / state.RAY_TOKEN_FILE, num_cpus)
        try:
            cluster = Cluster(
                pid=os.getpid(),
                ray_pid=0,
                base_url=f"http://{'127.0.0.1' if http['host'] == '0.0.0.0' else http['host']}:{http['port']}",
                ray_address=f"127.0.0.1:{ports.gcs}",
                dashboard_url=f"http://127.0.0.1:{ports.dashboard}",
                data_dir=str(data_dir),
                scratch_dir=str(scratch),
                key_from_environment=bool(os.environ.get("SWITCHYARD_API_KEY")),
            )
            cluster = _start_ray(cluster, ray, state_file, report)
            with _closing_applications(cluster):
                _deploy(cluster, ray, deployed)
                _wait_for_applications(cluster, ray, report)
                yield cluster
        except (StartError, ClusterDied) as error:
            raise type(error)(f"{error} (logs: {ray.keep_logs(data_dir / 'logs')})") from None
        finally:
            with _undisturbed():
                ray.stop()


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    """For sockets and Ray's session. Its name is short since that of a Unix socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sy-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C may cut short what is polite, but not this."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextlib.contextmanager
def _closing_applications(cluster: Cluster) -> Iterator[None]:
    """Has Serve close its replicas when the block is left: they stop admitting, and finish or give up what they do."""
    try:
        yield
    finally:
        with contextlib.suppress(httpx.HTTPError), rest(cluster) as api:
            api.delete(APPLICATIONS, timeout=STOP_APPLICATIONS_S)


def rest(cluster: Cluster) -> httpx.Client:
    """Ray's REST API. Its errors are httpx.HTTPError."""
    token = cluster.token_path.read_text().strip()
    # trust_env: a proxy that the shell names is not for this machine itself.
    return httpx.Client(
        base_url=cluster.dashboard_url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=30.0
    )


def applications(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """The applications by name, as Serve describes them. Raises httpx.HTTPError while Ray does not answer."""
    with rest(cluster) as api:
        answer = api.get(APPLICATIONS).raise_for_status()
    try:
        described: dict[str, dict[str, Any]] = answer.json()["applications"]
    except (ValueError, KeyError, TypeError):  # a dashboard that is not whole yet, or another program on its port
        raise httpx.DecodingError("an answer that is not Ray's", request=answer.request) from None
    return described


def is_ready(cluster: Cluster) -> bool:
    try:
        return httpx.get(f"{cluster.base_url}/ready", trust_env=False, timeout=10.0).status_code == 200
    except httpx.HTTPError:
        return False


def _start_ray(cluster: Cluster, ray: RayProcess, state_file: IO[str], report: Callable[[str], None]) -> Cluster:
    """`cluster` with the Ray that answers now. A busy machine may need more time than Ray gives itself: it is tried
    again then."""
    for tries_left in reversed(range(TRIES)):
        report("starting Ray")
        ray.start({"SWITCHYARD_DATA_DIR": cluster.data_dir})
        cluster = replace(cluster, ray_pid=ray.pid)
        state.write(state_file, cluster)
        if _wait_for_ray(cluster, ray):
            return cluster
        last_words = ray.last_words()
        ray.stop()
        if IMPATIENT not in last_words:
            break
        if tries_left:
            report("Ray gave up on itself: trying again")
    raise StartError(f"Ray did not start: {last_words}")


def _wait_for_ray(cluster: Cluster, ray: RayProcess) -> bool:
    """Whether Ray answers: if not, it has ended. Raises StartError when it does neither."""
    deadline = time.monotonic() + START_S
    with rest(cluster) as api:
        while time.monotonic() < deadline:
            if not ray.is_alive():
                return False
            with contextlib.suppress(httpx.HTTPError):
                if ray.has_started() and api.get("/api/version").is_success:
                    return True
            time.sleep(POLL_S)
    raise StartError(f"Ray did not start within {START_S:.0f} s")


def _deploy(cluster: Cluster, ray: RayProcess, config: Mapping[str, Any]) -> None:
    """Asks again where Ray is not whole yet: on a busy machine its API breaks off while it starts Serve."""
    deadline = time.monotonic() + DEPLOY_S
    while True:
        failure = _put(cluster, config)
        if failure is None:
            return
        if not ray.is_alive():
            raise StartError(f"Ray stopped while it was given the application: {ray.last_words()}")
        if time.monotonic() > deadline:
            raise StartError(failure)
        time.sleep(POLL_S)


def _put(cluster: Cluster, config: Mapping[str, Any]) -> str | None:
    """Why Ray did not take the application; None when it did. Raises `StartError` when asking again is of no use."""
    try:
        with rest(cluster) as api:
            answer = api.put(APPLICATIONS, json=config, timeout=DEPLOY_S)
    except httpx.HTTPError as error:
        return f"Serve did not answer when it was given the application ({_what(error)})"
    refused = f"Serve refused the configuration: {' '.join(answer.text.split())[:600]}"
    if answer.is_client_error:
        raise StartError(refused)
    return refused if answer.is_error else None


def _wait_for_applications(cluster: Cluster, ray: RayProcess, report: Callable[[str], None]) -> None:
    """Returns once every application runs and the door says that it is ready. Loading a model may take as long as it
    takes: what is being waited for is reported."""
    reported = ""
    answered_s = time.monotonic()
    while True:
        if not ray.is_alive():
            raise StartError(f"Ray stopped while the application was starting: {ray.last_words()}")
        try:
            described = applications(cluster)
        except httpx.HTTPError as error:
            if time.monotonic() - answered_s > SILENT_S:
                raise StartError(f"Ray has not answered for {SILENT_S:.0f} s ({_what(error)})") from None
            time.sleep(POLL_S)
            continue
        answered_s = time.monotonic()
        for name, application in described.items():
            if application["status"] == "DEPLOY_FAILED":
                raise StartError(f"the application '{name}' cannot start: {reason(application)}")
        running = [application["status"] == "RUNNING" for application in described.values()]
        if running and all(running) and is_ready(cluster):
            return
        waiting = _waiting_for(described)
        if waiting != reported:
            report(waiting)
            reported = waiting
        time.sleep(POLL_S)


def _what(error: httpx.HTTPError) -> str:
    """In one line. Some errors have no text."""
    return " ".join(f"{type(error).__name__} {error}".split())


def _waiting_for(described: Mapping[str, Mapping[str, Any]]) -> str:
    names = [
        name
        for application in described.values()
        for name, deployment in application.get("deployments", {}).items()
        if deployment["status"] != "HEALTHY"
    ]
    return f"starting {', '.join(sorted(names))}" if names else "starting the application"


def reason(application: Mapping[str, Any]) -> str:
    """What went wrong, in one line: the error at the end of the traceback in Serve's description of an application."""
    described = (*application.get("deployments", {}).values(), application)
    for message in (str(each.get("message", "")) for each in described):
        if errors := list(_ERROR.finditer(message)):
            text = message[errors[-1].start("name") :].split("For further information")[0]  # a link of Pydantic's
            return " ".join(text.split())[:600]
    return "it does not say why"


def watch(cluster: Cluster, report: Callable[[str], None]) -> None:
    """Returns never: raises ClusterDied when Ray or the application is gone, and reports when its health changes."""
    missed = 0
    health: dict[str, str] = {}
    for second in itertools.count():
        time.sleep(1.0)
        if not is_running(cluster.ray_pid):
            raise ClusterDied("Ray ended by itself")
        if second % WATCH_EVERY_S:
            continue
        described: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(httpx.HTTPError):
            described = applications(cluster)
        # A controller that is being restarted knows of no application for a moment.
        missed = 0 if described else missed + 1
        if missed == 3:
            raise ClusterDied("the application is gone from the cluster")
        for name, application in described.items():
            status = application["status"]
            if status != health.get(name, "RUNNING"):
                report(f"{name} is {status}" + (f": {reason(application)}" if status == "UNHEALTHY" else ""))
            health[name] = status
