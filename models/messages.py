"""The one conversation model between all dialects: what is asked (`ChatRequest`) and what is answered (`Event`s).

Everything here is a frozen dataclass of plain values, so it crosses a Serve hop, hashes and compares. JSON inside it
(tool parameters, tool-call arguments, schemas) is text; a model's arguments stay byte for byte what it wrote.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
CacheTtl = Literal["5m", "1h"]
"""How long a provider shall keep what it has read up to a mark. A mark changes no answer, only what it costs."""


# ---- what is asked -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str
    cache: CacheTtl | None = None


@dataclass(frozen=True, slots=True)
class ImagePart:
    """`url` is an http(s) address or a `data:` URI."""

    url: str
    detail: str = "auto"
    cache: CacheTtl | None = None


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """Thinking that a model showed earlier; `signature` is the provider's proof that it is unchanged. `redacted` is
    thinking that only the provider can read, instead of a text."""

    text: str
    signature: str | None = None
    redacted: str | None = None


Part = TextPart | ImagePart | ReasoningPart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is JSON text, byte for byte as the model wrote it."""

    id: str
    name: str
    arguments: str
    cache: CacheTtl | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """`is_error` and `cache` are of a tool's result: it failed; the mark is on the result as a whole."""

    role: Role
    parts: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    is_error: bool = False
    cache: CacheTtl | None = None

    @property
    def text(self) -> str:
        """The text parts, joined as they are."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class Tool:
    """`parameters` is a JSON Schema as JSON text."""

    name: str
    description: str = ""
    parameters: str = "{}"
    strict: bool | None = None
    cache: CacheTtl | None = None


@dataclass(frozen=True, slots=True)
class ToolChoice:
    mode: Literal["auto", "none", "required", "tool"]
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """`schema` is a JSON Schema as JSON text, and `description` says what it is for; both for `json_schema` only."""

    kind: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: str | None = None
    strict: bool | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """`None` leaves the choice to the model. `logit_bias` is token ids of one model and what is added to their logits,
    -100 to 100."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    top_logprobs: int | None = None
    top_k: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a model may think before it answers, as Anthropic's API has it: as it does by itself, as much as it finds
    right, up to `budget_tokens`, or not at all. `display` says whether the thoughts are shown; None: as the model does.
    """

    mode: Literal["default", "adaptive", "budget", "off"] = "default"
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question with its whole conversation. `model` is a catalogue name or `auto`.

    raw_prompt: the one message is a text to go on with, so a local engine puts no chat template around it. A provider
        whose API takes conversations only gets it as a user's turn.
    thinking: None: as `reasoning_effort` says, which else is only how much.
    prefill: the last message is the beginning of the answer, which the model goes on with.
    betas: versions of a provider's API that it shall answer by, for a provider that has such.
    cache: a mark on the last thing that can have one.
    verbosity: how much to say, in OpenAI's words (low, medium, high).
    prompt_cache_key, safety_identifier: OpenAI's own, which change no answer: which questions begin alike, so that its
        cache finds them, and who asks, should its rules be broken.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    user: str | None = None
    raw_prompt: bool = False
    thinking: Thinking | None = None
    prefill: bool = False
    betas: tuple[str, ...] = ()
    cache: CacheTtl | None = None
    verbosity: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @property
    def has_images(self) -> bool:
        return any(isinstance(part, ImagePart) for message in self.messages for part in message.parts)


# ---- what is answered ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by kind. The cached, cache-write and reasoning counts are parts of `input_tokens` or `output_tokens`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_input_tokens + other.cached_input_tokens,
            self.cache_write_5m_tokens + other.cache_write_5m_tokens,
            self.cache_write_1h_tokens + other.cache_write_1h_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural log of a token's probability before any temperature, and the likeliest tokens at its place.

    raw: its bytes, where they are known and `token` is not simply their text (half a character has none).
    """

    token: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    raw: bytes | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """`tokens` is how many tokens `text` stands for, as far as the engine says (0: unknown)."""

    text: str
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of thinking. `signature` and `redacted` are whole, and end it: what follows is the next thought."""

    text: str
    signature: str | None = None
    choice: int = 0
    redacted: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of the `index`-th tool call: `id` and `name` come with its first piece, `arguments` in any splits."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Finish:
    """`stop` is the sequence of the caller's that ended the answer, where that is known."""

    reason: FinishReason
    choice: int = 0
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class UsageReport:
    """The engine's or provider's own count; the last one of a stream holds. `estimated` marks a count of ours."""

    usage: Usage
    estimated: bool = False


Event = TextDelta | ReasoningDelta | ToolCallDelta | Finish | UsageReport


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to a question. `finish_reason` is None where its stream was cut short."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer, folded from its events: one choice, or `n` of them. The usage is of all of them.

    What most callers want, who ask for one choice, is here too: `text` and the like are the first one's.
    """

    choices: tuple[Choice, ...] = (Choice(),)
    usage: Usage = field(default_factory=Usage)
    estimated: bool = True

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def reasoning(self) -> str:
        return self.choices[0].reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.choices[0].tool_calls

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return self.choices[0].logprobs

    @property
    def finish_reason(self) -> FinishReason | None:
        """How the answer as a whole ended: the least complete end among its choices, None where one has not ended."""
        reasons = [choice.finish_reason for choice in self.choices]
        return min(reasons, key=_LEAST_COMPLETE_FIRST.index)


_LEAST_COMPLETE_FIRST: tuple[FinishReason | None, ...] = (None, "content_filter", "length", "tool_calls", "stop")


class _OpenChoice:
    """A choice that is still being folded."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.calls: dict[int, list[ToolCallDelta]] = {}
        self.finish: FinishReason | None = None

    def closed(self) -> Choice:
        calls = tuple(_joined(self.calls[index]) for index in sorted(self.calls))
        return Choice("".join(self.text), "".join(self.reasoning), calls, self.finish, tuple(self.logprobs))


def _joined(pieces: list[ToolCallDelta]) -> ToolCall:
    """One tool call of its pieces. The last id and name hold: some providers repeat them."""
    ids, names = [piece.id for piece in pieces if piece.id], [piece.name for piece in pieces if piece.name]
    return ToolCall(ids[-1] if ids else "", names[-1] if names else "", "".join(piece.arguments for piece in pieces))


def fold(events: Iterable[Event]) -> Completion:
    """The answer that `events` spell out, its choices in the order of their numbers. A `finish_reason` stays None when
    the stream was cut short."""
    choices: dict[int, _OpenChoice] = {}
    report = UsageReport(Usage(), estimated=True)
    for event in events:
        if isinstance(event, UsageReport):
            report = event
            continue
        choice = choices.get(event.choice)
        if choice is None:
            choice = choices[event.choice] = _OpenChoice()
        match event:
            case TextDelta():
                choice.text.append(event.text)
                choice.logprobs.extend(event.logprobs)
            case ReasoningDelta():
                choice.reasoning.append(event.text)
            case ToolCallDelta():
                choice.calls.setdefault(event.index, []).append(event)
            case Finish():
                choice.finish = event.reason
    folded = tuple(choices[number].closed() for number in sorted(choices))
    return Completion(folded or (Choice(),), report.usage, report.estimated)
