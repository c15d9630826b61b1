"""Each way a provider can fail ends in the right error, in time, and hands on nothing that the provider wrote."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import pytest

from models.anthropic import AnthropicModel
from models.base import Call, ChatModel
from models.catalog import ModelEntry
from models.errors import (
    BodyTooLarge,
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    ModelUnavailable,
    RateLimited,
    StreamInterrupted,
    SwitchyardError,
    UpstreamFailed,
)
from models.messages import ChatRequest, Event, Finish, Message, TextDelta, TextPart, Usage, UsageReport
from models.openai_compatible import OpenAICompatibleModel

SECRET = "sk-secret-key"
REQUEST = ChatRequest("m", (Message("user", (TextPart("Hello"),)),))
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Dialect:
    """A provider's side of the wire: `head` brings the first event 'Hé', `tail` the rest of a good answer."""

    name: str
    head: bytes
    tail: bytes
    malformed: bytes
    error_event: bytes
    overflow: str

    def model(self, url: str) -> ChatModel:
        if self.name == "anthropic":
            return AnthropicModel({"m": ModelEntry(name="m", engine="anthropic", context_tokens=1024)}, SECRET, url)
        entry = ModelEntry(name="m", engine="openai_compatible", context_tokens=1024)
        return OpenAICompatibleModel({"m": entry}, f"{url}/v1", SECRET)


OPENAI = Dialect(
    "openai",
    head=(
        b': a comment\r\n\r\ndata: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\r\n\r\n'
        + 'data: {"choices":[{"index":0,"delta":{"content":"Hé"}}]}\n\n'.encode()
    ),
    tail=(
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,'
        b'"prompt_tokens_details":{"cached_tokens":4}}}\n\ndata: [DONE]\n\n'
    ),
    malformed=b'data: {"choices":[{"index":0,"del\n\n',
    error_event=b'data: {"error":{"message":"sk-secret-key","code":500}}\n\n',
    overflow='{"error":{"message":"%s","type":"invalid_request_error","code":"context_length_exceeded"}}',
)
ANTHROPIC = Dialect(
    "anthropic",
    head=(
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"1","type":"message","role":"assistant",'
        b'"content":[],"model":"m","usage":{"input_tokens":5,"cache_read_input_tokens":4,"output_tokens":1}}}\n\n'
        b"event: ping\ndata: {}\n\n"
        b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        b'"content_block":{"type":"text","text":""}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        + '"delta":{"type":"text_delta","text":"Hé"}}\n\n'.encode()
    ),
    tail=(
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        b'"usage":{"output_tokens":2}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
    ),
    malformed=b'event: content_block_delta\ndata: {"type":"content_blo\n\n',
    error_event=(
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"sk-secret-key"}}\n\n'
    ),
    overflow='{"type":"error","error":{"type":"invalid_request_error",'
    '"message":"prompt is too long: 210000 tokens > 200000 maximum %s"}}',
)


@pytest.fixture(params=[OPENAI, ANTHROPIC], ids=lambda dialect: dialect.name)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return request.param


@asynccontextmanager
async def provider(dialect: Dialect, script: Script) -> AsyncIterator[ChatModel]:
    """A model whose provider reads each request and then does what `script` says."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [
                line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
            ]
            await reader.readexactly(int(lengths[0]) if lengths else 0)
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the model hung up
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    model = dialect.model(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield model
    finally:
        await model.close()
        server.close()


def answers(status: int, body: str = "", headers: str = "") -> Script:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = body.encode()
        writer.write(f"HTTP/1.1 {status} Status\r\ncontent-length: {len(data)}\r\n{headers}\r\n".encode() + data)
        await writer.drain()

    return script


def streams(*pieces: bytes, ends: bool = True, then_waits_for: asyncio.Event | None = None) -> Script:
    """Sends a chunked stream of `pieces`; without `ends` it hangs up in the middle of a chunk."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        if then_waits_for:
            await reader.read()  # until the model hangs up
            then_waits_for.set()
        writer.write(b"0\r\n\r\n" if ends else b"ff\r\ndata: {")
        await writer.drain()

    return script


async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def collect(model: ChatModel, events: list[Event], timeout_s: float = 5.0) -> None:
    async for event in model.stream(REQUEST, Call("r", timeout_s=timeout_s)):
        events.append(event)


