"""What goes wrong reaches OpenAI's own client as the exception that it has for that, and tells no secrets."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.serve.product import OPERATOR, Product, key_of, user

SECRET = "the launch code is swordfish"
OFF = {"switchyard": {"cache": "off"}}


def ask(sdk: OpenAI, text: str = SECRET, model: str = "sim", **body: Any) -> Any:
    return sdk.chat.completions.create(**{"model": model, "messages": user(text), "extra_body": OFF, **body})


def check_discreet(error: openai.APIError) -> None:
    told = f"{error.message} {error.body}"
    for secret in ("swordfish", "Traceback", "sy-", ".py", "site-packages", "ray::"):
        assert secret not in told


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"temperature": "hot"}, "invalid_request", "temperature"),
        ({"max_tokens": 0}, "invalid_request", "max_tokens"),
        ({"messages": []}, "invalid_request", "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "invalid_request", "messages.0.content"),
        ({"messages": [{"role": "wizard", "content": SECRET}]}, "unsupported_feature", "messages.0.role"),
        ({"extra_body": {"audio": {"voice": "alloy"}}}, "unsupported_feature", "audio"),
        ({"extra_body": {"switchyard": {"cash": "off"}}}, "unsupported_feature", "switchyard.cash"),
        ({"n": 17}, "invalid_request", "n"),
        ({"model": "sim", "n": 2}, "unsupported_feature", "n"),
        ({"model": "auto", "messages": user(SECRET + " word" * 45_000)}, "context_length_exceeded", "messages"),
        ({"model": "smoke-small", "messages": user(SECRET + " word" * 2_000)}, "context_length_exceeded", "messages"),
        ({"model": "smoke-vllm", "messages": user(SECRET + " word" * 2_000)}, "context_length_exceeded", "messages"),
        ({"model": "gpt", "messages": user(SECRET + " word" * 2_000)}, "context_length_exceeded", "messages"),
        ({"model": "claude", "messages": user(SECRET + " word" * 2_000)}, "context_length_exceeded", "messages"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_wrong_request_is_400(product: Product, change: dict[str, Any], code: str, param: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(product.sdk(), **change, stream=stream)
    assert (caught.value.code, caught.value.param) == (code, param)
    check_discreet(caught.value)


def test_what_is_not_json_is_400(product: Product) -> None:
    answer = product.http().post("/v1/chat/completions", content=b'{"model": "sim", swordfish')
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (400, "invalid_request", "invalid_request_error")
    assert "JSON" in error["message"] and "swordfish" not in answer.text
    assert error["switchyard"]["request_id"] == answer.headers["x-switchyard-request-id"]


@pytest.mark.parametrize("key", ["sy-wrong", "sk-another-kind", key_of("acme")[:-1]])
def test_an_unknown_key_is_401(product: Product, key: str) -> None:
    stranger = OpenAI(base_url=product.sdk().base_url, api_key=key, max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError) as caught:
        ask(stranger)
    assert caught.value.code == "invalid_api_key"
    check_discreet(caught.value)


def test_what_a_key_may_not_do_is_403(product: Product) -> None:
    answer = product.http().get("/v1/usage")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
    assert product.http(OPERATOR).get("/v1/usage").status_code == 200


def test_a_model_that_is_not_there_is_404(product: Product) -> None:
    for model in ("gpt-17", "never"):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(product.sdk(), model=model)
        assert caught.value.code == "model_not_found"
        check_discreet(caught.value)
    assert product.http().get("/v1/elsewhere").json()["error"]["code"] == "not_found"


def test_a_body_over_the_limit_is_413(product: Product) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(product.sdk(), SECRET * 20_000)
    assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")
    check_discreet(caught.value)


def test_too_many_requests_are_429_and_say_when_to_come_back(product: Product) -> None:
    """The limit of 2 a minute holds over both ingresses together."""
    sdk, answered = product.sdk("hurried"), 0
    with pytest.raises(openai.RateLimitError) as caught:
        for _ in range(5):
            ask(sdk)
            answered += 1
    assert answered == 2
    assert caught.value.code == "rate_limited"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 70
    check_discreet(caught.value)


def test_a_spent_budget_is_402(product: Product) -> None:
    """100 micro-USD: what the answers cost stays below it, since each reserves its worst case before it begins."""
    sdk, spent = product.sdk("poor"), 0
    with pytest.raises(openai.APIStatusError) as caught:
        for _ in range(40):
            answer = sdk.chat.completions.with_raw_response.create(
                model="gpt", messages=user("Hello"), max_tokens=20, extra_body=OFF
            )
            spent += int(answer.headers["x-switchyard-cost-microusd"])
    assert (caught.value.status_code, caught.value.code) == (402, "budget_exceeded")
    assert caught.value.type == "insufficient_quota"
    assert 0 < spent <= 100
    check_discreet(caught.value)


def test_a_failure_before_the_first_byte_keeps_its_name_over_the_hops(product: Product) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        ask(product.sdk(), model="sim-broken")
    assert (caught.value.status_code, caught.value.code) == (502, "stream_interrupted")
    assert "Model 'sim-broken' broke off its answer; send the request again." in caught.value.message
    check_discreet(caught.value)


def test_a_failure_after_the_first_byte_is_an_event_and_no_end(product: Product) -> None:
    stream = ask(product.sdk(), model="sim-broken", stream=True)
    came = ""
    with pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            came += chunk.choices[0].delta.content or ""
    assert len(came.split()) == 3
    assert caught.value.code == "stream_interrupted"
    check_discreet(caught.value)

    body = {"model": "sim-broken", "messages": user(SECRET), "stream": True, **OFF}
    answer = product.http().post("/v1/chat/completions", json=body)
    assert "[DONE]" not in answer.text and answer.text.strip().splitlines()[-1].startswith('data: {"error"')
    receipt = product.receipt(answer.headers["x-switchyard-request-id"])
    assert (receipt["status"], receipt["error_code"]) == ("error", "stream_interrupted")
    assert receipt["usage"]["output_tokens"] == 3 and receipt["estimated"]
