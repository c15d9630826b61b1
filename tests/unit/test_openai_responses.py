"""OpenAI's responses as an upstream, against a server on loopback that says what
https://platform.openai.com/docs/api-reference/responses-streaming shows."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.errors import (
    ContentRefused,
    ContextLengthExceeded,
    InvalidRequest,
    ModelUnavailable,
    RateLimited,
    StreamInterrupted,
    SwitchyardError,
    UpstreamFailed,
)
from models.joining import joined
from models.messages import (
    ChatRequest,
    Finish,
    ImagePart,
    Message,
    ReasoningDelta,
    ReasoningPart,
    ResponseFormat,
    Sampling,
    TextDelta,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Usage,
    UsageReport,
    fold,
)
from models.openai_responses import Answer, ResponsesModel, encode
from models.providers import Quirks
from models.upstream import UpstreamCall
from tests.unit.replay import cut, events, replayed

ENTRY = ModelEntry(
    name="pro",
    engine="openai_responses",
    source="gpt-5-pro",
    context_tokens=1000,
    capabilities=Capabilities(
        tools=True, images=True, json_object=True, json_schema=True, reasoning=True, verbosity=True
    ),
)
ASKED = ChatRequest("pro", (Message("user", (TextPart("Hé?"),)),))
USAGE = {
    "input_tokens": 81,
    "input_tokens_details": {"cached_tokens": 64},
    "output_tokens": 1035,
    "output_tokens_details": {"reasoning_tokens": 832},
    "total_tokens": 1116,
}


def whole(status: str = "completed", **more: object) -> dict:
    return {"type": f"response.{status}", "response": {"status": status, "usage": USAGE, **more}}


def called(at: int, call_id: str, name: str) -> dict:
    item = {"type": "function_call", "id": f"fc_{at}", "call_id": call_id, "name": name, "arguments": ""}
    return {"type": "response.output_item.added", "output_index": at, "item": item}


def argued(at: int, text: str, end: str = "delta") -> dict:
    field = "delta" if end == "delta" else "arguments"
    return {"type": f"response.function_call_arguments.{end}", "output_index": at, field: text}


TEXT = (
    {"type": "response.created", "response": {"status": "in_progress"}},
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning", "summary": []}},
    {"type": "response.reasoning_summary_text.delta", "output_index": 0, "delta": "Let me see."},
    {"type": "response.output_item.added", "output_index": 1, "item": {"type": "message", "content": []}},
    {"type": "response.output_text.delta", "output_index": 1, "delta": "Hi", "logprobs": []},
    {"type": "response.output_text.delta", "output_index": 1, "delta": " \u2028é"},
    whole(),
)
CALLS = (
    called(1, "call_a", "weather"),
    argued(1, '{"city":  "K'),
    called(2, "call_b", "clock"),
    argued(2, "{}"),
    argued(1, 'öln"}'),
    argued(1, '{"city":  "Köln"}', "done"),
    argued(2, "{}", "done"),
    called(3, "call_c", "late"),
    argued(3, '{"in": "one"}', "done"),
    whole(),
)


def decoded(*said: dict, at: list[int] | None = None) -> list:
    async def decode() -> list:
        decoder = Answer(UpstreamCall("pro", 10))
        found = [each for piece in cut(events(*said, newline="\n"), at or []) for each in decoder.feed(piece)]
        return found + decoder.end()

    return asyncio.run(decode())


def test_what_ends_a_response_is_the_callers_but_for_what_broke_there() -> None:
    """Of all codes that the official SDK knows: no request of ours is sent again, or counts against the provider, for
    what is wrong with it."""
    from openai.types.responses import ResponseError

    codes = get_args(ResponseError.model_fields["code"].annotation)
    errors: dict[str, type[SwitchyardError]] = {}
    for code in codes:
        failed = {"type": "response.failed", "response": {"error": {"code": code, "message": "a prompt"}}}
        with pytest.raises(SwitchyardError) as caught:
            decoded(failed)
        assert "a prompt" not in str(caught.value)
        errors[code] = type(caught.value)
    assert {code for code, kind in errors.items() if kind is UpstreamFailed} == {"server_error", "vector_store_timeout"}
    assert {code for code, kind in errors.items() if kind is ContentRefused} == {
        "invalid_prompt",
        "bio_policy",
        "misalignment_policy_violation",
        "image_content_policy_violation",
    }
    assert {code for code, kind in errors.items() if kind not in (UpstreamFailed, InvalidRequest, ContentRefused)} == {
        "rate_limit_exceeded",
        "data_residency_mismatch",
    }


async def test_what_is_sent_and_text_thoughts_and_usage() -> None:
    async with replayed(events(*TEXT)) as server:
        model = ResponsesModel({"pro": ENTRY}, "k-1", server.url + "/v1")
        found = list(joined([event async for event in model.stream(ASKED, Call("r1", timeout_s=10))]))
        await model.check_health()
        await model.close()
    usage = UsageReport(Usage(81, 1035, cached_input_tokens=64, reasoning_tokens=832))
    assert found == [ReasoningDelta("Let me see."), TextDelta("Hi \u2028é"), Finish("stop"), usage]
    sent, health = server.requests
    assert (sent.line, sent.headers["authorization"]) == ("POST /v1/responses HTTP/1.1", "Bearer k-1")
    assert health.line == "GET /v1/models HTTP/1.1"
    question = [{"type": "message", "role": "user", "content": "Hé?"}]
    assert sent.json == {"model": "gpt-5-pro", "input": question, "stream": True, "store": False}


@given(at=st.lists(st.integers(0, 2_000), max_size=30))
def test_calls_side_by_side_keep_their_arguments_whatever_the_cuts(at: list[int]) -> None:
    found = fold(decoded(*CALLS, at=at))
    assert found.finish_reason == "tool_calls"
    assert found.tool_calls == (
        ToolCall("call_a", "weather", '{"city":  "Köln"}'),
        ToolCall("call_b", "clock", "{}"),
        ToolCall("call_c", "late", '{"in": "one"}'),
    )


def test_a_call_may_come_whole_when_it_is_done() -> None:
    item = {"type": "function_call", "call_id": "call_a", "name": "clock", "arguments": '{"in": 1}'}
    done = {"type": "response.output_item.done", "output_index": 4, "item": item}
    for said in (
        (done,),
        (argued(4, '{"in": 1}', "done"), done),
        (called(4, "call_a", "clock"), done),
        (*CALLS[:3], *CALLS[4:7], CALLS[3], done),
    ):
        assert fold(decoded(*said, whole())).tool_calls[-1] == ToolCall("call_a", "clock", '{"in": 1}')
    told = called(4, "call_a", "clock"), argued(4, '{"in": 1}'), argued(4, '{"in": 1}', "done"), done
    assert [call.arguments for call in fold(decoded(*told, whole())).tool_calls] == ['{"in": 1}']


def test_each_summary_of_thoughts_is_a_paragraph() -> None:
    added = [{"type": "response.reasoning_summary_part.added", "summary_index": at} for at in (0, 1)]
    said = [{"type": "response.reasoning_summary_text.delta", "delta": text} for text in ("**A**", "**B**")]
    assert fold(decoded(added[0], said[0], added[1], said[1], whole())).reasoning == "**A**\n\n**B**"


def test_what_was_written_to_the_cache_is_counted() -> None:
    """The official SDK's `ResponseUsage` has it in every usage, and it is dearer than what was only read."""
    details = {"cached_tokens": 64, "cache_write_tokens": 17}
    found = fold(decoded(*TEXT[:-1], whole() | {"response": {"usage": USAGE | {"input_tokens_details": details}}}))
    assert found.usage == Usage(81, 1035, 64, cache_write_5m_tokens=17, reasoning_tokens=832)
    assert (found.finish_reason, found.estimated) == ("stop", False)
    garbled = whole() | {"response": {"usage": USAGE | {"input_tokens": "many"}}}
    assert fold(decoded(*TEXT[:-1], garbled)).estimated


