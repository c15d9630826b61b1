from __future__ import annotations

import json

import pytest

from deployments.anthropic.messages_request import parse_count, parse_messages
from models.errors import InvalidRequest, UnsupportedFeature
from models.messages import (
    ImagePart,
    Message,
    ReasoningPart,
    ResponseFormat,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
)

HELLO = {"model": "auto", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
MARK = {"cache_control": {"type": "ephemeral"}}
HOUR = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


def parsed(**fields):
    return parse_messages(json.dumps({**HELLO, **fields}).encode())


def asked(**fields):
    return parsed(**fields).request


def user(*blocks):
    return [{"role": "user", "content": list(blocks)}]


# ---- what is understood --------------------------------------------------------------------------------------------


def test_the_least_that_can_be_asked():
    found = parsed()
    assert found.request.messages == (Message("user", (TextPart("hi"),)),)
    assert found.request.sampling.max_tokens == 5
    assert (found.stream, found.hides_thinking, found.options.cache) == (False, False, "on")


def test_sampling_user_and_options():
    request = asked(
        temperature=1,
        top_p=0.5,
        top_k=9,
        stop_sequences=["a", "b"],
        metadata={"user_id": "u1"},
        service_tier="standard_only",
        cache_control={"type": "ephemeral", "ttl": "1h"},
    )
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.stop) == (1, 0.5, 9, ("a", "b"))
    assert (request.user, request.cache) == ("u1", "1h")
    assert parsed(switchyard={"cache": "off", "priority": 3}).options.priority == 3


def test_instructions_as_text_and_as_blocks():
    assert asked(system="be brief").messages[0] == Message("system", (TextPart("be brief"),))
    blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", **HOUR}]
    assert asked(system=blocks).messages[0] == Message("system", (TextPart("a"), TextPart("b", "1h")))
    later = [*HELLO["messages"], {"role": "system", "content": "from now on in French"}]
    assert asked(messages=later).messages[1] == Message("system", (TextPart("from now on in French"),))


def test_images_and_marks():
    inline = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    (message,) = asked(
        messages=user(
            {"type": "image", "source": inline, **MARK},
            {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
            {"type": "text", "text": "what?", **MARK},
        )
    ).messages
    assert message.parts == (
        ImagePart("data:image/png;base64,AAAA", cache="5m"),
        ImagePart("https://x/y.png"),
        TextPart("what?", "5m"),
    )


def test_a_conversation_with_thoughts_and_tools_keeps_its_order():
    messages = [
        *HELLO["messages"],
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "sig"},
                {"type": "redacted_thinking", "data": "sealed"},
                {"type": "text", "text": "first", "citations": None},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}, "caller": {"type": "direct"}},
                {"type": "thinking", "thinking": "so", "signature": ""},
                {"type": "tool_use", "id": "2", "name": "g", "input": {}, **MARK},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "42", "is_error": True, **HOUR},
                {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "r", **MARK}]},
                {"type": "tool_result", "tool_use_id": "3"},
                {"type": "text", "text": "go on"},
            ],
        },
    ]
    assert asked(messages=messages).messages[1:] == (
        Message(
            "assistant",
            (ReasoningPart("hm", "sig"), ReasoningPart("", redacted="sealed"), TextPart("first")),
            (ToolCall("1", "f", '{"a": 1}'),),
        ),
        Message("assistant", (ReasoningPart("so"),), (ToolCall("2", "g", "{}", "5m"),)),
        Message("tool", (TextPart("42"),), tool_call_id="1", is_error=True, cache="1h"),
        Message("tool", (TextPart("r", "5m"),), tool_call_id="2"),
        Message("tool", (TextPart(""),), tool_call_id="3"),
        Message("user", (TextPart("go on"),)),
    )


def test_tools_and_their_choice():
    schema = {"type": "object", "properties": {"x": {"type": "number"}}}
    tools = [{"type": "custom", "name": "f", "description": "d", "input_schema": schema, "strict": True, **MARK}]
    request = asked(tools=tools, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert request.tools == (Tool("f", "d", json.dumps(schema), True, "5m"),)
    assert (request.tool_choice, request.parallel_tool_calls) == (ToolChoice("required"), False)
    for choice, expected in (
        ({"type": "auto"}, ToolChoice("auto")),
        ({"type": "none"}, ToolChoice("none")),
        ({"type": "tool", "name": "f"}, ToolChoice("tool", "f")),
    ):
        request = asked(tools=tools, tool_choice=choice)
        assert (request.tool_choice, request.parallel_tool_calls) == (expected, None)


@pytest.mark.parametrize(
    ("fields", "thinking", "effort"),
    [
        ({}, None, None),
        ({"output_config": {"effort": "max"}}, Thinking("default"), "max"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, Thinking("adaptive"), "low"),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, Thinking("adaptive", None, "omitted"), None),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, Thinking("budget", 2048), None),
        ({"thinking": {"type": "disabled"}}, Thinking("off"), None),
    ],
)
def test_thinking(fields, thinking, effort):
    request = asked(**fields)
    assert (request.thinking, request.reasoning_effort) == (thinking, effort)


def test_a_schema_for_the_answer():
    request = asked(output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}})
    assert request.response_format == ResponseFormat("json_schema", "answer", '{"type": "object"}', True)


def test_an_answer_that_has_begun():
    assert asked(messages=[*HELLO["messages"], {"role": "assistant", "content": "It is"}]).prefill
    assert not asked().prefill


def test_a_count_takes_the_question_only():
    body = {name: value for name, value in HELLO.items() if name != "max_tokens"}
    assert parse_count(json.dumps({**body, "system": "s"}).encode()).messages[0].text == "s"
    with pytest.raises(UnsupportedFeature):
        parse_count(json.dumps(HELLO).encode())


# ---- arguments as they were written --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        "{}",
        ' { "a" : 1.0 , "b":1e5,"c":"\\u00fc\\/",\n\t"d": [ ] } ',
        '{"big": 12345678901234567890123, "small": 1E-400, "same": 1, "same": 2}',
        '{"content": [{"input": {"messages": 1}}], "type": "tool_use"}',
        '{"quote": "\\" } ] , \\\\", "ü": "🙂"}',
    ],
)
def test_the_input_of_a_call_stays_byte_for_byte(raw):
    call = '{"id": "1", "input":' + raw + ', "name": "f", "type": "tool_use"}'
    body = (
        '{"system": "x", "max_tokens": 1,\n "messages" : [{"content": "hi", "role": "user"}, {"role": "assistant", '
        '"content": [ {"type": "text", "text": "\\u005d}"},' + call + "," + call + "]}, "
        '{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]}], "model": "m"}'
    )
    found = parse_messages(body.encode()).request.messages[2].tool_calls
    assert [each.arguments for each in found] == [raw.strip()] * 2


def test_of_two_fields_of_one_name_the_last_one_counts():
    call = '{"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}, "input": {"y":2}}'
    other = '{"type": "tool_use", "id": "1", "name": "f", "input": {"z": 3}}'
    message = '{"role": "assistant", "content": [' + other + "," + other + '], "content": [' + call + "]}"
    body = '{"model": "m", "max_tokens": 1, "messages": [' + message + '], "messages": [' + message + "]}"
    (found,) = parse_messages(body.encode()).request.messages
    assert [call.arguments for call in found.tool_calls] == ['{"y":2}']


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_in_json_is_refused(constant):
    call = '{"type": "tool_use", "id": "1", "name": "f", "input": {"x": ' + constant + "}}"
    body = '{"model": "m", "max_tokens": 1, "messages": [{"role": "assistant", "content": [' + call + "]}]}"
    with pytest.raises(InvalidRequest):
        parse_messages(body.encode())
    tool = '{"name": "f", "input_schema": {"default": ' + constant + "}}"
    body = '{"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "tools": [' + tool + "]}"
    with pytest.raises(InvalidRequest):
        parse_messages(body.encode())


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 150 + "]" * 150, "[" * 5000 + "]" * 5000])
def test_what_no_parser_takes_is_an_error_of_the_callers(value):
    call = '{"type": "tool_use", "id": "1", "name": "f", "input": {"x": ' + value + "}}"
    body = '{"model": "m", "max_tokens": 1, "messages": [{"role": "assistant", "content": [' + call + "]}]}"
    try:
        (message,) = parse_messages(body.encode()).request.messages
    except InvalidRequest:
        return
    assert message.tool_calls[0].arguments == '{"x": ' + value + "}"


