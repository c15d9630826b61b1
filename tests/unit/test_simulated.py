import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

import pytest

from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.errors import ContextLengthExceeded, DeadlineExceeded, StreamInterrupted, UnsupportedFeature, UpstreamFailed
from models.messages import (
    ChatRequest,
    Finish,
    ImagePart,
    Message,
    Sampling,
    TextDelta,
    TextPart,
    Tool,
    ToolChoice,
    UsageReport,
    fold,
)
from models.simulated import SimulatedModel

CALL = Call("r")
ENTRY = ModelEntry(name="sim", engine="simulated", context_tokens=200)


def ask(text="Why?", **sampling):
    return ChatRequest("sim", (Message("user", (TextPart(text),)),), Sampling(**sampling))


async def events(model, request, call=CALL):
    return [event async for event in model.stream(request, call)]


async def answer(model, request):
    return fold(await events(model, request))


async def test_one_delta_per_token_then_finish_and_usage():
    *deltas, finish, report = await events(SimulatedModel(ENTRY, output_tokens=5), ask("one two three"))
    assert [type(delta) for delta in deltas] == [TextDelta] * 5
    assert sum(delta.tokens for delta in deltas) == 5
    assert len("".join(delta.text for delta in deltas).split()) == 5
    assert finish == Finish("stop")
    assert isinstance(report, UsageReport)
    assert (report.usage.input_tokens, report.usage.output_tokens, report.estimated) == (4, 5, False)


async def test_the_answer_follows_from_question_model_and_seeds():
    model = SimulatedModel(ENTRY)
    first = (await answer(model, ask("Why?"))).text
    assert (await answer(SimulatedModel(ENTRY), replace(ask("Why?"), user="someone"))).text == first
    others = [
        await answer(model, ask("Why not?")),
        await answer(model, ask("Why?", seed=1)),
        await answer(SimulatedModel(ENTRY, seed=1), ask("Why?")),
        await answer(SimulatedModel(ENTRY.model_copy(update={"name": "other"})), ask("Why?")),
        await answer(model, replace(ask(), messages=(Message("system", (TextPart("Be kind."),)), *ask().messages))),
    ]
    assert len({first, *(other.text for other in others)}) == 6


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (SimulatedModel(ENTRY, output_tokens=50), 7),
        (SimulatedModel(ENTRY.model_copy(update={"max_output_tokens": 6}), output_tokens=50), 6),
        (SimulatedModel(ENTRY.model_copy(update={"context_tokens": 7}), output_tokens=50), 5),
    ],
)
async def test_max_tokens_the_entry_and_the_context_limit_the_answer(model, tokens):
    short = await answer(model, ask(max_tokens=7))
    assert (short.finish_reason, short.usage.output_tokens) == ("length", tokens)


async def test_stop_cuts_inside_a_token_and_across_tokens():
    model = SimulatedModel(ENTRY)
    whole = (await answer(model, ask())).text
    for stop in (whole[4:6], whole[20:30]):
        cut = await answer(model, ask(stop=("never", stop)))
        assert cut.text == whole[: whole.index(stop)]
        assert cut.finish_reason == "stop"
        assert cut.usage.output_tokens == 1 + cut.text.count(" ")


async def test_pace():
    model = SimulatedModel(ENTRY, ttft_ms=30, tokens_per_s=1000, output_tokens=20)
    began_s = time.perf_counter()
    async with aclosing(model.stream(ask(), CALL)) as stream:
        await anext(stream)
        first_s = time.perf_counter() - began_s
        rest = [event async for event in stream]
    assert len(rest) == 21
    assert first_s >= 0.03
    assert 0.049 <= time.perf_counter() - began_s < 5.0


async def test_the_deadline_holds():
    model = SimulatedModel(ENTRY, tokens_per_s=1000, output_tokens=1000)
    seen = []
    with pytest.raises(DeadlineExceeded):
        async for event in model.stream(ask(), Call("r", timeout_s=0.03)):
            seen.append(event)
    assert 0 < len(seen) < 100


