from __future__ import annotations

import json
from typing import get_args

import pytest
from openai.types.chat import ChatCompletionMessage

from deployments.openai.chat_schema import parse_chat
from deployments.openai.responses_schema import parse_response
from models.errors import InvalidRequest, UnsupportedFeature
from models.messages import ImagePart, Message, ReasoningPart, ResponseFormat, TextPart, ToolCall, ToolChoice

HELLO = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
SHAPE = {"name": "s", "description": "a place", "schema": {"type": "object"}, "strict": True}


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
        response_format={"type": "json_schema", "json_schema": SHAPE},
        logprobs=True,
        top_logprobs=2,
        user="u1",
        verbosity="low",
        reasoning_effort="high",
        prompt_cache_key="talk-7",
        safety_identifier="s-1",
        n=3,
        switchyard={"cache": "refresh", "priority": -1, "deadline_s": 2.5},
    )
    request = chat.request
    assert request.messages[1].parts == (TextPart("what is this?"), ImagePart("data:image/png;base64,AAAA", "low"))
    assert request.messages[2].tool_calls == (ToolCall("c1", "f", '{"a" : 1}'),)
    assert request.messages[3].tool_call_id == "c1"
    assert request.tool_choice == ToolChoice("tool", "f")
    assert request.response_format == ResponseFormat("json_schema", "s", '{"type": "object"}', True, "a place")
    assert (request.sampling.max_tokens, request.sampling.stop, request.sampling.top_logprobs) == (7, ("END",), 2)
    assert isinstance(request.sampling.temperature, float)
    assert (request.verbosity, request.reasoning_effort, request.sampling.n) == ("low", "high", 3)
    assert (request.prompt_cache_key, request.safety_identifier) == ("talk-7", "s-1")
    assert chat.stream
    assert chat.include_usage
    assert (chat.options.cache, chat.options.priority, chat.options.deadline_s) == ("refresh", -1, 2.5)


FUNCTION = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [FUNCTION]}, "tool_choice"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools"),
        ({"stop": 5}, "stop"),
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
    assert caught.value.param == param


def test_what_is_not_understood_is_refused_not_dropped():
    with pytest.raises(UnsupportedFeature) as caught:
        parsed(made_up={})
    assert caught.value.param == "made_up"


AUDIO = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}


@pytest.mark.parametrize(
    ("change", "param", "advice"),
    [
        ({"functions": [{"name": "f"}]}, "functions", "'tools'"),
        ({"function_call": "auto"}, "function_call", "'tool_choice'"),
        ({"messages": [{"role": "function", "name": "f", "content": "1"}]}, "messages.0.role", "'tool'"),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": ""}}]},
            "messages.0.function_call",
            "'tool_calls'",
        ),
        ({"messages": [{"role": "user", "content": [AUDIO]}]}, "messages.0.content.0.type", "as text"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}]},
            "messages.0.tool_calls.0.type",
            "'function'",
        ),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages.0.audio", "transcript"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type", "string parameter"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.type", "fewer tools"),
        ({"modalities": ["text", "audio"]}, "modalities.1", "leave"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio", "leave"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction", "leave it out"),
        ({"web_search_options": {}}, "web_search_options", "a tool"),
        ({"store": True}, "store", "send false"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", "send false"),
        ({"service_tier": "flex"}, "service_tier", "'priority'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_model_here_can_do_is_refused_with_what_to_do_instead(change, param, advice):
    with pytest.raises(UnsupportedFeature) as caught:
        parsed(**change)
    assert (caught.value.param, caught.value.http_status) == (param, 400)
    assert advice in caught.value.message


def test_what_clients_send_without_meaning_anything_by_it_is_taken():
    nothing = ("functions", "function_call", "audio", "prediction", "web_search_options", "logit_bias", "store", "n")
    chat = parsed(
        **dict.fromkeys(nothing),
        modalities=["text"],
        metadata={"a": "b"},
        stream_options={"include_obfuscation": False},
        prompt_cache_retention="24h",
        service_tier="auto",
    )
    assert chat.request == parsed().request


def test_an_answer_can_be_sent_back_as_the_sdk_dumps_it():
    message = ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": "hello", "reasoning_content": "hm", "annotations": []}
    )
    assert message.model_dump().keys() >= {"audio", "function_call", "refusal", "tool_calls"}
    chat = parsed(messages=[message.model_dump(), {"role": "user", "content": "and?"}])
    assert chat.request.messages[0] == Message("assistant", (ReasoningPart("hm"), TextPart("hello")))


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_earlier_reasoning_has_two_names(field):
    chat = parsed(messages=[{"role": "assistant", field: "hm", "content": "a"}])
    assert chat.request.messages[0].parts == (ReasoningPart("hm"), TextPart("a"))


def test_biases_are_of_one_model_and_in_order():
    bias = parsed(model="m", logit_bias={"20": -100, "3": 1.5}).request.sampling.logit_bias
    assert bias == ((3, 1.5), (20, -100.0))
    for wrong in ({"x": 1}, {"5": 101}, {"-5": 1}):
        with pytest.raises(InvalidRequest):
            parsed(model="m", logit_bias=wrong)
    with pytest.raises(InvalidRequest, match="auto"):
        parsed(logit_bias={"5": 1})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"hi"', b"\xff\xfe", b'{"model": "auto"}'])
def test_what_is_no_chat_body_at_all_is_refused(body):
    with pytest.raises(InvalidRequest):
        parse_chat(body)


def test_the_callers_text_is_not_in_the_message():
    with pytest.raises(InvalidRequest) as caught:
        parsed(messages=[{"role": "user", "content": "my secret", "name": 5}])
    assert "secret" not in caught.value.message


def test_half_a_character_in_a_schema_is_no_text():
    shape = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"title": "\ud800"}}}
    with pytest.raises(InvalidRequest, match="surrogate") as refused:
        parse_chat({**HELLO, "response_format": shape})
    assert refused.value.param == "response_format"


def test_every_effort_of_openais_own_client_is_taken_by_both_doors():
    from openai.types.shared import ReasoningEffort

    efforts = get_args(get_args(ReasoningEffort)[0])
    assert "max" in efforts
    for effort in efforts:
        response = parse_response(json.dumps({"model": "m", "input": "hi", "reasoning": {"effort": effort}}).encode())
        assert parsed(reasoning_effort=effort).request.reasoning_effort == effort == response.request().reasoning_effort
    with pytest.raises(InvalidRequest):
        parsed(reasoning_effort="enormous")
