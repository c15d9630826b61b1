"""The responses door over a whole pipeline and a real archive, read back with the official SDK's own types."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response as SdkResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from deployments.openai.responses_items import messages_of, read_items
from deployments.openai.responses_schema import parse_response
from deployments.openai.responses_stream import OpenAIResponses
from models.errors import InvalidRequest, UnsupportedFeature
from models.messages import (
    Event,
    Finish,
    ImagePart,
    ReasoningDelta,
    ReasoningPart,
    ResponseFormat,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageReport,
    fold,
)
from router.archive.archive import Archive
from router.archive.responses import StoredResponse
from router.run import Head
from tests.unit.test_http_app import KEY, Door, open_door
from tests.unit.test_pipeline import make_world

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
HEAD = Head("req_0123", "small-1", "miss", 5, 0.1, 0.0)
AUTH = {"authorization": f"Bearer {KEY}"}


class Near:
    """`deployments.archive.ArchiveHandle` without the hop."""

    def __init__(self, keeper: Archive) -> None:
        self.keeper, self.storing = keeper, []

    def store(self, org: str, response: StoredResponse) -> None:
        self.storing.append((org, response))

    async def settle(self) -> None:
        while self.storing:
            await self.keeper.put_response(*self.storing.pop())

    async def response(self, org: str, response_id: str) -> StoredResponse:
        await self.settle()
        return await self.keeper.response(org, response_id, 0.05)

    async def conversation(self, org: str, response_id: str) -> list[StoredResponse]:
        await self.settle()
        return await self.keeper.conversation(org, response_id, 0.05)

    async def delete_response(self, org: str, response_id: str) -> None:
        await self.settle()
        await self.keeper.delete_response(org, response_id)


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    opened = open_door(make_world())
    keeper = await Archive.open(tmp_path)
    opened.ingress.archive = Near(keeper)
    yield opened
    await opened.client.aclose()
    await keeper.close()
    opened.world.books_are_shut()


async def create(door: Door, text: Any = "hi there", **fields: Any) -> Any:
    return await door.client.post("/v1/responses", json={"model": "auto", "input": text, **fields}, headers=AUTH)


async def test_a_response_is_made_booked_kept_and_deleted(door: Door) -> None:
    answered = await create(door, instructions="Be brief.", metadata={"a": "b"}, max_output_tokens=200)
    response = SdkResponse.model_validate_json(answered.text)
    assert (response.status, response.object, response.instructions) == ("completed", "response", "Be brief.")
    assert response.output_text and response.usage is not None and response.usage.output_tokens == 64
    close = door.world.closes()[0]
    assert (close.door, f"resp_{close.request_id[4:]}") == ("openai-responses", response.id)
    path = f"/v1/responses/{response.id}"
    assert (await door.client.get(path, headers=AUTH)).json() == answered.json()
    items = (await door.client.get(f"{path}/input_items", headers=AUTH)).json()
    assert [item["content"] for item in items["data"]] == [[{"type": "input_text", "text": "hi there"}]]
    assert items["first_id"] == items["last_id"] == items["data"][0]["id"] and items["has_more"] is False
    deleted = await door.client.delete(path, headers=AUTH)
    assert deleted.json() == {"id": response.id, "object": "response", "deleted": True}
    for method in ("GET", "DELETE"):
        gone = await door.client.request(method, path, headers=AUTH)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


async def test_the_next_turn_knows_those_before(door: Door) -> None:
    first = (await create(door, "My name is Ada.", store=True)).json()
    second = (await create(door, "And yours?", previous_response_id=first["id"])).json()
    third = await create(door, [{"role": "user", "content": "Again?"}], previous_response_id=second["id"])
    assert third.json()["previous_response_id"] == second["id"]
    seen = door.world.closes()[2].usage.input_tokens
    assert seen > 64 * 2  # both answers before it
    unkept = (await create(door, "Forget this.", store=False)).json()
    gone = await create(door, "What?", previous_response_id=unkept["id"])
    assert (gone.status_code, gone.json()["error"]["param"]) == (404, "response_id")


async def test_anothers_response_is_as_unknown_as_none(door: Door) -> None:
    mine = (await create(door)).json()["id"]
    archive = door.ingress.archive
    await archive.settle()
    with pytest.raises(Exception, match="No response with this id") as foreign:
        await archive.keeper.response("globex", mine, 0.01)
    with pytest.raises(Exception, match="No response with this id") as unknown:
        await archive.keeper.response("globex", mine[:-4] + "ffff", 0.01)
    assert str(foreign.value) == str(unknown.value)


async def test_a_stream_has_the_official_events_in_their_order(door: Door) -> None:
    streamed = await create(door, stream=True, max_output_tokens=3)
    lines = streamed.text.split("\n")
    names = [line[7:] for line in lines if line.startswith("event: ")]
    events = [EVENT.validate_json(line[6:]) for line in lines if line.startswith("data: ")]
    assert names == [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    last = events[-1].response
    assert (last.status, last.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert last.output_text == "".join(event.delta for event in events[4:7])
    kept = await door.client.get(f"/v1/responses/{last.id}", headers=AUTH)
    assert kept.json() == json.loads(lines[-3][6:])["response"]


async def test_a_stream_that_breaks_off_ends_with_failed(tmp_path: Path) -> None:
    door = open_door(make_world(failure_rate=1.0, fail_after_tokens=2))
    streamed = await create(door, stream=True, store=False)
    last = EVENT.validate_json([line for line in streamed.text.split("\n") if line][-1][6:])
    assert (last.type, last.response.status, last.response.error.code) == ("response.failed", "failed", "server_error")
    await door.client.aclose()


class _Ran:
    """What of a finished `Run` the dialect looks at."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events, self.folded, self.usage = tuple(events), fold([*events, UsageReport(Usage(10, 5))]), Usage(10, 5)


