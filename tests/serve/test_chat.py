"""Chat completions on a real cluster, asked by OpenAI's own client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.serve.product import OPERATOR, Product, until, user

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
OFF = {"switchyard": {"cache": "off"}}

EASY = "Hi"
MIDDLING = "Explain step by step why quicksort is O(n log n) on average and compare it with merge sort."
HARD = """Prove that there are infinitely many primes, then design and implement a distributed algorithm in Rust that
finds them, analyse its complexity, and compare the trade-offs of three architectures. 1) proof 2) code 3) analysis
```rust
fn sieve(n: usize) -> Vec<usize> { let mut v = vec![]; for i in 2..n { v.push(i); } v }
```"""


def streamed(product: Product, text: str, **body: Any) -> list[ChatCompletionChunk]:
    stream = product.sdk().chat.completions.create(
        messages=user(text), stream=True, stream_options={"include_usage": True}, **body
    )
    return list(stream)


def deltas(chunks: list[ChatCompletionChunk]) -> list[str]:
    """The pieces of text, as they came."""
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]


def asked_again(product: Product, text: str, **body: Any) -> httpx.Response:
    """The first answer that comes from a cache: the other ingress finds it once the shared cache has taken it in."""

    def again() -> httpx.Response | None:
        answer = product.chat(text, **body)
        return answer if answer.headers["x-switchyard-cache"].startswith("hit") else None

    return until(again)


# ---- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["smoke-small", "smoke-medium", "smoke-vllm", "sim", "gpt", "claude"])
def test_a_stream_is_the_same_answer_as_the_whole(product: Product, model: str) -> None:
    question = {"model": model, "extra_body": OFF, **GREEDY}
    whole = product.sdk().chat.completions.create(messages=user("Which planet has the most moons?"), **question)
    chunks = streamed(product, "Which planet has the most moons?", **question)
    assert whole.choices[0].message.content
    assert "".join(deltas(chunks)) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1 and {chunk.model for chunk in chunks} == {model}
    *others, last = chunks
    assert not last.choices and all(chunk.usage is None for chunk in others)
    assert last.usage == whole.usage


def test_usage_comes_with_a_stream_only_when_asked_for(product: Product) -> None:
    chunks = list(product.sdk().chat.completions.create(model="sim", messages=user("Count"), stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_limits_and_stop_reach_the_model(product: Product) -> None:
    def ask(**body: Any) -> Any:
        return product.sdk().chat.completions.create(model="smoke-small", messages=user("Tell me"), **body).choices[0]

    for limit in ("max_tokens", "max_completion_tokens"):
        assert ask(temperature=0, **{limit: 5}).finish_reason == "length"
    text = ask(**GREEDY).message.content
    stopped = ask(**GREEDY, stop=[text[4:7]])
    assert (stopped.message.content, stopped.finish_reason) == (text[: text.index(text[4:7])], "stop")
    seeded = [ask(max_tokens=12, seed=7, extra_body=OFF).message.content for _ in range(2)]
    assert seeded[0] == seeded[1]


def test_the_headers_say_what_the_receipt_does(product: Product) -> None:
    answer = product.chat("What do the headers say?", "smoke-small", **GREEDY)
    headers, receipt = answer.headers, product.receipt(answer.headers["x-switchyard-request-id"])
    assert headers["x-switchyard-request-id"].startswith("req_")
    assert (headers["x-switchyard-model"], receipt["model"]) == ("smoke-small", "smoke-small")
    assert (headers["x-switchyard-cache"], receipt["cache_verdict"]) == ("miss", "miss")
    assert int(headers["x-switchyard-cost-microusd"]) == receipt["cost_microusd"] > 0
    assert 0 < float(headers["x-switchyard-overhead-ms"]) <= receipt["overhead_ms"] + 0.01
    assert float(headers["x-switchyard-encoder-ms"]) > 0
    assert receipt["usage"]["output_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert sum(receipt["stage_ms"].values()) == pytest.approx(receipt["total_ms"], abs=1.0)
    assert receipt["degraded"] == []


def test_a_stream_has_its_headers_at_its_beginning(product: Product) -> None:
    with product.sdk().chat.completions.with_streaming_response.create(
        model="sim", messages=user("What do the headers of a stream say?"), stream=True
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-switchyard-model"] == "sim"
        assert answer.headers["x-switchyard-cache"] == "miss"
        assert int(answer.headers["x-switchyard-expected-cost-microusd"]) >= 0
        request_id = answer.headers["x-switchyard-request-id"]
        assert [*answer.iter_lines()][-2:] == ["data: [DONE]", ""]
    assert product.receipt(request_id)["status"] == "ok"


# ---- the choice of a model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "tier"), [(EASY, {"smoke-small"}), (MIDDLING, {"smoke-medium", "smoke-vllm"})])
def test_auto_takes_the_tier_that_the_question_needs(product: Product, text: str, tier: set[str]) -> None:
    by_four_factors = {"switchyard": {**OFF["switchyard"], "strategy": "complexity"}}
    sdk = product.sdk().chat.completions
    assert sdk.create(model="auto", messages=user(text), extra_body=by_four_factors, **GREEDY).model in tier


def test_auto_takes_a_large_model_for_a_hard_question(product: Product) -> None:
    answer = product.chat(HARD, "auto", **GREEDY)
    assert answer.headers["x-switchyard-model"] in {"sim", "sim-asleep", "sim-broken", "sim-slow"}
    decision = product.receipt(answer.headers["x-switchyard-request-id"])["decision"]
    assert decision["tier"] == "large" and decision["score"] > 0.6
    assert set(decision["factors"]) == {"length", "keywords", "code", "task"}


def test_auto_weighs_chance_against_cost(product: Product) -> None:
    body = {"model": "auto", "messages": user(MIDDLING), **GREEDY}
    decision = product.http().post("/v1/route", json=body).json()["decision"]
    assert decision["strategy"] == "hybrid" and set(decision["loss"]) == set(decision["eligible"])
    assert decision["model"] == min(decision["loss"], key=lambda name: decision["loss"][name]["total"])
    assert all(0 < loss["chance"] < 1 for loss in decision["loss"].values())


def test_route_explains_and_does_nothing(product: Product) -> None:
    requests = product.metric("switchyard_requests_total")
    body = {"model": "auto", "messages": user(MIDDLING), "switchyard": {"strategy": "complexity"}, **GREEDY}
    told = product.http().post("/v1/route", json=body).json()
    assert told["decision"]["tier"] == "medium" and 0.3 <= told["decision"]["score"] <= 0.6
    assert set(told["decision"]["eligible"]) < set(told["expected_cost_microusd"])
    assert (told["semantic_cache"], told["degraded"]) == ("eligible", [])
    assert product.metric("switchyard_requests_total") == requests


# ---- caches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["smoke-small", "smoke-vllm"])
def test_a_hit_replays_exactly_the_same_tokens(product: Product, model: str) -> None:
    text = f"Which tokens does {model} write?"
    first = streamed(product, text, model=model, **GREEDY)
    hit = asked_again(product, text, model=model, **GREEDY)
    assert hit.headers["x-switchyard-cache"] == "hit-exact"
    assert hit.headers["x-switchyard-cost-microusd"] == "0"
    assert hit.json()["choices"][0]["message"]["content"] == "".join(deltas(first))
    assert hit.json()["usage"]["completion_tokens"] == 24

    again = streamed(product, text, model=model, **GREEDY)
    assert deltas(again) == deltas(first) and len(deltas(first)) > 12
    assert again[-1].usage == first[-1].usage
    receipt = product.receipt(hit.headers["x-switchyard-request-id"])
    assert receipt["cached_from"] == first[0].id.removeprefix("chatcmpl-")
    assert (receipt["cost_microusd"], receipt["attempts"]) == (0, []) and receipt["saved_microusd"] > 0


def test_the_same_question_in_other_words_is_a_semantic_hit(product: Product) -> None:
    first = product.chat("How do I bake a loaf of sourdough bread at home?")
    assert first.headers["x-switchyard-cache"] == "miss"
    hit = asked_again(product, "How do I bake a loaf of sourdough bread at home, please?")
    assert hit.headers["x-switchyard-cache"] == "hit-semantic"
    assert hit.json()["choices"] == first.json()["choices"]
    receipt = product.receipt(hit.headers["x-switchyard-request-id"])
    assert 0.9 <= receipt["cache_similarity"] <= 1
    assert receipt["cached_from"] == first.headers["x-switchyard-request-id"]


def test_another_number_is_another_question(product: Product) -> None:
    product.chat("What is the square root of 1849?")
    asked_again(product, "What is the square root of 1849?")
    assert product.chat("What is the square root of 1949?").headers["x-switchyard-cache"] == "miss"


def test_off_goes_past_the_caches_and_refresh_replaces_what_is_there(product: Product) -> None:
    text = "Where does the river Rhine begin?"
    for _ in range(2):
        assert product.chat(text, **OFF).headers["x-switchyard-cache"] == "bypass"
    assert product.chat(text).headers["x-switchyard-cache"] == "miss"  # what went past is not kept either
    asked_again(product, text)
    fresh = product.chat(text, switchyard={"cache": "refresh"})
    assert fresh.headers["x-switchyard-cache"] == "miss"

    def replaced() -> bool:
        """On both ingresses: each may hold the older answer until it expires, but never gives out a wrong one."""
        receipt = product.receipt(product.chat(text).headers["x-switchyard-request-id"])
        return receipt["cached_from"] == fresh.headers["x-switchyard-request-id"]

    until(replaced)


def test_tenants_never_share(product: Product) -> None:
    text = "What is our launch date?"
    first = product.chat(text)
    asked_again(product, text)
    other = product.chat(text, org="globex")
    assert other.headers["x-switchyard-cache"] == "miss"
    of_acme = first.headers["x-switchyard-request-id"]
    assert product.http("globex").get(f"/v1/receipts/{of_acme}").status_code == 404
    assert product.receipt(other.headers["x-switchyard-request-id"], "globex")["cached_from"] is None


# ---- what is asked besides -----------------------------------------------------------------------------------------


def test_the_next_request_on_any_replica_finds_the_receipt(product: Product) -> None:
    for number in range(8):
        with httpx.Client(base_url=product.cluster.base_url, headers=product.http().headers, trust_env=False) as client:
            body = {"model": "sim", "messages": user(f"Receipt number {number}")}
            request_id = client.post("/v1/chat/completions", json=body).headers["x-switchyard-request-id"]
        assert product.receipt(request_id)["request_id"] == request_id


def test_usage_counts_every_request(product: Product) -> None:
    sdk = product.sdk(OPERATOR)
    for _ in range(3):
        answer = sdk.chat.completions.create(
            model="smoke-small", messages=user("Count me"), user="counted", extra_body=OFF, **GREEDY
        )
    assert answer.usage is not None
    (row,) = until(lambda: [r for r in product.usage(user="counted", model="smoke-small") if r["requests"] == 3])
    assert row["output_tokens"] == 3 * answer.usage.completion_tokens
    assert row["cost_microusd"] > 0 and row["errors"] == 0


def test_models_are_those_that_run_and_may_be_used(product: Product) -> None:
    listed = {model.id for model in product.sdk().models.list()}
    assert {"auto", "smoke-small", "smoke-medium", "smoke-vllm", "sim", "claude", "gpt"} <= listed
    assert "never" not in listed
    assert {model.id for model in product.sdk("confined").models.list()} == {"auto", "sim"}


def test_probes_need_no_key(product: Product) -> None:
    assert httpx.get(f"{product.cluster.base_url}/health").json() == {"status": "ok"}
    ready = httpx.get(f"{product.cluster.base_url}/ready").json()
    assert ready == {"status": "ok", "parts": dict.fromkeys(ready["parts"], "ok"), "warnings": {}}
    assert {"Batcher", "Ledger"} <= ready["parts"].keys()


def test_wrong_weights_are_said_and_the_four_factors_stand_in(product: Product, tmp_path: Path) -> None:
    (tmp_path / "router.safetensors").write_bytes(b"no weights at all")

    def told() -> set[str]:
        """By both ingresses, which take turns."""
        asked = (httpx.get(f"{product.cluster.base_url}/ready").json()["warnings"] for _ in range(6))
        return {warnings.get("learned_classifier", "") for warnings in asked}

    def strategies() -> set[str]:
        body = {"model": "auto", "messages": user("Prove that there are infinitely many primes.")}
        asked = (product.http().post("/v1/route", json=body).json() for _ in range(4))
        return {answer["decision"]["strategy"] for answer in asked}

    assert strategies() == {"hybrid"}
    with product.reconfigured("ComplexityClassifier", weights=str(tmp_path)):
        until(lambda: "" not in told())
        assert all("router.safetensors" in warning for warning in told())
        before = product.metric("switchyard_degraded_total", stage="learned_classifier")
        answer = product.chat("Prove that there are infinitely many primes.", "auto", **OFF)
        assert answer.status_code == 200 and strategies() == {"complexity"}
        assert product.metric("switchyard_degraded_total", stage="learned_classifier") == before + 1
    until(lambda: told() == {""})
    assert strategies() == {"hybrid"}


def test_metrics_are_summed_over_both_ingresses(product: Product) -> None:
    assert len(product.replicas("Ingress")) == 2
    labels = {"model": "sim", "cache": "bypass", "status": "ok", "door": "openai-chat"}
    before = product.metric("switchyard_requests_total", **labels)
    stages = product.metric("switchyard_stage_seconds_count", stage="admit")
    for number in range(12):
        body = {"model": "sim", "messages": user(f"Number {number}"), **OFF}
        httpx.post(f"{product.cluster.base_url}/v1/chat/completions", json=body, headers=product.http().headers)
    for _ in range(4):
        assert product.metric("switchyard_requests_total", **labels) == before + 12
    assert product.metric("switchyard_stage_seconds_count", stage="admit") == stages + 12
    for part in ("Batcher", "Ledger"):
        assert product.metric("switchyard_part_up", part=part) == 1
    assert product.metric("switchyard_batcher_grants_total") >= 12
    assert product.metric("switchyard_ledger_records_total") > 0


def test_a_page_of_an_allowed_origin_may_read_the_headers(product: Product) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    url = f"{product.cluster.base_url}/v1/chat/completions"
    allowed = httpx.options(url, headers={"Origin": "https://app.example", **asks})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    answer = product.http().get("/v1/models", headers={"Origin": "https://app.example"})
    assert "x-switchyard-request-id" in answer.headers["access-control-expose-headers"].lower()
    other = httpx.options(url, headers={"Origin": "https://elsewhere.example", **asks})
    assert "access-control-allow-origin" not in other.headers
