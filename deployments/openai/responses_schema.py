"""OpenAI's responses body, checked and turned into a `ChatRequest`.

Source: https://platform.openai.com/docs/api-reference/responses/create. What is not listed here is refused with 400,
and what is listed with the one value that changes nothing is refused with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from deployments.openai.body import Body, read_json
from deployments.openai.chat_schema import Effort, StreamOptions, SwitchyardBody
from deployments.openai.responses_items import Item, messages_of, read_items
from models.errors import InvalidRequest, UnsupportedFeature
from models.messages import ChatRequest, Message, ResponseFormat, Sampling, TextPart, Tool, ToolChoice
from router.pipeline import Options
from router.validation import check_request

ENCRYPTED, LOGPROBS = "reasoning.encrypted_content", "message.output_text.logprobs"
_NOT_SERVED = {
    "background": "ask without it and keep the connection, or use /v1/batches",
    "conversation": "use 'previous_response_id'",
    "prompt": "send the text itself in 'instructions' and 'input'",
    "context_management": "shorten 'input' yourself",
    "moderation": "leave it out",
    "truncation": "it is 'disabled': nothing is left out of what you send",
}


class Format(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Body):
    effort: Effort | None = None
    summary: Literal["auto"] | None = Field(None, description="thoughts are shown as the model shows them")


class FunctionTool(Body):
    type: Literal["function"]
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Body):
    type: Literal["function"]
    name: str


class ResponsesBody(Body):
    """Body of POST /v1/responses."""

    model: str = Field(min_length=1, max_length=200)
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = Field(None, max_length=100)
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    max_tool_calls: int | None = Field(None, ge=1, description="of built-in tools, of which there are none")
    metadata: dict[str, str] | None = Field(None, max_length=16)
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    text: TextConfig | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: Literal["auto", "none", "required"] | NamedFunction | None = None
    truncation: Literal["disabled"] | None = Field(None, description="too long an input is refused")
    user: str | None = Field(None, max_length=256)
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = Field(None, max_length=256)
    prompt_cache_key: str | None = Field(None, max_length=256)
    background: Literal[False] | None = None
    conversation: None = None
    prompt: None = None
    context_management: None = None
    moderation: None = None
    switchyard: SwitchyardBody = SwitchyardBody()


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """`items`: this turn's input. `echoed`: what of the body stands in the response."""

    body: ResponsesBody
    items: tuple[dict[str, Any], ...]
    tools: tuple[FunctionTool, ...]
    echoed: dict[str, Any]

    @property
    def options(self) -> Options:
        return self.body.switchyard.options()

    @property
    def stored(self) -> bool:
        return self.body.store is not False

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.body.include or ()) or bool(self.body.top_logprobs)

    def request(self, earlier: Sequence[Item] = ()) -> ChatRequest:
        """The question, after what was said `earlier`. Raises `InvalidRequest` or `UnsupportedFeature`."""
        body = self.body
        said = messages_of([*earlier, *read_items(self.items)])
        if body.instructions:
            said = [Message("system", (TextPart(body.instructions),)), *said]
        request = ChatRequest(
            model=body.model,
            messages=tuple(said),
            sampling=Sampling(
                max_tokens=body.max_output_tokens,
                temperature=body.temperature,
                top_p=body.top_p,
                top_logprobs=(body.top_logprobs or 0) if self.wants_logprobs else None,
            ),
            tools=tuple(
                Tool(t.name, t.description or "", json.dumps(t.parameters or {}), t.strict) for t in self.tools
            ),
            tool_choice=_tool_choice(body),
            parallel_tool_calls=body.parallel_tool_calls if self.tools else None,
            response_format=_response_format(body.text.format if body.text else None),
            reasoning_effort=body.reasoning.effort if body.reasoning else None,
            user=body.user,
            verbosity=body.text.verbosity if body.text else None,
            prompt_cache_key=body.prompt_cache_key,
            safety_identifier=body.safety_identifier,
        )
        check_request(request)
        return request


def parse_response(raw: bytes) -> ParsedResponse:
    """Raises `InvalidRequest` naming the field, or `UnsupportedFeature` for what is not served."""
    try:
        body = read_json(ResponsesBody, raw)
    except InvalidRequest as error:
        if error.param in _NOT_SERVED:
            raise UnsupportedFeature(
                f"'{error.param}' is not served; {_NOT_SERVED[error.param]}.", error.param
            ) from None
        raise
    if unknown := set(body.include or ()) - {ENCRYPTED, LOGPROBS}:
        raise UnsupportedFeature(
            f"'include' knows '{ENCRYPTED}' and '{LOGPROBS}', not {sorted(unknown)[0]!r}.", "include"
        )
    if any(len(name) > 64 or len(value) > 512 for name, value in (body.metadata or {}).items()):
        raise InvalidRequest("'metadata' takes names up to 64 characters and values up to 512.", "metadata")
    items = [{"type": "message", "role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    if not items:
        raise InvalidRequest("'input' is empty; say something.", "input")
    read_items(items)
    tools = tuple(_tool(tool, number) for number, tool in enumerate(body.tools or ()))
    return ParsedResponse(body, tuple(items), tools, _echoed(body, tools))


def _tool(tool: Mapping[str, Any], number: int) -> FunctionTool:
    if tool.get("type") != "function":
        where = f"tools.{number}.type"
        raise UnsupportedFeature(f"'{where}': only functions are served, which the caller runs; leave it out.", where)
    present = {name: value for name, value in tool.items() if value is not None}
    return read_json(FunctionTool, json.dumps(present).encode())


def _tool_choice(body: ResponsesBody) -> ToolChoice | None:
    choice = body.tool_choice
    if choice is None:
        return None
    return ToolChoice("tool", choice.name) if isinstance(choice, NamedFunction) else ToolChoice(choice)


def _response_format(wanted: Format | None) -> ResponseFormat | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ResponseFormat("json_object")
    if not wanted.name:
        raise InvalidRequest("'text.format.name' is missing.", "text.format.name")
    return ResponseFormat("json_schema", wanted.name, json.dumps(wanted.schema_), wanted.strict, wanted.description)


def _echoed(body: ResponsesBody, tools: Sequence[FunctionTool]) -> dict[str, Any]:
    """The fields of a response that say what was asked, with the defaults that held."""
    choice = body.tool_choice or "auto"
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": body.reasoning.model_dump() if body.reasoning else {"effort": None, "summary": None},
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}} | text,
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() | {"strict": bool(tool.strict)} for tool in tools],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }
