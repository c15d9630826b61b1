import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.errors import InvalidRequest, ModelNotFound, StreamInterrupted, UnsupportedFeature, UpstreamFailed
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
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Usage,
    UsageReport,
    fold,
)
from models.openai_compatible import OpenAICompatibleModel, _Answer, encode
from models.providers import Quirks, known_provider
from models.sse import MAX_EVENT_BYTES, SSEDecoder
from models.upstream import UpstreamCall, retry_after_s
from tests.unit.replay import replayed

ENTRY = ModelEntry(name="m", engine="openai_compatible", source="vendor-model", context_tokens=1024)
USER = Message("user", (TextPart("Hé"),))

# ---- the question --------------------------------------------------------------------------------------------------


def body(request, **quirks):
    return encode(request, ENTRY, Quirks(**quirks))


def test_a_plain_question_is_always_a_stream_with_usage():
    assert body(ChatRequest("m", (USER,))) == {
        "model": "vendor-model",
        "messages": [{"role": "user", "content": "Hé"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_earlier_reasoning_goes_by_the_name_that_the_server_has_for_it():
    messages = (USER, Message("assistant", (ReasoningPart("hm, "), ReasoningPart("so"), TextPart("A"))), USER)
    request = ChatRequest("m", messages)
    assert body(request)["messages"][1] == {"role": "assistant", "content": "A"}
    for field in ("reasoning", "reasoning_content"):
        sent = body(request, reasoning_field=field)["messages"]
        assert sent[1] == {"role": "assistant", "content": "A", field: "hm, so"}
        assert all(field not in message for message in (sent[0], sent[2]))


def test_biases_and_verbosity_go_out():
    request = ChatRequest("m", (USER,), Sampling(logit_bias=((5, -100.0), (7, 1.5))), verbosity="low")
    assert body(request)["logit_bias"] == {"5": -100.0, "7": 1.5}
    assert body(request)["verbosity"] == "low"


def test_a_model_that_does_not_reason_is_not_told_not_to():
    assert "reasoning_effort" not in body(ChatRequest("m", (USER,), reasoning_effort="none"))


def test_every_sampling_field_goes_out():
    sampling = Sampling(9, 0.0, 0.5, 7, ("a", "b"), 2, 0.25, -0.25, 3)
    sent = body(ChatRequest("m", (USER,), sampling), max_tokens_field="max_completion_tokens")
    assert {name: sent[name] for name in sent.keys() - {"model", "messages", "stream", "stream_options"}} == {
        "max_completion_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 7,
        "stop": ["a", "b"],
        "n": 2,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.25,
        "logprobs": True,
        "top_logprobs": 3,
    }


def test_openai_itself_gets_the_newer_name_of_max_tokens():
    def field(url):
        return OpenAICompatibleModel({"m": ENTRY}, url, None)._quirks.max_tokens_field

    assert field("https://api.openai.com/v1") == "max_completion_tokens"
    assert field("http://127.0.0.1:11434/v1") == "max_tokens"


def test_what_changes_no_answer_goes_to_those_who_know_it():
    request = ChatRequest("m", (USER,), prompt_cache_key="talk-7", safety_identifier="s-1")
    assert body(request).keys() == body(ChatRequest("m", (USER,))).keys()
    sent = encode(request, ENTRY, known_provider("openai").quirks)
    assert (sent["prompt_cache_key"], sent["safety_identifier"]) == ("talk-7", "s-1")
    assert "prompt_cache_key" not in encode(ChatRequest("m", (USER,)), ENTRY, known_provider("openai").quirks)


def test_mistral_gets_only_what_it_knows():
    request = ChatRequest("m", (replace(USER, name="ann"),), Sampling(seed=7, max_tokens=5), user="u")
    assert encode(request, ENTRY, known_provider("mistral").quirks) == {
        "model": "vendor-model",
        "messages": [{"role": "user", "content": "Hé"}],
        "stream": True,
        "random_seed": 7,
        "max_tokens": 5,
    }


def test_a_model_that_takes_tools_only_without_reasoning_is_told_so():
    entry = ENTRY.model_copy(update={"effort_with_tools": "none"})
    asked = ChatRequest("m", (USER,), tools=(Tool("clock"),))
    assert encode(asked, entry, Quirks())["reasoning_effort"] == "none"
    assert encode(replace(asked, reasoning_effort="low"), entry, Quirks())["reasoning_effort"] == "low"
    assert "reasoning_effort" not in encode(ChatRequest("m", (USER,)), entry, Quirks())


def test_deepseek_is_told_in_its_own_words_not_to_think():
    entry = ENTRY.model_copy(update={"effort_with_tools": "none", "capabilities": Capabilities(reasoning=True)})
    quirks = known_provider("deepseek").quirks
    asked = ChatRequest("m", (USER,), tools=(Tool("clock"),))
    sent = encode(asked, entry, quirks)
    assert sent["thinking"] == {"type": "disabled"} and "reasoning_effort" not in sent
    sent = encode(replace(asked, reasoning_effort="max"), entry, quirks)
    assert sent["reasoning_effort"] == "max" and "thinking" not in sent
    assert "thinking" not in encode(ChatRequest("m", (USER,)), entry, quirks)


async def test_azures_key_has_a_header_of_its_own():
    async with replayed(stream_of(choice({"content": "A"}, "stop"), USAGE)) as azure:
        model = OpenAICompatibleModel({"m": ENTRY}, azure.url, "k", Quirks(key_header="api-key", query={"v": "1"}))
        async for _ in model.stream(ChatRequest("m", (USER,)), Call("r")):
            pass
        await model.close()
    (post,) = azure.requests
    assert (post.headers["api-key"], post.line) == ("k", "POST /chat/completions?v=1 HTTP/1.1")
    assert "authorization" not in post.headers


@pytest.mark.parametrize("known", ["vllm", "groq"])
async def test_a_server_of_vllms_is_told_whom_its_prefix_cache_is_for_and_others_are_not(known: str):
    quirks = known_provider(known).quirks
    async with replayed(stream_of(choice({"content": "A"}, "stop"), USAGE)) as server:
        model = OpenAICompatibleModel({"m": ENTRY}, server.url, "k", quirks)
        for tenant in ("acme", "acme", "other", ""):
            async for _ in model.stream(ChatRequest("m", (USER,)), Call("r", tenant)):
                pass
        await model.close()
    salts = [json.loads(post.body).get("cache_salt") for post in server.requests]
    if known == "vllm":
        assert salts[0] == salts[1] != salts[2] and len(salts[2]) == 43
        assert salts[3] is None
    else:
        assert salts == [None] * 4


def test_a_conversation_with_tools_and_images():
    arguments = '{"city" : "Köln",  "days":1.0}'
    messages = (
        Message("developer", (TextPart("Be "), TextPart("brief."))),
        Message("user", (TextPart("This?"), ImagePart("https://x/y.png", "low")), name="ann"),
        Message("assistant", (ReasoningPart("hm", "s"),), (ToolCall("c1", "weather", arguments),)),
        Message("tool", (TextPart("rain"),), tool_call_id="c1"),
    )
    request = ChatRequest(
        "m",
        messages,
        tools=(Tool("weather", "Tells it.", '{"type":"object"}', True), Tool("clock")),
        tool_choice=ToolChoice("tool", "weather"),
        parallel_tool_calls=False,
        response_format=ResponseFormat("json_schema", "shape", '{"type":"object"}', True, "a place"),
        reasoning_effort="low",
        user="u1",
    )
    sent = body(request)
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "name": "ann",
            "content": [
                {"type": "text", "text": "This?"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]
    weather, clock = (tool["function"] for tool in sent["tools"])
    assert weather == {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}, "strict": True}
    assert "strict" not in clock
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert sent["parallel_tool_calls"] is False
    assert sent["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "shape", "description": "a place", "schema": {"type": "object"}, "strict": True},
    }
    assert (sent["reasoning_effort"], sent["user"]) == ("low", "u1")


@pytest.mark.parametrize("mode", ["auto", "none", "required"])
def test_other_tool_choices_are_words(mode):
    assert body(ChatRequest("m", (USER,), tools=(Tool("t"),), tool_choice=ToolChoice(mode)))["tool_choice"] == mode


def test_a_schema_that_is_not_json_is_the_callers_fault():
    with pytest.raises(InvalidRequest) as refused:
        body(ChatRequest("m", (USER,), tools=(Tool("t", parameters="{"),)))
    assert refused.value.param == "tools"


# ---- the answer ----------------------------------------------------------------------------------------------------


def stream_of(*chunks, done=True):
    lines = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
    return "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


def choice(delta=None, finish=None, index=0, **more):
    return {"choices": [{"index": index, "delta": delta or {}, "finish_reason": finish, **more}]}


async def decode(*chunks, n=1, done=True, splits=None):
    data = stream_of(*chunks, done=done)
    answer = _Answer(ChatRequest("m", (USER,), Sampling(n=n)), UpstreamCall("m", 10.0))
    pieces = [data] if splits is None else splits(data)
    events = [event for piece in pieces for event in answer.feed(piece)]
    assert answer.done is done
    return events + answer.end()


USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


@given(st.data())
def test_any_splits_of_any_text_give_the_same_events(data):
    texts = data.draw(st.lists(st.text(min_size=1), min_size=1, max_size=4))
    chunks = [*(choice({"content": text}) for text in texts), choice(finish="stop"), USAGE]
    cuts = data.draw(st.lists(st.integers(0, len(stream_of(*chunks))), max_size=6).map(sorted))

    def splits(whole):
        return [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    events = asyncio.run(decode(*chunks, splits=splits))
    assert events == [*(TextDelta(text) for text in texts), Finish("stop"), UsageReport(Usage(5, 2))]


async def test_tool_calls_come_through_byte_for_byte():
    def piece(index, arguments, **more):
        return {"index": index, "function": {"arguments": arguments, **more.pop("function", {})}, **more}

    events = await decode(
        choice({"tool_calls": [piece(0, "", id="a", type="function", function={"name": "one"})]}),
        choice({"tool_calls": [piece(0, '{"x" :'), piece(1, "{", id="b", function={"name": "two"})]}),
        choice({"tool_calls": [piece(0, " 1.0}\n", id="a", function={"name": "one"}), piece(1, "}")]}),
        choice(finish="tool_calls"),
        USAGE,
    )
    assert events[0] == ToolCallDelta(0, "a", "one", "")
    assert events[3] == ToolCallDelta(0, None, None, " 1.0}\n")
    assert fold(events).tool_calls == (ToolCall("a", "one", '{"x" : 1.0}\n'), ToolCall("b", "two", "{}"))


async def test_tool_calls_without_an_index_are_counted():
    call = {"id": "a", "function": {"name": "one", "arguments": "{}"}}
    events = await decode(
        choice({"tool_calls": [call]}), choice({"tool_calls": [{**call, "id": "b"}]}, "tool_calls"), USAGE
    )
    assert [event.index for event in events[:2]] == [0, 1]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_by_either_name(field):
    events = await decode(choice({field: "hm"}), choice({"content": "A"}, "stop"), USAGE)
    assert events[:2] == [ReasoningDelta("hm"), TextDelta("A")]


async def test_logprobs_and_choices():
    logprobs = {"content": [{"token": "A", "logprob": -0.5, "top_logprobs": [{"token": "B", "logprob": -1.0}]}]}
    events = await decode(
        choice({"content": "A"}, logprobs=logprobs),
        choice({"content": "Z"}, "length", index=1),
        choice(finish="stop"),
        USAGE,
        n=2,
    )
    assert events == [
        TextDelta("A", 1, (TokenLogprob("A", -0.5, (TokenLogprob("B", -1.0),)),)),
        TextDelta("Z", choice=1),
        Finish("stop"),
        Finish("length", 1),
        UsageReport(Usage(5, 2)),
    ]


async def test_a_tokens_bytes_are_kept_where_they_are_not_its_text():
    half = {"token": "\\xf0\\x9f", "logprob": -1.0, "bytes": [0xF0, 0x9F], "top_logprobs": []}
    whole = {"token": "A", "logprob": -0.5, "bytes": [65], "top_logprobs": [{**half, "logprob": -2.0}]}
    events = await decode(choice({"content": "A"}, "stop", logprobs={"content": [whole, half]}), USAGE)
    first, second = events[0].logprobs
    assert (first.raw, second.raw) == (None, b"\xf0\x9f")
    assert first.top == (TokenLogprob("\\xf0\\x9f", -2.0, (), b"\xf0\x9f"),)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(9, 7, cached_input_tokens=4, reasoning_tokens=3),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 7, "prompt_tokens_details": None}, Usage(9, 7)),
        (
            {"prompt_tokens": 9, "completion_tokens": 7, "prompt_cache_hit_tokens": 8},
            Usage(9, 7, cached_input_tokens=8),
        ),
    ],
)
async def test_usage_by_kind(usage, expected):
    assert (await decode(choice({"content": "A"}, "stop"), {"choices": [], "usage": usage}))[-1].usage == expected
    assert (await decode({**choice({"content": "A"}, "stop"), "usage": usage}))[-1].usage == expected
    assert (await decode({**choice({"content": "A"}, "stop"), "x_groq": {"usage": usage}}))[-1].usage == expected