async def failure(model: ChatModel, timeout_s: float = 5.0) -> tuple[list[Event], SwitchyardError]:
    """The events before the error, and the error, which must come in time and hold nothing of the provider's text."""
    events: list[Event] = []
    began_s = time.monotonic()
    with pytest.raises(SwitchyardError) as raised:
        await collect(model, events, timeout_s)
    assert time.monotonic() - began_s < timeout_s + 0.5
    assert "secret" not in raised.value.message
    return events, raised.value


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_any_split_of_the_bytes_gives_the_same_events(dialect: Dialect, size: int) -> None:
    body = dialect.head + dialect.tail
    events: list[Event] = []
    async with provider(dialect, streams(*(body[at : at + size] for at in range(0, len(body), size)))) as model:
        await collect(model, events)
    assert events == [TextDelta("Hé"), Finish("stop"), UsageReport(Usage(9, 2, cached_input_tokens=4))]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, '{"error":{"message":"%s","param":"stop","type":"invalid_request_error"}}', InvalidRequest),
        (400, "%s", InvalidRequest),
        (401, '{"error":{"message":"%s"}}', ModelUnavailable),
        (402, '{"error":{"message":"%s"}}', ModelUnavailable),
        (403, '{"error":{"message":"%s"}}', ModelUnavailable),
        (404, '{"error":{"message":"%s"}}', ModelUnavailable),
        (413, '{"error":{"message":"%s"}}', BodyTooLarge),
        (429, '{"error":{"message":"%s"}}', RateLimited),
        (429, '{"error":{"message":"%s","code":"insufficient_quota"}}', ModelUnavailable),
        (500, '{"error":{"message":"%s"}}', UpstreamFailed),
        (503, "<html>%s</html>", UpstreamFailed),
        (529, '{"error":{"message":"%s"}}', UpstreamFailed),
        (307, "%s", UpstreamFailed),
    ],
)
async def test_statuses(dialect: Dialect, status: int, body: str, expected: type[SwitchyardError]) -> None:
    async with provider(dialect, answers(status, body % SECRET)) as model:
        events, error = await failure(model)
    assert (events, type(error)) == ([], expected)


async def test_a_refused_key_is_the_operators_matter(dialect: Dialect) -> None:
    async with provider(dialect, answers(401, f'{{"error":{{"message":"wrong key {SECRET}"}}}}')) as model:
        _, error = await failure(model)
        assert "provider's key" in error.message
        with pytest.raises(ModelUnavailable):
            await model.check_health()


async def test_a_prompt_that_is_too_long(dialect: Dialect) -> None:
    async with provider(dialect, answers(400, dialect.overflow % SECRET)) as model:
        _, error = await failure(model)
    assert type(error) is ContextLengthExceeded


async def test_a_rate_limit_says_when_to_come_back(dialect: Dialect) -> None:
    async with provider(dialect, answers(429, "{}", "retry-after: 7\r\n")) as model:
        _, error = await failure(model)
    assert (type(error), error.retry_after_s) == (RateLimited, 7.0)


async def test_nobody_listens(dialect: Dialect) -> None:
    model = dialect.model("http://127.0.0.1:9")
    _, error = await failure(model)
    assert type(error) is ModelUnavailable
    with pytest.raises(ModelUnavailable):
        await model.check_health()
    await model.close()


async def test_no_answer_within_the_time(dialect: Dialect) -> None:
    async with provider(dialect, silence) as model:
        events, error = await failure(model, timeout_s=0.3)
    assert (events, type(error)) == ([], DeadlineExceeded)


async def test_a_stall_in_the_answer(dialect: Dialect) -> None:
    hung_up = asyncio.Event()
    async with provider(dialect, streams(dialect.head, then_waits_for=hung_up)) as model:
        events, error = await failure(model, timeout_s=0.3)
        await asyncio.wait_for(hung_up.wait(), 1.0)
    assert (events, type(error)) == ([TextDelta("Hé")], DeadlineExceeded)


async def test_closing_the_iterator_hangs_up(dialect: Dialect) -> None:
    hung_up = asyncio.Event()
    async with provider(dialect, streams(dialect.head, then_waits_for=hung_up)) as model:
        async with aclosing(model.stream(REQUEST, Call("r"))) as events:
            assert await anext(events) == TextDelta("Hé")
        await asyncio.wait_for(hung_up.wait(), 0.5)


async def test_nothing_but_a_hang_up(dialect: Dialect) -> None:
    async def hang_up(*_: object) -> None:
        return

    async with provider(dialect, hang_up) as model:
        events, error = await failure(model)
    assert events == [] and type(error) in (UpstreamFailed, ModelUnavailable) and error.retryable


@pytest.mark.parametrize("kind", ["cut", "ended", "malformed", "error_event"])
async def test_before_the_first_event_a_failure_may_be_retried(dialect: Dialect, kind: str) -> None:
    pieces = {"malformed": (dialect.malformed,), "error_event": (dialect.error_event,)}.get(kind, ())
    async with provider(dialect, streams(*pieces, ends=kind != "cut")) as model:
        events, error = await failure(model)
    assert (events, type(error)) == ([], UpstreamFailed)


@pytest.mark.parametrize("kind", ["cut", "ended", "malformed", "error_event"])
async def test_after_the_first_event_the_stream_is_interrupted(dialect: Dialect, kind: str) -> None:
    pieces = {"malformed": (dialect.malformed,), "error_event": (dialect.error_event,)}.get(kind, ())
    async with provider(dialect, streams(dialect.head, *pieces, ends=kind != "cut")) as model:
        events, error = await failure(model)
    assert (events, type(error)) == ([TextDelta("Hé")], StreamInterrupted)
