"""OpenAI's completions: a text goes in as it is, what follows it comes out.

Source: https://platform.openai.com/docs/api-reference/completions.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from deployments.door import Answer, Operation, admitted, answer_headers, read_body
from deployments.openai.chat import usage_body
from deployments.openai.completions_schema import CompletionsBody, ParsedCompletions, parse_completions
from deployments.openai.errors import openai_error
from models.errors import SwitchyardError
from models.messages import Completion, Event, Finish, TextDelta, TokenLogprob, Usage
from router.events import Principal, Stopwatch
from router.run import Head, Run
from router.validation import check_priority

if TYPE_CHECKING:
    from deployments.ingress import Ingress

PROMPTS_AT_ONCE = 16
"""Of one body; the others wait for these, not in the queues that all callers share."""


class CompletionsDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        return (Operation("POST", "/v1/completions", self.completions, CompletionsBody),)

    async def completions(self, request: Request) -> Response:
        watch = Stopwatch(time.perf_counter, "auth")
        principal = await admitted(self.ingress, request)
        watch.enter("parse")
        parsed = parse_completions(await read_body(request, self.ingress.topology.max_body_bytes))
        return await self.respond(principal, parsed, watch)

    async def respond(
        self, principal: Principal, parsed: ParsedCompletions, watch: Stopwatch, door: str = "openai-completions"
    ) -> Response:
        """The answer for somebody who has been admitted."""
        check_priority(parsed.options.priority, principal)
        pipeline = self.ingress.pipeline
        if len(parsed.requests) > 1:
            runs = [pipeline.run(request, principal, parsed.options, door) for request in parsed.requests]
            return await _several(runs, parsed)
        run = pipeline.run(parsed.requests[0], principal, parsed.options, door, watch)
        return Answer(run, OpenAICompletions(parsed.requests[0].messages[0].text, parsed), parsed.stream)


async def _several(runs: Sequence[Run], parsed: ParsedCompletions) -> Response:
    """One answer of several prompts: each is a request of its own, with a receipt of its own. One that fails ends all.

    Raises `SwitchyardError`.
    """
    some = asyncio.Semaphore(PROMPTS_AT_ONCE)

    async def answered(run: Run) -> tuple[Head, Completion]:
        async with some, run:
            return await run.begin(stream=False), await run.completion()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answered(run)) for run in runs]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    head, usage = tasks[0].result()[0], Usage()
    choices: list[dict[str, Any]] = []
    for task, run in zip(tasks, runs, strict=True):
        completion = task.result()[1]
        dialect = OpenAICompletions(run.request.messages[0].text, parsed)
        choices += dialect.choices(completion, len(choices))
        usage += completion.usage
    headers = answer_headers(head) | {"x-switchyard-cost-microusd": str(sum(run.cost_microusd for run in runs))}
    body = _shell(head, int(time.time())) | {"choices": choices, "usage": usage_body(usage)}
    body["switchyard"] = {"request_ids": [run.request_id for run in runs]}
    return Response(json.dumps(body), 200, headers, "application/json")


class OpenAICompletions:
    """The dialect of one prompt."""

    def __init__(self, prompt: str, parsed: ParsedCompletions) -> None:
        self.created = int(time.time())
        self._echo = prompt if parsed.echo else ""
        self._sampling = parsed.requests[0].sampling
        self._include_usage = parsed.include_usage
        self._shell: dict[str, Any] = {}
        self._offsets: dict[int, int] = {}

    def unary(self, run: Run, head: Head, completion: Completion) -> bytes:
        body = _shell(head, self.created) | {"choices": self.choices(completion, 0)}
        return json.dumps(body | {"usage": usage_body(completion.usage)}).encode()

    def choices(self, completion: Completion, first: int) -> list[dict[str, Any]]:
        """The choices as JSON values, numbered from `first`."""
        return [
            {
                "text": self._echo + choice.text,
                "index": number,
                "logprobs": self._logprobs(choice.logprobs, number),
                "finish_reason": choice.finish_reason,
            }
            for number, choice in enumerate(completion.choices, first)
        ]

    # ---- stream ----------------------------------------------------------------------------------------------------

    def first(self, head: Head) -> bytes:
        self._shell = _shell(head, self.created)
        if not self._echo:
            return b""
        return b"".join(self._chunk(self._echo, number) for number in range(self._sampling.n))

    def chunk(self, events: Sequence[Event]) -> bytes:
        return b"".join(self._event(event) for event in events)

    def _event(self, event: Event) -> bytes:
        match event:
            case TextDelta(text, _, logprobs, choice):
                return self._chunk(text, choice, self._logprobs(logprobs, choice))
            case Finish(reason, choice):
                return self._chunk("", choice, None, reason)
        return b""  # a text that goes on has neither thoughts nor tools, and the usage comes last of all

    def _chunk(self, text: str, index: int, logprobs: dict[str, Any] | None = None, reason: str | None = None) -> bytes:
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}
        body = self._shell | {"choices": [choice]} | ({"usage": None} if self._include_usage else {})
        return f"data: {json.dumps(body)}\n\n".encode()

    def last(self, run: Run) -> bytes:
        done = b"data: [DONE]\n\n"
        if not self._include_usage:
            return done
        return f"data: {json.dumps(self._shell | {'choices': [], 'usage': usage_body(run.usage)})}\n\n".encode() + done

    def _logprobs(self, tokens: Sequence[TokenLogprob], choice: int) -> dict[str, Any] | None:
        """`text_offset` counts characters from the beginning of the choice's text."""
        if not tokens or self._sampling.top_logprobs is None:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(choice, 0))
            self._offsets[choice] = offsets[-1] + len(token.token)
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{other.token: other.logprob for other in token.top} for token in tokens],
            "text_offset": offsets,
        }

    # ---- errors ----------------------------------------------------------------------------------------------------

    def error(self, error: SwitchyardError, request_id: str) -> bytes:
        return openai_error(error, request_id)

    def error_event(self, error: SwitchyardError, request_id: str) -> bytes:
        return b"data: " + openai_error(error, request_id) + b"\n\n"


def _shell(head: Head, created: int) -> dict[str, Any]:
    return {"id": f"cmpl-{head.request_id}", "object": "text_completion", "created": created, "model": head.model}
