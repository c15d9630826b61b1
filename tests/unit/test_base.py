import asyncio
from contextlib import aclosing
from dataclasses import fields, replace

import pytest

from models.base import Capabilities, check_supported, merged
from models.errors import StreamInterrupted, UnsupportedFeature
from models.messages import (
    ChatRequest,
    Finish,
    ImagePart,
    Message,
    ResponseFormat,
    Sampling,
    TextDelta,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
)

# ---- merged --------------------------------------------------------------------------------------------------------


class Source:
    """Events on demand, and a note of being closed."""

    def __init__(self) -> None:
        self.queue = asyncio.Queue()
        self.closed = False

    async def events(self):
        try:
            while (event := await self.queue.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.closed = True

    async def put(self, *events):
        for event in events:
            self.queue.put_nowait(event)
        for _ in range(5 + len(events)):  # let them travel, without the clock
            await asyncio.sleep(0)


def deltas(*texts):
    return [TextDelta(text) for text in texts]


async def test_the_first_event_goes_out_at_once():
    source = Source()
    async with aclosing(merged(source.events())) as batches:
        await source.put(*deltas("a"))
        assert await asyncio.wait_for(anext(batches), 20) == deltas("a")


async def test_events_merge_only_while_the_consumer_is_busy():
    source = Source()
    async with aclosing(merged(source.events())) as batches:
        await source.put(*deltas("a"))
        assert await anext(batches) == deltas("a")
        await source.put(*deltas("b", "c", "d"))  # the consumer is sending
        assert await anext(batches) == deltas("b", "c", "d")
        waiting = asyncio.create_task(anext(batches))
        await source.put(*deltas("e"))  # the consumer waits
        assert await waiting == deltas("e")


async def test_no_event_is_lost_or_reordered_at_any_pace():
    async def events():
        for number in range(500):
            if number % 7 == 0:
                await asyncio.sleep(0)
            yield TextDelta(str(number))
        yield Finish("stop")

    seen = []
    async for batch in merged(events()):
        assert batch
        seen += batch
        if len(seen) % 3 == 0:
            await asyncio.sleep(0)
    assert seen == [*deltas(*map(str, range(500))), Finish("stop")]


async def test_an_empty_source_gives_no_batch():
    source = Source()
    source.queue.put_nowait(None)
    assert [batch async for batch in merged(source.events())] == []


async def test_what_the_source_raises_comes_after_what_it_yielded():
    source = Source()
    await source.put(*deltas("a", "b"), StreamInterrupted("cut"))
    seen = []
    with pytest.raises(StreamInterrupted, match="cut"):
        async for batch in merged(source.events()):
            seen += batch
    assert seen == deltas("a", "b")


async def test_an_error_before_the_first_event_is_raised():
    source = Source()
    await source.put(StreamInterrupted("cut"))
    with pytest.raises(StreamInterrupted):
        await anext(merged(source.events()))


async def test_closing_closes_the_source():
    source = Source()
    batches = merged(source.events())
    await source.put(*deltas("a"))
    await anext(batches)
    await batches.aclose()
    assert source.closed


async def test_cancelling_the_consumer_closes_the_source():
    source = Source()

    async def consume():
        async with aclosing(merged(source.events())) as batches:
            async for _ in batches:
                pass

    task = asyncio.create_task(consume())
    await source.put(*deltas("a"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.closed


async def test_an_error_nobody_stayed_for_makes_no_noise():
    source = Source()
    batches = merged(source.events())
    await source.put(*deltas("a"))
    await anext(batches)
    await source.put(StreamInterrupted("cut"))
    await batches.aclose()  # warnings are errors: an exception never retrieved would fail this


# ---- check_supported -----------------------------------------------------------------------------------------------

NOTHING = replace(Capabilities(), **{field.name: False for field in fields(Capabilities)})
USER = Message("user", (TextPart("hi"),))
PLAIN = ChatRequest("m", (USER,))
ASKING = {
    "tools": (replace(PLAIN, tools=(Tool("t"),)), "tools"),
    "images": (replace(PLAIN, messages=(Message("user", (ImagePart("https://x/y.png"),)),)), "messages"),
    "json_object": (replace(PLAIN, response_format=ResponseFormat("json_object")), "response_format"),
    "json_schema": (replace(PLAIN, response_format=ResponseFormat("json_schema")), "response_format"),
    "logprobs": (replace(PLAIN, sampling=Sampling(top_logprobs=0)), "logprobs"),
    "reasoning": (replace(PLAIN, reasoning_effort="low"), "reasoning_effort"),
    "multiple_choices": (replace(PLAIN, sampling=Sampling(n=2)), "n"),
    "seed": (replace(PLAIN, sampling=Sampling(seed=0)), "seed"),
    "logit_bias": (replace(PLAIN, sampling=Sampling(logit_bias=((5, -100.0),))), "logit_bias"),
    "verbosity": (replace(PLAIN, verbosity="low"), "verbosity"),
    "penalties": (replace(PLAIN, sampling=Sampling(frequency_penalty=0.5)), "presence_penalty"),
    "temperature": (replace(PLAIN, sampling=Sampling(temperature=0.0)), "temperature"),
    "top_k": (replace(PLAIN, sampling=Sampling(top_k=5)), "top_k"),
    "thinking_budget": (replace(PLAIN, thinking=Thinking("budget", 1024)), "thinking.budget_tokens"),
    "prefill": (replace(PLAIN, prefill=True), "messages"),
}


def test_every_capability_is_asked_for_here():
    assert ASKING.keys() == {field.name for field in fields(Capabilities)}


@pytest.mark.parametrize("feature", ASKING)
def test_what_is_not_set_is_refused_and_what_is_set_passes(feature):
    request, param = ASKING[feature]
    with pytest.raises(UnsupportedFeature, match=feature.replace("_", " ")) as refused:
        check_supported(request, NOTHING, "m")
    assert (refused.value.param, refused.value.http_status) == (param, 400)
    check_supported(request, replace(NOTHING, **{feature: True}), "m")


def test_a_plain_question_needs_nothing():
    check_supported(PLAIN, NOTHING, "m")
    check_supported(replace(PLAIN, response_format=ResponseFormat("text")), NOTHING, "m")
    check_supported(replace(PLAIN, reasoning_effort="none"), NOTHING, "m")


@pytest.mark.parametrize(
    "message", [Message("assistant", tool_calls=(ToolCall("1", "t", "{}"),)), Message("tool", tool_call_id="1")]
)
def test_tool_turns_in_the_history_need_tools(message):
    with pytest.raises(UnsupportedFeature):
        check_supported(replace(PLAIN, messages=(USER, message)), NOTHING, "m")