async def test_what_the_endpoint_is_particular_in() -> None:
    quirks = Quirks(
        key_header="api-key", query={"v": "1"}, headers={"x-a": "b"}, prefix_salt=True, leaves_out=("user",),
        tool_call_ids="[a-z]{1,3}",
    )  # fmt: skip
    call = ToolCall("call_" + "x" * 80, "clock", "{}")
    turns = (Message("assistant", tool_calls=(call,)), Message("tool", (TextPart("5"),), tool_call_id=call.id))
    async with replayed(events(*TEXT)) as server:
        model = ResponsesModel({"pro": ENTRY}, "k-1", server.url + "/v1", quirks)
        asked = replace(ASKED, messages=ASKED.messages + turns, user="u")
        assert [event async for event in model.stream(asked, Call("r1", "acme"))]
        await model.close()
    (sent,) = server.requests
    assert sent.line == "POST /v1/responses?v=1 HTTP/1.1"
    assert (sent.headers["api-key"], sent.headers["x-a"]) == ("k-1", "b") and "authorization" not in sent.headers
    assert len(sent.json["cache_salt"]) == 43 and "user" not in sent.json
    first, second = (item["call_id"] for item in sent.json["input"][1:])
    assert first == second and len(first) == 9


def test_no_turn_and_no_image_is_left_out() -> None:
    image = ImagePart("data:image/png;base64,AA", "low")
    shown = Message("tool", (TextPart("This: "), image), tool_call_id="c1")
    said = encode(replace(ASKED, messages=(Message("user", (TextPart(""),)), shown)), ENTRY, Quirks())["input"]
    assert said[0] == {"type": "message", "role": "user", "content": ""}
    assert said[1]["output"] == [
        {"type": "input_text", "text": "This: "},
        {"type": "input_image", "image_url": image.url, "detail": "low"},
    ]


