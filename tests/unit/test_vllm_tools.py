"""Calls that a model has to make, as a grammar writes them; and what is held against vLLM's parse of the whole text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UnsupportedFeature
from models.messages import (
    ChatRequest,
    Event,
    Finish,
    ReasoningDelta,
    ResponseFormat,
    TextDelta,
    Tool,
    ToolCallDelta,
    ToolChoice,
    fold,
)
from models.vllm_output import OutputReader
from models.vllm_tools import ForcedCalls, FreeAnswer, SingleTokens, parsers, whole_calls

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
spaces = st.text(" \n\t", max_size=2)
arguments = st.builds(
    lambda value, ascii_only, indent: json.dumps(value, ensure_ascii=ascii_only, indent=indent),
    st.dictionaries(st.text(max_size=4) | st.sampled_from(["name", "parameters"]), values, max_size=3),
    st.booleans(),
    st.none() | st.integers(0, 2),
)
calls = st.lists(st.tuples(st.text(min_size=1, max_size=5), arguments), min_size=1, max_size=3)


def output(text: str, reason: str | None = None) -> Any:
    return SimpleNamespace(text=text, token_ids=list(range(len(text))), finish_reason=reason, stop_reason=None, index=0)


def cut(text: str, cuts: list[int]) -> list[str]:
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def read(parser: Any, pieces: list[str], reason: str = "stop") -> list[Event]:
    ends = [None] * (len(pieces) - 1) + [reason]
    return [event for piece, end in zip(pieces, ends, strict=True) for event in parser.read(output(piece, end), [1, 2])]


def forced(name: str | None = None, only_first: bool = False) -> ForcedCalls:
    return ForcedCalls(0, name, only_first, lambda: None, None, thinks=False)


@given(st.data(), calls, spaces)
def test_required_calls_come_byte_for_byte_whatever_the_cuts(data: Any, made: list[Any], space: str) -> None:
    members = [
        f'{{{space}"name":{space}{json.dumps(name)},{space}"parameters":{space}{written}{space}}}'
        for name, written in made
    ]
    text = f"[{space}{f'{space},{space}'.join(members)}{space}]"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    found = fold(read(forced(), cut(text, cuts))).tool_calls
    assert [(call.name, call.arguments) for call in found] == made
    assert len({call.id for call in found}) == len(made)


@given(st.data(), arguments)
def test_a_named_calls_arguments_are_the_text(data: Any, written: str) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=8)))
    (call,) = fold(read(forced("f"), cut(written, cuts))).tool_calls
    assert (call.name, call.arguments) == ("f", written)


def test_only_the_first_of_several_calls() -> None:
    text = '[{"name": "a", "parameters": {}}, {"name": "b", "parameters": {}}]'
    assert [call.name for call in fold(read(forced(only_first=True), [text])).tool_calls] == ["a"]


def test_a_call_that_is_cut_is_none_and_one_that_is_missing_an_error() -> None:
    assert read(forced(), ['[{"name": "a", "parameters": {"x": '], "length") == []
    with pytest.raises(RuntimeError, match="no call"):
        read(forced(), ['[{"name": "a", "param'], "stop")
    with pytest.raises(RuntimeError, match="no JSON object"):
        whole_calls("[5]", 0)
    with pytest.raises(RuntimeError, match="without"):
        whole_calls('[{"name": "a"}]', 0)


# ---- free answers --------------------------------------------------------------------------------------------------


def delta(content: str | None = None, reasoning: str | None = None, *made: Any) -> Any:
    tool_calls = [
        SimpleNamespace(
            index=index, id=f"c{index}" if name else None, function=SimpleNamespace(name=name, arguments=text)
        )
        for index, name, text in made
    ]
    return SimpleNamespace(content=content, reasoning=reasoning, tool_calls=tool_calls)


class Parser:
    """vLLM's, with these deltas one after the other and this parse of the whole."""

    def __init__(self, deltas: list[Any], whole: tuple[Any, ...]) -> None:
        self._deltas = iter(deltas)
        self._whole = whole

    def parse_delta(self, **asked: Any) -> Any:
        return next(self._deltas)

    def parse(self, text: str, *asked: Any) -> tuple[Any, ...]:
        return self._whole

    def count_reasoning_tokens(self, tokens: list[int]) -> int:
        return 3


def call(name: str, written: str) -> Any:
    return SimpleNamespace(name=name, arguments=written, id=None)


def free(deltas: list[Any], whole: tuple[Any, ...], reason: str = "stop", only_first: bool = False) -> list[Event]:
    parser = FreeAnswer(0, only_first, lambda: Parser(deltas, whole), None, tools=True)
    return read(parser, ["x"] * len(deltas), reason)


def test_what_the_stream_had_is_the_answer() -> None:
    deltas = [
        delta(None, "hm"),
        delta("ok "),
        None,
        delta(None, None, (0, "f", "")),
        delta(None, None, (0, None, '{"a":1}')),
    ]
    events = free(deltas, ("hm", "ok ", [call("f", '{"a": 1}')]))
    assert events == [
        ReasoningDelta("hm"),
        TextDelta("ok "),
        ToolCallDelta(0, "c0", "f"),
        ToolCallDelta(0, arguments='{"a":1}'),
    ]


