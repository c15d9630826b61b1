from __future__ import annotations

import json

import pytest

from deployments.openai.chat_schema import parse_chat
from models.errors import InvalidRequest, UnsupportedFeature
from models.messages import ImagePart, TextPart, ToolCall, ToolChoice

HELLO = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}


def parsed(**fields):
    return parse_chat(json.dumps({**HELLO, **fields}).encode())


def test_the_least_that_can_be_asked():
    chat = parsed()
    assert chat.request.model == "auto"
    assert chat.request.messages[0].text == "hi"
    assert not chat.stream
    assert chat.options.cache == "on"


def test_everything_that_is_understood_arrives():
    chat = parsed(
        messages=[
            {"role": "system", "content": "be brief"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a" : 1}'}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ],
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=7,
        temperature=1,
        top_p=0.5,
        seed=3,
        stop="END",
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
        logprobs=True,
        top_logprobs=2,
        user="u1",
        switchyard={"cache": "refresh", "priority": -1, "deadline_s": 2.5},
    )
    request = chat.request
    assert request.messages[1].parts == (TextPart("what is this?"), ImagePart("data:image/png;base64,AAAA", "low"))
    assert request.messages[2].tool_calls == (ToolCall("c1", "f", '{"a" : 1}'),)
    assert request.messages[3].tool_call_id == "c1"
    assert request.tool_choice == ToolChoice("tool", "f")
    assert request.response_format.schema == '{"type": "object"}'
    assert (request.sampling.max_tokens, request.sampling.stop, request.sampling.top_logprobs) == (7, ("END",), 2)
    assert isinstance(request.sampling.temperature, float)
    assert chat.stream
    assert chat.include_usage
    assert (chat.options.cache, chat.options.priority, chat.options.deadline_s) == ("refresh", -1, 2.5)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"model": 5}, "model"),
        ({"switchyard": {"cache": "maybe"}}, "switchyard.cache"),
    ],
)
def test_what_is_wrong_is_named(change, param):
    with pytest.raises(InvalidRequest) as caught:
        parsed(**change)
    if param:
        assert caught.value.param.startswith(param)


@pytest.mark.parametrize("field", ["logit_bias", "functions", "audio", "modalities", "made_up"])
def test_what_is_not_understood_is_refused_not_dropped(field):
    with pytest.raises(UnsupportedFeature) as caught:
        parsed(**{field: {}})
    assert caught.value.param == field


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"hi"', b"\xff\xfe", b'{"model": "auto"}'])
def test_what_is_no_chat_body_at_all_is_refused(body):
    with pytest.raises(InvalidRequest):
        parse_chat(body)


def test_the_callers_text_is_not_in_the_message():
    with pytest.raises(InvalidRequest) as caught:
        parsed(messages=[{"role": "user", "content": "my secret", "name": 5}])
    assert "secret" not in caught.value.message
