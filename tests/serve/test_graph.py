"""The graph is real: every deployment is called by requests that need it, and what engines say comes out unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serve.product import Product, until, user
from tests.vllm_server import MODEL

OFF = {"switchyard": {"cache": "off"}}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 60}
MODELS = {
    "smoke-small": "TransformersModel:smoke-small",
    "smoke-medium": "TransformersModel:smoke-medium",
    "smoke-vllm": "LLMServer:smoke-vllm",
    "sim": "SimulatedModel:sim",
    "claude": "CloudModel:anthropic",
    "gpt": "CloudModel:loopback",
}
DEPLOYED = set(MODELS.values()) - {"CloudModel:loopback"}  # which is placed inline
STAGES = {"Ingress", "SemanticCache", "ComplexityClassifier", "Batcher", "Ledger"}


def calls(product: Product) -> dict[str, float]:
    """Serve's own count of the requests that the replicas of each deployment have worked on, from Ray's metrics.

    It counts what arrived, whatever we say that we sent; the replicas report it every 10 s.
    """
    counts: dict[str, float] = {}
    for address in product.metrics_addresses():
        text = httpx.get(f"http://{address}/metrics", trust_env=False, timeout=10.0).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "ray_serve_deployment_request_counter_total":
                    name = sample.labels["deployment"]
                    counts[name] = counts.get(name, 0.0) + sample.value
    return counts


def test_every_deployment_is_called(product: Product) -> None:
    assert set(product.deployments()) >= STAGES | DEPLOYED
    before = calls(product)
    for model, deployment in MODELS.items():
        answer = product.chat(f"Who answers for {model}?", model, **GREEDY)
        assert answer.headers["x-switchyard-model"] == model, answer.text
        receipt = product.receipt(answer.headers["x-switchyard-request-id"])
        assert [attempt["backend"] for attempt in receipt["attempts"]] == [deployment]
    assert product.chat("Who classifies this?", "auto", **GREEDY).status_code == 200

    def counted() -> bool:
        after = calls(product)
        return all(after.get(name, 0) > before.get(name, 0) for name in STAGES | DEPLOYED)

    until(counted)


def test_every_stage_runs_in_a_process_of_its_own_and_the_door_holds_no_engine(product: Product) -> None:
    processes = [pid for name in product.deployments() for pid in product.replicas(name).values()]
    assert len(set(processes)) == len(processes)
    for pid in product.replicas("Ingress").values():
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


@pytest.fixture(scope="module")
def generate(smoke_folder: Path) -> Callable[[str], str]:
    """`model.generate` on the same weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smoke_folder)
    model = AutoModelForCausalLM.from_pretrained(smoke_folder)

    def answer(text: str) -> str:
        inputs = tokenizer.apply_chat_template(
            user(text), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=GREEDY["max_tokens"], do_sample=False)
        return tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


QUESTIONS = ["What is a river?", "Name three colours.", "¿Dónde está la estación?"]


@pytest.mark.parametrize("text", QUESTIONS)
def test_transformers_text_is_that_of_generate(product: Product, generate: Callable[[str], str], text: str) -> None:
    answer = product.chat(text, "smoke-small", **GREEDY, **OFF).json()
    assert answer["choices"][0]["message"]["content"] == generate(text)


@pytest.mark.parametrize("model", ["smoke-vllm", "gpt", "claude"])
@pytest.mark.parametrize("text", QUESTIONS)
def test_vllm_text_is_that_of_its_own_server(product: Product, vllm_url: str, text: str, model: str) -> None:
    body = {"model": MODEL, "messages": user(text), **GREEDY}
    theirs = httpx.post(f"{vllm_url}/v1/chat/completions", json=body, timeout=60.0, trust_env=False).json()
    ours = product.chat(text, model, **GREEDY, **OFF).json()
    assert ours["choices"][0]["message"]["content"] == theirs["choices"][0]["message"]["content"]
    assert ours["choices"][0]["finish_reason"] == theirs["choices"][0]["finish_reason"]
    for kind in ("prompt_tokens", "completion_tokens"):
        assert ours["usage"][kind] == theirs["usage"][kind]
