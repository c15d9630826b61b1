"""Reasoning and tool calls in what a local model writes, found by vLLM's own parsers, as events.

vLLM's streaming parsers are made for one token at a time: some lose a call, or spoil its arguments, when several come
at once, as they do under load. So each token is given to them alone, and what was streamed is held against vLLM's parse
of the whole text when the answer ends: what is missing is added, and what differs is an error, never an answer. Where
vLLM has the model write forced calls as plain JSON, none of this is needed: they are read here, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol
from uuid import uuid4

from models.errors import UnsupportedFeature
from models.incremental_text import IncrementalText
from models.messages import ChatRequest, Event, ReasoningDelta, TextDelta, ToolCallDelta

_DECODER = json.JSONDecoder()
_WHITESPACE = " \t\r\n"
_PROMPT_TOKENS = 6


class AnswerParser(Protocol):
    """Of one choice. `called` says whether it made a tool call so far, `reasoning_tokens` how many it has thought."""

    called: bool
    reasoning_tokens: int

    def read(self, output: Any, prompt_token_ids: Any) -> list[Event]:
        """The events of one of vLLM's `CompletionOutput`s. Raises RuntimeError when the calls cannot be trusted."""


def parsers(serving: Any, asked: Any, request: ChatRequest) -> Callable[[int], AnswerParser] | None:
    """Makes the parser of each choice of an answer to `asked`, which is vLLM's form of `request`; None: it is plain
    text. Raises `UnsupportedFeature` for calls that the model would not have to make as asked for."""
    kind = serving.parser_cls
    if kind is None:
        return None
    forced = request.tool_choice is not None and request.tool_choice.mode in ("required", "tool")
    offered = bool(request.tools) and asked.tool_choice != "none"
    if offered:
        _check_promises(asked, request, forced)
    keywords = serving._effective_chat_template_kwargs(asked)

    def make() -> Any:
        tokenizer = serving.renderer.tokenizer
        return kind(tokenizer, asked.tools, chat_template_kwargs=keywords, model_config=serving.model_config)

    only_first = request.parallel_tool_calls is False
    if offered and forced and kind.tool_parser_cls.supports_required_and_named:
        name = request.tool_choice.name if request.tool_choice else None
        thinks = kind.reasoning_parser_cls is not None
        return lambda choice: ForcedCalls(choice, name, only_first, make, asked, thinks)
    if offered or kind.reasoning_parser_cls is not None:
        tools, must_call = serving.enable_auto_tools, offered and forced

        def decode(tokens: Sequence[int]) -> str:
            text: str = serving.renderer.tokenizer.decode(tokens, skip_special_tokens=asked.skip_special_tokens)
            return text

        return lambda choice: FreeAnswer(choice, only_first, make, asked, tools, must_call, SingleTokens(decode))
    return None


def _check_promises(asked: Any, request: ChatRequest, forced: bool) -> None:
    if request.response_format is not None and request.response_format.kind != "text":
        raise UnsupportedFeature(
            f"Model '{request.model}' cannot offer tools and keep to a response format in one answer; leave out "
            "'response_format' or set 'tool_choice' to 'none'.",
            "response_format",
        )
    if asked.structured_outputs is not None or asked._grammar_from_parser:
        return  # vLLM lets the model write nothing else
    if forced:
        raise UnsupportedFeature(
            f"Model '{request.model}' cannot be made to call a tool; set 'tool_choice' to 'auto'.", "tool_choice"
        )
    if any(tool.strict for tool in request.tools):
        raise UnsupportedFeature(
            f"Model '{request.model}' cannot be kept strictly to a tool's parameters; leave out 'strict'.", "tools"
        )


