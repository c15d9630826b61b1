"""A cascade and configured fallbacks through the whole product, on a real engine's own log probabilities."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.serve.product import Product, until, user

CASCADE = {"switchyard": {"cache": "off", "strategy": "cascade"}}
# The smoke models' weights are random, so they are sure of nothing: this lets everything through, that nothing.
LETS_ALL = {"tokens": 4, "min_mean_logprob": -100.0}
LETS_NONE = {"tokens": 4, "min_mean_logprob": -0.001}


def receipt_of(product: Product, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return product.receipt(answer.headers["x-switchyard-request-id"])


def gated_by(product: Product, gate: dict[str, Any]) -> bool:
    """Whether all ingresses, which take turns, have the gate by now: a decision's version names it."""
    versions = {
        product.http()
        .post("/v1/route", json={"model": "auto", "messages": user("?"), **CASCADE})
        .json()["decision"]["strategy_version"]
        for _ in range(6)
    }
    gates = product.deployments()["Ingress"]["deployment_config"]["user_config"].get("routing", {}).get("gate")
    return len(versions) == 1 and gates == gate


def test_a_sure_answer_is_given_out_and_an_unsure_one_goes_on(product: Product) -> None:
    with product.reconfigured("Ingress", routing={"gate": LETS_ALL}):
        until(lambda: gated_by(product, LETS_ALL))
        answer = product.chat("Who goes there?", "auto", max_tokens=12, **CASCADE)
        told = receipt_of(product, answer)
        assert answer.headers["x-switchyard-model"] == told["model"] == "smoke-small"
        (attempt,) = told["attempts"]
        assert (attempt["outcome"], attempt["gate"]["reason"], attempt["gate"]["tokens"]) == ("ok", "sure", 4)
        assert attempt["gate"]["mean_logprob"] < 0
        assert answer.json()["choices"][0].get("logprobs") is None, "the caller asked for none"
    with product.reconfigured("Ingress", routing={"gate": LETS_NONE}):
        until(lambda: gated_by(product, LETS_NONE))
        before = product.metric("switchyard_discarded_tokens_total", model="smoke-small", kind="output")
        answer = product.chat("Who goes there?", "auto", max_tokens=400, stream=True, **CASCADE)
        told = receipt_of(product, answer)
        discarded, given = told["attempts"][:-1], told["attempts"][-1]
        assert [attempt["outcome"] for attempt in discarded] == ["escalated"] * 2
        assert discarded[0]["model"] == "smoke-small" and all(a["gate"]["reason"] == "unsure" for a in discarded)
        assert all(0 < attempt["output_tokens"] <= 8 for attempt in discarded), "the rest was never made"
        assert answer.headers["x-switchyard-model"] == given["model"] == told["model"] == "sim"
        assert told["cost_microusd"] == sum(attempt["cost_microusd"] for attempt in told["attempts"])
        assert told["cost_microusd"] > 0 and told["stage_ms"]["gate"] > 0
        assert told["decision"]["strategy"] == "cascade"
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert {chunk["model"] for chunk in chunks} == {"sim"}
        after = product.metric("switchyard_discarded_tokens_total", model="smoke-small", kind="output")
        assert after - before == discarded[0]["output_tokens"]


def test_a_route_explains_the_cascade(product: Product) -> None:
    told = product.http().post("/v1/route", json={"model": "auto", "messages": user("?"), **CASCADE}).json()
    assert told["decision"]["strategy"] == "cascade"
    assert told["decision"]["cascade"][0] == "smoke-small" and len(told["decision"]["cascade"]) == 3


def test_a_prompt_too_long_falls_to_the_named_fallback_with_room(product: Product) -> None:
    long = "word " * 1500
    refused = product.chat(long, "smoke-small", max_tokens=4)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    answer = product.chat(long, "smoke-small", max_tokens=4, switchyard={"fallbacks": ["smoke-vllm", "sim"]})
    assert receipt_of(product, answer)["requested_model"] == "smoke-small"
    assert answer.headers["x-switchyard-model"] == answer.json()["model"] == "sim"


def test_after_the_first_byte_there_is_an_error_event_and_no_other_model(product: Product) -> None:
    answer = product.chat("Tell me", "sim-broken", stream=True, switchyard={"cache": "off", "fallbacks": ["sim"]})
    last = json.loads([line for line in answer.text.splitlines() if line.startswith("data: ")][-1][6:])
    assert last["error"]["code"] == "stream_interrupted"
    told = until(lambda: receipt_of(product, answer))
    assert [attempt["model"] for attempt in told["attempts"]] == ["sim-broken"]


def test_a_tenant_falls_back_to_what_it_may_use_only(product: Product) -> None:
    answer = product.chat("Hi", "sim", "confined", switchyard={"fallbacks": ["sim-slow"]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (403, "switchyard.fallbacks")
    answer = product.chat("Hi", "sim", switchyard={"fallbacks": ["gpt-9"]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "switchyard.fallbacks")
