"""What every `ChatModel` promises (`models/base.py`), held against each of them."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from models.base import Call
from models.errors import ContextLengthExceeded, DeadlineExceeded, ModelUnavailable, UnsupportedFeature
from models.messages import (
    ChatRequest,
    Completion,
    Event,
    Finish,
    ImagePart,
    Message,
    ResponseFormat,
    Sampling,
    TextDelta,
    TextPart,
    Tool,
    UsageReport,
    fold,
)
from tests.contract.conftest import Subject
from tests.vllm_server import CONTEXT_TOKENS

# vLLM's engine belongs to the loop that it was started on.
pytestmark = pytest.mark.asyncio(loop_scope="session")

SOON_S = 4.0  # a second, and what a machine takes that starts a cluster beside these tests
CALL = Call("request-1", tenant="acme", timeout_s=60.0)


def ask(subject: Subject, text: str = "Why is the sky blue?", **sampling: object) -> ChatRequest:
    messages = (Message("system", (TextPart("Answer briefly."),)), Message("user", (TextPart(text),)))
    defaults = {"max_tokens": 16, "temperature": 0.0}
    return ChatRequest(subject.entry.name, messages, Sampling(**(defaults | sampling)))


async def answer(subject: Subject, request: ChatRequest) -> list[Event]:
    return [event async for event in subject.model.stream(request, CALL)]


async def complete(subject: Subject, request: ChatRequest) -> Completion:
    return fold(await answer(subject, request))


async def idle(subject: Subject, within_s: float) -> bool:
    give_up_s = time.monotonic() + within_s
    while await asyncio.to_thread(subject.running):
        if time.monotonic() > give_up_s:
            return False
        await asyncio.sleep(0.02)
    return True


async def test_a_stream_is_deltas_then_finish_then_usage(subject: Subject) -> None:
    events = await answer(subject, ask(subject))
    *deltas, finish, report = events
    assert isinstance(deltas[0], TextDelta)
    if len(deltas) > 1 and isinstance(deltas[1], UsageReport):  # early, of the prompt
        assert deltas.pop(1).estimated
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    assert isinstance(finish, Finish)
    assert isinstance(report, UsageReport) and not report.estimated
    assert fold(events).text.strip()


async def test_max_tokens_ends_with_length(subject: Subject) -> None:
    short = await complete(subject, ask(subject, max_tokens=3))
    long = await complete(subject, ask(subject, max_tokens=9))
    assert (short.finish_reason, short.usage.output_tokens) == ("length", 3)
    assert (long.finish_reason, long.usage.output_tokens) == ("length", 9)
    assert long.text.startswith(short.text)


async def test_stop_ends_before_the_sequence(subject: Subject) -> None:
    whole = await complete(subject, ask(subject))
    stop = whole.text[5:8]
    assert len(stop) == 3
    stopped = await complete(subject, ask(subject, stop=(stop,)))
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[: whole.text.index(stop)]


async def test_usage_counts_the_question_and_the_answer(subject: Subject) -> None:
    one = await complete(subject, ask(subject, "one " * 10))
    more = await complete(subject, ask(subject, "one " * 60))
    assert 10 <= one.usage.input_tokens < more.usage.input_tokens < CONTEXT_TOKENS
    assert more.usage.input_tokens - one.usage.input_tokens >= 50
    assert 0 < one.usage.output_tokens <= 16
    assert one.usage.cached_input_tokens <= one.usage.input_tokens


async def test_greedy_answers_repeat_and_depend_on_the_question(subject: Subject) -> None:
    first, again = [await complete(subject, ask(subject)) for _ in range(2)]
    other = await complete(subject, ask(subject, "How deep is the sea?"))
    assert first.text == again.text
    assert first.text != other.text


async def test_an_earlier_conversation_counts(subject: Subject) -> None:
    alone = ask(subject)
    turns = (
        Message("user", (TextPart("Hello."),)),
        Message("assistant", (TextPart("Good day."),)),
        *alone.messages[1:],
    )
    after = ChatRequest(alone.model, (alone.messages[0], *turns), alone.sampling)
    assert (await complete(subject, after)).usage.input_tokens > (await complete(subject, alone)).usage.input_tokens


async def test_closing_the_iterator_stops_the_work(subject: Subject) -> None:
    async with aclosing(subject.model.stream(ask(subject, max_tokens=600), CALL)) as events:
        await anext(events)
    assert await idle(subject, within_s=SOON_S)
    assert (await complete(subject, ask(subject))).finish_reason


async def test_cancelling_the_task_stops_the_work(subject: Subject) -> None:
    arrived = asyncio.Event()

    async def drive() -> None:
        async for _ in subject.model.stream(ask(subject, max_tokens=600), CALL):
            arrived.set()

    task = asyncio.create_task(drive())
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await idle(subject, within_s=SOON_S)


async def test_a_call_ends_at_its_deadline(subject: Subject) -> None:
    began_s = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        async for _ in subject.model.stream(ask(subject, max_tokens=900), Call("late", timeout_s=0.05)):
            pass
    assert time.monotonic() - began_s < SOON_S
    assert await idle(subject, within_s=SOON_S)


async def test_eight_at_once(subject: Subject) -> None:
    requests = [ask(subject, f"Question number {number}?", max_tokens=12) for number in range(8)]
    answers = await asyncio.gather(*(complete(subject, request) for request in requests))
    assert all(one.finish_reason and one.usage.output_tokens <= 12 for one in answers)
    assert len({one.text for one in answers}) > 1


async def test_a_prompt_beyond_the_context_is_refused(subject: Subject) -> None:
    with pytest.raises(ContextLengthExceeded):
        await answer(subject, ask(subject, "word " * 3 * CONTEXT_TOKENS))


@pytest.mark.parametrize(
    ("param", "change"),
    [
        ("tools", {"tools": (Tool("clock"),)}),
        ("messages", {"messages": (Message("user", (ImagePart("data:image/png;base64,AA=="),)),)}),
        ("response_format", {"response_format": ResponseFormat("json_object")}),
        ("response_format", {"response_format": ResponseFormat("json_schema", "shape", "{}")}),
        ("reasoning_effort", {"reasoning_effort": "high"}),
        ("logprobs", {"sampling": Sampling(top_logprobs=2)}),
        ("n", {"sampling": Sampling(n=2)}),
        ("presence_penalty", {"sampling": Sampling(presence_penalty=1.0)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_a_model_cannot_do_is_refused(subject: Subject, param: str, change: dict[str, object]) -> None:
    plain = ask(subject)
    parts = {"messages": plain.messages, "sampling": plain.sampling} | change
    with pytest.raises(UnsupportedFeature) as refused:
        await answer(subject, ChatRequest(plain.model, **parts))
    assert refused.value.param == param


async def test_the_count_of_running_requests_is_real(engine: Subject) -> None:
    """What the tests of cancelling rest on."""
    async with aclosing(engine.model.stream(ask(engine, max_tokens=900), CALL)) as events:
        await anext(events)
        assert await asyncio.to_thread(engine.running) == 1


async def test_both_dialects_give_one_answer(openai_compatible: Subject, anthropic: Subject) -> None:
    subjects = (openai_compatible, anthropic)
    one, other = [await complete(subject, ask(subject, max_tokens=40)) for subject in subjects]
    assert one.text == other.text
    assert one.usage == other.usage
    assert one.finish_reason == other.finish_reason


async def test_health_and_close(subject: Subject) -> None:
    """The last test, after which vLLM's engine would have to start again."""
    await subject.model.check_health()
    await subject.model.close()
    await subject.model.close()
    with pytest.raises(ModelUnavailable):
        await subject.model.check_health()
    with pytest.raises(ModelUnavailable):
        await answer(subject, ask(subject))
