"""A model without weights: settable latency, throughput, length and failures, for load tests, demos and failure drills.

The answer is pseudo-words drawn from a digest of the question, so the same question gets the same answer (or the same
failure) from every replica, and another question, model or seed another one. A token is a word, in and out.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence

from models.base import Call, Capabilities, check_supported
from models.catalog import ModelEntry
from models.errors import ContextLengthExceeded, DeadlineExceeded, ModelUnavailable, StreamInterrupted, UpstreamFailed
from models.messages import (
    ChatRequest,
    Event,
    Finish,
    FinishReason,
    ImagePart,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    UsageReport,
)

_IMAGE_TOKENS = 256
_ABLE = Capabilities(tools=True, images=True, seed=True, logprobs=True)
_RIMES = ("a", "e", "i", "o", "u", "an", "ar", "el", "en", "er", "in", "on", "or", "um", "us", "ai")
# One delta per byte value, made once: a token then costs a table look-up.
_FIRST = tuple(TextDelta(onset + rime, 1) for onset in "bdfghklmnprstvwz" for rime in _RIMES)
_NEXT = tuple(TextDelta(" " + delta.text, 1) for delta in _FIRST)


class SimulatedModel:
    """A `ChatModel`. The keyword arguments are plain scalars, as a config's `engine_args` has them.

    ttft_ms: wait before the first token.
    tokens_per_s: pace of the following ones; 0: no think time, the whole answer without once yielding to the loop.
    output_tokens: length of every answer, unless `max_tokens`, `stop` or the context end it earlier.
    failure_rate: share of the questions, in [0, 1], that fail: before the first event with `UpstreamFailed`, or, with
    `fail_after_tokens`, after that many tokens with `StreamInterrupted`.
    stamped: every token is the moment at which it leaves here, `time.monotonic_ns()` in digits. All processes of a
    machine read the same clock, so whoever receives it there knows how long it was on its way.
    unsure_rate: share of the questions, in [0, 1], of whose answers every token has the log probability
    `unsure_logprob` instead of `sure_logprob`; both are told to those who ask for them.
    With `tool_choice` required or naming a tool the answer is a tool call instead of text.
    """

    def __init__(
        self,
        entry: ModelEntry,
        ttft_ms: float = 0.0,
        tokens_per_s: float = 0.0,
        output_tokens: int = 64,
        failure_rate: float = 0.0,
        fail_after_tokens: int | None = None,
        seed: int = 0,
        stamped: bool = False,
        unsure_rate: float = 0.0,
        sure_logprob: float = -0.01,
        unsure_logprob: float = -1.0,
    ) -> None:
        numbers = ttft_ms, tokens_per_s, output_tokens, fail_after_tokens or 0
        if min(numbers) < 0 or not (0 <= failure_rate <= 1 and 0 <= unsure_rate <= 1):
            raise ValueError(
                f"model '{entry.name}': ttft_ms, tokens_per_s, output_tokens and fail_after_tokens must not be "
                "negative, and failure_rate and unsure_rate must be between 0 and 1"
            )
        if max(sure_logprob, unsure_logprob) > 0:
            raise ValueError(f"model '{entry.name}': no log probability is above 0")
        entry.check_engine_has(_ABLE)
        self._entry = entry
        self._ttft_s = ttft_ms / 1000
        self._token_s = 1 / tokens_per_s if tokens_per_s else 0.0
        self._output_tokens = output_tokens
        self._failure_rate = failure_rate
        self._fail_after_tokens = fail_after_tokens
        self._seed = seed
        self._stamped = stamped
        self._unsure_rate = unsure_rate
        self._logprobs = sure_logprob, unsure_logprob
        self._closed = False

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        await self.check_health()
        check_supported(request, self._entry.capabilities, self._entry.name)
        input_tokens = self._input_tokens(request)
        digest = self._digest(request)
        fails = int.from_bytes(digest[:8], "big") < self._failure_rate * 2**64
        answer: Sequence[Event]
        reason: FinishReason
        if request.tools and request.tool_choice and request.tool_choice.mode in ("required", "tool"):
            answer, reason = _tool_call(request, digest), "tool_calls"
        else:
            answer, reason = self._text(request, digest, self._entry.context_tokens - input_tokens)
        output_tokens = len(answer)
        if request.sampling.top_logprobs is not None:
            unsure = int.from_bytes(digest[8:16], "big") < self._unsure_rate * 2**64
            answer = [_with_logprob(event, self._logprobs[unsure]) for event in answer]
        if fails:
            answer = answer[: self._fail_after_tokens or 0]
        if self._ttft_s or self._token_s:
            async for event in self._paced(answer, call.timeout_s):
                yield self._as_it_leaves(event)
        else:
            for event in answer:
                yield self._as_it_leaves(event)
        if fails and answer:
            raise StreamInterrupted(f"Model '{self._entry.name}' broke off its answer; send the request again.")
        if fails:
            raise UpstreamFailed(f"Model '{self._entry.name}' failed; send the request again.")
        yield Finish(reason)
        yield UsageReport(Usage(input_tokens, output_tokens))

    async def check_health(self) -> None:
        if self._closed:
            raise ModelUnavailable(f"Model '{self._entry.name}' is shut down; send the request again in a moment.")

    async def close(self) -> None:
        self._closed = True

    def _input_tokens(self, request: ChatRequest) -> int:
        tokens = 0
        for message in request.messages:
            tokens += 1 + len(message.text.split())
            tokens += _IMAGE_TOKENS * sum(isinstance(part, ImagePart) for part in message.parts)
        if tokens >= self._entry.context_tokens:
            raise ContextLengthExceeded(
                f"The prompt has {tokens} tokens, model '{self._entry.name}' takes {self._entry.context_tokens} "
                "with the answer; shorten it or choose a model with a longer context.",
                "messages",
            )
        return tokens

    def _digest(self, request: ChatRequest) -> bytes:
        question = hashlib.blake2b(f"{self._entry.name}\0{self._seed}\0{request.sampling.seed}".encode())
        for message in request.messages:
            # repr quotes each part, so two questions never join into the same bytes
            question.update(repr((message.role, message.text, message.tool_calls)).encode())
            question.update("".join(repr(part.url) for part in message.parts if isinstance(part, ImagePart)).encode())
        return question.digest()

    def _text(self, request: ChatRequest, digest: bytes, room_tokens: int) -> tuple[list[TextDelta], FinishReason]:
        limits = (request.sampling.max_tokens, self._entry.max_output_tokens, room_tokens, self._output_tokens)
        tokens = min(limit for limit in limits if limit is not None)
        draws = hashlib.shake_128(digest).digest(tokens)
        answer = [_NEXT[draw] for draw in draws]
        if answer:
            answer[0] = _FIRST[draws[0]]
        if request.sampling.stop:
            kept = _before_stop(answer, request.sampling.stop)
            if kept is not None:
                return kept, "stop"
        return answer, "length" if tokens < self._output_tokens else "stop"

    def _as_it_leaves(self, event: Event) -> Event:
        return TextDelta(str(time.monotonic_ns()), 1) if self._stamped and isinstance(event, TextDelta) else event

    async def _paced(self, answer: Sequence[Event], timeout_s: float) -> AsyncIterator[Event]:
        """`answer` at the set pace, measured from the start so that a slow consumer does not add to it."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        # An answer without tokens thinks too: it is what a failing request looks like.
        for index in range(max(1, len(answer))):
            due_s = min(self._ttft_s + index * self._token_s, timeout_s)
            await asyncio.sleep(max(0.0, started_s + due_s - loop.time()))
            if due_s >= timeout_s:
                raise DeadlineExceeded(
                    f"Model '{self._entry.name}' had not finished after {timeout_s:g} s; "
                    "allow more time or fewer tokens."
                )
            if answer:
                yield answer[index]


