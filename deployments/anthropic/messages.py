"""Anthropic's messages.

Sources: https://platform.claude.com/docs/en/api/messages, /build-with-claude/streaming.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.anthropic.blocks import FIELDS, Blocks, Delta, Start, Step, Stop, whole_blocks
from deployments.anthropic.errors import anthropic_error
from deployments.anthropic.messages_request import parse_count, parse_messages
from deployments.anthropic.messages_schema import CountTokensBody, MessagesBody
from deployments.door import Answer, Operation, admitted, read_body
from models.anthropic_request import to_json
from models.errors import SwitchyardError
from models.messages import Completion, Event, Finish, FinishReason, Usage
from router.events import Stopwatch
from router.pipeline import Options
from router.run import Head, Run
from router.token_count import count_tokens
from router.validation import check_priority

if TYPE_CHECKING:
    from deployments.ingress import Ingress

_STOP_REASONS: dict[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


class MessagesDoor:
    """Messages, and how long one would be."""

    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("POST", "/v1/messages", self.messages, MessagesBody, anthropic_error),
            Operation("POST", "/v1/messages/count_tokens", self.count_tokens, CountTokensBody, anthropic_error),
        )

    async def messages(self, request: Request) -> Response:
        watch = Stopwatch(time.perf_counter, "auth")
        principal = await admitted(self.ingress, request)
        watch.enter("parse")
        body = await read_body(request, self.ingress.topology.max_body_bytes)
        parsed = parse_messages(body, request.headers.getlist("anthropic-beta"))
        check_priority(parsed.options.priority, principal)
        run = self.ingress.pipeline.run(parsed.request, principal, parsed.options, "anthropic-messages", watch)
        return Answer(run, AnthropicMessages(parsed.hides_thinking), parsed.stream)

    async def count_tokens(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        body = await read_body(request, self.ingress.topology.max_body_bytes)
        asked = parse_count(body, request.headers.getlist("anthropic-beta"))
        count = await count_tokens(self.ingress.pipeline, asked, principal, Options())
        return JSONResponse({"input_tokens": count.tokens, "switchyard": {"estimated": count.estimated}})


class AnthropicMessages:
    """The messages dialect of one request. `hides_thinking`: the caller wants no thoughts, only their signatures."""

    def __init__(self, hides_thinking: bool = False) -> None:
        self._hides_thinking = hides_thinking
        self._blocks = Blocks(hides_thinking, "")
        self._index = -1

    # ---- unary -----------------------------------------------------------------------------------------------------

    def unary(self, run: Run, head: Head, completion: Completion) -> bytes:
        blocks = self._begun(head)
        steps = list(blocks.feed(run.events))
        content = whole_blocks(steps, cut_off=completion.finish_reason == "length")
        message = _message(head) | {"content": content, **_end(blocks), "usage": usage_body(completion.usage)}
        return to_json(message)

    # ---- stream ----------------------------------------------------------------------------------------------------

    def first(self, head: Head) -> bytes:
        """How many tokens the question has is not known yet, so the counts come with the end."""
        self._blocks = self._begun(head)
        message = _message(head) | {"usage": usage_body(Usage())}
        return _event("message_start", {"message": message})

    def chunk(self, events: Sequence[Event]) -> bytes:
        return b"".join(map(self._step, self._blocks.feed(events)))

    def _step(self, step: Step) -> bytes:
        match step:
            case Start(block):
                self._index += 1
                return _event("content_block_start", {"index": self._index, "content_block": block})
            case Delta(kind, text):
                # Written by hand, since a stream has one for every token.
                delta = f'{{"type": "{kind}_delta", "{FIELDS[kind]}": {json.dumps(text)}}}'
                data = f'{{"type": "content_block_delta", "index": {self._index}, "delta": {delta}}}'
                return f"event: content_block_delta\ndata: {data}\n\n".encode()
            case Stop():
                return _event("content_block_stop", {"index": self._index})

    def last(self, run: Run) -> bytes:
        usage = usage_body(run.usage)
        del usage["cache_creation"]  # only a whole message has it
        return _event("message_delta", {"delta": _end(self._blocks), "usage": usage}) + _event("message_stop", {})

    def _begun(self, head: Head) -> Blocks:
        return Blocks(self._hides_thinking, f"toolu_{head.request_id.removeprefix('req_')}_")

    # ---- errors ----------------------------------------------------------------------------------------------------

    def error(self, error: SwitchyardError, request_id: str) -> bytes:
        return anthropic_error(error, request_id)

    def error_event(self, error: SwitchyardError, request_id: str) -> bytes:
        return b"event: error\ndata: " + anthropic_error(error, request_id) + b"\n\n"


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def _message(head: Head) -> dict[str, Any]:
    return {
        "id": f"msg_{head.request_id}",
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _end(blocks: Blocks) -> dict[str, str | None]:
    """How an answer ended. Some providers call it a plain stop when they were told to call a tool."""
    finish = blocks.finish or Finish("stop")
    if finish.stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": finish.stop}
    reason = "tool_calls" if finish.reason == "stop" and blocks.tool_calls else finish.reason
    return {"stop_reason": _STOP_REASONS[reason], "stop_sequence": None}


def usage_body(usage: Usage) -> dict[str, Any]:
    """Input tokens are here those that the cache neither read nor wrote."""
    written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    return {
        "input_tokens": max(0, usage.input_tokens - usage.cached_input_tokens - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }
