import inspect

import anthropic
import httpx2
import pytest
from anthropic import _exceptions as sdk_errors
from anthropic._models import construct_type
from anthropic.types import RawMessageStreamEvent

from models.anthropic import AnthropicModel, _Answer, _translated
from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.errors import (
    InvalidRequest,
    ModelUnavailable,
    RateLimited,
    StreamInterrupted,
    SwitchyardError,
    UnsupportedFeature,
    UpstreamFailed,
)
from models.messages import (
    ChatRequest,
    Message,
    ReasoningDelta,
    Sampling,
    TextDelta,
    TextPart,
    ToolCallDelta,
    Usage,
    fold,
)
from models.upstream import UpstreamCall

ENTRY = ModelEntry(name="m", engine="anthropic", source="claude", context_tokens=1024)
USER = Message("user", (TextPart("Hello"),))

# ---- the client --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling", [Sampling(n=2), Sampling(seed=1), Sampling(top_logprobs=1), Sampling(presence_penalty=1.0)]
)
async def test_what_the_api_lacks_is_refused_even_where_an_entry_claims_it(sampling):
    able = Capabilities(multiple_choices=True, seed=True, logprobs=True, penalties=True)
    model = AnthropicModel({"m": ENTRY.model_copy(update={"capabilities": able})}, "key")
    with pytest.raises(UnsupportedFeature):
        await anext(model.stream(ChatRequest("m", (USER,), sampling), Call("r")))
    await model.close()


def test_nothing_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "other")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://other")
    client = AnthropicModel({"m": ENTRY}, None)._client
    assert (client.api_key, str(client.base_url)) == ("none", "https://api.anthropic.com")


# ---- the answer ----------------------------------------------------------------------------------------------------


def read(*raw):
    answer = _Answer()
    events = [event for one in raw for event in answer.read(construct_type(type_=RawMessageStreamEvent, value=one))]
    return events, answer


def start(**usage):
    message = {"id": "1", "type": "message", "role": "assistant", "content": [], "model": "m", "usage": usage}
    return {"type": "message_start", "message": message}


def block(index, block, *deltas):
    return [
        {"type": "content_block_start", "index": index, "content_block": block},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def end(reason, **usage):
    delta = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 1, **usage}}
    return [delta, {"type": "message_stop"}]


def test_thinking_text_and_tools_in_one_answer():
    arguments = ['{"city" :', ' "Köln"}']
    events, answer = read(
        start(input_tokens=5, output_tokens=1),
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "hm"},
            {"type": "signature_delta", "signature": "sig"},
        ),
        *block(1, {"type": "redacted_thinking", "data": "secret"}),
        *block(2, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Hé"}),
        *block(
            3,
            {"type": "tool_use", "id": "a", "name": "one", "input": {}},
            *({"type": "input_json_delta", "partial_json": piece} for piece in ["", *arguments]),
        ),
        *block(4, {"type": "tool_use", "id": "b", "name": "two", "input": {}}),
        *end("tool_use"),
    )
    assert events == [
        ReasoningDelta("hm"),
        ReasoningDelta("", "sig"),
        ReasoningDelta("", redacted="secret"),
        TextDelta("Hé"),
        ToolCallDelta(0, "a", "one"),
        *(ToolCallDelta(0, arguments=piece) for piece in arguments),
        ToolCallDelta(1, "b", "two"),
        ToolCallDelta(1, arguments="{}"),
    ]
    assert fold(events).tool_calls[0].arguments == "".join(arguments)
    assert answer.finish == "tool_calls"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
    ],
)
def test_stop_reasons(reason, expected):
    assert read(start(input_tokens=1, output_tokens=1), *end(reason))[1].finish == expected


def test_every_stop_reason_of_the_sdk_is_known():
    from typing import get_args

    from anthropic.types import StopReason

    from models.anthropic import _FINISH

    assert set(get_args(StopReason)) == _FINISH.keys()


