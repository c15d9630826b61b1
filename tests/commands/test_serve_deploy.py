"""`serve deploy`, Ray's own command, takes the product's configuration."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from cluster.ray_process import Ports, RayProcess
from cluster.runtime import TRIES, reason
from router.accounting.keys import kept_secret, new_secret
from tests.serve.product import until, user

ROOT = Path(__file__).parents[2]
CHOSEN = "sy-chosen-by-the-operator"


@pytest.fixture
def bare_ray(tmp_path: Path) -> Iterator[tuple[Ports, dict[str, str]]]:
    """Ray without an application, and the environment of a command that reaches it."""
    token, ports = tmp_path / "token", Ports.free()
    kept_secret(token, new_secret)
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token), "HOME": str(tmp_path)}
    del environment["RAY_AUTH_TOKEN"]  # it would stand before the path
    with tempfile.TemporaryDirectory(prefix="sy-", dir="/tmp", ignore_cleanup_errors=True) as scratch:  # short: sockets
        ray = RayProcess(Path(scratch), ports, token, num_cpus=8)
        try:
            for _ in range(TRIES):
                ray.start({"SWITCHYARD_DATA_DIR": str(tmp_path / "data"), "SWITCHYARD_API_KEY": CHOSEN})
                until(lambda: ray.has_started() or not ray.is_alive(), 120.0)
                if ray.has_started():
                    break
                ray.stop()
            yield ports, environment
        finally:
            ray.stop()


def test_serve_deploy_takes_the_same_file_from_any_folder(
    bare_ray: tuple[Ports, dict[str, str]], tmp_path: Path
) -> None:
    ports, environment = bare_ray
    config = (ROOT / "serve_config.simulated.yaml").read_text().replace("port: 8000", f"port: {ports.door}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    dashboard, door = f"http://127.0.0.1:{ports.dashboard}", f"http://127.0.0.1:{ports.door}"
    until(lambda: answers(f"{dashboard}/api/version"))

    def deploy(config: str) -> None:
        (elsewhere / "mine.yaml").write_text(config)
        command = [str(Path(sys.executable).with_name("serve")), "deploy", "--address", dashboard, "mine.yaml"]
        for _ in range(3):  # on a busy machine Ray's dashboard may give up on Serve's controller before that is up
            done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=240)
            if done.returncode == 0:
                return
        raise AssertionError(done.stderr)

    def application() -> dict[str, Any]:
        token = Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.get(f"{dashboard}/api/serve/applications/", headers=headers, trust_env=False, timeout=30.0)
        found: dict[str, Any] = answer.json()["applications"]["switchyard"]
        return found

    # What only the cluster sees is said there, in the words that `switchyard up` shows too; then it is mended.
    deploy(config[: config.index("      local_models")] + "      auto_providers: false\n")
    until(lambda: application()["status"] == "DEPLOY_FAILED")
    assert reason(application()).startswith("ValueError: no model to serve")
    deploy(config)
    until(lambda: answers(f"{door}/ready", 200), 180.0)

    assert not (tmp_path / "data" / "api_key").exists(), "it was chosen"
    with OpenAI(base_url=f"{door}/v1", api_key=CHOSEN, max_retries=0) as sdk:
        answer = sdk.chat.completions.create(model="auto", messages=user("Who is there?"))
    assert answer.model == "sim-small" and answer.choices[0].message.content


def answers(url: str, status: int | None = None) -> bool:
    try:
        code = httpx.get(url, trust_env=False, timeout=5.0).status_code
    except httpx.HTTPError:
        return False
    return status in (None, code)
