"""What both dialects can say survives the way through one, the conversation model and the other; and no way there is,
in any splits, changes a byte of a tool call's arguments."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

from anthropic._models import construct_type
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.anthropic.messages import AnthropicMessages
from deployments.anthropic.messages_request import parse_messages
from deployments.openai.chat import OpenAIChat
from deployments.openai.chat_schema import parse_chat
from models.anthropic import _Answer as AnthropicAnswer
from models.anthropic_request import encode as to_anthropic
from models.anthropic_request import to_json
from models.catalog import ModelEntry
from models.messages import (
    ChatRequest,
    Completion,
    Event,
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
from models.openai_compatible import _Answer as OpenAIAnswer
from models.openai_compatible import encode as to_openai
from models.providers import Quirks
from models.sse import SSEDecoder
from models.upstream import UpstreamCall
from router.run import Head

ENTRY = ModelEntry(name="m", engine="anthropic", context_tokens=1024)
HEAD = Head("req_1", "m", "miss", 0, 0.0, 0.0)

text = st.text(min_size=1, max_size=12).filter(lambda value: value.encode("utf-8", "ignore").decode() == value)
name = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
json_object = st.dictionaries(text, json_value, max_size=4)


@st.composite
def arguments(draw: st.DrawFn) -> str:
    """A JSON object as a model may write it: with spaces and escapes of its own."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: "), (",  ", " :")]))
    return json.dumps(draw(json_object), ensure_ascii=draw(st.booleans()), separators=separators)


# ---- questions -----------------------------------------------------------------------------------------------------

marks = st.sampled_from([None, "5m", "1h"])
images = st.sampled_from(["https://x/y.png", "data:image/png;base64,AAAA"])


@st.composite
def conversations(draw: st.DrawFn, anthropic: bool) -> tuple[Message, ...]:
    """Turns in turn, as both dialects tell them apart. `anthropic`: with what only Anthropic's has."""
    mark = marks if anthropic else st.none()
    messages: list[Message] = []
    if draw(st.booleans()):
        parts = draw(st.lists(st.builds(TextPart, text, mark), min_size=1, max_size=3 if anthropic else 1))
        messages.append(Message("system", tuple(parts)))
    part = st.builds(TextPart, text, mark) | st.builds(ImagePart, images, st.just("auto"), mark)
    thought = st.builds(ReasoningPart, text, text) | st.builds(ReasoningPart, st.just(""), redacted=text)
    calls = st.lists(st.builds(ToolCall, name, name, arguments(), mark), max_size=3, unique_by=lambda call: call.id)
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", tuple(draw(st.lists(part, min_size=1, max_size=3)))))
        thoughts = draw(st.lists(thought, max_size=2)) if anthropic else []
        said = draw(st.lists(st.builds(TextPart, text, mark), min_size=1, max_size=2 if anthropic else 1))
        called = draw(calls)
        messages.append(Message("assistant", (*thoughts, *said), tuple(called)))
        for call in called:
            failed = anthropic and draw(st.booleans())
            result = (TextPart(draw(text)),)
            messages.append(Message("tool", result, (), call.id, is_error=failed, cache=draw(mark)))
    messages.append(Message("user", tuple(draw(st.lists(part, min_size=1, max_size=2)))))
    return tuple(messages)


@st.composite
def requests(draw: st.DrawFn, anthropic: bool) -> ChatRequest:
    mark = marks if anthropic else st.none()
    strict = st.none() | st.booleans()
    schema = json_object.map(lambda value: json.dumps({"type": "object", **value}, ensure_ascii=False))
    tools = draw(
        st.lists(st.builds(Tool, name, text, schema, strict, mark), max_size=3, unique_by=lambda tool: tool.name)
    )
    choices = [ToolChoice("auto"), ToolChoice("required"), *(ToolChoice("tool", tool.name) for tool in tools)]
    choice = draw(st.none() | st.sampled_from(choices)) if tools else None
    thinking = st.sampled_from([None, Thinking("off"), Thinking("adaptive"), Thinking("budget", 2048, "omitted")])
    json_schema = st.builds(ResponseFormat, st.just("json_schema"), st.just("answer"), schema, st.just(True))
    return ChatRequest(
        "m",
        draw(conversations(anthropic)),
        Sampling(
            max_tokens=draw(st.integers(1, 9999)),
            temperature=draw(st.none() | st.floats(0, 1)),
            top_p=draw(st.none() | st.floats(0.01, 1)),
            stop=tuple(draw(st.lists(text, max_size=3))),
            top_k=draw(st.none() | st.integers(1, 99)) if anthropic else None,
        ),
        tuple(tools),
        choice,
        draw(st.none() | st.booleans()) if choice else None,
        draw(st.none() | json_schema) if anthropic else None,
        user=draw(st.none() | text),
        thinking=draw(thinking) if anthropic else None,
        cache=draw(mark),
    )


def over_anthropic(request: ChatRequest) -> ChatRequest:
    return parse_messages(to_json(to_anthropic(request, ENTRY))).request


def over_openai(request: ChatRequest) -> ChatRequest:
    body = to_openai(request, ENTRY, Quirks())
    del body["stream"], body["stream_options"]
    return parse_chat(json.dumps(body, ensure_ascii=False).encode()).request


@settings(max_examples=40)
@given(requests(anthropic=True))
def test_a_question_survives_anthropics_dialect(request: ChatRequest) -> None:
    assert over_anthropic(request) == request