def spoken(events: Sequence[Event], **fields: Any) -> tuple[SdkResponse, list[Any], dict[str, Any]]:
    """The response, the events of a stream, and what is kept, of an answer of `events`."""
    parsed = parse_response(json.dumps({"model": "m", "input": "hi", **fields}).encode())
    kept: list[dict[str, Any]] = []
    ran: Any = _Ran(events)
    whole = SdkResponse.model_validate_json(OpenAIResponses(parsed, kept.append).unary(ran, HEAD, ran.folded))
    dialect = OpenAIResponses(parsed, None)
    text = (dialect.first(HEAD) + dialect.chunk(events) + dialect.last(ran)).decode()
    stream = [EVENT.validate_json(line[6:]) for line in text.split("\n") if line.startswith("data: ")]
    assert stream[-1].response.output == whole.output
    return whole, stream, kept[0]


THOUGHTS_AND_CALLS = [
    ReasoningDelta("Let me "),
    ReasoningDelta("see."),
    ReasoningDelta("", "sig=="),
    TextDelta("I ask.", 2),
    ToolCallDelta(0, "call_a", "weather", '{"ci'),
    ToolCallDelta(1, "call_b", "time"),
    ToolCallDelta(0, arguments='ty": "Zü'),
    ToolCallDelta(1, arguments="{}"),
    ToolCallDelta(0, arguments='rich"}'),
    Finish("tool_calls"),
]
TOOLS = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("weather", "time")]


def test_thoughts_text_and_calls_are_items_and_arguments_stay_as_they_are() -> None:
    whole, stream, kept = spoken(THOUGHTS_AND_CALLS, tools=TOOLS)
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]
    thought, said, weather, _ = whole.output
    assert thought.content[0].text == "Let me see." and thought.encrypted_content is None
    assert said.content[0].text == "I ask."
    assert (weather.call_id, weather.name, weather.arguments) == ("call_a", "weather", '{"city": "Zürich"}')
    deltas = [e for e in stream if e.type == "response.function_call_arguments.delta" and e.output_index == 2]
    assert "".join(event.delta for event in deltas) == weather.arguments
    assert kept["output"][0]["encrypted_content"] == "signature:sig=="
    shown, _, _ = spoken(THOUGHTS_AND_CALLS, tools=TOOLS, include=["reasoning.encrypted_content"])
    assert shown.output[0].encrypted_content == "signature:sig=="


def test_what_was_said_goes_back_as_it_was() -> None:
    _, _, kept = spoken(THOUGHTS_AND_CALLS, tools=TOOLS)
    answers = [{"type": "function_call_output", "call_id": "call_a", "output": "rain"}]
    message, answer = messages_of(read_items([*kept["output"], *answers]))
    assert message.role == "assistant" and message.text == "I ask."
    assert message.parts[0] == ReasoningPart("Let me see.", "sig==")
    assert message.tool_calls[0] == ToolCall("call_a", "weather", '{"city": "Zürich"}')
    assert (answer.role, answer.tool_call_id, answer.text) == ("tool", "call_a", "rain")


