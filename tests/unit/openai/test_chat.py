"""The dialect is read back with the official SDK's own types."""

from __future__ import annotations

import json

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from deployments.openai.chat import OpenAIChat
from deployments.openai.errors import openai_error
from models.errors import RateLimited
from models.messages import (
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


def chunks(events) -> list[ChatCompletionChunk]:
    dialect = OpenAIChat(include_usage=False)
    text = (dialect.first(HEAD) + dialect.chunk(events)).decode()
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line]
    return [ChatCompletionChunk.model_validate_json(line) for line in lines]


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
    delta = TextDelta("hi", 1, (TokenLogprob("hi", -0.5, (("hi", -0.5), ("ho", -1.5))),))
    content = chunks([delta])[1].choices[0].logprobs.content[0]
    assert (content.token, content.logprob, content.bytes) == ("hi", -0.5, [104, 105])
    assert [top.token for top in content.top_logprobs] == ["hi", "ho"]


def test_a_whole_answer_reads_as_a_chat_completion():
    completion = Completion("", "", (ToolCall("c1", "f", '{"a": 1}'),), "tool_calls", Usage(10, 5, 4), False)
    body = ChatCompletion.model_validate_json(OpenAIChat(False).unary(None, HEAD, completion))
    assert body.choices[0].message.content is None
    assert body.choices[0].message.tool_calls[0].function.arguments == '{"a": 1}'
    assert body.usage.prompt_tokens_details.cached_tokens == 4


def test_an_error_has_openais_shape():
    error = json.loads(openai_error(RateLimited("slow down", None, 3.0), "req_1"))["error"]
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "rate_limited", None)
