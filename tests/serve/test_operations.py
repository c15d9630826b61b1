"""What operators do, and what happens to them: changes without restarts, deaths, deployments, models that sleep."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from cluster.ray_process import Ports, RayProcess
from router.accounting.keys import hash_key, kept_secret, new_secret
from tests.serve.product import OPERATOR, Product, key_of, until, user

ROOT = Path(__file__).parents[2]
OFF = {"switchyard": {"cache": "off"}}


# ---- changes without a restart -------------------------------------------------------------------------------------


def routed_to(product: Product, text: str) -> str:
    body = {"model": "auto", "messages": user(text), "switchyard": {"strategy": "complexity"}}
    tier: str = product.http().post("/v1/route", json=body).json()["decision"]["tier"]
    return tier


def everywhere(product: Product, check: Any) -> bool:
    """Whether it holds on both ingresses, which take turns."""
    return all(check() for _ in range(4))


def test_prices_thresholds_and_keys_change_without_a_restart(product: Product) -> None:
    before = {name: product.replicas(name) for name in product.deployments()}
    assert routed_to(product, "Hi") == "small"
    assert product.chat("What do you cost?", **OFF).headers["x-switchyard-cost-microusd"] == "0"
    keys = [{"sha256": hash_key(key_of(org)), "org": org} for org in ("acme", "newcomer")]
    changes = {
        "prices": {"sim": {"output": "2", "version": "tomorrow"}},
        "routing": {"medium_from": 0.0, "large_above": 1.0},
        "keys": keys,
    }
    with product.reconfigured("Ingress", **changes):
        until(lambda: everywhere(product, lambda: routed_to(product, "Hi") == "medium"), 10.0)
        answer = product.chat("What do you cost?", org="newcomer", **OFF)
        assert answer.headers["x-switchyard-cost-microusd"] == "32"  # 16 tokens
        assert product.receipt(answer.headers["x-switchyard-request-id"], "newcomer")["price_version"].startswith(
            "tomorrow"
        )
        assert product.chat("Am I still known?", org="globex").status_code == 401
    until(lambda: everywhere(product, lambda: routed_to(product, "Hi") == "small"), 10.0)
    assert product.chat("Am I known?", org="newcomer").status_code == 401
    assert {name: product.replicas(name) for name in product.deployments()} == before


# ---- deaths --------------------------------------------------------------------------------------------------------


def test_a_killed_ingress_loses_no_finished_request_and_counts_none_twice(product: Product) -> None:
    def ask(number: int) -> httpx.Response:
        return product.chat(f"Number {number}", "smoke-small", OPERATOR, user="survivor", max_tokens=4, **OFF)

    before = product.replicas("Ingress")
    finished = [ask(number).headers["x-switchyard-request-id"] for number in range(10)]
    killed = product.kill_a_replica("Ingress")
    lost = 0
    give_up_s = time.monotonic() + 60
    for number in itertools.count(10):
        try:
            answer = ask(number)
        except httpx.TransportError:  # it was with the one that died
            lost += 1
            continue
        if answer.status_code == 200:
            finished.append(answer.headers["x-switchyard-request-id"])
        if len(finished) >= 20 or time.monotonic() > give_up_s:
            break
        time.sleep(0.02)
    assert len(finished) >= 20

    def counted() -> list[dict[str, Any]]:
        rows = list(product.usage(user="survivor", status="ok"))
        return rows if sum(row["requests"] for row in rows) >= len(finished) else []

    (row,) = until(counted, 30.0)
    assert len(finished) <= row["requests"] <= len(finished) + lost
    for request_id in finished:
        assert product.receipt(request_id, OPERATOR)["status"] == "ok"
    assert killed in before
    until(lambda: len(product.replicas("Ingress")) == 2 and killed not in product.replicas("Ingress"), 60.0)


@pytest.mark.parametrize("deployment", ["SemanticCache", "ComplexityClassifier", "Batcher", "Ledger"])
def test_a_stage_that_dies_stops_no_request(product: Product, deployment: str) -> None:
    product.kill_a_replica(deployment)
    for number in range(3):
        answer = product.chat(f"Without {deployment}, number {number}?", "auto", max_tokens=4)
        assert answer.status_code == 200, answer.text
    until(lambda: product.replicas(deployment), 60.0)
    until(lambda: product.http().get("/ready").status_code == 200, 60.0)
    receipt = product.receipt(answer.headers["x-switchyard-request-id"])
    assert receipt["status"] == "ok"


# ---- models that sleep ---------------------------------------------------------------------------------------------


def test_a_model_at_zero_wakes_for_its_first_request(product: Product) -> None:
    assert product.replicas("SimulatedModel:sim-asleep") == {}
    answer = product.chat("Wake up", "sim-asleep")
    assert answer.status_code == 200, answer.text
    assert len(product.replicas("SimulatedModel:sim-asleep")) == 1


# ---- serve deploy --------------------------------------------------------------------------------------------------


@pytest.fixture
def bare_ray(tmp_path: Path) -> Iterator[tuple[Ports, dict[str, str]]]:
    """Ray without an application, and the environment of a command that reaches it."""
    token, ports = tmp_path / "token", Ports.free()
    kept_secret(token, new_secret)
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token), "HOME": str(tmp_path)}
    del environment["RAY_AUTH_TOKEN"]  # it would stand before the path
    with tempfile.TemporaryDirectory(prefix="sy-", dir="/tmp", ignore_cleanup_errors=True) as scratch:  # short: sockets
        ray = RayProcess(Path(scratch), ports, token, num_cpus=8)
        ray.start({"SWITCHYARD_DATA_DIR": str(tmp_path / "data")})
        try:
            yield ports, environment
        finally:
            ray.stop()


def test_serve_deploy_takes_the_same_file_from_any_folder(
    bare_ray: tuple[Ports, dict[str, str]], tmp_path: Path
) -> None:
    ports, environment = bare_ray
    config = (ROOT / "serve_config.simulated.yaml").read_text()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.yaml").write_text(config.replace("port: 8000", f"port: {ports.door}"))
    dashboard, door = f"http://127.0.0.1:{ports.dashboard}", f"http://127.0.0.1:{ports.door}"
    until(lambda: answers(f"{dashboard}/api/version"), 60.0)
    command = [str(Path(sys.executable).with_name("serve")), "deploy", "--address", dashboard, "mine.yaml"]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    until(lambda: answers(f"{door}/ready", 200), 180.0)

    key = (tmp_path / "data" / "api_key").read_text().strip()
    with OpenAI(base_url=f"{door}/v1", api_key=key, max_retries=0) as sdk:
        answer = sdk.chat.completions.create(model="auto", messages=user("Who is there?"))
    assert answer.model == "sim-small" and answer.choices[0].message.content


def answers(url: str, status: int | None = None) -> bool:
    try:
        code = httpx.get(url, trust_env=False, timeout=5.0).status_code
    except httpx.HTTPError:
        return False
    return status in (None, code)
