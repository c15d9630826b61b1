"""OpenAI's chat completions.

Sources: https://platform.openai.com/docs/api-reference/chat, /chat-streaming.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.door import Answer, Operation, admitted, read_body
from deployments.openai.chat_schema import ChatBody, parse_chat
from deployments.openai.errors import openai_error
from models.errors import SwitchyardError
from models.messages import (
    Completion,
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from router.events import Stopwatch
from router.run import Head, Run
from router.validation import check_priority

if TYPE_CHECKING:
    from deployments.ingress import Ingress


class ChatDoor:
    """Chat completions, and what would be done with one."""

    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation("POST", "/v1/chat/completions", self.chat_completions, ChatBody),
            Operation("POST", "/v1/route", self.route, ChatBody),
        )

    async def chat_completions(self, request: Request) -> Response:
        watch = Stopwatch(time.perf_counter, "auth")
        principal = admitted(self.ingress, request)
        watch.enter("parse")
        parsed = parse_chat(await read_body(request, self.ingress.topology.max_body_bytes))
        check_priority(parsed.options.priority, principal)
        run = self.ingress.pipeline.run(parsed.request, principal, parsed.options, "openai-chat", watch)
        return Answer(run, OpenAIChat(parsed.include_usage), parsed.stream)

    async def route(self, request: Request) -> Response:
        principal = admitted(self.ingress, request)
        parsed = parse_chat(await read_body(request, self.ingress.topology.max_body_bytes))
        return JSONResponse(await self.ingress.pipeline.explain(parsed.request, principal, parsed.options))


class OpenAIChat:
    """The chat-completions dialect of one request."""

    def __init__(self, include_usage: bool) -> None:
        self.include_usage = include_usage
        self.created = int(time.time())
        self._before = self._after = ""

    # ---- unary -----------------------------------------------------------------------------------------------------

    def unary(self, run: Run, head: Head, completion: Completion) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": completion.text or None, "refusal": None}
        if completion.reasoning:
            message["reasoning_content"] = completion.reasoning
        if completion.tool_calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in completion.tool_calls
            ]
        elif message["content"] is None:
            message["content"] = ""
        choice = {
            "index": 0,
            "message": message,
            "logprobs": _logprobs(completion.logprobs),
            "finish_reason": completion.finish_reason,
        }
        body = {
            "id": f"chatcmpl-{head.request_id}",
            "object": "chat.completion",
            "created": self.created,
            "model": head.model,
            "choices": [choice],
            "usage": usage_body(completion.usage),
        }
        return json.dumps(body).encode()

    # ---- stream ----------------------------------------------------------------------------------------------------

    def first(self, head: Head) -> bytes:
        """The role, and what stands around every delta: made once, since a stream has many."""
        shell = {
            "id": f"chatcmpl-{head.request_id}",
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": head.model,
        }
        self._before = "data: " + json.dumps(shell)[:-1] + ', "choices": ['
        self._after = "]" + (', "usage": null' if self.include_usage else "") + "}\n\n"
        return self._event('{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}')

    def chunk(self, events: Sequence[Event]) -> bytes:
        return b"".join(self._choice(event) for event in events)

    def _choice(self, event: Event) -> bytes:
        match event:
            case TextDelta(text, _, logprobs, choice):
                tail = f', "logprobs": {json.dumps(_logprobs(logprobs))}' if logprobs else ""
                delta = '{"content": ' + json.dumps(text) + "}" + tail
            case ReasoningDelta(text, _, choice):
                delta = '{"reasoning_content": ' + json.dumps(text) + "}"
            case ToolCallDelta(_, _, _, _, choice):
                delta = json.dumps({"tool_calls": [_tool_call_delta(event)]})
            case Finish(reason, choice):
                return self._event(f'{{"index": {choice}, "delta": {{}}, "finish_reason": "{reason}"}}')
            case UsageReport():
                return b""  # it comes last of all
        return self._event(f'{{"index": {choice}, "delta": {delta}, "finish_reason": null}}')

    def last(self, run: Run) -> bytes:
        done = b"data: [DONE]\n\n"
        if not self.include_usage:
            return done
        usage = json.dumps(usage_body(run.usage))
        return f'{self._before}], "usage": {usage}}}\n\n'.encode() + done

    def _event(self, choice: str) -> bytes:
        return f"{self._before}{choice}{self._after}".encode()

    # ---- errors ----------------------------------------------------------------------------------------------------

    def error(self, error: SwitchyardError, request_id: str) -> bytes:
        return openai_error(error, request_id)

    def error_event(self, error: SwitchyardError, request_id: str) -> bytes:
        return b"data: " + openai_error(error, request_id) + b"\n\n"


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _tool_call_delta(event: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, str] = {"arguments": event.arguments}
    if event.name is not None:
        function["name"] = event.name
    body: dict[str, Any] = {"index": event.index, "function": function}
    if event.id is not None:
        body |= {"id": event.id, "type": "function"}
    return body


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not tokens:
        return None
    content = [
        _token_body(t.token, t.logprob) | {"top_logprobs": [_token_body(text, lp) for text, lp in t.top]}
        for t in tokens
    ]
    return {"content": content, "refusal": None}


def _token_body(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "surrogatepass"))}