def test_what_the_stream_lost_is_added() -> None:
    deltas = [delta("a"), delta(None, None, (0, "f", '{"x"'))]
    found = fold(free(deltas, (None, "a", [call("f", '{"x": 1}'), call("g", "{}")])))
    assert [(made.name, made.arguments) for made in found.tool_calls] == [("f", '{"x": 1}'), ("g", "{}")]
    assert fold(free([delta("a <"), None], (None, "a <tool", None))).text == "a <tool"


@pytest.mark.parametrize(
    ("streamed", "whole", "message"),
    [
        (delta(None, None, (0, "f", '{"x": 2}')), (None, None, [call("f", '{"x": 1}')]), "other arguments"),
        (delta(None, None, (0, "g", "{}")), (None, None, [call("f", "{}")]), "another tool call"),
        (delta(None, None, (0, "f", "{}")), (None, "f()", None), "has not"),
        (delta("<tool_call>f"), (None, None, [call("f", "{}")]), "for text"),
    ],
)
def test_a_stream_that_says_something_else_is_no_answer(streamed: Any, whole: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        free([streamed], whole)


def test_an_answer_cut_inside_a_call_is_as_far_as_it_came() -> None:
    deltas = [delta(None, None, (0, "f", '{"x": '))]
    assert fold(free(deltas, (None, None, None), reason="length")).tool_calls[0].arguments == '{"x": '


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tool_choice": ToolChoice("required")}, "tool_choice"),
        ({"tools": (Tool("f", strict=True),)}, "tools"),
        ({"response_format": ResponseFormat("json_object")}, "response_format"),
    ],
)
def test_what_vllm_would_not_hold_the_model_to_is_refused(change: dict[str, Any], param: str) -> None:
    request = replace(ChatRequest("m", (), tools=(Tool("f"),)), **change)
    asked = SimpleNamespace(tool_choice="auto", structured_outputs=None, _grammar_from_parser=False)
    serving: Any = SimpleNamespace(parser_cls=object)
    with pytest.raises(UnsupportedFeature) as caught:
        parsers(serving, asked, request)
    assert (caught.value.param, caught.value.http_status) == (param, 400)


def test_a_call_that_has_to_be_made_and_is_not_is_an_error() -> None:
    parser = FreeAnswer(0, False, lambda: Parser([delta("no")], (None, "no", None)), None, tools=True, must_call=True)
    with pytest.raises(RuntimeError, match="no call"):
        read(parser, ["no"])


def utf8(tokens: Sequence[int]) -> str:
    """A token is a byte: as byte-level tokenizers decode."""
    return bytes(tokens).decode("utf-8", "replace")


@given(st.data(), st.text(max_size=30))
def test_tokens_that_came_together_are_taken_apart(data: Any, text: str) -> None:
    tokens = list(text.encode())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4)))
    single, pieces, shown = SingleTokens(utf8), list[tuple[str, list[int]]](), ""
    for end in [*cuts, len(tokens)]:
        whole = text if end == len(tokens) else utf8(tokens[:end]).rstrip("\ufffd")
        begin = sum(len(alone) for _, alone in pieces)
        pieces += single.cut(whole[len(shown) :], tokens[begin:end], list(b"before"))
        shown = whole if len(whole) > len(shown) else shown
    assert "".join(piece for piece, _ in pieces) == text
    assert [token for _, alone in pieces for token in alone] == tokens
    given = ""
    for number, (piece, _) in enumerate(pieces, 1):
        given += piece
        if "\ufffd" not in text:
            seen = sum(len(alone) for _, alone in pieces[:number])
            assert given == utf8(tokens[:seen]).rstrip("\ufffd")


def test_text_that_is_held_back_comes_with_the_token_that_frees_it() -> None:
    single = SingleTokens(utf8)
    assert single.cut("a", list(b"ab"), [1]) == [("a", [97]), ("", [98])]
    assert single.cut("bcd", list(b"cd"), [1]) == [("bc", [99]), ("d", [100])]
    assert single.cut("", [], [1]) == [("", [])]


def test_one_call_at_a_time() -> None:
    deltas = [delta(None, None, (0, "f", "{}"), (1, "g", "{}"))]
    found = fold(free(deltas, (None, None, [call("f", "{}"), call("g", "{}")]), only_first=True))
    assert [made.name for made in found.tool_calls] == ["f"]


def test_a_call_ends_the_answer_as_one_and_thoughts_are_counted() -> None:
    deltas = [delta("a", None, (0, "f", "{}"))]
    whole = (None, "a", [call("f", "{}")])
    reader = OutputReader(None, lambda choice: FreeAnswer(choice, False, lambda: Parser(deltas, whole), None, True))
    step = SimpleNamespace(outputs=[output("xy", "stop")], finished=True, prompt_token_ids=[1], num_cached_tokens=None)
    text, made, finish, report = reader.read(step)
    assert (text, finish) == (TextDelta("a", 2), Finish("tool_calls"))
    assert isinstance(made, ToolCallDelta)
    assert (report.usage.output_tokens, report.usage.reasoning_tokens) == (2, 3)
