"""Each way a provider can fail ends in the right error, in time, and hands on nothing that the provider wrote."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from models.base import Call, ChatModel
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
from tests.contract.fault_server import (
    ANTHROPIC,
    DIALECTS,
    SECRET,
    Dialect,
    Script,
    answers,
    listening,
    silence,
    streams,
)

REQUEST = ChatRequest("m", (Message("user", (TextPart("Hello"),)),))


@pytest.fixture(params=DIALECTS, ids=lambda dialect: dialect.name)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return request.param


@asynccontextmanager
async def provider(dialect: Dialect, script: Script) -> AsyncIterator[ChatModel]:
    """A model whose provider reads each request and then does what `script` says."""
    async with listening(script) as url:
        model = dialect.model(url)
        try:
            yield model
        finally:
            await model.close()


async def collect(model: ChatModel, events: list[Event], timeout_s: float = 5.0) -> None:
    """What a model yields, but for what it says early of the prompt."""
    async for event in model.stream(REQUEST, Call("r", timeout_s=timeout_s)):
        if not (isinstance(event, UsageReport) and event.estimated):
            events.append(event)


async def failure(model: ChatModel, timeout_s: float = 5.0) -> tuple[list[Event], SwitchyardError]:
    """The events before the error, and the error, which must come in time and hold nothing of the provider's text."""
    events: list[Event] = []
    began_s = time.monotonic()
    with pytest.raises(SwitchyardError) as raised:
        await collect(model, events, timeout_s)
    assert time.monotonic() - began_s < timeout_s + 3.0
    assert "secret" not in raised.value.message
    return events, raised.value


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_any_split_of_the_bytes_gives_the_same_events(dialect: Dialect, size: int) -> None:
    body = dialect.head + dialect.tail
    events: list[Event] = []
    async with provider(dialect, streams(*(body[at : at + size] for at in range(0, len(body), size)))) as model:
        await collect(model, events)
    assert events == [TextDelta("Hé"), Finish("stop"), UsageReport(dialect.usage)]


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
    if dialect.name == "gemini" and "insufficient_quota" in body:
        expected = RateLimited  # Google says it in words of its own, see tests/unit/test_gemini.py
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
        await asyncio.wait_for(hung_up.wait(), 20.0)
    assert (events, type(error)) == ([TextDelta("Hé")], DeadlineExceeded)


async def test_what_the_prompt_took_is_known_when_the_answer_breaks_off() -> None:
    """Of the dialects, Anthropic's alone tells it at the beginning."""
    events: list[Event] = []
    async with provider(ANTHROPIC, streams(ANTHROPIC.head, ends=False)) as model:
        with pytest.raises(StreamInterrupted):
            async for event in model.stream(REQUEST, Call("r")):
                events.append(event)
    assert events == [TextDelta("Hé"), UsageReport(Usage(9, 1, cached_input_tokens=4), estimated=True)]


async def test_closing_the_iterator_hangs_up(dialect: Dialect) -> None:
    hung_up = asyncio.Event()
    async with provider(dialect, streams(dialect.head, then_waits_for=hung_up)) as model:
        async with aclosing(model.stream(REQUEST, Call("r"))) as events:
            assert await anext(events) == TextDelta("Hé")
        await asyncio.wait_for(hung_up.wait(), 20.0)


async def test_nothing_but_a_hang_up(dialect: Dialect) -> None:
    async def leave(*_: object) -> None:
        return

    async with provider(dialect, leave) as model:
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