async def test_the_last_of_several_usages_holds():
    running = {**choice({"content": "A"}), "usage": {"prompt_tokens": 5, "completion_tokens": 1}}
    assert (await decode(running, choice(finish="stop"), USAGE))[-1] == UsageReport(Usage(5, 2))


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": "one", "completion_tokens": "two"}])
async def test_without_usage_it_is_estimated_and_says_so(usage):
    events = await decode(choice({"content": "12345678"}, "stop"), {"choices": [], "usage": usage})
    assert events[-1] == UsageReport(Usage(1, 2), estimated=True)


async def test_a_stream_may_end_without_done_but_not_without_a_finish():
    assert (await decode(choice({"content": "A"}, "stop"), USAGE, done=False))[1] == Finish("stop")
    with pytest.raises(UpstreamFailed):
        await decode(choice({"content": "A"}), USAGE)
    with pytest.raises(UpstreamFailed):
        await decode(choice({"content": "A"}, "stop"), USAGE, n=2)


@pytest.mark.parametrize(
    "chunk",
    [
        [],
        5,
        {"choices": 5},
        {"choices": [5]},
        choice({"tool_calls": [7]}),
        choice({"content": 5}),
        {"usage": 5},
        {"error": "no"},
    ],
)
async def test_chunks_of_the_wrong_shape(chunk):
    with pytest.raises(UpstreamFailed):
        await decode(chunk, choice(finish="stop"))


