"""What some models can do and others refuse: several choices, log probabilities, JSON in a schema, tools.

The same weights answer in all of them, so vLLM's own server is the word that the others are held against.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.errors import UnsupportedFeature
from models.messages import (
    ChatRequest,
    Completion,
    Event,
    Finish,
    Message,
    ResponseFormat,
    Sampling,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    UsageReport,
    fold,
)
from models.openai_compatible import OpenAICompatibleModel
from models.transformers_engine import TransformersChatModel
from models.vllm_engine import VllmModel
from tests.contract.conftest import _VLLM, Subject, VllmEngine
from tests.vllm_server import CONTEXT_TOKENS, MODEL, running_requests

pytestmark = pytest.mark.asyncio(loop_scope="session")

SAMPLES = Capabilities(logprobs=True, multiple_choices=True, penalties=True, logit_bias=True)
ALL = replace(SAMPLES, tools=True, json_object=True, json_schema=True)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Zürich"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = Tool("weather", "Tells the weather.", json.dumps(SCHEMA))
CLOCK = Tool("clock", "", '{"type": "object", "properties": {}, "additionalProperties": false}')


@pytest_asyncio.fixture(loop_scope="session")
async def transformers(smoke_folder: Path) -> AsyncIterator[Subject]:
    entry = _entry("transformers", SAMPLES)
    model = TransformersChatModel(entry, str(smoke_folder), kv_cache_gb=0.05)
    yield Subject(model, entry, lambda: 0)
    await model.close()


@pytest_asyncio.fixture(loop_scope="session")
async def vllm(vllm_in_process: VllmEngine) -> Subject:
    serving = await vllm_in_process.serving()
    entry = _entry("vllm", ALL)
    return Subject(VllmModel(entry, serving), entry, serving.engine_client.get_num_unfinished_requests)


@pytest_asyncio.fixture(loop_scope="session")
async def openai_compatible(vllm_url: str) -> AsyncIterator[Subject]:
    entry = _entry("openai_compatible", ALL)
    model = OpenAICompatibleModel({entry.name: entry}, f"{vllm_url}/v1", None)
    yield Subject(model, entry, lambda: running_requests(vllm_url))
    await model.close()


def _entry(engine: Any, capabilities: Capabilities) -> ModelEntry:
    return ModelEntry(
        name="m", engine=engine, source=MODEL, context_tokens=CONTEXT_TOKENS, dtype="float32", capabilities=capabilities
    )


@pytest.fixture(params=["transformers", _VLLM, "openai_compatible"])
def sampler(request: pytest.FixtureRequest) -> Subject:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[_VLLM, "openai_compatible"])
def caller(request: pytest.FixtureRequest) -> Subject:
    return request.getfixturevalue(request.param)


def ask(text: str = "What is the weather?", *, sampling: dict[str, Any] | None = None, **more: Any) -> ChatRequest:
    settings = {"max_tokens": 200, "temperature": 0.0, **(sampling or {})}
    return ChatRequest("m", (Message("user", (TextPart(text),)),), Sampling(**settings), **more)


async def events_of(subject: Subject, request: ChatRequest) -> list[Event]:
    return [event async for event in subject.model.stream(request, Call("request-1", timeout_s=60.0))]


async def complete(subject: Subject, request: ChatRequest) -> Completion:
    return fold(await events_of(subject, request))


# ---- sampling ------------------------------------------------------------------------------------------------------


async def test_every_choice_has_its_own_text_and_end(sampler: Subject) -> None:
    events = await events_of(sampler, ask(sampling={"n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 24}))
    answer = fold(events)
    assert len(answer.choices) == 3
    assert len({choice.text for choice in answer.choices}) == 3
    assert all(choice.finish_reason in ("stop", "length") for choice in answer.choices)
    assert sorted(event.choice for event in events if isinstance(event, Finish)) == [0, 1, 2]
    assert isinstance(events[-1], UsageReport)
    assert 3 < answer.usage.output_tokens <= 3 * 24


@pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")
async def test_seeded_choices_are_those_of_vllms_own_server(vllm: Subject, openai_compatible: Subject) -> None:
    request = ask(sampling={"n": 2, "temperature": 1.0, "seed": 7, "max_tokens": 24})
    ours, theirs = [await complete(subject, request) for subject in (vllm, openai_compatible)]
    assert [choice.text for choice in ours.choices] == [choice.text for choice in theirs.choices]


async def test_log_probabilities_are_those_of_vllms_own_server(sampler: Subject, openai_compatible: Subject) -> None:
    request = ask(sampling={"top_logprobs": 2, "max_tokens": 12})
    ours, theirs = [(await complete(subject, request)).logprobs for subject in (sampler, openai_compatible)]
    assert len(ours) == 12
    assert [row.token for row in ours] == [row.token for row in theirs]
    assert [row.logprob for row in ours] == pytest.approx([row.logprob for row in theirs], abs=0.02)
    assert [[top.token for top in row.top] for row in ours] == [[top.token for top in row.top] for row in theirs]


async def test_the_chosen_tokens_probability_comes_without_alternatives(sampler: Subject) -> None:
    events = await events_of(sampler, ask(sampling={"top_logprobs": 0, "max_tokens": 8}))
    rows = [row for event in events if isinstance(event, TextDelta) for row in event.logprobs]
    assert len(rows) == 8
    assert all(row.logprob <= 0 and not row.top for row in rows)


async def test_a_bias_forbids_a_token(sampler: Subject) -> None:
    plain = await complete(sampler, ask(sampling={"max_tokens": 4, "top_logprobs": 0}))
    biases = tuple((token, -100.0) for token in range(300))  # bytes and specials, which the tokenizer begins with
    other = await complete(sampler, ask(sampling={"max_tokens": 4, "top_logprobs": 0, "logit_bias": biases}))
    assert other.logprobs and plain.logprobs
    assert all(len(row.token) > 1 or row.token in plain.text for row in other.logprobs)


# ---- JSON ----------------------------------------------------------------------------------------------------------


async def test_an_answer_keeps_to_its_schema(caller: Subject) -> None:
    wanted = ResponseFormat("json_schema", "place", json.dumps(SCHEMA), True)
    value = json.loads((await complete(caller, ask(response_format=wanted))).text)
    assert value["city"] in ("Oslo", "Zürich") and value["days"] in (1, 2) and len(value) == 2


async def test_an_answer_is_a_json_object(caller: Subject) -> None:
    text = (await complete(caller, ask(response_format=ResponseFormat("json_object")))).text
    assert text.lstrip().startswith("{")


# ---- tools ---------------------------------------------------------------------------------------------------------


def check_call(call: ToolCall) -> None:
    assert call.id
    if call.name == "weather":
        assert json.loads(call.arguments)["city"] in ("Oslo", "Zürich")
    else:
        assert (call.name, json.loads(call.arguments)) == ("clock", {})


async def test_a_required_tool_is_called(caller: Subject) -> None:
    request = ask(tools=(WEATHER, CLOCK), tool_choice=ToolChoice("required"), parallel_tool_calls=False)
    answer = await complete(caller, request)
    (call,) = answer.tool_calls
    check_call(call)
    assert (answer.finish_reason, answer.text) == ("tool_calls", "")


async def test_the_named_tool_is_called(caller: Subject) -> None:
    answer = await complete(caller, ask(tools=(CLOCK, WEATHER), tool_choice=ToolChoice("tool", "weather")))
    (call,) = answer.tool_calls
    assert call.name == "weather"
    check_call(call)


@pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")
async def test_a_whole_answer_has_the_arguments_of_the_stream_byte_for_byte(vllm: Subject) -> None:
    for choice in (ToolChoice("required"), ToolChoice("tool", "weather")):
        request = ask(tools=(WEATHER, CLOCK), tool_choice=choice)
        streamed = await complete(vllm, request)
        whole = fold(await vllm.model.complete(request, Call("whole")))  # type: ignore[attr-defined]
        found = [[(call.name, call.arguments) for call in answer.tool_calls] for answer in (streamed, whole)]
        assert found[0] == found[1] and found[0]


async def test_offered_tools_and_earlier_calls_are_read(caller: Subject) -> None:
    plain = await complete(caller, ask())
    offered = await complete(caller, ask(tools=(WEATHER,), sampling={"max_tokens": 8}))
    assert offered.usage.input_tokens > plain.usage.input_tokens + 20
    assert offered.text and offered.finish_reason == "length"
    turns = (
        Message("user", (TextPart("What is the weather?"),)),
        Message("assistant", (), (ToolCall("call_1", "weather", '{"city": "Oslo"}'),)),
        Message("tool", (TextPart("rain"),), tool_call_id="call_1"),
    )
    later = await complete(caller, replace(ask(tools=(WEATHER,), sampling={"max_tokens": 8}), messages=turns))
    assert later.usage.input_tokens > offered.usage.input_tokens


async def test_tools_that_must_not_be_called_are_not(caller: Subject) -> None:
    answer = await complete(caller, ask(tools=(WEATHER,), tool_choice=ToolChoice("none"), sampling={"max_tokens": 8}))
    assert answer.text and not answer.tool_calls


@pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")
async def test_tools_and_a_response_format_are_not_for_one_answer(vllm: Subject) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        await complete(vllm, ask(tools=(WEATHER,), response_format=ResponseFormat("json_object")))
    assert caught.value.param == "response_format"


@pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")
async def test_a_model_whose_calls_nobody_can_read_has_no_tools(vllm: Subject) -> None:
    model: Any = vllm.model
    mute = SimpleNamespace(parser_cls=None, engine_client=None)
    with pytest.raises(ValueError, match="tool_parser"):
        VllmModel(vllm.entry, mute)
    deaf = SimpleNamespace(parser_cls=model._serving.parser_cls, chat_template="{{ messages }}", engine_client=None)
    with pytest.raises(ValueError, match="chat template"):
        VllmModel(vllm.entry, deaf)
