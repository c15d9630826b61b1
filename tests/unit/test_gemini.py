"""Gemini's dialect, against a server on loopback that says what Gemini says.

The shapes are those of https://ai.google.dev/api/generate-content#v1beta.GenerateContentResponse,
https://ai.google.dev/gemini-api/docs/thought-signatures and https://cloud.google.com/apis/design/errors.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from google.auth.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelUnavailable,
    RateLimited,
    StreamInterrupted,
    UnsupportedFeature,
    UpstreamFailed,
)
from models.gemini import Answer, ai_studio, vertex
from models.gemini_request import encode
from models.google_auth import GoogleCredentials
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
from models.upstream import UpstreamCall
from tests.unit.replay import cut, events, replayed

ABLE = Capabilities(tools=True, images=True, json_object=True, json_schema=True, reasoning=True)
ENTRY = ModelEntry(
    name="g", engine="gemini", source="gemini-3.8-flash", context_tokens=1000, capabilities=ABLE, provider="gemini"
)
OLDER = ENTRY.model_copy(update={"source": "gemini-2.5-pro"})
CALL = Call("r1", timeout_s=10)
USER = Message("user", (TextPart("Wie spät?"),))
ASKED = ChatRequest("g", (USER,))


def candidate(*parts: dict, finish: str | None = None) -> dict:
    told = {"finishReason": finish} if finish else {}
    return {"candidates": [{"content": {"role": "model", "parts": list(parts)}, "index": 0, **told}]}


# A thinking model's answer with text: each chunk has the usage so far, the last part only a signature.
TEXT = (
    candidate({"text": "**Reading the clock**", "thought": True})
    | {"usageMetadata": {"promptTokenCount": 15, "totalTokenCount": 96, "thoughtsTokenCount": 81}},
    candidate({"text": "Es ist "}) | {"modelVersion": "gemini-3.8-flash", "responseId": "Il0taoSYJ5Cez7"},
    candidate({"text": "drei. \u2028"}),
    candidate({"text": "", "thoughtSignature": "EjQKMgEM"}, finish="STOP")
    | {
        "usageMetadata": {
            "promptTokenCount": 1015,
            "cachedContentTokenCount": 900,
            "candidatesTokenCount": 6,
            "thoughtsTokenCount": 81,
            "totalTokenCount": 1102,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 1015}],
        }
    },
)
TEXT_EVENTS = [
    ReasoningDelta("**Reading the clock**"),
    UsageReport(Usage(15, 81, reasoning_tokens=81), estimated=True),  # should the answer break off
    TextDelta("Es ist "),
    TextDelta("drei. \u2028"),
    ReasoningDelta("", "gemini:EjQKMgEM"),
    Finish("stop"),
    UsageReport(Usage(1015, 87, 900, reasoning_tokens=81)),
]
# Two calls at once: only the first is signed, and the end is a plain STOP.
CALLS = (
    candidate(
        {
            "functionCall": {"id": "abc1", "name": "clock", "args": {"city": "Köln", "utc": False}},
            "thoughtSignature": "c2ln",
        }
    ),
    candidate({"functionCall": {"name": "clock", "args": {}}}, finish="STOP")
    | {"usageMetadata": {"promptTokenCount": 50, "candidatesTokenCount": 20, "totalTokenCount": 70}},
)


async def answer(model, request=ASKED):
    return list(joined([event async for event in model.stream(request, CALL)]))


async def test_text_thoughts_signature_and_usage():
    async with replayed(events(*TEXT)) as google:
        model = ai_studio({"g": ENTRY}, "k-1", google.url + "/v1beta")
        assert await answer(model) == list(joined(TEXT_EVENTS))
        await model.close()
    (sent,) = google.requests
    assert sent.line == "POST /v1beta/models/gemini-3.8-flash:streamGenerateContent?alt=sse HTTP/1.1"
    assert sent.headers["x-goog-api-key"] == "k-1" and "authorization" not in sent.headers
    assert sent.json == {"contents": [{"role": "user", "parts": [{"text": "Wie spät?"}]}]}


@given(at=st.lists(st.integers(0, 10_000), max_size=40), newline=st.sampled_from(["\r\n", "\n"]))
def test_any_splits_give_the_same_events(at, newline):
    async def decode():
        decoder = Answer(UpstreamCall("g", 10))
        got = [e for piece in cut(events(*TEXT, newline=newline), at) for e in decoder.feed(piece)]
        return got + decoder.end()

    assert asyncio.run(decode()) == TEXT_EVENTS


async def test_calls_of_tools_are_text_written_once_and_end_as_calls():
    async with replayed(*cut(events(*CALLS), range(0, 4000, 7))) as google:
        model = ai_studio({"g": ENTRY}, "k", google.url)
        got = await answer(model)
        await model.close()
    assert got[:2] == [
        ReasoningDelta("", "gemini:c2ln"),
        ToolCallDelta(0, "abc1", "clock", '{"city": "Köln", "utc": false}'),
    ]
    assert got[3:] == [Finish("tool_calls"), UsageReport(Usage(50, 20))]
    second = fold(got).tool_calls[1]
    assert second.name == "clock" and second.arguments == "{}" and len(second.id) > 20


NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(arguments=st.dictionaries(st.text(), JSON, max_size=4), at=st.lists(st.integers(0, 10_000), max_size=10))
def test_arguments_are_the_same_on_their_way_to_the_caller_and_back(arguments, at):
    async def decode():
        called = candidate({"functionCall": {"name": "t", "args": arguments}}, finish="STOP")
        decoder = Answer(UpstreamCall("g", 10))
        got = [e for piece in cut(events(called), at) for e in decoder.feed(piece)]
        return fold(got + decoder.end())

    (call,) = asyncio.run(decode()).tool_calls
    assert call.arguments == json.dumps(arguments, ensure_ascii=False)
    sent = encode(replace(ASKED, messages=(USER, Message("assistant", (), (call,)))), ENTRY)
    assert sent["contents"][1]["parts"][0]["functionCall"]["args"] == arguments


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([candidate({"text": "a"}, finish="MAX_TOKENS")], "length"),
        ([candidate({"text": "a"}), {"candidates": [{"finishReason": "SAFETY", "index": 0}]}], "content_filter"),
        ([candidate({"text": "a"}, finish="RECITATION")], "content_filter"),
        ([{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 638}}],) * 1
        + ("content_filter",),
    ],
)
async def test_ends_that_are_not_a_stop(chunks, reason):
    async with replayed(events(*chunks)) as google:
        model = ai_studio({"g": ENTRY}, None, google.url)
        assert Finish(reason) in await answer(model)
        await model.close()


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (events(candidate({"text": "a"})), StreamInterrupted),
        (events(candidate({"text": "a"}, finish="MALFORMED_FUNCTION_CALL")), UpstreamFailed),  # came as one piece
        (events(candidate(finish="MALFORMED_FUNCTION_CALL")), UpstreamFailed),
        (b"", UpstreamFailed),
        (b"data: {\r\n\r\n", UpstreamFailed),
        (events({"candidates": [{"content": {"parts": [{"functionCall": {}}]}}]}), UpstreamFailed),
        (
            events({"error": {"code": 503, "status": "UNAVAILABLE", "message": "The model is overloaded."}}),
            UpstreamFailed,
        ),
    ],
)
async def test_a_stream_that_breaks_is_an_error_and_never_an_answer(body, error):
    async with replayed(body) as google:
        model = ai_studio({"g": ENTRY}, None, google.url)
        with pytest.raises(error):
            await answer(model)
        await model.close()


def problem(status: str, message: str, *details: dict) -> dict:
    return {"status": status, "message": message, "details": list(details)}


INVALID_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
WAIT = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"}


@pytest.mark.parametrize(
    ("status", "error", "becomes"),
    [
        (400, problem("INVALID_ARGUMENT", "API key not valid. My prompt.", INVALID_KEY), ModelUnavailable),
        (400, problem("FAILED_PRECONDITION", "User location is not supported."), ModelUnavailable),
        (403, problem("PERMISSION_DENIED", "No."), ModelUnavailable),
        (404, problem("NOT_FOUND", "models/x is not found"), ModelUnavailable),
        (429, problem("RESOURCE_EXHAUSTED", "You exceeded your current quota", WAIT), RateLimited),
        (503, problem("UNAVAILABLE", "The model is overloaded."), UpstreamFailed),
        (
            400,
            problem(
                "INVALID_ARGUMENT", "The input token count (2000) exceeds the maximum number of tokens allowed (9)."
            ),
            ContextLengthExceeded,
        ),
        (400, problem("INVALID_ARGUMENT", "Function call is missing a thought_signature. My prompt."), InvalidRequest),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
async def test_googles_errors(status, error, becomes, listed):
    body = {"error": {"code": status, **error}}
    async with replayed(json.dumps([body] if listed else body).encode(), status=status) as google:
        model = ai_studio({"g": ENTRY}, "k", google.url)
        with pytest.raises(becomes) as refused:
            await answer(model)
        await model.close()
    assert "My prompt" not in refused.value.message
    if becomes is RateLimited:
        assert refused.value.retry_after_s == pytest.approx(34.07)


async def test_leaving_closes_the_connection():
    async with replayed(events(candidate({"text": "a"})), hangs=True) as google:
        model = ai_studio({"g": ENTRY}, None, google.url)
        async with aclosing(model.stream(ASKED, CALL)) as stream:
            assert await anext(stream) == TextDelta("a")
        await asyncio.wait_for(google.left.wait(), 20)
        await model.close()


async def test_health_is_a_list_and_a_wrong_key_is_seen():
    body = {"error": {"code": 400, **problem("INVALID_ARGUMENT", "API key not valid.", INVALID_KEY)}}
    for status, healthy in ((200, True), (404, True), (500, False), (400, False)):
        async with replayed(json.dumps(body if status == 400 else {}).encode(), status=status) as google:
            model = ai_studio({"g": ENTRY}, "k", google.url + "/v1beta")
            if healthy:
                await model.check_health()
            else:
                with pytest.raises(ModelUnavailable):
                    await model.check_health()
            await model.close()
        assert google.requests[0].line == "GET /v1beta/models HTTP/1.1"


# ---- Vertex AI -----------------------------------------------------------------------------------------------------


class Token(Credentials):
    """As google.auth knows credentials; each refresh gives another token."""

    def __init__(self) -> None:
        super().__init__()
        self.refreshed = 0

    def refresh(self, request: object) -> None:
        self.refreshed += 1
        self.token = f"t{self.refreshed}"
        self.expiry = datetime.now() + timedelta(days=2)


async def test_on_vertex_the_token_is_kept_until_it_expires():
    token = Token()
    async with replayed(events(*TEXT)) as google:
        model = vertex({"g": ENTRY}, "my-project", "europe-west1", google.url + "/v1", GoogleCredentials(token))
        for _ in range(2):
            assert await answer(model) == list(joined(TEXT_EVENTS))
        token.expiry = datetime(2020, 1, 1)
        await answer(model)
        await model.check_health()
        await model.close()
    assert [sent.headers["authorization"] for sent in google.requests] == ["Bearer t1", "Bearer t1", "Bearer t2"]
    assert google.requests[0].line.startswith(
        "POST /v1/projects/my-project/locations/europe-west1/publishers/google/models/gemini-3.8-flash:stream"
    )


@pytest.mark.parametrize("on_vertex", [True, False])
async def test_vertex_takes_no_ids_of_calls(on_vertex):
    calls = (ToolCall("c1", "clock", "{}"), ToolCall("c2", "weather", "{}"))
    results = [Message("tool", (TextPart(f"of {name}"),), tool_call_id=name) for name in ("c2", "c1")]
    async with replayed(events(*TEXT)) as google:
        there = vertex({"g": ENTRY}, "p", "global", google.url, GoogleCredentials(Token()))
        model = there if on_vertex else ai_studio({"g": ENTRY}, "k", google.url)
        assert await answer(model, ChatRequest("g", (USER, Message("assistant", (), calls), *results))) == list(
            joined(TEXT_EVENTS)
        )
        await model.close()
        await there.close()
    parts = google.requests[0].json["contents"][-1]["parts"]
    told = [(part["functionResponse"].get("id"), part["functionResponse"]["response"]["output"]) for part in parts]
    assert told == ([(None, "of c1"), (None, "of c2")] if on_vertex else [("c2", "of c2"), ("c1", "of c1")])


def test_an_id_that_comes_again_in_a_later_turn_is_that_turns():
    def called(*names):
        calls = tuple(ToolCall(f"call_{number}", name, "{}") for number, name in enumerate(names))
        return Message("assistant", (), tool_calls=calls)

    def result(number, text):
        return Message("tool", (TextPart(text),), tool_call_id=f"call_{number}")

    turns = (USER, called("read", "list"), result(0, "first"), result(1, "second"), called("stat"), result(0, "third"))
    sent = encode(ChatRequest("g", turns), ENTRY, call_ids=False)["contents"]
    results = [part["functionResponse"] for turn in sent for part in turn["parts"] if "functionResponse" in part]
    told = [(each["name"], each["response"]["output"]) for each in results]
    assert told == [("read", "first"), ("list", "second"), ("stat", "third")]


async def test_without_credentials_vertex_is_unavailable(monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    model = vertex({"g": ENTRY}, "p", "global", "http://127.0.0.1:9/v1")
    with pytest.raises(ModelUnavailable, match="GOOGLE_APPLICATION_CREDENTIALS"):
        await answer(model)
    with pytest.raises(ModelUnavailable):
        await model.check_health()
    await model.close()


# ---- the question --------------------------------------------------------------------------------------------------


def test_a_conversation_with_tools_images_and_signatures():
    arguments = '{"city" : "Köln",  "days":1.0}'
    messages = (
        Message("system", (TextPart("Be brief."),)),
        Message(
            "user", (TextPart("This?"), ImagePart("data:image/png;base64,AAAA"), ImagePart("https://x/y.webp?a=1"))
        ),
        Message(
            "assistant",
            (ReasoningPart("hm", "gemini:c2ln"), ReasoningPart("", "claude-signed")),
            (ToolCall("c1", "weather", arguments), ToolCall("c2", "clock", "{}")),
        ),
        Message("tool", (TextPart("rain"),), tool_call_id="c1"),
        Message("tool", (TextPart("broken"),), tool_call_id="c2", is_error=True),
        Message("developer", (TextPart("Now."),)),
        Message("user", (TextPart("So?"),)),
    )
    request = replace(
        ASKED,
        messages=messages,
        tools=(Tool("weather", "Tells it.", '{"type":"object"}', True), Tool("clock")),
        tool_choice=ToolChoice("tool", "weather"),
    )
    assert encode(request, ENTRY) == {
        "systemInstruction": {"parts": [{"text": "Be brief.\n\nNow."}]},
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"text": "This?"},
                    {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
                    {"fileData": {"mimeType": "image/webp", "fileUri": "https://x/y.webp?a=1"}},
                ],
            },
            {
                "role": "model",
                "parts": [
                    {
                        "functionCall": {"id": "c1", "name": "weather", "args": {"city": "Köln", "days": 1.0}},
                        "thoughtSignature": "c2ln",
                    },
                    {"functionCall": {"id": "c2", "name": "clock", "args": {}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"id": "c1", "name": "weather", "response": {"output": "rain"}}},
                    {"functionResponse": {"id": "c2", "name": "clock", "response": {"error": "broken"}}},
                    {"text": "So?"},
                ],
            },
        ],
        "tools": [
            {
                "functionDeclarations": [
                    {"name": "weather", "description": "Tells it.", "parametersJsonSchema": {"type": "object"}},
                    {"name": "clock"},
                ]
            }
        ],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather"]}},
    }


def test_a_call_without_its_signature_is_said_to_have_none():
    called = Message("assistant", (), (ToolCall("c1", "clock", "{}"),))
    request = replace(ASKED, messages=(USER, called, Message("tool", (TextPart("3"),), tool_call_id="c1")))
    part = encode(request, ENTRY)["contents"][1]["parts"][0]
    assert part["thoughtSignature"] == "skip_thought_signature_validator"
    assert "thoughtSignature" not in encode(request, OLDER)["contents"][1]["parts"][0]


def test_a_signed_text_goes_back_signed():
    said = Message("assistant", (TextPart("Es ist drei."), ReasoningPart("", "gemini:c2ln")))
    turn = encode(replace(ASKED, messages=(USER, said, USER)), ENTRY)["contents"][1]
    assert turn == {"role": "model", "parts": [{"text": "Es ist drei.", "thoughtSignature": "c2ln"}]}


def test_every_setting_goes_out():
    sampling = Sampling(9, 0.0, 0.5, 7, ("a", "b"), 1, 0.25, -0.25, top_k=3)
    wanted = ResponseFormat("json_schema", "shape", '{"type":"object"}', True, "a place")
    request = replace(ASKED, sampling=sampling, response_format=wanted, tool_choice=ToolChoice("none"))
    sent = encode(request, ENTRY)
    assert sent["toolConfig"] == {"functionCallingConfig": {"mode": "NONE"}}
    assert sent["generationConfig"] == {
        "maxOutputTokens": 9,
        "temperature": 0.0,
        "topP": 0.5,
        "topK": 3,
        "seed": 7,
        "stopSequences": ["a", "b"],
        "presencePenalty": 0.25,
        "frequencyPenalty": -0.25,
        "responseMimeType": "application/json",
        "responseJsonSchema": {"description": "a place", "type": "object"},
    }


@pytest.mark.parametrize(
    ("change", "entry", "sent"),
    [
        ({"reasoning_effort": "low"}, ENTRY, {"thinkingLevel": "low", "includeThoughts": True}),
        ({"reasoning_effort": "max"}, ENTRY, {"thinkingLevel": "high", "includeThoughts": True}),
        ({"reasoning_effort": "none"}, ENTRY, {"thinkingLevel": "low", "includeThoughts": False}),
        ({"reasoning_effort": "medium"}, OLDER, {"thinkingBudget": 8192, "includeThoughts": True}),
        ({"thinking": Thinking("off")}, OLDER, {"thinkingBudget": 0, "includeThoughts": False}),
        ({"thinking": Thinking("adaptive")}, ENTRY, {"includeThoughts": True}),
        ({"thinking": Thinking("adaptive", display="omitted")}, ENTRY, None),
    ],
)
def test_how_much_to_think(change, entry, sent):
    assert encode(replace(ASKED, **change), entry).get("generationConfig", {}).get("thinkingConfig") == sent


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"reasoning_effort": "extreme"}, InvalidRequest, "reasoning_effort"),
        ({"parallel_tool_calls": False}, UnsupportedFeature, "parallel_tool_calls"),
        ({"tools": (Tool("t", "", "{"),)}, InvalidRequest, "tools"),
        ({"messages": (Message("assistant", (), (ToolCall("c", "t", "[]"),)),)}, InvalidRequest, "messages"),
        ({"messages": (Message("user", (ImagePart("data:image/png,xyz"),)),)}, InvalidRequest, "messages"),
    ],
)
def test_what_cannot_be_sent_is_refused(change, error, param):
    with pytest.raises(error) as refused:
        encode(replace(ASKED, **change), ENTRY)
    assert refused.value.param == param


async def test_what_the_dialect_lacks_is_refused_whatever_an_entry_claims():
    able = ENTRY.model_copy(update={"capabilities": replace(ABLE, multiple_choices=True, logprobs=True)})
    model = ai_studio({"g": able}, None, "http://127.0.0.1:9")
    for sampling in (Sampling(n=2), Sampling(top_logprobs=1)):
        with pytest.raises(UnsupportedFeature):
            await answer(model, replace(ASKED, sampling=sampling))
    await model.close()
