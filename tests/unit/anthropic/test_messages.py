"""The door and its dialect, read back by Anthropic's own client."""

from __future__ import annotations

import json

import anthropic
import pytest
from anthropic.types import RedactedThinkingBlock, TextBlock, ThinkingBlock, ToolUseBlock

from deployments.anthropic.messages import usage_body
from models.base import Capabilities
from models.errors import BudgetExceeded, DeadlineExceeded, ModelUnavailable, PermissionDenied
from models.messages import (
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from router.settings import IngressSettings, TenantSettings
from tests.unit.anthropic.door import KEY, anthropic_door, scripted
from tests.unit.test_pipeline import make_world

HELLO = [{"role": "user", "content": "hi there"}]
TOOLS = [{"name": name, "input_schema": {"type": "object"}} for name in ("one", "two")]


async def final(door, **fields):
    question = {"model": "small-1", "max_tokens": 99, "messages": HELLO, **fields}
    async with door.sdk.messages.stream(**question) as stream:
        async for _ in stream:
            pass
        return await stream.get_final_message()


async def both(*events, **fields):
    """The same answer whole and as a stream."""
    world, _ = scripted(*events)
    async with anthropic_door(world) as door:
        whole = await door.sdk.messages.create(model="small-1", max_tokens=99, messages=HELLO, **fields)
        streamed = await final(door, **fields)
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    assert (streamed.stop_reason, streamed.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    return whole


# ---- answers -------------------------------------------------------------------------------------------------------


async def test_a_whole_answer_and_its_headers():
    async with anthropic_door() as door:
        answer = await door.sdk.messages.with_raw_response.create(model="auto", max_tokens=8, messages=HELLO)
        message = await answer.parse()
        (close,) = door.world.closes()
    assert (message.type, message.role, message.model) == ("message", "assistant", "small-1")
    assert isinstance(message.content[0], TextBlock) and len(message.content[0].text.split()) == 8
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 8)
    assert message._request_id == answer.headers["request-id"] == close.request_id
    assert message.id == f"msg_{close.request_id}"
    assert close.door == "anthropic-messages"
    assert int(answer.headers["x-switchyard-cost-microusd"]) > 0


async def test_a_stream_is_the_same_answer_from_the_model_and_from_the_cache():
    async with anthropic_door() as door:
        fresh, cached = [await final(door) for _ in range(2)]
        whole = await door.sdk.messages.create(model="small-1", max_tokens=99, messages=HELLO)
        verdicts = [close.cache_verdict for close in door.world.closes()]
    assert verdicts == ["miss", "hit-exact", "hit-exact"]
    assert fresh.content[0].text == cached.content[0].text == whole.content[0].text
    assert fresh.usage.output_tokens == cached.usage.output_tokens == whole.usage.output_tokens == 64


async def test_the_events_of_a_stream_are_in_order():
    async with anthropic_door() as door:
        answer = await door.post(stream=True, max_tokens=3)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    names = [name.removeprefix("event: ") for name, _ in events]
    data = [json.loads(line.removeprefix("data: ")) for _, line in events]
    assert names == [each["type"] for each in data]
    assert names == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert data[0]["message"]["content"] == [] and data[0]["message"]["stop_reason"] is None
    assert data[-2]["usage"]["output_tokens"] == 3 and "cache_creation" not in data[-2]["usage"]


async def test_thinking_text_and_tools_each_in_its_block():
    message = await both(
        ReasoningDelta("let me"),
        ReasoningDelta(" think"),
        ReasoningDelta("", "sig-1"),
        ReasoningDelta("", redacted="sealed"),
        ReasoningDelta("again"),
        ReasoningDelta("", "sig-2"),
        TextDelta("Hé"),
        TextDelta(""),
        TextDelta("llo"),
        ToolCallDelta(0, "a", "one"),
        ToolCallDelta(0, arguments='{"x"'),
        ToolCallDelta(0, arguments=": 1}"),
        ToolCallDelta(1, "b", "two", "{}"),
        Finish("tool_calls"),
        UsageReport(Usage(9, 7, reasoning_tokens=3)),
        tools=TOOLS,
    )
    first, sealed, second, text, one, two = message.content
    assert isinstance(first, ThinkingBlock) and (first.thinking, first.signature) == ("let me think", "sig-1")
    assert isinstance(sealed, RedactedThinkingBlock) and sealed.data == "sealed"
    assert (second.thinking, second.signature) == ("again", "sig-2")
    assert text.text == "Héllo"
    assert isinstance(one, ToolUseBlock) and (one.id, one.name, one.input) == ("a", "one", {"x": 1})
    assert (two.id, two.name, two.input) == ("b", "two", {})
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens_details.thinking_tokens == 3


async def test_thinking_of_a_model_that_does_not_sign_has_an_empty_signature():
    message = await both(ReasoningDelta("hm"), TextDelta("yes"), Finish("stop"), UsageReport(Usage(1, 1)))
    assert (message.content[0].thinking, message.content[0].signature) == ("hm", "")


async def test_thoughts_are_left_out_where_the_caller_does_not_want_to_see_them():
    thoughts = (ReasoningDelta("secret"), ReasoningDelta("", "sig"), ReasoningDelta("unsigned"))
    message = await both(
        *thoughts,
        TextDelta("yes"),
        Finish("stop"),
        UsageReport(Usage(1, 1)),
        thinking={"type": "adaptive", "display": "omitted"},
    )
    thinking, text = message.content
    assert (thinking.thinking, thinking.signature, text.text) == ("", "sig", "yes")


@pytest.mark.parametrize(
    ("finish", "reason", "sequence"),
    [
        (Finish("stop"), "end_turn", None),
        (Finish("stop", stop="END"), "stop_sequence", "END"),
        (Finish("length"), "max_tokens", None),
        (Finish("tool_calls"), "tool_use", None),
        (Finish("content_filter"), "refusal", None),
    ],
)
async def test_stop_reasons(finish, reason, sequence):
    message = await both(TextDelta("x"), finish, UsageReport(Usage(1, 1)))
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)


