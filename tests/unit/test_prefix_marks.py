"""Marks for Anthropic's prompt cache: where they are set, where not, and that they go out as the API has them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.messages import ChatRequest, ImagePart, Message, Sampling, TextPart, Tool, ToolCall
from router.pipeline import Options
from router.prefix_marks import with_marks
from router.settings import IngressSettings
from tests.unit.replay import replayed
from tests.unit.test_pipeline import ME, make_world, unary

CLAUDE = ModelEntry(
    name="claude",
    engine="anthropic",
    context_tokens=10_000,
    cached_from_tokens=100,
    capabilities=Capabilities(tools=True),
)
SHORT, LONG = "word " * 20, "word " * 100  # 25 and 125 tokens
TOOL = Tool("weather", LONG, '{"properties": {}}')
MARK = {"cache_control": {"type": "ephemeral"}}


def say(role: Any, *texts: str, **more: Any) -> Message:
    return Message(role, tuple(map(TextPart, texts)), **more)


def ask(*instructions: Message, tools: tuple[Tool, ...] = ()) -> ChatRequest:
    return ChatRequest(
        "claude", (*instructions, say("user", LONG), say("assistant", "A"), say("user", "B")), tools=tools
    )


def marks(request: ChatRequest) -> list[str]:
    found = [f"tool {at}" for at, tool in enumerate(request.tools) if tool.cache]
    for at, message in enumerate(request.messages):
        found += [f"{message.role} {at}.{part}" for part, each in enumerate(message.parts) if each.cache]
    return found


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (ask(say("system", LONG)), ["system 0.0"]),
        (ask(say("system", LONG, SHORT), say("developer", SHORT, "")), ["developer 1.0"]),
        (ask(say("system", SHORT)), []),
        (ask(say("system", *[SHORT] * 5)), ["system 0.4"]),
        (ask(tools=(TOOL, Tool("clock"))), ["tool 1"]),
        (ask(say("system", SHORT), tools=(TOOL,)), ["tool 0", "system 0.0"]),
        (ask(say("system", LONG), tools=(Tool("clock"),)), ["system 0.0"]),
        (ask(say("system", LONG, ""), say("system", "")), ["system 0.0"]),
        (ask(), []),
        (ChatRequest("claude", (say("user", LONG), say("system", LONG))), []),
        (ChatRequest("claude", (say("system", LONG),), raw_prompt=True), []),
    ],
)
def test_the_ends_of_long_tools_and_of_long_instructions_are_marked(request_: ChatRequest, wanted: list[str]) -> None:
    made, told = with_marks(request_, CLAUDE)
    assert marks(made) == wanted
    assert bool(told) == bool(wanted) and (wanted or made is request_)
    assert [message.text for message in made.messages] == [message.text for message in request_.messages]


def test_what_was_marked_is_told_without_a_word_of_it() -> None:
    _, told = with_marks(ask(say("system", SHORT), tools=(TOOL,)), CLAUDE)
    (change,) = told
    assert change.pop("prefix_tokens") == pytest.approx(150, abs=10)
    assert change == {"change": "prompt_cache", "model": "claude", "marks": ["tools", "instructions"]}


MARKED = (
    replace(ask(say("system", LONG)), cache="5m"),
    ask(say("system", LONG), tools=(replace(TOOL, cache="1h"),)),
    ask(Message("system", (TextPart("a", "5m"), TextPart(LONG)))),
    ask(say("system", LONG), Message("user", (ImagePart("https://x/y", cache="5m"),))),
    ask(say("system", LONG), say("tool", "A", cache="5m")),
    ask(say("system", LONG), Message("assistant", (), (ToolCall("i", "n", "{}", "5m"),))),
)


@pytest.mark.parametrize("request_", MARKED)
def test_who_sets_a_mark_gets_no_other_one(request_: ChatRequest) -> None:
    assert with_marks(request_, CLAUDE) == (request_, ())


def test_other_providers_get_none_and_the_shortest_prefix_is_the_models_own() -> None:
    request = ask(say("system", LONG))
    assert with_marks(request, CLAUDE.model_copy(update={"engine": "gemini"})) == (request, ())
    assert with_marks(request, ModelEntry(name="m", engine="anthropic", context_tokens=9)) == (request, ())


async def test_they_go_out_as_the_sdk_sends_them() -> None:
    from anthropic import AsyncAnthropic

    from models.anthropic import AnthropicModel

    request, _ = with_marks(ask(say("system", LONG), tools=(TOOL,)), CLAUDE)
    request = replace(request, sampling=Sampling(max_tokens=5))
    async with replayed(ANSWER) as server:
        ours = AnthropicModel({"claude": CLAUDE}, "key", server.url)
        async for _ in ours.stream(request, Call("r")):
            pass
        await ours.close()
        async with AsyncAnthropic(api_key="key", base_url=server.url) as sdk:
            stream = await sdk.messages.create(
                model="claude",
                max_tokens=5,
                stream=True,
                system=[{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}],
                tools=[
                    {
                        "name": "weather",
                        "description": LONG,
                        "input_schema": {"type": "object", "properties": {}},
                        "cache_control": {"type": "ephemeral"},
                    }
                ],
                messages=[
                    {"role": "user", "content": [{"type": "text", "text": LONG}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
                    {"role": "user", "content": [{"type": "text", "text": "B"}]},
                ],
            )
            async for _ in stream:
                pass
    sent, theirs = (json.loads(post.body) for post in server.requests)
    assert sent == theirs
    assert str(sent).count("cache_control") == 2


def _sse(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


_MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": "claude", "content": [], "stop_reason": None}
_USAGE = {"input_tokens": 10, "output_tokens": 1, "cache_creation_input_tokens": 250, "cache_read_input_tokens": 0}
ANSWER = b"".join(
    (
        _sse("message_start", message={**_MESSAGE, "stop_sequence": None, "usage": _USAGE}),
        _sse("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        _sse("content_block_delta", index=0, delta={"type": "text_delta", "text": "C"}),
        _sse("content_block_stop", index=0),
        _sse("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 1}),
        _sse("message_stop"),
    )
)


@pytest.mark.parametrize(
    ("tenant", "caller", "wanted"),
    [(False, None, False), (True, None, True), (True, False, False), (False, True, True)],
)
async def test_a_tenant_or_a_request_asks_for_them_and_the_receipt_says_so(
    tenant: bool, caller: bool | None, wanted: bool
) -> None:
    world = make_world(IngressSettings.model_validate({"tenants": {"acme": {"prompt": {"cache_prefixes": tenant}}}}))
    entry = world.pipeline.entries["small-1"]
    world.pipeline.entries["small-1"] = entry.model_copy(update={"engine": "anthropic", "cached_from_tokens": 100})
    request, options = replace(ask(say("system", LONG)), model="small-1"), Options(cache_prefixes=caller)
    await unary(world, request, options)
    (asked,) = world.small.asked
    assert marks(asked) == (["system 0.0"] if wanted else [])
    told = world.closes()[0].changes
    assert [change["change"] for change in told] == (["prompt_cache"] if wanted else [])
    assert (await world.pipeline.explain(request, ME, options))["prompt_changes"] == list(told)
    world.books_are_shut()