class ForcedCalls:
    """An answer that has to be calls: the arguments of the one named tool, or a list of objects with `name` and
    `parameters`."""

    def __init__(
        self, choice: int, name: str | None, only_first: bool, make: Callable[[], Any], asked: Any, thinks: bool
    ) -> None:
        self._choice = choice
        self._name = name
        self._only_first = only_first
        self._make = make
        self._asked = asked
        self._thinks = thinks
        self._text = ""
        self._at = 0
        self._calls = 0
        self._tokens: list[int] = []
        self.called = False
        self.reasoning_tokens = 0

    def read(self, output: Any, prompt_token_ids: Any) -> list[Event]:
        finished = output.finish_reason is not None
        self._text += output.text
        events: list[Event] = []
        if self._thinks:
            self._tokens.extend(output.token_ids)
            if not finished:
                return []  # where the thoughts end is certain at the end only
            events += self._thoughts()
        events += self._named() if self._name else self._required(output.text)
        if output.finish_reason == "stop" and not self.called:
            raise RuntimeError("the model made no call although it had to")
        return events

    def _thoughts(self) -> list[Event]:
        parser = self._make()
        self.reasoning_tokens = parser.count_reasoning_tokens(self._tokens)
        reasoning, content = parser.extract_reasoning(self._text, self._asked)
        self._text = content or ""
        return [ReasoningDelta(reasoning, choice=self._choice)] if reasoning else []

    def _named(self) -> list[Event]:
        piece, self._at = self._text[self._at :], len(self._text)
        if not piece:
            return []
        first, self.called = not self.called, True
        if first:
            return [ToolCallDelta(0, _new_id(), self._name, piece, self._choice)]
        return [ToolCallDelta(0, arguments=piece, choice=self._choice)]

    def _required(self, piece: str) -> list[Event]:
        """Each call once it is whole."""
        if not self._thinks and "}" not in piece:
            return []
        found, self._at = whole_calls(self._text, self._at)
        events: list[Event] = []
        for name, arguments in found:
            if not (self._only_first and self._calls):
                events.append(ToolCallDelta(self._calls, _new_id(), name, arguments, self._choice))
                self._calls += 1
        self.called = self._calls > 0
        return events


def whole_calls(text: str, at: int) -> tuple[list[tuple[str, str]], int]:
    """Names and arguments, as they are written, of the calls that are whole in `text` from `at` on, and where the next
    one begins. Raises RuntimeError for what is no list of calls."""
    calls: list[tuple[str, str]] = []
    while True:
        begins = at
        while begins < len(text) and text[begins] in _WHITESPACE + "[,]":
            begins += 1
        if begins == len(text):
            return calls, begins
        try:
            members, ends = _members(text, begins)
        except ValueError:
            return calls, begins  # not whole yet
        name = members.get("name")
        if name is None or "parameters" not in members:
            raise RuntimeError("a tool call without name or parameters")
        calls.append((json.loads(name), members["parameters"]))
        at = ends


def _members(text: str, at: int) -> tuple[dict[str, str], int]:
    """The members of the JSON object at `at`, each value as it is written, and where the object ends. Raises ValueError
    where `text` ends before."""
    if text[at] != "{":
        raise RuntimeError("no JSON object where a tool call should be")
    members: dict[str, str] = {}
    at = _past(text, at + 1)
    while text[at : at + 1] != "}":
        key, at = _DECODER.raw_decode(text, at)
        value_at = _past(text, at, ":")
        _, at = _DECODER.raw_decode(text, value_at)
        members[key] = text[value_at:at]
        at = _past(text, at, ",", optional=True)
    return members, at + 1


def _past(text: str, at: int, mark: str = "", optional: bool = False) -> int:
    """The place after white space, `mark` and white space. Raises ValueError where `text` ends or `mark` is missing."""
    while text[at : at + 1] and text[at] in _WHITESPACE:
        at += 1
    if mark and text[at : at + 1] == mark:
        return _past(text, at + 1)
    if at >= len(text) or (mark and not optional):
        raise ValueError("not whole")
    return at


