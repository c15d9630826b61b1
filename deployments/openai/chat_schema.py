"""OpenAI's chat-completions body, checked and turned into a `ChatRequest`.

Source: https://platform.openai.com/docs/api-reference/chat/create. What is not listed here is refused with 400, so
that nothing a caller asks for is silently dropped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from deployments.openai.body import explained
from deployments.openai.chat_reasons import reason
from models.errors import InvalidRequest
from models.messages import (
    ChatRequest,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    ResponseFormat,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from router.constraints import Limits
from router.pipeline import CacheMode, Options
from router.settings import Strategy
from router.validation import check_request

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""Of reasoning. Which of them a model has is its provider's affair."""


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ImageUrl(_Body):
    url: str = Field(pattern=r"^(https?://|data:image/)")
    detail: Literal["auto", "low", "high"] = "auto"


class ContentPart(_Body):
    type: Literal["text", "image_url", "refusal"]
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None


class FunctionCall(_Body):
    name: str = Field(min_length=1)
    arguments: str


class ToolCallBody(_Body):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class MessageBody(_Body):
    """One turn. Clients send an earlier answer back as they got it, so what an answer has is known here too."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = Field(None, description="what a model thought before this answer")
    reasoning: str | None = Field(None, description="another name for `reasoning_content`")
    annotations: list[Any] | None = Field(None, description="of an earlier answer; no part of the conversation")
    audio: None = None
    function_call: None = None


class FunctionBody(_Body):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(_Body):
    type: Literal["function"]
    function: FunctionBody


class NamedFunction(_Body):
    name: str


class NamedTool(_Body):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Body):
    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = None


class ResponseFormatBody(_Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class SwitchyardBody(_Body):
    """What Switchyard takes besides an API's own fields."""

    strategy: Strategy | None = Field(
        None,
        description="how the model for `auto` is chosen; by default as configured. `fastest` goes by the measured time "
        "to the first token, 95th percentile",
    )
    fallbacks: list[str] | None = Field(
        None, max_length=8, description="models to try after the first, in this order; by default as configured"
    )
    cache: CacheMode = "on"
    max_age_s: float | None = Field(None, ge=0, description="how old a stored answer may be")
    delta: float | None = Field(None, gt=0, lt=1, description="wrong answers from the cache per request, at most")
    namespace: str = Field("", max_length=128)
    tags: list[Annotated[str, StringConstraints(min_length=1, max_length=64)]] = Field(
        [], max_length=16, description="of the answer in the cache, by which it can be invalidated"
    )
    priority: int = Field(0, ge=-100, le=100, description="lower goes first")
    deadline_s: float | None = Field(None, gt=0)
    domain: str | None = Field(None, max_length=64)
    min_quality: float | None = Field(None, ge=0, le=1, description="least chance of a good answer, for `auto`")
    max_cost_microusd: int | None = Field(None, ge=0, description="expected, of an answer of the length allowed")
    max_ttft_ms: float | None = Field(None, gt=0, description="measured time to first token, 95th percentile")
    max_latency_ms: float | None = Field(
        None, gt=0, description="measured time to the end of an answer as long as this one may get, 95th percentile"
    )
    region: str | None = Field(None, max_length=64, description="where the model must run")
    local_only: bool = Field(False, description="whether the prompt must not leave the cluster")
    cache_prefixes: bool | None = Field(
        None, description="mark long tools and instructions for Anthropic's prompt cache; by default as configured"
    )

    def options(self) -> Options:
        fallbacks = None if self.fallbacks is None else tuple(self.fallbacks)
        limits = Limits(
            self.min_quality,
            self.max_cost_microusd,
            self.max_ttft_ms,
            self.region,
            self.local_only,
            self.max_latency_ms,
        )
        return Options(
            self.cache,
            self.namespace,
            self.priority,
            self.deadline_s,
            self.domain,
            self.strategy,
            fallbacks,
            limits,
            self.max_age_s,
            self.delta,
            tuple(self.tags),
            cache_prefixes=self.cache_prefixes,
        )


class ChatBody(_Body):
    """Body of POST /v1/chat/completions. `metadata` and `prompt_cache_retention` change nothing here.
    What is None here is refused with what to do instead (`chat_reasons`)."""

    model: str = Field(min_length=1, max_length=200)
    messages: list[MessageBody] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1, le=16)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    logit_bias: dict[str, float] | None = Field(None, max_length=1024, description="token id -> from -100 to 100")
    tools: list[ToolBody] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormatBody | None = None
    reasoning_effort: Effort | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    user: str | None = Field(None, max_length=256)
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = Field(None, max_length=256)
    prompt_cache_key: str | None = Field(None, max_length=256)
    prompt_cache_retention: str | None = None
    modalities: list[Literal["text"]] | None = None
    functions: None = None
    function_call: None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    switchyard: SwitchyardBody = SwitchyardBody()


@dataclass(frozen=True, slots=True)
class ParsedChat:
    request: ChatRequest
    options: Options
    stream: bool
    include_usage: bool


def parse_chat(body: bytes | dict[str, Any]) -> ParsedChat:
    """The request in a body. Raises `InvalidRequest` naming the field, or `UnsupportedFeature` for an unknown one."""
    try:
        parsed = ChatBody.model_validate(body) if isinstance(body, dict) else ChatBody.model_validate_json(body)
    except ValidationError as error:
        raise (reason(error) or explained(error)) from None
    return ParsedChat(
        _chat_request(parsed),
        parsed.switchyard.options(),
        bool(parsed.stream),
        bool(parsed.stream_options and parsed.stream_options.include_usage),
    )


def _chat_request(body: ChatBody) -> ChatRequest:
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise InvalidRequest("Give 'max_completion_tokens' or 'max_tokens', not both.", "max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    request = ChatRequest(
        model=body.model,
        messages=tuple(_message(message, index) for index, message in enumerate(body.messages)),
        sampling=Sampling(
            max_tokens=body.max_completion_tokens or body.max_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            stop=stop,
            n=body.n or 1,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            logit_bias=_logit_bias(body),
        ),
        tools=tuple(
            Tool(
                t.function.name,
                t.function.description or "",
                json.dumps(t.function.parameters or {}, ensure_ascii=False),
                t.function.strict,
            )
            for t in body.tools or ()
        ),
        tool_choice=_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_response_format(body.response_format),
        reasoning_effort=body.reasoning_effort,
        verbosity=body.verbosity,
        user=body.user,
        prompt_cache_key=body.prompt_cache_key,
        safety_identifier=body.safety_identifier,
    )
    check_request(request)
    return request


def _logit_bias(body: ChatBody) -> tuple[tuple[int, float], ...]:
    """Sorted by token, so that the same biases are the same request."""
    if not body.logit_bias:
        return ()
    if body.model == "auto":
        raise InvalidRequest("'logit_bias' names tokens of one model; name the model instead of 'auto'.", "logit_bias")
    if not all(token.isdecimal() and token.isascii() and len(token) < 10 for token in body.logit_bias):
        raise InvalidRequest("'logit_bias' goes by token ids, such as {\"1234\": -100}.", "logit_bias")
    if not all(-100 <= bias <= 100 for bias in body.logit_bias.values()):
        raise InvalidRequest("A bias in 'logit_bias' must be between -100 and 100.", "logit_bias")
    return tuple(sorted((int(token), bias) for token, bias in body.logit_bias.items()))


def _reasoning(body: MessageBody, index: int) -> list[Part]:
    said = {text for text in (body.reasoning_content, body.reasoning) if text}
    if said and body.role != "assistant":
        raise InvalidRequest("Only an 'assistant' message has reasoning.", f"messages.{index}.reasoning_content")
    if len(said) > 1:
        raise InvalidRequest("'reasoning' and 'reasoning_content' differ; send one.", f"messages.{index}.reasoning")
    return [ReasoningPart(text) for text in said]


def _message(body: MessageBody, index: int) -> Message:
    parts = _reasoning(body, index)
    if isinstance(body.content, str):
        parts.append(TextPart(body.content))
    for number, part in enumerate(body.content if isinstance(body.content, list) else ()):
        match part:
            case ContentPart(type="text", text=str(text)) | ContentPart(type="refusal", refusal=str(text)):
                parts.append(TextPart(text))
            case ContentPart(type="image_url", image_url=ImageUrl(url=url, detail=detail)):
                parts.append(ImagePart(url, detail))
            case _:
                where = f"messages.{index}.content.{number}"
                raise InvalidRequest(f"'{where}' lacks the field that its type names.", where)
    if body.refusal:
        parts.append(TextPart(body.refusal))
    calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in body.tool_calls or ())
    return Message(body.role, tuple(parts), calls, body.tool_call_id, body.name)


def _tool_choice(choice: Literal["auto", "none", "required"] | NamedTool | None) -> ToolChoice | None:
    if choice is None:
        return None
    return ToolChoice("tool", choice.function.name) if isinstance(choice, NamedTool) else ToolChoice(choice)


def _response_format(body: ResponseFormatBody | None) -> ResponseFormat | None:
    if body is None:
        return None
    if body.type != "json_schema":
        return ResponseFormat(body.type)
    if body.json_schema is None:
        raise InvalidRequest("'response_format.json_schema' is missing.", "response_format.json_schema")
    schema = body.json_schema
    text = json.dumps(schema.schema_, ensure_ascii=False)
    return ResponseFormat("json_schema", schema.name, text, schema.strict, schema.description)
