"""The dialect is read back with the official SDK's own types."""

from __future__ import annotations

import json

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from deployments.openai.chat import OpenAIChat
from deployments.openai.errors import openai_error
from models.errors import RateLimited
from models.messages import (
    Choice,
    Completion,
    Finish,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from router.run import Head

HEAD = Head("req_1", "small-1", "miss", 5, 0.1, 0.0)


def chunks(events, **asked) -> list[ChatCompletionChunk]:
    dialect = OpenAIChat(**asked)
    text = (dialect.first(HEAD) + dialect.chunk(events)).decode()
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line]
    return [ChatCompletionChunk.model_validate_json(line) for line in lines]


def whole(completion, **asked) -> ChatCompletion:
    return ChatCompletion.model_validate_json(OpenAIChat(**asked).unary(None, HEAD, completion))


def test_tool_calls_keep_their_arguments_byte_for_byte():
    pieces = ['{"ci', 'ty" : "Zü', 'rich \\"x\\""}']
    events = [ToolCallDelta(0, "call_1", "weather")]
    events += [ToolCallDelta(0, arguments=piece) for piece in pieces]
    found = [c.choices[0].delta.tool_calls[0] for c in chunks(events)[1:]]
    assert found[0].id == "call_1"
    assert found[0].function.name == "weather"
    assert "".join(call.function.arguments for call in found) == "".join(pieces)


def test_text_of_any_kind_arrives_whole():
    text = 'quotes " and \\ and \n newlines, emoji 🙂, NUL \x00, data: [DONE]\n\n'
    found = chunks([TextDelta(text), ReasoningDelta("hm"), Finish("stop")])
    assert found[1].choices[0].delta.content == text
    assert found[2].choices[0].delta.reasoning_content == "hm"
    assert found[3].choices[0].finish_reason == "stop"


def test_logprobs_ride_with_their_tokens():
    delta = TextDelta("hi", 1, (TokenLogprob("hi", -0.5, (TokenLogprob("hi", -0.5), TokenLogprob("ho", -1.5))),))
    content = chunks([delta], logprobs=True)[1].choices[0].logprobs.content[0]
    assert (content.token, content.logprob, content.bytes) == ("hi", -0.5, [104, 105])
    assert [top.token for top in content.top_logprobs] == ["hi", "ho"]


def test_bytes_are_the_tokens_own_and_null_where_nobody_knows_them():
    tokens = (TokenLogprob("é", -0.1), TokenLogprob("\\xf0", -0.2, (), b"\xf0"), TokenLogprob("\ufffd", -0.3))
    content = chunks([TextDelta("é", 3, tokens)], logprobs=True)[1].choices[0].logprobs.content
    assert [token.bytes for token in content] == [[0xC3, 0xA9], [0xF0], None]


def test_logprobs_that_nobody_asked_for_are_not_shown():
    tokens = (TokenLogprob("hi", -0.5),)
    assert chunks([TextDelta("hi", 1, tokens)])[1].choices[0].logprobs is None
    answer = Completion((Choice("hi", finish_reason="stop", logprobs=tokens),))
    assert whole(answer).choices[0].logprobs is None
    assert whole(answer, logprobs=True).choices[0].logprobs.content[0].token == "hi"


def test_choices_each_have_their_role_and_their_end():
    events = [TextDelta("a"), TextDelta("b", choice=1), Finish("stop", 1), Finish("length")]
    found = [chunk.choices[0] for chunk in chunks(events, choices=2)]
    assert [(choice.index, choice.delta.role) for choice in found[:2]] == [(0, "assistant"), (1, "assistant")]
    assert [(choice.index, choice.delta.content) for choice in found[2:4]] == [(0, "a"), (1, "b")]
    assert [(choice.index, choice.finish_reason) for choice in found[4:]] == [(1, "stop"), (0, "length")]


def test_a_whole_answer_has_all_its_choices():
    answer = Completion((Choice("a", finish_reason="stop"), Choice("b", "hm", finish_reason="length")))
    first, second = whole(answer, choices=2).choices
    assert (first.index, first.message.content, first.finish_reason) == (0, "a", "stop")
    assert (second.index, second.message.content, second.finish_reason) == (1, "b", "length")
    assert second.message.reasoning_content == "hm"


def test_a_whole_answer_reads_as_a_chat_completion():
    choice = Choice(tool_calls=(ToolCall("c1", "f", '{"a": 1}'),), finish_reason="tool_calls")
    body = whole(Completion((choice,), Usage(10, 5, 4), False))
    assert body.choices[0].message.content is None
    assert body.choices[0].message.tool_calls[0].function.arguments == '{"a": 1}'
    assert body.usage.prompt_tokens_details.cached_tokens == 4


def test_an_error_has_openais_shape():
    error = json.loads(openai_error(RateLimited("slow down", None, 3.0), "req_1"))["error"]
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "rate_limited", None)
