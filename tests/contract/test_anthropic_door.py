"""Both doors over both providers' adapters, in this process, with vLLM's own server as the provider: it speaks both
dialects, so whatever way a question and its answer take, they have to be the same.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from deployments.model import InlineModel
from models.anthropic import AnthropicModel
from models.base import Capabilities
from models.openai_compatible import OpenAICompatibleModel
from router.accounting.tenants import Tenants
from router.pipeline import Backend, Pipeline
from router.settings import IngressSettings
from tests.serve.test_anthropic_door import OPENAI_TOOLS, QUESTION, SCHEMA, TOOLS
from tests.unit.anthropic.door import KEY, Anthropic, anthropic_door
from tests.unit.test_pipeline import entry, make_world
from tests.vllm_server import CONTEXT_TOKENS, MODEL

pytestmark = pytest.mark.asyncio(loop_scope="session")

ABLE = Capabilities(tools=True, json_schema=True, top_k=True)
PROVIDERS = ["gpt", "claude"]
GREEDY: dict[str, Any] = {"temperature": 0, "switchyard": {"cache": "off"}}
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "weather"}}


@pytest_asyncio.fixture(loop_scope="session")
async def door(vllm_url: str) -> AsyncIterator[Anthropic]:
    fields: dict[str, Any] = {"source": MODEL, "context_tokens": CONTEXT_TOKENS, "capabilities": ABLE}
    gpt, claude = entry("gpt", engine="openai_compatible", **fields), entry("claude", engine="anthropic", **fields)
    models = {
        gpt: OpenAICompatibleModel({"gpt": gpt}, f"{vllm_url}/v1", None),
        claude: AnthropicModel({"claude": claude}, None, vllm_url),
    }
    world = make_world()
    stages = world.pipeline.stages
    stages.backends = {each.name: Backend(each.name, InlineModel(model), (each,)) for each, model in models.items()}
    world.pipeline = Pipeline(stages, IngressSettings(), Tenants((), IngressSettings()))
    async with anthropic_door(world) as opened:
        yield opened
    for model in models.values():
        await model.close()


async def message(door: Anthropic, **fields: Any) -> dict[str, Any]:
    answer = await door.post(**{"messages": QUESTION, "max_tokens": 99, **GREEDY, **fields})
    assert answer.status_code == 200, answer.text
    return {**answer.json(), "raw": answer.text}


async def pieces(door: Anthropic, **fields: Any) -> str:
    """The arguments of a streamed tool call."""
    asked = {"messages": QUESTION, "max_tokens": 99, "extra_body": GREEDY, **fields}
    stream = await door.sdk.messages.create(**asked, stream=True)
    deltas = [event.delta async for event in stream if event.type == "content_block_delta"]
    return "".join(delta.partial_json for delta in deltas if delta.type == "input_json_delta")


async def chat(door: Anthropic, **fields: Any) -> dict[str, Any]:
    body = {"messages": QUESTION, "max_tokens": 99, **GREEDY, **fields}
    answer = await door.http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def upstream_arguments(vllm_url: str) -> str:
    """As the model wrote them, which only the server's streams say: a whole answer of it is parsed and written anew."""
    async with AsyncOpenAI(base_url=f"{vllm_url}/v1", api_key="none", max_retries=0) as upstream:
        stream = await upstream.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            max_tokens=99,
            tools=OPENAI_TOOLS,
            tool_choice=NAMED,
            temperature=0,
            stream=True,
        )
        deltas = [chunk.choices[0].delta.tool_calls or [] async for chunk in stream if chunk.choices]
    return "".join(call.function.arguments or "" for calls in deltas for call in calls)


@pytest.mark.parametrize("model", PROVIDERS)
async def test_arguments_are_the_same_bytes_on_every_way(door: Anthropic, vllm_url: str, model: str) -> None:
    expected = await upstream_arguments(vllm_url)
    assert set(json.loads(expected)) == {"city", "days"}
    choice = {"type": "tool", "name": "weather"}
    assert await pieces(door, model=model, tools=TOOLS, tool_choice=choice) == expected
    whole = await message(door, model=model, tools=TOOLS, tool_choice=choice)
    assert f'"input": {expected}}}' in whole["raw"]
    assert (whole["content"][0]["name"], whole["stop_reason"]) == ("weather", "tool_use")
    other = await chat(door, model=model, tools=OPENAI_TOOLS, tool_choice=NAMED)
    (call,) = other["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], call["function"]["arguments"]) == ("weather", expected)


@pytest.mark.parametrize("model", PROVIDERS)
async def test_any_tool_and_one_at_most(door: Anthropic, model: str) -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    whole = await message(door, model=model, tools=TOOLS, tool_choice=choice)
    (call,) = whole["content"]
    assert (call["type"], call["name"], whole["stop_reason"]) == ("tool_use", "weather", "tool_use")


async def test_a_conversation_with_results_is_the_same_prompt_on_every_way(door: Anthropic) -> None:
    call = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Köln", "days": 2}}
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": "rain, then sun"}
    turns = [
        *QUESTION,
        {"role": "assistant", "content": [{"type": "text", "text": "Let me look."}, call]},
        {"role": "user", "content": [result, {"type": "text", "text": "And what do you think?"}]},
    ]
    function = {"name": "weather", "arguments": json.dumps(call["input"])}
    openai_turns = [
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
    for model in PROVIDERS:
        fields = {"model": model, "max_tokens": 12}
        one = await message(door, **fields, system="Be brief.", messages=turns, tools=TOOLS)
        other = await chat(door, **fields, messages=openai_turns, tools=OPENAI_TOOLS)
        told |= {
            (one["content"][0]["text"], one["usage"]["input_tokens"] + one["usage"]["cache_read_input_tokens"]),
            (other["choices"][0]["message"]["content"], other["usage"]["prompt_tokens"]),
        }
    assert len(told) == 1


@pytest.mark.parametrize("model", PROVIDERS)
async def test_an_answer_in_a_schema_by_either_door(door: Anthropic, model: str) -> None:
    schema = {"type": "json_schema", "schema": SCHEMA}
    one = await message(door, model=model, output_config={"format": schema})
    wanted = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
    other = await chat(door, model=model, response_format=wanted)
    assert one["content"][0]["text"] == other["choices"][0]["message"]["content"]
    assert set(json.loads(one["content"][0]["text"])) == {"city", "days"}


@pytest.mark.parametrize("model", PROVIDERS)
async def test_the_stop_sequence_that_was_met(door: Anthropic, model: str) -> None:
    text = (await message(door, model=model, max_tokens=24))["content"][0]["text"]
    stopped = await message(door, model=model, max_tokens=24, stop_sequences=[text[5:8], "never there"])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", text[5:8])


async def test_top_k_reaches_both(door: Anthropic) -> None:
    greedy = [await message(door, model=model, max_tokens=8) for model in PROVIDERS]
    first = [await message(door, model=model, max_tokens=8, temperature=1, top_k=1) for model in PROVIDERS]
    assert len({each["content"][0]["text"] for each in [*greedy, *first]}) == 1


async def test_anthropics_count_is_what_the_question_then_takes(door: Anthropic) -> None:
    question: Any = {"system": "Be brief.", "messages": QUESTION, "tools": TOOLS}
    counted = await door.sdk.messages.count_tokens(model="claude", **question)
    usage = (await message(door, model="claude", max_tokens=2, **question))["usage"]
    assert counted.switchyard == {"estimated": False}
    assert counted.input_tokens == usage["input_tokens"] + usage["cache_read_input_tokens"]
