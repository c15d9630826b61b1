"""Cohere's dialect, against a server on loopback that says what https://docs.cohere.com/v2/docs/streaming and
https://docs.cohere.com/v2/docs/tool-use-streaming show."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.cohere import Answer, CohereModel, encode
from models.errors import (
    InvalidRequest,
    ModelUnavailable,
    RateLimited,
    StreamInterrupted,
    UnsupportedFeature,
    UpstreamFailed,
)
from models.joining import joined
from models.messages import (
    ChatRequest,
    Finish,
    ImagePart,
    Message,
    ReasoningDelta,
    ResponseFormat,
    Sampling,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Usage,
    UsageReport,
    fold,
)
from models.upstream import UpstreamCall
from tests.unit.replay import cut, events, replayed

ENTRY = ModelEntry(
    name="c",
    engine="cohere",
    source="command-a-03-2025",
    context_tokens=1000,
    capabilities=Capabilities(tools=True, images=True, json_object=True, json_schema=True),
)
CALL = Call("r1", timeout_s=10)
ASKED = ChatRequest("c", (Message("user", (TextPart("Hé?"),)),))


def content(index: int, **delta: str) -> dict:
    return {"type": "content-delta", "index": index, "delta": {"message": {"content": delta}}}


def end(reason: str, **usage: dict) -> dict:
    return {"type": "message-end", "delta": {"finish_reason": reason, "usage": usage}}


TEXT = (
    {"type": "message-start", "id": "29f14a5a", "delta": {"message": {"role": "assistant", "content": []}}},
    {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
    content(0, text="LL"),
    content(0, text="Ms sind \u2028"),
    {"type": "content-end", "index": 0},
    end(
        "COMPLETE",
        billed_units={"input_tokens": 3.0, "output_tokens": 418.0},
        tokens={"input_tokens": 69.0, "output_tokens": 418.0},
    ),
)
TEXT_EVENTS = [TextDelta("LL"), TextDelta("Ms sind \u2028"), Finish("stop"), UsageReport(Usage(3, 418))]


def call_start(index: int, identifier: str, name: str) -> dict:
    function = {"name": name, "arguments": ""}
    call = {"id": identifier, "type": "function", "function": function}
    return {"type": "tool-call-start", "index": index, "delta": {"message": {"tool_calls": call}}}


def call_delta(index: int, text: str) -> dict:
    call = {"function": {"arguments": text}}
    return {"type": "tool-call-delta", "index": index, "delta": {"message": {"tool_calls": call}}}


CALLS = (
    {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": "I will look."}}},
    call_start(0, "get_weather_1", "get_weather"),
    call_delta(0, '{\n    "loc'),
    call_delta(0, 'ation": "Köln"\n}'),
    {"type": "tool-call-end", "index": 0},
    call_start(1, "clock_2", "clock"),
    call_delta(1, "{}"),
    end("TOOL_CALL", tokens={"input_tokens": 37.0, "output_tokens": 28.0}),
)


async def answer(model, request=ASKED):
    return list(joined([event async for event in model.stream(request, CALL)]))


async def test_text_and_the_usage_that_is_billed():
    async with replayed(events(*TEXT)) as cohere:
        model = CohereModel({"c": ENTRY}, "k-1", cohere.url + "/v2")
        assert await answer(model) == list(joined(TEXT_EVENTS))
        await model.check_health()
        await model.close()
    sent, health = cohere.requests
    assert (sent.line, sent.headers["authorization"]) == ("POST /v2/chat HTTP/1.1", "Bearer k-1")
    assert health.line == "GET /v1/models HTTP/1.1"
    assert sent.json == {
        "model": "command-a-03-2025",
        "messages": [{"role": "user", "content": "Hé?"}],
        "stream": True,
    }


@given(at=st.lists(st.integers(0, 10_000), max_size=40))
def test_any_splits_give_the_same_events(at):
    async def decode():
        decoder = Answer(UpstreamCall("c", 10))
        got = [e for piece in cut(events(*TEXT, newline="\n"), at) for e in decoder.feed(piece)]
        return got + decoder.end()

    assert asyncio.run(decode()) == TEXT_EVENTS


async def test_calls_come_byte_for_byte_after_their_plan():
    async with replayed(*cut(events(*CALLS), range(0, 4000, 7))) as cohere:
        model = CohereModel({"c": ENTRY}, "k", cohere.url)
        got = await answer(model)
        await model.close()
    assert got[:2] == [ReasoningDelta("I will look."), ToolCallDelta(0, "get_weather_1", "get_weather")]
    assert fold(got).tool_calls == (
        ToolCall("get_weather_1", "get_weather", '{\n    "location": "Köln"\n}'),
        ToolCall("clock_2", "clock", "{}"),
    )
    assert got[-2:] == [Finish("tool_calls"), UsageReport(Usage(37, 28))]


@pytest.mark.parametrize(("reason", "becomes"), [("MAX_TOKENS", "length"), ("STOP_SEQUENCE", "stop")])
async def test_ends_that_are_not_complete(reason, becomes):
    async with replayed(events(content(0, text="a"), end(reason))) as cohere:
        model = CohereModel({"c": ENTRY}, None, cohere.url)
        assert (await answer(model))[-2:] == [Finish(becomes), UsageReport(Usage(), estimated=True)]
        await model.close()


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([events(content(0, text="a"))], StreamInterrupted),
        ([events(content(0, text="a")), events(end("ERROR"))], StreamInterrupted),
        ([events(end("TIMEOUT"))], UpstreamFailed),
        ([b"data: [1]\n\n"], UpstreamFailed),
        ([events({"message": "internal error, my prompt"})], UpstreamFailed),
    ],
)
async def test_a_stream_that_breaks_is_an_error_and_never_an_answer(pieces, error):
    async with replayed(*pieces) as cohere:
        model = CohereModel({"c": ENTRY}, None, cohere.url)
        with pytest.raises(error) as broken:
            await answer(model)
        await model.close()
    assert "my prompt" not in broken.value.message


@pytest.mark.parametrize(
    ("status", "becomes"),
    [
        (400, InvalidRequest),
        (401, ModelUnavailable),
        (404, ModelUnavailable),
        (429, RateLimited),
        (500, UpstreamFailed),
    ],
)
async def test_coheres_errors(status, becomes):
    body = json.dumps({"id": "x", "message": "invalid request: my prompt"}).encode()
    async with replayed(body, status=status) as cohere:
        model = CohereModel({"c": ENTRY}, "k", cohere.url)
        with pytest.raises(becomes) as refused:
            await answer(model)
        await model.close()
    assert "my prompt" not in refused.value.message


async def test_leaving_closes_the_connection():
    async with replayed(events(content(0, text="a")), hangs=True) as cohere:
        model = CohereModel({"c": ENTRY}, None, cohere.url)
        async with aclosing(model.stream(ASKED, CALL)) as stream:
            assert await anext(stream) == TextDelta("a")
        await asyncio.wait_for(cohere.left.wait(), 20)
        await model.close()


def test_a_conversation_with_tools_and_every_setting():
    arguments = '{"city" : "Köln",  "days":1.0}'
    messages = (
        Message("developer", (TextPart("Be brief."),)),
        Message("user", (TextPart("This?"), ImagePart("https://x/y.png", "low"))),
        Message("assistant", (), (ToolCall("c1", "weather", arguments),)),
        Message("tool", (TextPart("rain"),), tool_call_id="c1"),
    )
    request = ChatRequest(
        "c",
        messages,
        Sampling(9, 0.0, 0.5, 7, ("a",), 1, 0.25, 0.5, top_k=3),
        tools=(Tool("weather", "Tells it.", '{"type":"object"}', True),),
        tool_choice=ToolChoice("required"),
        response_format=ResponseFormat("json_schema", "shape", '{"type":"object"}', None, "a place"),
    )
    assert encode(request, ENTRY) == {
        "model": "command-a-03-2025",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "This?"},
                    {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                ],
            },
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
                ],
            },
            {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        ],
        "stream": True,
        "max_tokens": 9,
        "temperature": 0.0,
        "p": 0.5,
        "k": 3,
        "seed": 7,
        "stop_sequences": ["a"],
        "presence_penalty": 0.25,
        "frequency_penalty": 0.5,
        "response_format": {"type": "json_object", "json_schema": {"description": "a place", "type": "object"}},
        "tool_choice": "REQUIRED",
        "strict_tools": True,
        "tools": [
            {
                "type": "function",
                "function": {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}},
            }
        ],
    }


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tool_choice": ToolChoice("tool", "weather")}, "tool_choice"),
    ],
)
def test_what_the_api_cannot_do_is_refused(change, param):
    with pytest.raises(UnsupportedFeature) as refused:
        encode(replace(ASKED, **change), ENTRY)
    assert refused.value.param == param
