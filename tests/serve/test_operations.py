"""What operators do, and what happens to them: changes without restarts, deaths, deployments, models that sleep."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.accounting.keys import hash_key
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
        until(lambda: everywhere(product, lambda: routed_to(product, "Hi") == "medium"))
        answer = product.chat("What do you cost?", org="newcomer", **OFF)
        assert answer.headers["x-switchyard-cost-microusd"] == "32"  # 16 tokens
        assert product.receipt(answer.headers["x-switchyard-request-id"], "newcomer")["price_version"].startswith(
            "tomorrow"
        )
        assert product.chat("Am I still known?", org="globex").status_code == 401
    until(lambda: everywhere(product, lambda: routed_to(product, "Hi") == "small"))
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

    (row,) = until(counted)
    assert len(finished) <= row["requests"] <= len(finished) + lost
    for request_id in finished:
        assert product.receipt(request_id, OPERATOR)["status"] == "ok"
    assert killed in before
    until(lambda: len(product.replicas("Ingress")) == 2 and killed not in product.replicas("Ingress"))


@pytest.mark.parametrize("deployment", ["SemanticCache", "ComplexityClassifier", "Batcher", "Ledger"])
def test_a_stage_that_dies_stops_no_request(product: Product, deployment: str) -> None:
    product.kill_a_replica(deployment)
    for number in range(3):
        answer = product.chat(f"Without {deployment}, number {number}?", "auto", max_tokens=4)
        assert answer.status_code == 200, answer.text
    until(lambda: product.replicas(deployment))
    until(lambda: product.http().get("/ready").status_code == 200)
    receipt = product.receipt(answer.headers["x-switchyard-request-id"])
    assert receipt["status"] == "ok"


# ---- models that sleep ---------------------------------------------------------------------------------------------


def test_a_model_at_zero_wakes_for_its_first_request(product: Product) -> None:
    assert product.replicas("SimulatedModel:sim-asleep") == {}
    answer = product.chat("Wake up", "sim-asleep")
    assert answer.status_code == 200, answer.text
    assert len(product.replicas("SimulatedModel:sim-asleep")) == 1