async def test_an_unknown_finish_reason_is_no_good_end():
    upstream = UpstreamCall("m", 10.0)
    upstream.started = True
    with pytest.raises(StreamInterrupted):
        list(_Answer(ChatRequest("m", (USER,)), upstream).feed(stream_of(choice(finish="abort"))))


async def test_an_unknown_model_is_not_found():
    from models.base import Call

    model = OpenAICompatibleModel({"m": ENTRY}, "http://127.0.0.1:9/v1", None)
    with pytest.raises(ModelNotFound):
        await anext(model.stream(ChatRequest("other", (USER,)), Call("r")))
    await model.close()


# ---- server-sent events and headers --------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_sse_lines_end_in_any_way(newline, size):
    lines = [b":comment", b"event: x", b"data: one", b"data:two", b"id: 7", b"", b"data: three", b"", b"", b":"]
    stream = newline.join(lines) + newline
    decoder = SSEDecoder()
    events = [event for at in range(0, len(stream), size) for event in decoder.feed(stream[at : at + size])]
    assert events == [b"one\ntwo", b"three"]


def test_an_event_that_never_ends_is_cut_off():
    decoder = SSEDecoder()
    with pytest.raises(ValueError, match="bytes"):
        for _ in range(3):
            decoder.feed(b"data: " + b"x" * (MAX_EVENT_BYTES // 2) + b"\n")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "1e999"}, 3600.0),
        ({"retry-after": "86400"}, 3600.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 3600.0),
        ({"retry-after-ms": "1e999"}, 3600.0),
        ({"retry-after-ms": "-1e999"}, 0.0),
    ],
)
def test_retry_after(headers, expected):
    assert retry_after_s(headers) == expected