class SingleTokens:
    """Cuts what came at once into the text of each token, as if each had come alone."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._text_of = IncrementalText(decode)
        self._begun = False
        self._decoded = 0  # characters that the tokens so far stand for
        self._given = 0  # characters that came; vLLM holds back what may become a stop string

    def cut(self, text: str, tokens: Sequence[int], prompt: Sequence[int]) -> list[tuple[str, list[int]]]:
        """Each token with its text. The pieces join to `text`, whatever the tokens decode to."""
        if not self._begun:
            self._begun = True
            self._text_of.push(prompt[-_PROMPT_TOKENS:])  # a first word is decoded otherwise where nothing precedes it
        pieces: list[tuple[str, list[int]]] = []
        for token in tokens:
            self._decoded += len(self._text_of.push([token]))
            piece = text[: max(0, self._decoded - self._given)]
            text = text[len(piece) :]
            self._given += len(piece)
            pieces.append((piece, [token]))
        self._given += len(text)
        last, alone = pieces.pop() if pieces else ("", [])
        return [*pieces, (last + text, alone)]


class FreeAnswer:
    """An answer in which the model may think, speak and make calls, in its own way of writing them."""

    def __init__(
        self,
        choice: int,
        only_first: bool,
        make: Callable[[], Any],
        asked: Any,
        tools: bool,
        must_call: bool = False,
        single: SingleTokens | None = None,
    ) -> None:
        self._choice = choice
        self._only_first = only_first
        self._must_call = must_call
        self._single = single
        self._make = make
        self._asked = asked
        self._tools = tools
        self._parser = make()
        self._text = ""
        self._tokens: list[int] = []
        self._spoken = self._thought = ""
        self._calls: dict[int, tuple[str, str]] = {}
        self.called = False
        self.reasoning_tokens = 0

    def read(self, output: Any, prompt_token_ids: Any) -> list[Event]:
        finished = output.finish_reason is not None
        self._text += output.text
        self._tokens.extend(output.token_ids)
        pieces = [(output.text, list(output.token_ids))]
        if self._single is not None:
            pieces = self._single.cut(output.text, output.token_ids, prompt_token_ids)
        events: list[Event] = []
        for number, (text, tokens) in enumerate(pieces, 1):
            delta = self._parser.parse_delta(
                delta_text=text,
                delta_token_ids=tokens,
                request=self._asked,
                prompt_token_ids=prompt_token_ids,
                finished=finished and number == len(pieces),
            )
            if delta is not None:
                events.extend(self._events_of(delta))
        if finished:
            events += self._rest(output.finish_reason)
        self.called = bool(self._calls)
        if self._must_call and output.finish_reason == "stop" and not self.called:
            raise RuntimeError("the model made no call although it had to")
        return events

    def _events_of(self, delta: Any) -> Iterator[Event]:
        if delta.reasoning:
            self._thought += delta.reasoning
            yield ReasoningDelta(delta.reasoning, choice=self._choice)
        if delta.content:
            self._spoken += delta.content
            yield TextDelta(delta.content, choice=self._choice)
        for call in delta.tool_calls or ():
            function = call.function
            yield from self._call(call.index, call.id, function and function.name, (function and function.arguments))

    def _call(self, index: int, call_id: str | None, name: str | None, arguments: str | None) -> Iterator[Event]:
        if self._only_first and index > 0:
            return
        first = index not in self._calls
        known_name, known_arguments = self._calls.get(index, ("", ""))
        self._calls[index] = (known_name or name or "", known_arguments + (arguments or ""))
        if first:
            yield ToolCallDelta(index, call_id or _new_id(), name, arguments or "", self._choice)
        elif arguments:
            yield ToolCallDelta(index, arguments=arguments, choice=self._choice)

    def _rest(self, finish_reason: str) -> list[Event]:
        """What the whole text has and the stream has not had."""
        parser = self._make()
        self.reasoning_tokens = parser.count_reasoning_tokens(self._tokens)
        if finish_reason != "stop" and self._calls:
            return []  # cut inside a call: there is no more to know of it
        reasoning, content, calls = parser.parse(self._text, self._asked, self._tools, self._tokens)
        events: list[Event] = []
        if reasoning and reasoning != self._thought and reasoning.startswith(self._thought):
            events.append(ReasoningDelta(reasoning[len(self._thought) :], choice=self._choice))
        content = content or ""
        if content != self._spoken and content.startswith(self._spoken):
            events.append(TextDelta(content[len(self._spoken) :], choice=self._choice))
        elif calls and not content.strip().startswith(self._spoken.strip()):
            raise RuntimeError("the stream took a tool call for text")
        for index, call in enumerate(calls or ()):
            events += self._completed(index, call)
        if len(self._calls) > len(calls or ()):
            raise RuntimeError("the stream had a tool call that the answer has not")
        return events

    def _completed(self, index: int, call: Any) -> Iterator[Event]:
        name, arguments = self._calls.get(index, (call.name, ""))
        if index not in self._calls:
            yield from self._call(index, call.id, call.name, call.arguments)
        elif name != call.name:
            raise RuntimeError("the stream had another tool call than the answer")
        elif not _same_json(arguments, call.arguments):
            if not call.arguments.startswith(arguments):
                raise RuntimeError("the stream had other arguments than the answer")
            yield from self._call(index, None, None, call.arguments[len(arguments) :])


def _same_json(one: str, other: str) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return one == other


def _new_id() -> str:
    return f"call_{uuid4().hex[:24]}"