async def test_a_slow_model_can_be_cancelled():
    task = asyncio.create_task(events(SimulatedModel(ENTRY, ttft_ms=60_000), ask()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def outcome(model, number):
    try:
        return await answer(model, ask(f"Question {number}"))
    except UpstreamFailed:
        return None


async def test_the_share_that_fails_is_the_same_each_time():
    model = SimulatedModel(ENTRY, failure_rate=0.3, output_tokens=2)
    first = [await outcome(model, number) for number in range(400)]
    again = [await outcome(SimulatedModel(ENTRY, failure_rate=0.3, output_tokens=2), number) for number in range(400)]
    assert first == again
    assert 80 < first.count(None) < 160


async def test_failing_after_some_tokens():
    seen = []
    with pytest.raises(StreamInterrupted):
        async for event in SimulatedModel(ENTRY, failure_rate=1, fail_after_tokens=3).stream(ask(), CALL):
            seen.append(event)
    assert len(seen) == 3


async def test_a_required_tool_is_called():
    entry = ENTRY.model_copy(update={"capabilities": Capabilities(tools=True)})
    request = replace(ask(), tools=(Tool("clock"), Tool("map")), tool_choice=ToolChoice("tool", "map"))
    done = await answer(SimulatedModel(entry), request)
    assert (done.finish_reason, done.text) == ("tool_calls", "")
    assert [call.name for call in done.tool_calls] == ["map"]
    assert done.tool_calls[0].arguments.startswith('{"query":')


async def test_limits_and_features_are_refused():
    with pytest.raises(ContextLengthExceeded):
        await events(SimulatedModel(ENTRY), ask("word " * 300))
    with pytest.raises(UnsupportedFeature):
        image = Message("user", (ImagePart("https://x/y.png"),))
        await events(SimulatedModel(ENTRY), ChatRequest("sim", (image,)))


@pytest.mark.parametrize(
    "arguments", [{"failure_rate": 2}, {"unsure_rate": -1}, {"ttft_ms": -1}, {"output_tokens": -1}]
)
def test_wrong_settings_are_refused(arguments):
    with pytest.raises(ValueError, match="failure_rate"):
        SimulatedModel(ENTRY, **arguments)


def test_unknown_settings_and_capabilities_are_named():
    with pytest.raises(TypeError, match="latency"):
        SimulatedModel(ENTRY, latency=3)
    with pytest.raises(ValueError, match="reasoning"):
        SimulatedModel(ENTRY.model_copy(update={"capabilities": Capabilities(reasoning=True)}))


async def test_it_says_how_sure_it_is_to_those_who_ask():
    entry = ENTRY.model_copy(update={"capabilities": Capabilities(logprobs=True)})
    model = SimulatedModel(entry, output_tokens=2, unsure_rate=0.5)
    asked = [await answer(model, ask(f"Question {number}?", top_logprobs=0)) for number in range(60)]
    assert all(len({token.logprob for token in one.logprobs}) == 1 and len(one.logprobs) == 2 for one in asked)
    assert {one.logprobs[0].logprob for one in asked} == {-0.01, -1.0}
    assert (await answer(model, ask())).logprobs == ()


@pytest.mark.parametrize("tokens_per_s", [0, 100])
async def test_a_stamped_token_is_the_moment_at_which_it_leaves(tokens_per_s):
    model = SimulatedModel(ENTRY, output_tokens=3, tokens_per_s=tokens_per_s, stamped=True)
    seen_ns = [time.monotonic_ns()]
    async for event in model.stream(ask(), CALL):
        if isinstance(event, TextDelta):
            left_ns = int(event.text)
            assert seen_ns[-1] <= left_ns <= time.monotonic_ns()
            seen_ns.append(left_ns)
    assert len(seen_ns) == 4
