"""Anthropic's messages body, checked and turned into a `ChatRequest`.

Source: https://platform.claude.com/docs/en/api/messages/create. What is not listed here is refused with 400, so that
nothing a caller asks for is silently dropped.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from deployments.openai.chat_schema import SwitchyardBody
from models.errors import InvalidRequest, UnsupportedFeature
from models.messages import CacheTtl


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class CacheControl(_Body):
    type: Literal["ephemeral"]
    ttl: CacheTtl = "5m"


class _Markable(_Body):
    cache_control: CacheControl | None = None

    @property
    def cache(self) -> CacheTtl | None:
        return self.cache_control.ttl if self.cache_control else None


class TextBlock(_Markable):
    type: Literal["text"]
    text: str
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class Base64Source(_Body):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str = Field(min_length=1)


class UrlSource(_Body):
    type: Literal["url"]
    url: str = Field(pattern=r"^https?://")


class ImageBlock(_Markable):
    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]


class DirectCaller(_Body):
    type: Literal["direct"]


class ToolUseBlock(_Markable):
    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    input: dict[str, Any]
    caller: DirectCaller | None = None


def _text_or_blocks(value: Any) -> str:
    return "text" if isinstance(value, str) else "blocks"


ResultBlock = Annotated[TextBlock | ImageBlock, Field(discriminator="type")]
ResultContent = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[ResultBlock], Tag("blocks")], Discriminator(_text_or_blocks)
]


class ToolResultBlock(_Markable):
    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1)
    content: ResultContent | None = None
    is_error: bool | None = None


class ThinkingBlock(_Body):
    """`signature` is empty where the model that thought this does not sign."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(_Body):
    type: Literal["redacted_thinking"]
    data: str


Block = Annotated[
    TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock,
    Field(discriminator="type"),
]
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Block], Tag("blocks"), Field(min_length=1)],
    Discriminator(_text_or_blocks),
]
System = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[TextBlock], Tag("blocks")], Discriminator(_text_or_blocks)
]


class MessageBody(_Body):
    role: Literal["user", "assistant", "system"]
    content: Content


class ToolBody(_Markable):
    """A tool of the caller's own. Those that Anthropic runs are not there for other models."""

    type: Literal["custom"] | None = None
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")
    description: str = ""
    input_schema: dict[str, Any]
    strict: bool | None = None


class AutoChoice(_Body):
    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = None


class AnyChoice(_Body):
    type: Literal["any"]
    disable_parallel_tool_use: bool | None = None


class ToolChoiceBody(_Body):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class NoneChoice(_Body):
    type: Literal["none"]


class EnabledThinking(_Body):
    type: Literal["enabled"]
    budget_tokens: int = Field(ge=1024)
    display: Literal["summarized", "omitted"] | None = None


class AdaptiveThinking(_Body):
    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class DisabledThinking(_Body):
    type: Literal["disabled"]


class OutputFormat(_Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(_Body):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(_Body):
    user_id: str | None = Field(None, max_length=256)


class CountTokensBody(_Markable):
    """Body of POST /v1/messages/count_tokens."""

    model: str = Field(min_length=1, max_length=200)
    messages: list[MessageBody] = Field(min_length=1)
    system: System | None = None
    tools: list[ToolBody] | None = None
    tool_choice: Annotated[AutoChoice | AnyChoice | ToolChoiceBody | NoneChoice, Field(discriminator="type")] | None = (
        None
    )
    thinking: Annotated[EnabledThinking | AdaptiveThinking | DisabledThinking, Field(discriminator="type")] | None = (
        None
    )
    output_config: OutputConfig | None = None


class MessagesBody(CountTokensBody):
    """Body of POST /v1/messages. `service_tier` changes no answer here."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[str] | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    metadata: Metadata | None = None
    stream: bool | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    switchyard: SwitchyardBody = SwitchyardBody()


# ---- what is wrong -------------------------------------------------------------------------------------------------

_TAGGED = ("source", "tool_choice", "thinking")
"""Fields whose `type` says what else they have, so that Pydantic puts it into the way to a field of theirs."""


def explained(error: ValidationError) -> InvalidRequest:
    """The first thing wrong, without the caller's text in it."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(_way(first["loc"]))
    match first["type"]:
        case "json_invalid":
            return InvalidRequest("The body is not valid JSON; send a JSON object.")
        case "extra_forbidden":
            return UnsupportedFeature(f"'{where}' is not supported; leave it out.", where)
        case "union_tag_invalid":
            known = first["ctx"]["expected_tags"]
            return UnsupportedFeature(f"'{where}.type' is none of {known}, which is what is supported.", where)
        case "union_tag_not_found":
            return InvalidRequest(f"'{where}' has no 'type'; say what it is.", where)
    return InvalidRequest(f"'{where}': {first['msg']}." if where else f"{first['msg']}.", where or None)


def _way(location: tuple[int | str, ...]) -> list[str]:
    """The way to a field as the caller knows it: without the tags that Pydantic puts between."""
    way: list[str] = []
    before: int | str = ""
    for step in location:
        is_tag = step in ("text", "blocks") and before in ("content", "system")
        if not is_tag and not (isinstance(step, str) and (_is_number_of_a_block(before, way) or before in _TAGGED)):
            way.append(str(step))
        before = step
    return way


def _is_number_of_a_block(step: int | str, way: list[str]) -> bool:
    return isinstance(step, int) and len(way) >= 2 and way[-2] == "content"
