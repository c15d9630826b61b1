import json

import pytest

from models.anthropic_request import RawJSON, count_body, encode, headers, to_json
from models.catalog import ModelEntry
from models.errors import InvalidRequest
from models.messages import (
    ChatRequest,
    ImagePart,
    Message,
    ReasoningPart,
    ResponseFormat,
    Sampling,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
)

ENTRY = ModelEntry(name="m", engine="anthropic", source="claude", context_tokens=1024)
USER = Message("user", (TextPart("Hello"),))


def test_a_plain_question():
    assert encode(ChatRequest("m", (USER,)), ENTRY) == {
        "model": "claude",
        "max_tokens": 4096,
        "stream": True,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
    }


def test_the_limit_is_the_callers_then_the_entrys():
    entry = ENTRY.model_copy(update={"max_output_tokens": 99})
    assert encode(ChatRequest("m", (USER,)), entry)["max_tokens"] == 99
    assert encode(ChatRequest("m", (USER,), Sampling(max_tokens=7)), entry)["max_tokens"] == 7


def test_system_turns_are_joined_and_tool_results_share_a_turn():
    messages = (
        Message("system", (TextPart("Be brief."),)),
        Message("developer", (TextPart("Be kind."),)),
        USER,
        Message(
            "assistant",
            (
                ReasoningPart("hm", "sig"),
                ReasoningPart("another model's"),
                ReasoningPart("Gemini's", "gemini:sig"),
                ReasoningPart("", redacted="x"),
                TextPart(""),
            ),
            (ToolCall("a", "one", '{"x": 1}'), ToolCall("b", "two", "")),
        ),
        Message("tool", (TextPart("1"),), tool_call_id="a"),
        Message("tool", (), tool_call_id="b"),
        Message("user", (TextPart("And?"), ImagePart("https://x/y.png"), ImagePart("data:image/png;base64,AAAA"))),
    )
    sent = encode(ChatRequest("m", messages), ENTRY)
    assert sent["system"] == "Be brief.\n\nBe kind."
    assert sent["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "sig"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "tool_use", "id": "a", "name": "one", "input": RawJSON('{"x": 1}')},
                {"type": "tool_use", "id": "b", "name": "two", "input": RawJSON("{}")},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "1"}]},
                {"type": "tool_result", "tool_use_id": "b", "content": []},
                {"type": "text", "text": "And?"},
                {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
            ],
        },
    ]


def test_tools_and_their_choice():
    tool = Tool("clock", "Tells it.", '{"properties": {}}', True)
    request = ChatRequest("m", (USER,), tools=(tool,), tool_choice=ToolChoice("required"), parallel_tool_calls=False)
    sent = encode(request, ENTRY)
    schema = {"type": "object", "properties": {}}
    assert sent["tools"] == [{"name": "clock", "input_schema": schema, "description": "Tells it.", "strict": True}]
    assert sent["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (ToolChoice("auto"), {"type": "auto"}),
        (ToolChoice("none"), {"type": "none"}),
        (ToolChoice("tool", "clock"), {"type": "tool", "name": "clock"}),
    ],
)
def test_tool_choices(choice, expected):
    assert (
        encode(ChatRequest("m", (USER,), tools=(Tool("clock"),), tool_choice=choice), ENTRY)["tool_choice"] == expected
    )


def test_sampling_names_the_version_of_the_api_that_has_it():
    request = ChatRequest("m", (USER,), Sampling(temperature=0.0, top_p=0.5, top_k=7, stop=("a",)))
    sent = encode(request, ENTRY)
    assert (sent["temperature"], sent["top_p"], sent["top_k"], sent["stop_sequences"]) == (0.0, 0.5, 7, ["a"])
    assert headers(request) == {"anthropic-version": "2023-06-01"}
    assert headers(ChatRequest("m", (USER,))) == {}


def test_effort_schema_and_user():
    schema = ResponseFormat("json_schema", "shape", '{"type":"object"}', None, "a place")
    sent = encode(ChatRequest("m", (USER,), reasoning_effort="low", response_format=schema, user="u1"), ENTRY)
    assert sent["thinking"] == {"type": "adaptive", "display": "summarized"}
    assert sent["output_config"] == {
        "effort": "low",
        "format": {"type": "json_schema", "schema": {"description": "a place", "type": "object"}},
    }
    assert sent["metadata"] == {"user_id": "u1"}
    hardest = encode(ChatRequest("m", (USER,), reasoning_effort="max"), ENTRY)
    assert (hardest["thinking"]["type"], hardest["output_config"]) == ("adaptive", {"effort": "max"})
    assert encode(ChatRequest("m", (USER,), reasoning_effort="none"), ENTRY)["thinking"] == {"type": "disabled"}


