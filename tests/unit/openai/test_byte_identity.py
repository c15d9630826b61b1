"""A model's tool arguments are text of its own: byte for byte the same at the client, however the bytes were cut."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from deployments.openai.chat import OpenAIChat
from deployments.openai.chat_schema import parse_chat
from models.catalog import ModelEntry
from models.messages import ChatRequest, Event, Message, TextPart, fold
from models.openai_compatible import _Answer, encode
from models.providers import Quirks
from models.upstream import UpstreamCall
from router.run import Head

ENTRY = ModelEntry(name="m", engine="openai_compatible", context_tokens=1024)
HEAD = Head("req_1", "m", "miss", 5, 0.1, 0.0)
REQUEST = ChatRequest("m", (Message("user", (TextPart("hi"),)),))

# Any text, and text as models write it: JSON with spaces, escapes, exponents, characters of two to four bytes.
written = st.text(max_size=40) | st.sampled_from(
    [
        '{"city" : "Zürich",\n "days":1.0, "big": 12345678901234567890, "e": 1E+2}',
        '{"a": "\\u00fc\\ud83d\\ude00 😀 \\n \\"", "a": 1}',
        '{"text": "data: [DONE]\\n\\n", "x": "\u2028\u2029\x85"}',
        '{"cut": ',
        "",
    ]
)
calls = st.lists(written, min_size=1, max_size=3)


def cuts_of(data: Any, length: int, most: int) -> list[int]:
    return sorted(data.draw(st.lists(st.integers(0, length), max_size=most)))


def pieces(whole: Any, cuts: list[int]) -> list[Any]:
    return [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def provider_stream(data: Any, arguments: list[str], newline: str, ascii_only: bool) -> bytes:
    """What a provider might send: each call's arguments in pieces, the calls' pieces interleaved."""
    deltas = []
    for index, text in enumerate(arguments):
        first, *others = pieces(text, cuts_of(data, len(text), 4))
        deltas.append(
            [
                {"index": index, "id": f"c{index}", "function": {"name": f"f{index}", "arguments": first}},
                *({"index": index, "function": {"arguments": piece}} for piece in others),
            ]
        )
    lines = []
    while any(deltas):
        queue = data.draw(st.sampled_from([queue for queue in deltas if queue]))
        choice = {"index": 0, "delta": {"tool_calls": [queue.pop(0)]}, "finish_reason": None}
        lines.append({"choices": [choice]})
    lines.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    lines.append({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
    texts = [json.dumps(line, ensure_ascii=ascii_only) for line in lines]
    return "".join(f"data: {text}{newline * 2}" for text in [*texts, "[DONE]"]).encode("utf-8", "surrogatepass")


async def decoded(stream: list[bytes]) -> list[Event]:
    answer = _Answer(REQUEST, UpstreamCall("m", 60.0))
    events = [event for piece in stream for event in answer.feed(piece)]
    return events + answer.end()


@settings(max_examples=150)
@given(st.data(), calls, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.integers(1, 5))
def test_from_a_providers_bytes_to_the_clients(
    data: Any, arguments: list[str], newline: str, ascii_only: bool, batch: int
) -> None:
    sent = provider_stream(data, arguments, newline, ascii_only)
    events = asyncio.run(decoded(pieces(sent, cuts_of(data, len(sent), 12))))
    assert [call.arguments for call in fold(events).tool_calls] == arguments

    dialect = OpenAIChat()
    batches = [events[at : at + batch] for at in range(0, len(events), batch)]
    body = dialect.first(HEAD) + b"".join(dialect.chunk(some) for some in batches)
    found = dict.fromkeys(range(len(arguments)), "")
    for line in body.decode().split("\n\n"):
        if line:
            chunk = ChatCompletionChunk.model_validate_json(line.removeprefix("data: "))
            for call in chunk.choices[0].delta.tool_calls or ():
                assert call.function is not None
                found[call.index] += call.function.arguments or ""
    assert list(found.values()) == arguments

    whole = ChatCompletion.model_validate_json(OpenAIChat().unary(None, HEAD, fold(events)))  # type: ignore[arg-type]
    made = whole.choices[0].message.tool_calls or []
    assert [call.function.arguments for call in made] == arguments  # type: ignore[union-attr]


@settings(max_examples=150)
@given(calls, st.booleans())
def test_from_a_clients_history_to_the_provider(arguments: list[str], ascii_only: bool) -> None:
    made = [
        {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": text}}
        for number, text in enumerate(arguments)
    ]
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": made}]
    sent = json.dumps({"model": "m", "messages": history}, ensure_ascii=ascii_only).encode()
    request = parse_chat(sent).request
    assert [call.arguments for call in request.messages[1].tool_calls] == arguments
    upstream = json.loads(json.dumps(encode(request, ENTRY, Quirks()), ensure_ascii=False).encode())
    assert [call["function"]["arguments"] for call in upstream["messages"][1]["tool_calls"]] == arguments
