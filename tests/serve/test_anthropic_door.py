"""Messages on a real cluster, asked by Anthropic's own client: every model answers in both dialects.

The providers of `gpt` (OpenAI's dialect) and `claude` (Anthropic's) are one server of vLLM's, so what comes through
either can be held against what that server itself says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic
from anthropic.types import Message, ToolUseBlock
from openai import OpenAI
from openai.types.chat import ChatCompletionChunk

from tests.serve.product import Product, user

GREEDY: dict[str, Any] = {"temperature": 0}
OFF: dict[str, Any] = {"switchyard": {"cache": "off"}}
EVERY_MODEL = ["smoke-small", "smoke-medium", "smoke-vllm", "sim", "gpt", "claude"]
CLOUD = ["gpt", "claude"]
QUESTION = user("Which planet has the most moons?")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Köln", "Zürich"]}, "days": {"type": "integer", "enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [{"name": "weather", "description": "Tells the weather.", "input_schema": SCHEMA}]
OPENAI_TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": SCHEMA}}
]


@pytest.fixture(scope="module")
def sdk(product: Product) -> Iterator[Anthropic]:
    with client(product, "acme") as made:
        yield made


def client(product: Product, org: str) -> Anthropic:
    """It retries nothing, so that every failure is seen."""
    return Anthropic(base_url=product.cluster.base_url, api_key=product.key(org), max_retries=0, timeout=60.0)


def ask(sdk: Anthropic, model: str, max_tokens: int = 24, **fields: Any) -> Message:
    extra = {**GREEDY, **OFF, **fields.pop("extra_body", {})}
    return sdk.messages.create(
        **{"model": model, "max_tokens": max_tokens, "messages": QUESTION, "extra_body": extra, **fields}
    )


def streamed(sdk: Anthropic, model: str, max_tokens: int = 24, **fields: Any) -> Message:
    extra = {**GREEDY, **OFF}
    asked = {"model": model, "max_tokens": max_tokens, "messages": QUESTION, "extra_body": extra, **fields}
    with sdk.messages.stream(**asked) as stream:
        return stream.get_final_message()


def pieces(sdk: Anthropic, model: str, **fields: Any) -> str:
    """The arguments of the first tool call, as they came."""
    asked = {"model": model, "max_tokens": 99, "messages": QUESTION, "extra_body": {**GREEDY, **OFF}, **fields}
    with sdk.messages.create(**asked, stream=True) as events:
        deltas = [event.delta for event in events if event.type == "content_block_delta"]
    return "".join(delta.partial_json for delta in deltas if delta.type == "input_json_delta")


# ---- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", EVERY_MODEL)
def test_either_dialect_whole_or_streamed_gives_one_answer(product: Product, sdk: Anthropic, model: str) -> None:
    whole, stream = ask(sdk, model), streamed(sdk, model)
    other = product.sdk().chat.completions.create(
        model=model, messages=QUESTION, max_tokens=24, temperature=0, extra_body=OFF
    )
    (text,) = whole.content
    assert text.type == "text" and text.text
    assert stream.content[0].to_dict() == text.to_dict()
    assert text.text == other.choices[0].message.content
    assert (whole.model, whole.stop_reason) == (model, stream.stop_reason)
    assert whole.stop_reason == {"length": "max_tokens", "stop": "end_turn"}[other.choices[0].finish_reason]
    total = whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    assert (total, whole.usage.output_tokens) == (other.usage.prompt_tokens, other.usage.completion_tokens)
    assert stream.usage.output_tokens == whole.usage.output_tokens


def test_headers_receipt_and_cache_are_those_of_every_door(product: Product, sdk: Anthropic) -> None:
    question = user("What do the headers of a message say?")
    raw = sdk.messages.with_raw_response.create(model="sim", max_tokens=9, messages=question)
    message = raw.parse()
    assert raw.headers["x-switchyard-model"] == "sim" and raw.headers["x-switchyard-cache"] == "miss"
    for request_id in (message.id, raw.headers["request-id"]):
        receipt = product.receipt(request_id)
        assert (receipt["door"], receipt["status"], receipt["model"]) == ("anthropic-messages", "ok", "sim")
    for _ in range(4):  # of the two ingresses at least one has the answer by itself
        again = product.chat(question[0]["content"], "sim", max_tokens=9)
        if again.headers["x-switchyard-cache"].startswith("hit"):
            break
    assert again.headers["x-switchyard-cache"].startswith("hit")
    assert again.json()["choices"][0]["message"]["content"] == message.content[0].text


@pytest.mark.parametrize("model", CLOUD)
def test_the_stop_sequence_that_was_met(sdk: Anthropic, model: str) -> None:
    text = ask(sdk, model).content[0].text
    for answer in (ask, streamed):
        stopped = answer(sdk, model, stop_sequences=[text[5:8], "never there"])
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", text[5:8])
        assert "".join(block.text for block in stopped.content) == text[: text.index(text[5:8])]


@pytest.mark.parametrize("model", CLOUD)
def test_an_answer_in_a_schema(sdk: Anthropic, model: str) -> None:
    answer = ask(sdk, model, 99, output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    assert set(json.loads(answer.content[0].text)) == {"city", "days"}


# ---- tools ---------------------------------------------------------------------------------------------------------


def upstream_arguments(vllm_url: str) -> str:
    """What the server behind the providers says, asked without anything between. Only its streams are as the model
    wrote: a whole answer of it is parsed and written anew."""
    named = {"type": "function", "function": {"name": "weather"}}
    body = {"model": "smoke", "messages": QUESTION, "max_tokens": 99, "tools": OPENAI_TOOLS, "tool_choice": named}
    with OpenAI(base_url=f"{vllm_url}/v1", api_key="none", max_retries=0, timeout=60.0) as upstream:
        return arguments_in(upstream.chat.completions.create(**body, temperature=0, stream=True))


def arguments_in(stream: Iterable[ChatCompletionChunk]) -> str:
    deltas = [chunk.choices[0].delta.tool_calls or [] for chunk in stream if chunk.choices]
    return "".join(call.function.arguments or "" for calls in deltas for call in calls)


@pytest.mark.parametrize("model", CLOUD)
def test_arguments_are_the_same_bytes_on_every_way(product: Product, sdk: Anthropic, vllm_url: str, model: str) -> None:
    expected = upstream_arguments(vllm_url)
    assert set(json.loads(expected)) == {"city", "days"}
    choice: Any = {"type": "tool", "name": "weather"}
    assert pieces(sdk, model, tools=TOOLS, tool_choice=choice) == expected
    whole = ask(sdk, model, 99, tools=TOOLS, tool_choice=choice)
    (call,) = whole.content
    assert isinstance(call, ToolUseBlock) and (call.name, call.input) == ("weather", json.loads(expected))
    assert call.id and whole.stop_reason == "tool_use"

    named: Any = {"type": "function", "function": {"name": "weather"}}
    body = {"model": model, "messages": QUESTION, "max_tokens": 99, "tools": OPENAI_TOOLS, "tool_choice": named}
    answer = product.sdk().chat.completions.create(**body, temperature=0, extra_body=OFF)
    assert answer.choices[0].message.tool_calls[0].function.arguments == expected
    stream = product.sdk().chat.completions.create(**body, temperature=0, extra_body=OFF, stream=True)
    assert arguments_in(stream) == expected


@pytest.mark.parametrize("model", CLOUD)
def test_any_tool_is_a_tool_call_and_the_raw_message_holds_its_bytes(
    product: Product, sdk: Anthropic, model: str
) -> None:
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    arguments = pieces(sdk, model, tools=TOOLS, tool_choice=choice)
    body = {"model": model, "max_tokens": 99, "messages": QUESTION, "tools": TOOLS, "tool_choice": choice}
    raw = product.http().post("/v1/messages", json={**body, **GREEDY, **OFF}).text
    assert f'"input": {arguments}' in raw


def test_a_conversation_with_results_is_the_same_prompt_on_every_way(product: Product, sdk: Anthropic) -> None:
    call = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Köln", "days": 2}}
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": "rain, then sun"}
    turns = [
        *QUESTION,
        {"role": "assistant", "content": [{"type": "text", "text": "Let me look."}, call]},
        {"role": "user", "content": [result, {"type": "text", "text": "And what do you think?"}]},
    ]
    function = {"name": "weather", "arguments": json.dumps(call["input"])}
    openai_turns: list[Any] = [
        {"role": "system", "content": "Be brief."},
        *QUESTION,
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain, then sun"},
        {"role": "user", "content": "And what do you think?"},
    ]
    told = set()
    for model in CLOUD:
        message = ask(sdk, model, 12, system="Be brief.", messages=turns, tools=TOOLS)
        other = product.sdk().chat.completions.create(
            model=model, messages=openai_turns, max_tokens=12, temperature=0, tools=OPENAI_TOOLS, extra_body=OFF
        )
        read = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
        told |= {(message.content[0].text, read), (other.choices[0].message.content, other.usage.prompt_tokens)}
    assert len(told) == 1


# ---- counting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["smoke-small", "smoke-vllm", "claude"])
def test_a_count_is_what_the_question_then_takes(sdk: Anthropic, model: str) -> None:
    question: Any = {"system": "Be brief.", "messages": user("How long is this question? " * 5)}
    counted = sdk.messages.count_tokens(model=model, **question)
    usage = ask(sdk, model, 2, **question).usage
    assert counted.to_dict()["switchyard"] == {"estimated": False}
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


@pytest.mark.parametrize("model", ["gpt", "auto"])
def test_an_estimate_says_that_it_is_one(sdk: Anthropic, model: str) -> None:
    counted = sdk.messages.count_tokens(model=model, messages=QUESTION)
    assert counted.to_dict()["switchyard"] == {"estimated": True} and counted.input_tokens > 0


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "kind"),
    [
        ({"model": "nobody"}, anthropic.NotFoundError, "not_found_error"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error"),
        ({"model": "smoke-small", "tools": TOOLS}, anthropic.BadRequestError, "invalid_request_error"),
        ({"messages": user("word " * 2000), "model": "claude"}, anthropic.BadRequestError, "invalid_request_error"),
        ({"messages": user("x" * 300_000)}, anthropic.RequestTooLargeError, "request_too_large"),
        ({"model": "sim-broken"}, anthropic.InternalServerError, "api_error"),
    ],
)
def test_what_goes_wrong_is_what_the_client_has_a_name_for(
    sdk: Anthropic, change: dict[str, Any], error: type[anthropic.APIStatusError], kind: str
) -> None:
    with pytest.raises(error) as caught:
        ask(sdk, **{"model": "sim", **change})
    assert caught.value.type == kind
    assert caught.value.request_id == caught.value.body["request_id"]
    assert "word word" not in str(caught.value.body)


def test_who_may_not(product: Product) -> None:
    with client(product, "confined") as confined, pytest.raises(anthropic.PermissionDeniedError):
        ask(confined, "smoke-small")
    stranger = Anthropic(base_url=product.cluster.base_url, api_key="sy-wrong", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError):
        ask(stranger, "sim")
    headers = {"x-api-key": product.key("acme"), "anthropic-version": "2023-06-01"}
    body = {"model": "sim", "max_tokens": 4, "messages": QUESTION}
    with httpx.Client(base_url=product.cluster.base_url, trust_env=False) as http:
        assert http.post("/v1/messages", json=body, headers=headers).json()["type"] == "message"
        assert http.get("/v1/messages").json()["error"]["type"] == "not_found_error"


def test_a_failure_after_the_first_byte_is_an_error_event(product: Product, sdk: Anthropic) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        streamed(sdk, "sim-broken")
    assert caught.value.type == "api_error"
    body = {"model": "sim-broken", "max_tokens": 24, "messages": QUESTION, "stream": True, **OFF}
    answer = product.http().post("/v1/messages", json=body)
    assert "event: error" in answer.text and "message_stop" not in answer.text
    receipt = product.receipt(answer.headers["x-switchyard-request-id"])
    assert (receipt["status"], receipt["error_code"]) == ("error", "stream_interrupted")
