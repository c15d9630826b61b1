"""What operators do, and what happens to them: changes without restarts, models that sleep, deaths."""

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
ASLEEP = "SimulatedModel:sim-asleep"
PROVE = "Prove that there are infinitely many primes."


# ---- changes without a restart -------------------------------------------------------------------------------------


def route(product: Product, text: str, **switchyard: str) -> dict[str, Any]:
    body = {"model": "auto", "messages": user(text), "switchyard": switchyard}
    decision: dict[str, Any] = product.http().post("/v1/route", json=body).json()["decision"]
    return decision


def routed_to(product: Product, text: str) -> str:
    return str(route(product, text, strategy="complexity")["tier"])


def everywhere(product: Product, check: Any) -> bool:
    """Whether it holds on both ingresses, which take turns."""
    return all(check() for _ in range(4))


def wakes_while_another_answers(product: Product) -> None:
    """`auto` would choose the model that sleeps; who names it waits for it."""
    until(lambda: everywhere(product, lambda: route(product, PROVE)["wakes"] == "sim-asleep"))
    assert product.replicas(ASLEEP) == {}, "to be told the way wakes nobody"
    answer = product.chat(PROVE, "auto", max_tokens=4, **OFF)
    assert answer.status_code == 200 and answer.headers["x-switchyard-model"] != "sim-asleep", answer.text
    until(lambda: product.deployments()[ASLEEP]["target_num_replicas"] == 1)
    answer = product.chat("Wake up", "sim-asleep")
    assert answer.status_code == 200 and len(product.replicas(ASLEEP)) == 1, answer.text
    until(lambda: everywhere(product, lambda: route(product, PROVE)["model"] == "sim-asleep"))


def test_prices_thresholds_and_keys_change_without_a_restart(product: Product) -> None:
    before = {name: product.replicas(name) for name in product.deployments()}
    assert before.pop(ASLEEP) == {}
    assert routed_to(product, "Hi") == "small"
    assert product.chat("What do you cost?", **OFF).headers["x-switchyard-cost-microusd"] == "0"
    keys = [{"sha256": hash_key(key_of(org)), "org": org} for org in ("acme", "newcomer")]
    changes = {
        "prices": {"sim": {"output": "2", "version": "tomorrow"}},
        "routing": {"medium_from": 0.0, "large_above": 1.0, "quality": {"sim-asleep": 2.0}},
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
        wakes_while_another_answers(product)
    until(lambda: everywhere(product, lambda: routed_to(product, "Hi") == "small"))
    assert product.chat("Am I known?", org="newcomer").status_code == 401
    assert {name: product.replicas(name) for name in before} == before


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
