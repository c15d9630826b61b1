"""OpenAI's responses as an upstream: vLLM's own server speaks them, and chat completions beside them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import pytest
import pytest_asyncio

from models.base import Call, Capabilities, ChatModel
from models.catalog import ModelEntry
from models.errors import ContextLengthExceeded, UnsupportedFeature
from models.messages import (
    ChatRequest,
    Completion,
    Finish,
    Message,
    ResponseFormat,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    UsageReport,
    fold,
)
from models.openai_compatible import OpenAICompatibleModel
from models.openai_responses import ResponsesModel
from tests.vllm_server import CONTEXT_TOKENS, MODEL, running_requests

ABLE = Capabilities(tools=True, logprobs=True, json_schema=True, seed=False)
NUMBER = {"type": "string", "enum": ["one", "two"]}  # a smoke model ends no number by itself
SCHEMA = {"type": "object", "properties": {"n": NUMBER}, "required": ["n"], "additionalProperties": False}


@dataclass(frozen=True)
class Pair:
    """The same model by both APIs."""

    responses: ChatModel
    chat: ChatModel
    url: str


@pytest_asyncio.fixture(loop_scope="session")
async def pair(vllm_url: str) -> AsyncIterator[Pair]:
    def entry(engine: str) -> ModelEntry:
        return ModelEntry.model_validate(
            {"name": "m", "engine": engine, "source": MODEL, "context_tokens": CONTEXT_TOKENS, "capabilities": ABLE}
        )

    made = Pair(
        ResponsesModel({"m": entry("openai_responses")}, None, f"{vllm_url}/v1"),
        OpenAICompatibleModel({"m": entry("openai_compatible")}, f"{vllm_url}/v1", None),
        vllm_url,
    )
    yield made
    await made.responses.close()
    await made.chat.close()


def ask(text: str, max_tokens: int = 24, **changes: object) -> ChatRequest:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, top_logprobs=changes.pop("top_logprobs", None))  # type: ignore[arg-type]
    return ChatRequest("m", (Message("user", (TextPart(text),)),), sampling, **changes)  # type: ignore[arg-type]


async def answer(model: ChatModel, request: ChatRequest) -> Completion:
    return fold([event async for event in model.stream(request, Call("r"))])


@pytest.mark.asyncio(loop_scope="session")
async def test_greedy_text_and_its_count_are_those_of_chat_completions(pair: Pair) -> None:
    await pair.responses.check_health()
    for text in ("What is a river?", "¿Dónde está la estación?"):
        events = [event async for event in pair.responses.stream(ask(text), Call("r"))]
        assert len(events) > 4 and isinstance(events[-2], Finish) and isinstance(events[-1], UsageReport)
        found, expected = fold(events), await answer(pair.chat, ask(text))
        assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
        assert found.usage.input_tokens == expected.usage.input_tokens
        assert found.usage.output_tokens == expected.usage.output_tokens == 24
        assert not found.estimated


@pytest.mark.asyncio(loop_scope="session")
async def test_a_whole_conversation_with_calls_is_read_alike(pair: Pair) -> None:
    call = ToolCall("call_1", "weather", '{"city":  "Köln"}')
    messages = (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (TextPart("How is the weather?"),)),
        Message("assistant", tool_calls=(call,)),
        Message("tool", (TextPart("Rain."),), tool_call_id="call_1"),
        Message("assistant", (TextPart("It rains."),)),
        Message("user", (TextPart("And tomorrow?"),)),
    )
    tools = (Tool("weather", "Looks it up.", json.dumps({"type": "object", "properties": {"city": {}}})),)
    request = ChatRequest("m", messages, Sampling(max_tokens=8, temperature=0.0), tools)
    found, expected = await answer(pair.responses, request), await answer(pair.chat, request)
    assert abs(found.usage.input_tokens - expected.usage.input_tokens) <= 40, (
        "tools are written out a little differently"
    )
    assert found.usage.output_tokens == 8


@pytest.mark.asyncio(loop_scope="session")
async def test_a_named_tool_is_called_with_arguments_of_its_schema(pair: Pair) -> None:
    tools = (Tool("count", "Counts.", json.dumps(SCHEMA), strict=True),)
    request = ask("Count.", 200, tools=tools, tool_choice=ToolChoice("tool", "count"))
    found = await answer(pair.responses, request)
    assert found.finish_reason == "tool_calls" and [made.name for made in found.tool_calls] == ["count"]
    assert found.tool_calls[0].id and json.loads(found.tool_calls[0].arguments)["n"] in ("one", "two")


@pytest.mark.asyncio(loop_scope="session")
async def test_a_schema_holds_and_log_probabilities_are_those_of_chat_completions(pair: Pair) -> None:
    wanted = ResponseFormat("json_schema", "n", json.dumps(SCHEMA), True)
    assert set(json.loads((await answer(pair.responses, ask("n?", 200, response_format=wanted))).text)) == {"n"}
    request = ask("Name three colours.", 6, top_logprobs=2)
    found, expected = await answer(pair.responses, request), await answer(pair.chat, request)
    assert [(row.token, len(row.top)) for row in found.logprobs] == [(row.token, 2) for row in expected.logprobs]
    pairs = zip(found.logprobs, expected.logprobs, strict=True)
    assert all(abs(one.logprob - other.logprob) < 1e-3 for one, other in pairs)


@pytest.mark.asyncio(loop_scope="session")
async def test_a_client_that_leaves_stops_the_engine(pair: Pair) -> None:
    async with aclosing(pair.responses.stream(ask("Tell me everything.", 900), Call("r"))) as events:  # type: ignore[type-var]
        await anext(events)
    async with asyncio.timeout(3.0):
        while await asyncio.to_thread(running_requests, pair.url):  # noqa: ASYNC110 - it is in another process
            await asyncio.sleep(0.02)


@pytest.mark.asyncio(loop_scope="session")
async def test_what_it_cannot_do_is_the_callers_error(pair: Pair) -> None:
    with pytest.raises(ContextLengthExceeded):
        await answer(pair.responses, ask("word " * 2 * CONTEXT_TOKENS))
    for changes, param in (({"stop": ("x",)}, "stop"), ({"seed": 1}, "seed"), ({"n": 2}, "n")):
        request = ChatRequest("m", ask("Hi").messages, Sampling(**changes))  # type: ignore[arg-type]
        with pytest.raises(UnsupportedFeature) as caught:
            await answer(pair.responses, request)
        assert caught.value.param == param