def test_an_answer_that_did_not_stop_has_no_finish():
    assert read(start(input_tokens=1, output_tokens=1))[1].finish is None


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ({"input_tokens": 5, "output_tokens": 1}, {"output_tokens": 7}, Usage(5, 7)),
        ({"input_tokens": 0, "output_tokens": 0}, {"input_tokens": 5, "output_tokens": 7}, Usage(5, 7)),
        (
            {"input_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 30, "output_tokens": 1},
            {"output_tokens": 7},
            Usage(135, 7, cached_input_tokens=100, cache_write_5m_tokens=30),
        ),
        (
            {
                "input_tokens": 5,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 30,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
                "output_tokens": 1,
            },
            {
                "input_tokens": 6,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 30,
                "output_tokens": 7,
                "output_tokens_details": {"thinking_tokens": 4},
            },
            Usage(136, 7, 100, 10, 20, 4),
        ),
    ],
)
def test_input_counts_what_the_cache_read_and_wrote(first, last, expected):
    assert read(start(**first), *end("end_turn", **last))[1].usage == expected


# ---- the SDK's exceptions ------------------------------------------------------------------------------------------


def every_sdk_exception():
    """Each exception class that the SDK defines, wherever in it."""
    found, queue = [], [sdk_errors.AnthropicError]
    while queue:
        cls = queue.pop()
        found.append(cls)
        queue += [sub for sub in cls.__subclasses__() if sub.__module__.startswith("anthropic") and sub not in found]
    return sorted(set(found), key=lambda cls: cls.__name__)


def instance(cls):
    request = httpx2.Request("POST", "http://x")
    body = {"error": {"message": "sk-secret"}}
    if issubclass(cls, anthropic.APIStatusError):
        status = getattr(cls, "status_code", 500)
        response = httpx2.Response(status if isinstance(status, int) else 500, request=request)
        return cls("sk-secret", response=response, body=body)
    if issubclass(cls, anthropic.APIResponseValidationError):
        return cls(httpx2.Response(200, request=request), body)
    if issubclass(cls, anthropic.APITimeoutError):
        return cls(request)
    if issubclass(cls, anthropic.APIConnectionError):
        return cls(request=request)
    if issubclass(cls, anthropic.APIError):
        return cls("sk-secret", request, body=body)
    return cls.__new__(cls, "sk-secret")  # constructors of all kinds, for faults of the program and not of the wire


async def translated(error, started=False):
    upstream = UpstreamCall("m", 10.0)
    upstream.started = started
    with pytest.raises(SwitchyardError) as raised, _translated(upstream):
        raise error
    return raised.value


@pytest.mark.parametrize("cls", every_sdk_exception())
async def test_every_exception_of_the_sdk_is_translated(cls):
    error = await translated(instance(cls))
    assert "secret" not in error.message
    exact = {
        anthropic.AuthenticationError: ModelUnavailable,
        anthropic.APIConnectionError: ModelUnavailable,
        anthropic.APITimeoutError: ModelUnavailable,
        anthropic.RateLimitError: RateLimited,
        anthropic.BadRequestError: InvalidRequest,
        anthropic.InternalServerError: UpstreamFailed,
        anthropic.OverloadedError: UpstreamFailed,
    }
    assert type(error) is exact.get(cls, type(error))


def test_the_exceptions_were_found():
    exported = [cls for _, cls in inspect.getmembers(anthropic, inspect.isclass) if issubclass(cls, Exception)]
    assert set(exported) <= set(every_sdk_exception())
    assert len(every_sdk_exception()) > 30


@pytest.mark.parametrize(
    "cls", [httpx2.ReadError, httpx2.RemoteProtocolError, httpx2.ReadTimeout, httpx2.DecodingError]
)
async def test_the_transport_errors_that_the_sdk_lets_through(cls):
    assert type(await translated(cls("sk-secret"))) is UpstreamFailed
    assert type(await translated(cls("sk-secret"), started=True)) is StreamInterrupted


async def test_an_event_of_the_wrong_shape():
    assert type(await translated(AttributeError("type"))) is UpstreamFailed