async def test_a_forced_tool_call_is_one_although_its_provider_says_stop():
    events = (ToolCallDelta(0, "a", "one", "{}"), Finish("stop"), UsageReport(Usage(1, 1)))
    assert (await both(*events, tools=TOOLS)).stop_reason == "tool_use"


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (Usage(10, 5), (10, 0, 0, 0, 0)),
        (Usage(135, 7, 100, 30), (5, 30, 100, 30, 0)),
        (Usage(136, 7, 100, 10, 20, 4), (6, 30, 100, 10, 20)),
    ],
)
def test_input_leaves_out_what_the_cache_read_and_wrote(usage, expected):
    body = usage_body(usage)
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    split = body["cache_creation"]
    assert (
        *(body[name] for name in names),
        split["ephemeral_5m_input_tokens"],
        split["ephemeral_1h_input_tokens"],
    ) == expected


async def test_a_call_without_an_id_gets_one():
    events = (ToolCallDelta(0, None, "one", "{}"), ToolCallDelta(1, None, "two", "{}"), Finish("tool_calls"))
    world, _ = scripted(*events, UsageReport(Usage(1, 1)))
    async with anthropic_door(world) as door:
        message = await final(door, tools=TOOLS)
    ids = [block.id for block in message.content]
    assert len(set(ids)) == 2 and all(call_id.startswith("toolu_") for call_id in ids)


async def test_a_call_that_the_limit_cut_off_is_not_in_a_whole_answer():
    events = (TextDelta("I call"), ToolCallDelta(0, "a", "one", '{"x": '), Finish("length"), UsageReport(Usage(1, 1)))
    world, _ = scripted(*events)
    async with anthropic_door(world) as door:
        message = (await door.post(model="small-1", tools=TOOLS)).json()
    assert [block["type"] for block in message["content"]] == ["text"]
    assert message["stop_reason"] == "max_tokens"


async def test_broken_arguments_are_an_error_in_a_whole_answer_and_come_as_they_are_in_a_stream():
    events = (ToolCallDelta(0, "a", "one", '{"x": '), Finish("tool_calls"), UsageReport(Usage(1, 1)))
    world, _ = scripted(*events)
    async with anthropic_door(world) as door:
        whole = await door.post(model="small-1", tools=TOOLS)
        stream = await door.post(model="small-1", tools=TOOLS, stream=True)
    assert (whole.status_code, whole.json()["error"]["type"]) == (502, "api_error")
    assert '"partial_json": "{\\"x\\": "' in stream.text


# ---- errors --------------------------------------------------------------------------------------------------------