def _with_logprob(event: Event, logprob: float) -> Event:
    """Of a token: the pieces of a tool call are none."""
    if not isinstance(event, TextDelta):
        return event
    return TextDelta(event.text, event.tokens, (TokenLogprob(event.text, logprob),))


def _tool_call(request: ChatRequest, digest: bytes) -> list[ToolCallDelta]:
    assert request.tool_choice is not None
    name = request.tool_choice.name or request.tools[0].name
    pieces = ('{"query":', f' "{digest[8:16].hex()}"', "}")
    first = ToolCallDelta(0, f"call_{digest[16:28].hex()}", name)
    return [first, *(ToolCallDelta(0, arguments=piece) for piece in pieces)]


def _before_stop(answer: list[TextDelta], stop: tuple[str, ...]) -> list[TextDelta] | None:
    """The deltas up to the first stop sequence; None when there is none in `answer`."""
    text = "".join(delta.text for delta in answer)
    found = [at for at in (text.find(sequence) for sequence in stop if sequence) if at >= 0]
    if not found:
        return None
    kept: list[TextDelta] = []
    left = min(found)
    for delta in answer:
        if left <= 0:
            break
        kept.append(delta if len(delta.text) <= left else TextDelta(delta.text[:left], 1))
        left -= len(delta.text)
    return kept