@settings(max_examples=40)
@given(requests(anthropic=False))
def test_a_question_survives_both_dialects_in_either_order(request: ChatRequest) -> None:
    assert over_openai(over_anthropic(request)) == without_split_texts(request)
    assert over_anthropic(over_openai(request)) == without_split_texts(request)


def without_split_texts(request: ChatRequest) -> ChatRequest:
    """OpenAI's dialect gets several texts of one message as one."""
    messages = (
        message if has_images(message) else replace(message, parts=(TextPart(message.text),))
        for message in request.messages
    )
    return replace(request, messages=tuple(messages))


def has_images(message: Message) -> bool:
    return any(isinstance(part, ImagePart) for part in message.parts)


# ---- answers -------------------------------------------------------------------------------------------------------


@st.composite
def split(draw: st.DrawFn, whole: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    return [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@st.composite
def answers(draw: st.DrawFn, interleaved: bool = False) -> list[Event]:
    events: list[Event] = []
    for _ in range(draw(st.integers(0, 2))):
        events += [ReasoningDelta(piece) for piece in draw(split(draw(text)))]
        events.append(ReasoningDelta("", draw(text)))
    events += [TextDelta(piece) for piece in draw(split(draw(text)))]
    calls = []
    for index in range(draw(st.integers(0, 3))):
        pieces = [ToolCallDelta(index, f"call_{index}", draw(name))]
        pieces += [ToolCallDelta(index, arguments=piece) for piece in draw(split(draw(arguments())))]
        calls.append(pieces)
    if interleaved:  # the calls begin in their order, and then go on in any
        begun = 0
        while begun < len(calls) or any(calls[:begun]):
            index = draw(st.sampled_from([i for i, pieces in enumerate(calls[: begun + 1]) if pieces]))
            begun = max(begun, index + 1)
            events.append(calls[index].pop(0))
    else:
        events += [piece for pieces in calls for piece in pieces]
    called = any(isinstance(event, ToolCallDelta) for event in events)
    usage = Usage(20, 9, cached_input_tokens=4, reasoning_tokens=2)
    return [*events, Finish("tool_calls" if called else "stop"), UsageReport(usage)]


@st.composite
def batches(draw: st.DrawFn, events: list[Event]) -> list[list[Event]]:
    cuts = sorted(draw(st.lists(st.integers(0, len(events)), max_size=5)))
    return [events[start:end] for start, end in zip([0, *cuts], [*cuts, len(events)], strict=True)]


class _Run:
    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.usage = fold(events).usage


def streamed(dialect: object, events: list[Event], grouped: list[list[Event]]) -> bytes:
    body = dialect.first(HEAD) + b"".join(map(dialect.chunk, grouped))
    return body + dialect.last(_Run(events))


def read_anthropic(body: bytes) -> list[Event]:
    """As the adapter reads a provider's stream."""
    answer = AnthropicAnswer()
    found: list[Event] = []
    for data in SSEDecoder().feed(body):
        found += answer.read(construct_type(type_=RawMessageStreamEvent, value=json.loads(data)))
    return [*found, Finish(answer.finish), UsageReport(answer.usage)]


async def _upstream() -> UpstreamCall:
    return UpstreamCall("m", 60.0)  # its clock is a loop's


def read_openai(body: bytes) -> list[Event]:
    answer = OpenAIAnswer(ChatRequest("m", ()), asyncio.run(_upstream()))
    return [*answer.feed(body), *answer.end()]


def told(completion: Completion) -> tuple[object, ...]:
    calls = [replace(call, arguments=call.arguments or "{}") for call in completion.tool_calls]
    return completion.text, completion.reasoning, calls, completion.finish_reason, completion.usage


@settings(max_examples=40)
@given(st.data())
def test_an_answer_survives_any_dialects_in_any_splits(data: st.DataObject) -> None:
    events = data.draw(answers(interleaved=data.draw(st.booleans())))
    expected = told(fold(events))
    for dialects in data.draw(st.lists(st.sampled_from("ao"), min_size=1, max_size=3)):
        grouped = data.draw(batches(events))
        if dialects == "a":
            events = read_anthropic(streamed(AnthropicMessages(), events, grouped))
        else:
            events = read_openai(streamed(OpenAIChat(include_usage=True), events, grouped))
        assert told(fold(events)) == expected


@settings(max_examples=40)
@given(st.data())
def test_signatures_survive_anthropics_dialect(data: st.DataObject) -> None:
    events = data.draw(answers())
    found = read_anthropic(streamed(AnthropicMessages(), events, data.draw(batches(events))))

    def signatures(events: list[Event]) -> list[str]:
        return [event.signature for event in events if isinstance(event, ReasoningDelta) and event.signature]

    assert signatures(found) == signatures(events)


@settings(max_examples=40)
@given(answers(interleaved=True))
def test_a_whole_message_holds_the_arguments_as_they_were_written(events: list[Event]) -> None:
    completion = fold(events)
    body = AnthropicMessages().unary(_Run(events), HEAD, completion).decode()
    assert json.loads(body)["role"] == "assistant"
    history = '{"model": "m", "max_tokens": 1, "messages": [' + '{"role": "assistant", "content": %s}' + "]}"
    content = body[body.index('"content": ') + 11 : body.index(', "stop_reason"')]
    messages = parse_messages((history % content).encode()).request.messages
    found = [call for message in messages for call in message.tool_calls]
    assert [call.arguments for call in found] == [call.arguments for call in completion.tool_calls]
