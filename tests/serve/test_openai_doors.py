"""OpenAI's other doors, driven by its own SDK, through the whole cluster."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.serve.product import OPERATOR, Product, until, user

ENCODER = "all-MiniLM-L6-v2"


# ---- files and batches ---------------------------------------------------------------------------------------------


def asks(model: str, count: int, endpoint: str = "/v1/chat/completions") -> bytes:
    rows = [
        {
            "custom_id": f"ask-{number}",
            "method": "POST",
            "url": endpoint,
            "body": {"model": model, "messages": user(f"Question {number}?"), "switchyard": {"cache": "off"}},
        }
        for number in range(count)
    ]
    return "\n".join(json.dumps(row) for row in rows).encode()


def test_a_batch_is_worked_off_and_outlives_the_process_that_works_it(product: Product) -> None:
    client = product.sdk()
    file = client.files.create(file=("asks.jsonl", asks("sim-slow", 24)), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"for": "a test"}
    )

    def batch() -> Any:
        try:
            return client.batches.retrieve(made.id)
        except openai.APIStatusError:  # there is no Archive for a moment
            return None

    def some_are_done() -> bool:
        found = batch()
        return found is not None and found.request_counts.completed >= 4

    until(some_are_done, 60)
    gone = product.kill_a_replica("Archive")
    until(lambda: {*product.replicas("Archive")} - {gone}, 60)
    over = until(lambda: (found := batch()) and found.status == "completed" and found, 90)
    assert (over.request_counts.total, over.request_counts.completed, over.request_counts.failed) == (24, 24, 0)
    rows = [json.loads(row) for row in client.files.content(over.output_file_id).text.splitlines()]
    assert sorted(row["custom_id"] for row in rows) == sorted(f"ask-{number}" for number in range(24))
    receipt = product.receipt(rows[0]["response"]["request_id"])
    assert (receipt["door"], receipt["status"], receipt["model"]) == ("openai-batch", "ok", "sim-slow")
    with pytest.raises(openai.NotFoundError):
        product.sdk("globex").batches.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        product.sdk("globex").files.content(over.output_file_id)
    assert client.files.delete(file.id).deleted


def test_a_batch_can_be_cancelled(product: Product) -> None:
    client = product.sdk()
    file = client.files.create(file=("asks.jsonl", asks("sim-slow", 200)), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    until(lambda: client.batches.retrieve(made.id).status == "in_progress", 30)
    assert client.batches.cancel(made.id).status == "cancelling"
    over = until(lambda: (found := client.batches.retrieve(made.id)).status == "cancelled" and found, 30)
    assert over.request_counts.completed < 200


# ---- responses -----------------------------------------------------------------------------------------------------


def test_responses_are_made_streamed_found_by_every_replica_and_deleted(product: Product) -> None:
    client = product.sdk()
    first = client.responses.create(model="sim", input="My name is Ada.", instructions="Be kind.")
    assert first.status == "completed" and first.output_text
    with client.responses.stream(model="sim", input="And yours?", previous_response_id=first.id) as stream:
        kinds = [event.type for event in stream]
        second = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + 10
    for _ in range(8):  # whichever of the two ingress replicas is asked
        assert client.responses.retrieve(second.id).output_text == second.output_text
    (item,) = client.responses.input_items.list(second.id).data
    assert item.type == "message" and item.content[0].type == "input_text"
    assert product.receipt(second.id)["door"] == "openai-responses"
    with pytest.raises(openai.NotFoundError) as foreign:
        product.sdk("globex").responses.retrieve(second.id)
    unknown = second.id[:-4] + ("0000" if second.id[-4:] != "0000" else "1111")
    with pytest.raises(openai.NotFoundError) as nobodys:
        product.sdk("globex").responses.retrieve(unknown)
    assert foreign.value.body["message"] == nobodys.value.body["message"]  # type: ignore[index]
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="sim", input="Still there?", previous_response_id=second.id)


def test_a_response_outlives_the_archives_process(product: Product) -> None:
    kept = product.sdk().responses.create(model="sim", input="Remember this.")
    assert product.sdk().responses.retrieve(kept.id).id == kept.id
    gone = product.kill_a_replica("Archive")
    until(lambda: {*product.replicas("Archive")} - {gone}, 60)

    def found() -> bool:
        try:
            return product.sdk().responses.retrieve(kept.id).output_text == kept.output_text
        except (openai.InternalServerError, openai.APIStatusError):
            return False

    until(found, 60)


class Colour(BaseModel):
    name: str


def test_tools_and_schemas_are_refused_by_models_without_them(product: Product) -> None:
    tools = [{"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}]
    with pytest.raises(openai.BadRequestError):  # this model has no tools
        product.sdk().responses.create(model="smoke-small", input="Look.", tools=tools)
    with pytest.raises(openai.BadRequestError, match="json schema"):
        product.sdk().responses.parse(model="sim", input="A colour?", text_format=Colour)


# ---- embeddings ----------------------------------------------------------------------------------------------------


def cosine(one: list[float], other: list[float]) -> float:
    norms = math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other))
    return sum(a * b for a, b in zip(one, other, strict=True)) / norms


def test_embeddings_are_the_encoders_and_are_booked(product: Product) -> None:
    client = product.sdk(OPERATOR)
    assert ENCODER in {model.id for model in client.models.list()}
    texts = ["How do I boil an egg?", "What's the way to boil eggs?", "Who is the king of Spain?"]
    raw = client.embeddings.with_raw_response.create(model=ENCODER, input=texts)
    answer = raw.parse()
    egg, eggs, king = (item.embedding for item in answer.data)
    assert len(egg) == 384 and abs(cosine(egg, egg) - 1) < 1e-5
    assert cosine(egg, eggs) > 0.9 > 0.3 > cosine(egg, king)
    assert answer.usage.prompt_tokens > 15
    alone = client.embeddings.create(model=ENCODER, input=texts[2], encoding_format="float").data[0].embedding
    assert cosine(alone, king) > 0.9999
    receipt = product.receipt(raw.headers["x-switchyard-request-id"], OPERATOR)
    assert (receipt["door"], receipt["status"], receipt["model"]) == ("openai-embeddings", "ok", ENCODER)
    assert receipt["usage"]["input_tokens"] == answer.usage.prompt_tokens
    assert receipt["cost_microusd"] == int(raw.headers["x-switchyard-cost-microusd"]) > 0


def test_a_text_past_the_window_and_other_dimensions_are_refused(product: Product) -> None:
    with pytest.raises(openai.BadRequestError, match=r"'input\.1' has 302 tokens and this model reads 256"):
        product.sdk().embeddings.create(model=ENCODER, input=["short", "word " * 300])
    with pytest.raises(openai.BadRequestError, match="384 dimensions"):
        product.sdk().embeddings.create(model=ENCODER, input="hi", dimensions=100)
    with pytest.raises(openai.NotFoundError):
        product.sdk().embeddings.create(model="sim", input="hi")


def test_many_texts_do_not_keep_questions_waiting(product: Product) -> None:
    texts = [f"{number} " + "many words of text " * 40 for number in range(64)]
    began_s = time.monotonic()
    answer = product.sdk().embeddings.create(model=ENCODER, input=texts)
    assert [item.index for item in answer.data] == list(range(64))
    assert time.monotonic() - began_s < 60


# ---- completions ---------------------------------------------------------------------------------------------------


def test_a_raw_prompt_is_continued_as_by_vllms_own_server(product: Product, vllm_url: str) -> None:
    prompt, asked = "Once upon a time", {"max_tokens": 12, "temperature": 0}
    body = {"model": "smoke", "prompt": prompt, **asked}
    theirs = httpx.post(f"{vllm_url}/v1/completions", json=body, timeout=60.0, trust_env=False).json()
    for model in ("smoke-small", "smoke-vllm"):
        ours = product.sdk().completions.create(model=model, prompt=prompt, max_tokens=12, temperature=0)
        assert ours.choices[0].text == theirs["choices"][0]["text"], model
        assert ours.usage is not None and ours.usage.prompt_tokens == theirs["usage"]["prompt_tokens"]


def test_completions_stream_echo_and_choices(product: Product) -> None:
    client = product.sdk()
    stream = client.completions.create(model="sim", prompt="Go on: ", max_tokens=5, echo=True, stream=True)
    chunks = list(stream)
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text.startswith("Go on: ") and chunks[-1].choices[0].finish_reason == "length"
    several = client.completions.create(model="sim", prompt=["a", "b"], max_tokens=5)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert product.receipt(several.id)["door"] == "openai-completions"
