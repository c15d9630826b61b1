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
from deployments.openai.chat_schema import ChatBody, ParsedChat, parse_chat
from deployments.openai.errors import openai_error
from models.errors import SwitchyardError
from models.messages import (
    Choice,
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
        principal = await admitted(self.ingress, request)
        watch.enter("parse")
        parsed = parse_chat(await read_body(request, self.ingress.topology.max_body_bytes))
        check_priority(parsed.options.priority, principal)
        run = self.ingress.pipeline.run(parsed.request, principal, parsed.options, "openai-chat", watch)
        return Answer(run, _dialect(parsed), parsed.stream)

    async def route(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        parsed = parse_chat(await read_body(request, self.ingress.topology.max_body_bytes))
        return JSONResponse(await self.ingress.pipeline.explain(parsed.request, principal, parsed.options))


def _dialect(parsed: ParsedChat) -> OpenAIChat:
    sampling = parsed.request.sampling
    return OpenAIChat(parsed.include_usage, sampling.n, sampling.top_logprobs is not None)


class OpenAIChat:
    """The chat-completions dialect of one request.

    `choices` is how many answers were asked for. `logprobs`: whether the caller asked for log probabilities; an
    answer may have them although nobody did.
    """

    def __init__(self, include_usage: bool = False, choices: int = 1, logprobs: bool = False) -> None:
        self.include_usage = include_usage
        self.choices = choices
        self.logprobs = logprobs
        self.created = int(time.time())
        self._before = self._after = ""

    # ---- unary -----------------------------------------------------------------------------------------------------

    def unary(self, run: Run, head: Head, completion: Completion) -> bytes:
        body = {
            "id": f"chatcmpl-{head.request_id}",
            "object": "chat.completion",
            "created": self.created,
            "model": head.model,
            "choices": [self._whole(number, choice) for number, choice in enumerate(completion.choices)],
            "usage": usage_body(completion.usage),
        }
        return json.dumps(body).encode()

    def _whole(self, number: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text or None, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.tool_calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in choice.tool_calls
            ]
        elif message["content"] is None:
            message["content"] = ""
        return {
            "index": number,
            "message": message,
            "logprobs": _logprobs(choice.logprobs) if self.logprobs else None,
            "finish_reason": choice.finish_reason,
        }

    # ---- stream ----------------------------------------------------------------------------------------------------

    def first(self, head: Head) -> bytes:
        """The roles, and what stands around every delta: made once, since a stream has many."""
        shell = {
            "id": f"chatcmpl-{head.request_id}",
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": head.model,
        }
        self._before = "data: " + json.dumps(shell)[:-1] + ', "choices": ['
        self._after = "]" + (', "usage": null' if self.include_usage else "") + "}\n\n"
        role = '"delta": {"role": "assistant", "content": ""}, "finish_reason": null}'
        return b"".join(self._event(f'{{"index": {choice}, {role}') for choice in range(self.choices))

    def chunk(self, events: Sequence[Event]) -> bytes:
        return b"".join(self._choice(event) for event in events)

    def _choice(self, event: Event) -> bytes:
        match event:
            case TextDelta(text, _, logprobs, choice):
                tail = f', "logprobs": {json.dumps(_logprobs(logprobs))}' if logprobs and self.logprobs else ""
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
    content = [_token_body(token) | {"top_logprobs": [_token_body(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _token_body(token: TokenLogprob) -> dict[str, Any]:
    """`bytes` is null where they are not known: half a character decodes to U+FFFD."""
    raw = token.raw
    if raw is None and "\ufffd" not in token.token:
        raw = token.token.encode("utf-8", "surrogatepass")
    return {"token": token.token, "logprob": token.logprob, "bytes": None if raw is None else list(raw)}