# ---- what comes from Anthropic's dialect ---------------------------------------------------------------------------


def test_text_after_a_tool_call_joins_its_message_and_a_failed_tool_says_so():
    messages = (
        USER,
        Message("assistant", (TextPart("a"),), (ToolCall("1", "t", "{}"),)),
        Message("assistant", (TextPart("b"),), (ToolCall("2", "t", "{}"),)),
        Message("tool", (TextPart("no disk"),), tool_call_id="1", is_error=True),
        Message("tool", (TextPart("fine"),), tool_call_id="2"),
    )
    _, assistant, failed, fine = body(ChatRequest("m", messages))["messages"]
    assert (assistant["content"], [call["id"] for call in assistant["tool_calls"]]) == ("ab", ["1", "2"])
    assert (failed["content"], fine["content"]) == ("Error: no disk", "fine")


def test_thinking_and_prefill_go_out_as_this_dialect_has_them():
    able = ENTRY.model_copy(update={"capabilities": Capabilities(reasoning=True, prefill=True, thinking_budget=True)})
    off = ChatRequest("m", (USER,), thinking=Thinking("off"), prefill=True)
    sent = encode(off, able, Quirks())
    assert (sent["reasoning_effort"], sent["continue_final_message"], sent["add_generation_prompt"]) == (
        "none",
        True,
        False,
    )
    assert "reasoning_effort" not in body(ChatRequest("m", (USER,), thinking=Thinking("off")))
    assert "reasoning_effort" not in encode(ChatRequest("m", (USER,), thinking=Thinking("adaptive")), able, Quirks())
    with pytest.raises(UnsupportedFeature):
        encode(ChatRequest("m", (USER,), thinking=Thinking("budget", 2048)), able, Quirks())
