"""Python in the cluster asks through Serve handles: another driver, a Ray task, with and without an event loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serve.product import OPERATOR, Product, until, user

TEXT = "What does a handle say?"


@pytest.fixture(scope="module")
def told(product: Product, run_driver: Callable[..., str]) -> dict[str, Any]:
    """What tests/serve/handles_driver.py got, which runs once for all tests."""
    driver = Path(__file__).with_name("handles_driver.py")
    result: dict[str, Any] = json.loads(run_driver(driver, TEXT).splitlines()[-1])
    return result


@pytest.mark.parametrize("place", ["driver", "task"])
@pytest.mark.parametrize("way", ["sync", "async"])
def test_handles_give_the_answer_that_http_gives(product: Product, told: dict[str, Any], place: str, way: str) -> None:
    body = {"temperature": 0, "max_tokens": 20, "switchyard": {"cache": "off"}}
    answer = product.chat(TEXT, "smoke-small", OPERATOR, **body)
    got = told[place][way]
    assert got["chat"]["text"] == got["streamed"] == answer.json()["choices"][0]["message"]["content"]
    assert (got["chat"]["model"], got["chat"]["cache"]) == ("smoke-small", "bypass")
    assert got["chat"]["cost_microusd"] == int(answer.headers["x-switchyard-cost-microusd"])
    asked = {"model": "auto", "messages": user(TEXT), "max_tokens": 20, "temperature": 0}
    routed = product.http(OPERATOR).post("/v1/route", json=asked).json()
    assert got["explained"] == routed["decision"]["model"]
    assert got.get("batches", 2) > 1 and got.get("same", True)
    receipt = product.receipt(got["chat"]["request_id"], OPERATOR)
    assert (receipt["door"], receipt["org"], receipt["status"]) == ("handle", OPERATOR, "ok")


def test_a_typed_question_is_the_same_question(told: dict[str, Any]) -> None:
    assert told["typed"] == told["driver"]["sync"]["chat"]["text"]


def test_the_same_rules_hold_as_over_http(told: dict[str, Any]) -> None:
    types = {name: error["type"] for name, error in told["errors"].items()}
    assert types == {
        "wrong key": "AuthenticationFailed",
        "unknown model": "ModelNotFound",
        "wrong type": "InvalidRequest",
        "stream": "AuthenticationFailed",
        "broken": "StreamInterrupted",
    }
    messages = " ".join(error["message"] for error in told["errors"].values())
    assert "Traceback" not in messages and TEXT not in messages


def test_closing_a_stream_stops_the_model(product: Product, told: dict[str, Any]) -> None:
    assert all(first > 0 for first in told["left"])
    until(lambda: product.metric("switchyard_open_requests") == 0)
    labels = {"door": "handle", "model": "sim-slow"}
    until(lambda: product.metric("switchyard_requests_total", status="cancelled", **labels) == 2)
    assert product.metric("switchyard_requests_total", status="ok", **labels) == 0