# ---- what is wrong -------------------------------------------------------------------------------------------------

RESULT = {"type": "tool_result", "tool_use_id": "1"}
TEXT = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": user()}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": user({"text": "x"})}, "messages.0.content.0"),
        ({"messages": user({"type": "text", "text": 1})}, "messages.0.content.0.text"),
        ({"messages": user({**RESULT, "content": [{"type": "text"}]})}, "messages.0.content.0.content.0.text"),
        ({"messages": user(TEXT, RESULT)}, "messages.0.content.1"),
        ({"messages": user({"type": "tool_use", "id": "1", "name": "f", "input": {}})}, "messages.0.content.0"),
        ({"messages": [{"role": "assistant", "content": [RESULT]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "system", "content": [RESULT]}]}, "messages.0.content.0"),
        (
            {"messages": user({"type": "image", "source": {"type": "base64", "media_type": "x", "data": "A"}})},
            "messages.0.content.0.source.media_type",
        ),
        (
            {"messages": user({"type": "image", "source": {"type": "url", "url": "file:///etc"}})},
            "messages.0.content.0.source.url",
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"system": 3}, "system"),
        ({"stop_sequences": [""]}, "stop"),
        ({"cache_control": {"type": "ephemeral", "ttl": "2h"}}, "cache_control.ttl"),
    ],
)
def test_what_is_wrong_is_named(change, param):
    with pytest.raises(InvalidRequest) as caught:
        parsed(**change)
    assert caught.value.param == param
    assert caught.value.http_status == 400


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"container": "c"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"context_management": {}}, "context_management"),
        ({"switchyard": {"cash": "off"}}, "switchyard.cash"),
        ({"messages": user({"type": "document", "source": {}})}, "messages.0.content.0"),
        ({"messages": user({**TEXT, "made_up": 1})}, "messages.0.content.0.made_up"),
        ({"thinking": {"type": "between_tools"}}, "thinking"),
        ({"tools": [{"name": "f", "input_schema": {}, "input_examples": []}]}, "tools.0.input_examples"),
    ],
)
def test_what_is_not_understood_is_refused_not_dropped(change, param):
    with pytest.raises(UnsupportedFeature) as caught:
        parsed(**change)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"hi"', b"\xff\xfe", b'{"model": "auto"}', b'{"messages": ["\\ud800"]}']
)
def test_what_is_no_body_at_all_is_refused(body):
    with pytest.raises(InvalidRequest):
        parse_messages(body)


def test_the_callers_text_is_not_in_the_message():
    secret = user({"type": "text", "text": "my secret", "cache_control": "secret"}, {"type": "secret"})
    with pytest.raises(InvalidRequest) as caught:
        parsed(messages=secret)
    assert "secret" not in caught.value.message


def test_betas_come_in_any_number_of_headers():
    body = json.dumps(HELLO).encode()
    betas = ["claude-code-20250219 , effort-2025-11-24", "claude-code-20250219", ""]
    assert parse_messages(body, betas).request.betas == ("claude-code-20250219", "effort-2025-11-24")
    with pytest.raises(UnsupportedFeature, match="context-1m-2025-08-07"):
        parse_messages(body, ["context-1m-2025-08-07"])
