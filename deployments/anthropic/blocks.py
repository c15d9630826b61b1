"""Content blocks of Anthropic's dialect, made of events: one after the other, as its streams have them.

Source: https://platform.claude.com/docs/en/build-with-claude/streaming.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from models.anthropic_request import RawJSON
from models.errors import StreamInterrupted, UpstreamFailed
from models.messages import Event, Finish, ReasoningDelta, TextDelta, ToolCallDelta, UsageReport


@dataclass(frozen=True, slots=True)
class Start:
    """A block begins. Its fields are as in `content_block_start`."""

    block: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Delta:
    """`kind` is the delta's type without its `_delta`."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The block is complete."""


Step = Start | Delta | Stop
FIELDS = {"text": "text", "thinking": "thinking", "signature": "signature", "input_json": "partial_json"}
"""What the text of a delta is called in it."""


class Blocks:
    """`feed` makes steps of events. One block is open at a time; `finish` is set when the answer has ended.

    Pieces of a tool call wait while an earlier call's arguments are not complete: a provider may write two at once, and
    clients put every piece into the block that began last.
    """

    def __init__(self, hides_thinking: bool, id_prefix: str) -> None:
        self.finish: Finish | None = None
        self.tool_calls = 0
        self._hides_thinking = hides_thinking
        self._id_prefix = id_prefix
        self._open: str | None = None
        self._call: int | None = None
        self._arguments = ""
        self._closed: set[int] = set()
        self._waiting: dict[int, list[ToolCallDelta]] = {}

    def feed(self, events: Sequence[Event]) -> Iterator[Step]:
        for event in events:
            match event:
                case TextDelta(text) if text:
                    yield from self._begin("text", {"type": "text", "text": ""})
                    yield Delta("text", text)
                case ReasoningDelta():
                    yield from self._reasoning(event)
                case ToolCallDelta():
                    yield from self._tool_call(event)
                case Finish():
                    self.finish = event
                    yield from self._end()
                case TextDelta() | UsageReport():
                    pass

    def _begin(self, kind: str, block: dict[str, Any]) -> Iterator[Step]:
        if self._open != kind:
            yield from self._end()
            self._open = kind
            yield Start(block)

    def _end(self) -> Iterator[Step]:
        """Closes what is open, and gives out what waits."""
        while self._waiting:
            yield from self._next_call()
        yield from self._stop()

    def _stop(self) -> Iterator[Step]:
        if self._open is None:
            return
        if self._call is not None:
            self._closed.add(self._call)
        self._open = self._call = None
        yield Stop()

    def _reasoning(self, event: ReasoningDelta) -> Iterator[Step]:
        if event.redacted is not None:
            yield from self._end()
            yield Start({"type": "redacted_thinking", "data": event.redacted})
            yield Stop()
            return
        text = "" if self._hides_thinking else event.text
        if text or event.signature:
            yield from self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        if text:
            yield Delta("thinking", text)
        if event.signature:
            yield Delta("signature", event.signature)
            yield from self._end()

    # ---- tool calls ------------------------------------------------------------------------------------------------

    def _tool_call(self, event: ToolCallDelta) -> Iterator[Step]:
        if event.index in self._closed:
            if event.arguments:
                raise StreamInterrupted("The model went on with a tool call that had ended; send the request again.")
            return
        if event.index == self._call:
            yield from self._piece(event)
        else:
            self._waiting.setdefault(event.index, []).append(event)
        while self._waiting and (self._call is None or _is_object(self._arguments)):
            yield from self._next_call()

    def _next_call(self) -> Iterator[Step]:
        yield from self._stop()
        index = next(iter(self._waiting))
        pieces = self._waiting.pop(index)
        call_id = next((piece.id for piece in pieces if piece.id), f"{self._id_prefix}{self.tool_calls}")
        name = next((piece.name for piece in pieces if piece.name), "")
        self.tool_calls += 1
        self._open, self._call, self._arguments = "tool_use", index, ""
        yield Start({"type": "tool_use", "id": call_id, "name": name, "input": {}})
        for piece in pieces:
            yield from self._piece(piece)

    def _piece(self, event: ToolCallDelta) -> Iterator[Step]:
        if event.arguments:
            self._arguments += event.arguments
            yield Delta("input_json", event.arguments)


def whole_blocks(steps: Iterable[Step], cut_off: bool) -> list[dict[str, Any]]:
    """The blocks of a whole answer. The input of a tool call is as the model wrote it.

    A call that was `cut_off` by the limit of tokens is left out: nobody may run it, and the stop reason says what
    happened. Raises `UpstreamFailed` for any other whose arguments are no JSON object.
    """
    begun: list[dict[str, Any]] = []
    pieces: list[dict[str, list[str]]] = []
    for step in steps:
        match step:
            case Start(block):
                begun.append(block)
                pieces.append({})
            case Delta(kind, text):
                pieces[-1].setdefault(FIELDS[kind], []).append(text)
    blocks = [
        block | {name: "".join(texts) for name, texts in fields.items()}
        for block, fields in zip(begun, pieces, strict=True)
    ]
    return [_with_input(block) for block in blocks if _can_be_run(block, cut_off)]


def _with_input(block: dict[str, Any]) -> dict[str, Any]:
    arguments = block.pop(FIELDS["input_json"], "{}")
    return block | {"input": RawJSON(arguments)} if block["type"] == "tool_use" else block


def _can_be_run(block: dict[str, Any], cut_off: bool) -> bool:
    if block["type"] != "tool_use" or _is_object(block.get(FIELDS["input_json"], "{}")):
        return True
    if cut_off:
        return False
    raise UpstreamFailed(
        "The model wrote a tool call whose arguments are no JSON object, which a whole message cannot hold; send the "
        "request again, or with 'stream' to have them as they are."
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