def test_a_redacted_thought_survives() -> None:
    _, _, kept = spoken([ReasoningDelta("", redacted="XYZ"), TextDelta("ok", 1), Finish("stop")])
    (message,) = messages_of(read_items(kept["output"]))
    assert message.parts[0] == ReasoningPart("", None, "XYZ")


def test_everything_that_is_understood_arrives() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "n", "description": "a place", "schema": schema, "strict": True}
    body = {
        "model": "m",
        "instructions": "Be brief.",
        "input": [
            {"role": "developer", "content": "No jokes."},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is it?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
                ],
            },
        ],
        "tools": TOOLS,
        "tool_choice": {"type": "function", "name": "time"},
        "parallel_tool_calls": False,
        "text": {"format": form, "verbosity": "low"},
        "reasoning": {"effort": "low"},
        "max_output_tokens": 9,
        "top_p": 0.5,
        "top_logprobs": 2,
        "user": "kim",
        "prompt_cache_key": "talk-7",
        "safety_identifier": "s-1",
    }
    request = parse_response(json.dumps(body).encode()).request()
    assert [message.role for message in request.messages] == ["system", "developer", "user"]
    assert request.messages[2].parts[1] == ImagePart("data:image/png;base64,AAAA", "low")
    assert request.tool_choice is not None and (request.tool_choice.mode, request.tool_choice.name) == ("tool", "time")
    assert request.response_format == ResponseFormat("json_schema", "n", json.dumps(schema), True, "a place")
    assert (request.reasoning_effort, request.verbosity, request.user) == ("low", "low", "kim")
    assert (request.prompt_cache_key, request.safety_identifier) == ("talk-7", "s-1")
    assert (request.sampling.max_tokens, request.sampling.top_p, request.sampling.top_logprobs) == (9, 0.5, 2)
    assert request.parallel_tool_calls is False


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"background": True}, UnsupportedFeature, "background"),
        ({"conversation": "conv_1"}, UnsupportedFeature, "conversation"),
        ({"truncation": "auto"}, UnsupportedFeature, "truncation"),
        ({"tools": [{"type": "web_search"}]}, UnsupportedFeature, "tools.0.type"),
        ({"include": ["file_search_call.results"]}, UnsupportedFeature, "include"),
        ({"input": []}, InvalidRequest, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, UnsupportedFeature, "input.0.type"),
        ({"input": [{"type": "computer_call"}]}, UnsupportedFeature, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, InvalidRequest, "input.0.content"),
        ({"input": [{"role": "user"}]}, InvalidRequest, "input.0.content"),
        ({"metadata": {"a": "x" * 513}}, InvalidRequest, "metadata"),
        ({"temperature": 3}, InvalidRequest, "temperature"),
        ({"stop": "x"}, UnsupportedFeature, "stop"),
        ({"text": {"format": {"type": "json_schema"}}}, InvalidRequest, "text.format.name"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_field(fields: dict[str, Any], error: type, param: str) -> None:
    with pytest.raises(error) as refused:
        parse_response(json.dumps({"model": "m", "input": "hi", **fields}).encode()).request()
    assert (refused.value.param or "").startswith(param), refused.value.param


async def test_pages_and_other_refusals(door: Door) -> None:
    said = [{"role": "user", "content": str(number)} for number in range(5)]
    made = (await create(door, said)).json()["id"]
    path = f"/v1/responses/{made}/input_items"
    first = (await door.client.get(path, params={"limit": 2, "order": "asc"}, headers=AUTH)).json()
    assert [item["content"][0]["text"] for item in first["data"]] == ["0", "1"] and first["has_more"]
    after = {"limit": 10, "order": "asc", "after": first["last_id"]}
    rest = (await door.client.get(path, params=after, headers=AUTH)).json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["2", "3", "4"] and not rest["has_more"]
    for params in ({"limit": "0"}, {"order": "up"}, {"after": "nobody"}):
        assert (await door.client.get(path, params=params, headers=AUTH)).status_code == 400
    assert (await door.client.post(f"/v1/responses/{made}/cancel", headers=AUTH)).status_code == 400
    assert (await door.client.get(f"/v1/responses/{made}?stream=true", headers=AUTH)).status_code == 400