async def test_what_the_client_raises():
    async with anthropic_door() as door:
        create = door.sdk.messages.create
        with pytest.raises(anthropic.NotFoundError) as missing:
            await create(model="claude-9", max_tokens=5, messages=HELLO)
        assert (missing.value.type, missing.value.request_id[:4]) == ("not_found_error", "req_")
        assert missing.value.body["request_id"] == missing.value.request_id
        assert missing.value.body["error"]["switchyard"]["code"] == "model_not_found"
        with pytest.raises(anthropic.BadRequestError) as wrong:
            await create(model="auto", max_tokens=0, messages=HELLO)
        assert "'max_tokens'" in wrong.value.api_message
        with pytest.raises(anthropic.AuthenticationError):
            await door.sdk.with_options(api_key="sy-wrong").messages.create(model="auto", max_tokens=5, messages=HELLO)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BudgetExceeded("spent"), 402, "billing_error"),
        (PermissionDenied("no"), 403, "permission_error"),
        (ModelUnavailable("gone"), 503, "overloaded_error"),
        (DeadlineExceeded("late"), 504, "timeout_error"),
        (ValueError("the prompt was: my secret"), 500, "api_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_byte(error, status, kind, stream):
    world = make_world()
    world.small.failures = [error, error]
    async with anthropic_door(world) as door:
        answer = await door.post(model="small-1", stream=stream)
    body = answer.json()
    assert (answer.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["request_id"] == answer.headers["request-id"]
    assert "secret" not in answer.text


async def test_a_failure_after_the_first_byte_is_an_error_event():
    async with anthropic_door(make_world(failure_rate=1.0, fail_after_tokens=3)) as door:
        with pytest.raises(anthropic.APIStatusError) as broken:
            await final(door)
        assert broken.value.type == "api_error"
        text = (await door.post(stream=True)).text
        assert "event: error\n" in text and "message_stop" not in text
        assert {close.error_code for close in door.world.closes()} == {"stream_interrupted"}


async def test_limits_and_wrong_methods():
    one_a_minute = IngressSettings(tenants={"acme": TenantSettings(requests_per_minute=1)})
    async with anthropic_door(settings=one_a_minute, max_body_bytes=1000) as door:
        big = await door.post(messages=[{"role": "user", "content": "x" * 2000}])
        assert (big.status_code, big.json()["error"]["type"]) == (413, "request_too_large")
        fast = await door.post()
        assert (fast.status_code, fast.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(fast.headers["retry-after"]) >= 1
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            wrong = await door.http.get(path)
            assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "not_found_error")
            assert wrong.json()["type"] == "error"


async def test_either_header_brings_the_key():
    body = {"model": "auto", "max_tokens": 4, "messages": HELLO}
    async with anthropic_door() as door:
        for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
            assert (await door.http.post("/v1/messages", json=body, headers=headers)).status_code == 200
        none = await door.http.post("/v1/messages", json=body)
        assert (none.status_code, none.json()["error"]["type"]) == (401, "authentication_error")


# ---- what a model cannot do, and what is passed on -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": TOOLS}, "tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive"}}, "thinking"),
        ({"output_config": {"effort": "low"}}, "reasoning_effort"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}, "response_format"),
        ({"top_k": 5}, "top_k"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "It is"}]}, "messages"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}],
                    }
                ]
            },
            "messages",
        ),
    ],
)
async def test_what_a_model_cannot_do_is_refused(change, param):
    world, script = scripted(capabilities=Capabilities())
    async with anthropic_door(world) as door:
        answer = await door.post(model="small-1", **change)
    error = answer.json()["error"]
    assert (answer.status_code, error["switchyard"]["code"], error["switchyard"]["param"]) == (
        400,
        "unsupported_feature",
        param,
    )
    assert "small-1" in error["message"] and script.asked == []


async def test_betas_are_passed_on_or_refused():
    world, script = scripted(TextDelta("x"), Finish("stop"), UsageReport(Usage(1, 1)))
    known = ["interleaved-thinking-2025-05-14", "claude-code-20250219"]
    async with anthropic_door(world) as door:
        await door.sdk.beta.messages.create(model="small-1", max_tokens=5, messages=HELLO, betas=known)
        assert script.asked[0].betas == tuple(sorted(known))
        with pytest.raises(anthropic.BadRequestError) as refused:
            await door.sdk.beta.messages.create(
                model="small-1", max_tokens=5, messages=HELLO, betas=["fast-mode-2026-02-01"]
            )
    assert "fast-mode-2026-02-01" in refused.value.api_message


# ---- counting ------------------------------------------------------------------------------------------------------


async def test_a_count_is_the_models_own_where_it_gives_one():
    async with anthropic_door() as door:
        question = {"messages": [{"role": "user", "content": "word " * 400}]}
        estimate = await door.sdk.messages.count_tokens(model="small-1", **question)
        assert (estimate.input_tokens, estimate.switchyard) == (501, {"estimated": True})

        async def count_tokens(request, call):
            return 401

        door.world.small.count_tokens = count_tokens
        counted = await door.sdk.messages.count_tokens(model="small-1", **question)
        assert (counted.input_tokens, counted.switchyard) == (401, {"estimated": False})
        assert (await door.sdk.messages.count_tokens(model="auto", **question)).switchyard == {"estimated": True}
        assert door.world.records == []


@pytest.mark.parametrize("trouble", [ModelUnavailable("gone"), TimeoutError()])
async def test_a_model_that_cannot_count_now_leaves_an_estimate(trouble):
    async with anthropic_door() as door:

        async def count_tokens(request, call):
            raise trouble

        door.world.small.count_tokens = count_tokens
        counted = await door.sdk.messages.count_tokens(model="small-1", messages=HELLO)
        assert counted.switchyard == {"estimated": True}


async def test_a_count_is_refused_like_the_question_except_that_it_may_be_long():
    async with anthropic_door() as door:
        long = [{"role": "user", "content": "word " * 100_000}]
        assert (await door.post("/v1/messages/count_tokens", model="small-1", messages=long)).status_code == 400
        counted = await door.sdk.messages.count_tokens(model="small-1", messages=long)
        assert counted.input_tokens > 100_000
        for change, status in (({"model": "nobody"}, 404), ({"tools": TOOLS}, 400)):
            question = {"model": "small-1", "messages": HELLO, **change}
            answer = await door.http.post("/v1/messages/count_tokens", json=question, headers={"x-api-key": KEY})
            assert (answer.status_code, answer.json()["type"]) == (status, "error")