@pytest.mark.parametrize(
    "request_",
    [
        ChatRequest("m", (USER,), reasoning_effort="enormous"),
        ChatRequest("m", (USER,), tools=(Tool("t", parameters="{"),)),
        ChatRequest("m", (USER, Message("assistant", (), (ToolCall("a", "t", "{"),)))),
        ChatRequest("m", (USER, Message("assistant", (), (ToolCall("a", "t", "[]"),)))),
        ChatRequest("m", (Message("user", (ImagePart("data:image/png,raw"),)),)),
    ],
)
def test_what_cannot_be_said_is_the_callers_fault(request_):
    with pytest.raises(InvalidRequest):
        encode(request_, ENTRY)


MARK = {"cache_control": {"type": "ephemeral"}}
HOUR = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


def test_marks_go_where_they_were():
    messages = (
        Message("system", (TextPart("a"), TextPart("b", "1h"))),
        Message("user", (TextPart("c", "5m"), ImagePart("https://x/y.png", cache="5m"))),
        Message("assistant", (), (ToolCall("1", "t", "{}", "5m"),)),
        Message("tool", (TextPart("r", "1h"),), tool_call_id="1", cache="5m", is_error=True),
    )
    sent = encode(ChatRequest("m", messages, tools=(Tool("t", cache="1h"),), cache="5m"), ENTRY)
    assert sent["system"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b", **HOUR}]
    assert sent["cache_control"] == MARK["cache_control"]
    assert sent["tools"][0]["cache_control"] == HOUR["cache_control"]
    user, assistant, result = (turn["content"] for turn in sent["messages"])
    assert all(block["cache_control"] == MARK["cache_control"] for block in [*user, *assistant])
    (failed,) = result
    assert (failed["is_error"], failed["cache_control"]) == (True, MARK["cache_control"])
    assert failed["content"] == [{"type": "text", "text": "r", **HOUR}]


def test_instructions_in_the_middle_stay_there():
    messages = (Message("system", (TextPart("a"),)), USER, Message("developer", (TextPart("b"),)), USER)
    sent = encode(ChatRequest("m", messages), ENTRY)
    assert sent["system"] == "a"
    assert [turn["role"] for turn in sent["messages"]] == ["user", "system", "user"]


def test_a_message_of_which_nothing_can_be_sent_is_left_out():
    messages = (USER, Message("assistant", (ReasoningPart("another model's"),)), USER)
    assert [turn["role"] for turn in encode(ChatRequest("m", messages), ENTRY)["messages"]] == ["user"]


@pytest.mark.parametrize(
    ("thinking", "effort", "expected"),
    [
        (Thinking("default"), "low", {"output_config": {"effort": "low"}}),
        (Thinking("adaptive"), None, {"thinking": {"type": "adaptive"}}),
        (
            Thinking("budget", 2048, "omitted"),
            None,
            {"thinking": {"type": "enabled", "budget_tokens": 2048, "display": "omitted"}},
        ),
        (Thinking("off"), "low", {"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}),
    ],
)
def test_thinking_goes_out_as_it_was_asked_for(thinking, effort, expected):
    sent = encode(ChatRequest("m", (USER,), thinking=thinking, reasoning_effort=effort), ENTRY)
    assert {name: sent[name] for name in ("thinking", "output_config") if name in sent} == expected


def test_betas_go_in_their_header():
    assert headers(ChatRequest("m", (USER,), betas=("a", "b"))) == {"anthropic-beta": "a,b"}


def test_arguments_are_in_the_body_as_they_were_written():
    raw = ['{"a" : 1.0, "b":1e5,"c":"\\u00fc", "a": 2}', "{ }", '{"b": "\\\\1 \\\\g<0>"}']
    calls = tuple(ToolCall(str(number), "t", text) for number, text in enumerate(raw))
    body = to_json(encode(ChatRequest("m", (USER, Message("assistant", (), calls))), ENTRY)).decode()
    for text in raw:
        assert f'"input": {text}}}' in body
    assert len(json.loads(body)["messages"][1]["content"]) == 3


def test_half_a_surrogate_pair_is_escaped():
    body = to_json({"text": "a\ud83d", "input": RawJSON('{"x": "\ud83d\ude42"}')})
    assert json.loads(body) == {"text": "a\ud83d", "input": {"x": "🙂"}}


def test_a_count_asks_about_the_question_only():
    request = ChatRequest("m", (USER,), Sampling(5, 0.5, stop=("x",), top_k=3), (Tool("t"),), user="u")
    assert set(count_body(request, ENTRY)) == {"model", "messages", "tools"}