def test_the_first_piece_of_a_call_names_it() -> None:
    assert decoded(*CALLS)[:2] == [ToolCallDelta(0, "call_a", "weather"), ToolCallDelta(0, arguments='{"city":  "K')]


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (whole("incomplete", incomplete_details={"reason": "max_output_tokens"}), "length"),
        (whole("incomplete", incomplete_details={"reason": "content_filter"}), "content_filter"),
    ],
)
def test_how_an_answer_may_end(end: dict, reason: str) -> None:
    assert fold(decoded(*TEXT[:-1], end)).finish_reason == reason


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (whole("incomplete", incomplete_details={"reason": "?"}), UpstreamFailed),
        (
            {"type": "response.failed", "response": {"error": {"code": "rate_limit_exceeded", "message": "x"}}},
            RateLimited,
        ),
        ({"type": "error", "code": "server_error", "message": "a prompt"}, UpstreamFailed),
        ({"type": "response.output_text.delta"}, UpstreamFailed),
        # As OpenAI and Azure send it, and servers that know one kind of error only.
        ({"type": "error", "error": {"type": "tokens", "code": "rate_limit_exceeded", "message": "x"}}, RateLimited),
        ({"type": "error", "error": {"type": "too_many_requests", "code": "too_many_requests"}}, RateLimited),
        ({"type": "error", "error": {"code": "context_length_exceeded", "message": "x"}}, ContextLengthExceeded),
        ({"type": "error", "error": {"code": "content_filter", "message": "a prompt"}}, ContentRefused),
        ({"type": "error", "error": {"code": "insufficient_quota", "message": "a prompt"}}, ModelUnavailable),
        ({"type": "error", "error": {"type": "invalid_request_error", "code": None, "param": "input"}}, InvalidRequest),
        ({"error": {"message": "a prompt", "type": "BadRequestError", "code": 400}}, InvalidRequest),
        ({"type": "error", "error": "a prompt"}, UpstreamFailed),
    ],
)
def test_how_it_must_not(end: dict, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        decoded(end)
    assert "a prompt" not in str(caught.value)
    with pytest.raises((UpstreamFailed, StreamInterrupted)):
        decoded(*TEXT[:-1])


def test_a_conversation_in_its_items() -> None:
    messages = (
        Message("developer", (TextPart("Be brief."),)),
        Message("user", (TextPart("What is it?"), ImagePart("data:image/png;base64,AA", "low"))),
        Message("assistant", (ReasoningPart("hm"), TextPart("Let me look.")), (ToolCall("c1", "look", '{ "a":1}'),)),
        Message("tool", (TextPart("nothing"),), tool_call_id="c1", is_error=True),
    )
    request = ChatRequest(
        "pro",
        messages,
        Sampling(max_tokens=9, temperature=0.5),
        (Tool("look", "Looks.", '{"type": "object"}'),),
        ToolChoice("tool", "look"),
        response_format=ResponseFormat("json_schema", "n", '{"type": "object"}', True, "a place"),
        reasoning_effort="high",
        thinking=Thinking(display="summarized"),
        verbosity="low",
    )
    body = encode(request, ENTRY, Quirks())
    assert body["input"] == [
        {"type": "message", "role": "developer", "content": "Be brief."},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is it?"},
                {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
            ],
        },
        {"type": "message", "role": "assistant", "content": "Let me look."},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{ "a":1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "Error: nothing"},
    ]
    tool = {
        "type": "function",
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object"},
        "strict": False,
    }
    assert body["tools"] == [tool] and body["tool_choice"] == {"type": "function", "name": "look"}
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "description": "a place", "strict": True}
    assert body["text"] == {"verbosity": "low", "format": form}
    assert body["reasoning"] == {"effort": "high", "summary": "auto"}
    assert (body["max_output_tokens"], body["temperature"]) == (9, 0.5)


def test_what_is_no_schema_is_the_callers_error() -> None:
    with pytest.raises(InvalidRequest):
        encode(replace(ASKED, tools=(Tool("f", "", "{"),)), ENTRY, Quirks())
