"""A messages body as a `ChatRequest`. The reverse of `models/anthropic_request.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from deployments.anthropic.messages_schema import (
    AdaptiveThinking,
    Base64Source,
    Block,
    CountTokensBody,
    DisabledThinking,
    EnabledThinking,
    ImageBlock,
    MessageBody,
    MessagesBody,
    NoneChoice,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolBody,
    ToolChoiceBody,
    ToolResultBlock,
    ToolUseBlock,
    UrlSource,
    explained,
)
from deployments.anthropic.raw_json import RawInputs
from models.errors import InvalidRequest, UnsupportedFeature
from models.messages import (
    ChatRequest,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    ResponseFormat,
    Sampling,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
)
from router.pipeline import Options
from router.validation import check_request

BETAS = frozenset(
    {
        "claude-code-20250219",
        "effort-2025-11-24",
        "extended-cache-ttl-2025-04-11",
        "fine-grained-tool-streaming-2025-05-14",
        "interleaved-thinking-2025-05-14",
        "output-128k-2025-02-19",
        "prompt-caching-2024-07-31",
        "structured-outputs-2025-11-13",
        "token-counting-2024-11-01",
        "token-efficient-tools-2025-02-19",
    }
)
"""Those that make no difference to what an answer costs or may do, only to how an Anthropic model gives it. The others
are for fields and tools that are refused anyway, or let a caller spend what the prices here do not know of."""

_ALLOWED = {
    "user": (TextBlock, ImageBlock, ToolResultBlock),
    "assistant": (TextBlock, ToolUseBlock, ThinkingBlock, RedactedThinkingBlock),
    "system": (TextBlock,),
}
_CHOICES: dict[str, Literal["auto", "none", "required"]] = {"auto": "auto", "any": "required", "none": "none"}


_Body = TypeVar("_Body", bound=CountTokensBody)


@dataclass(frozen=True, slots=True)
class ParsedMessages:
    """`hides_thinking`: the caller wants no thoughts, only their signatures."""

    request: ChatRequest
    options: Options
    stream: bool
    hides_thinking: bool


def parse_messages(body: bytes, betas: Sequence[str] = ()) -> ParsedMessages:
    """The request in a body. `betas` are the values of its headers `anthropic-beta`.

    Raises `InvalidRequest` naming the field, or `UnsupportedFeature` for what is unknown.
    """
    parsed = _read(MessagesBody, body)
    extra = parsed.switchyard
    request = _chat_request(
        parsed,
        body,
        betas,
        Sampling(
            max_tokens=parsed.max_tokens,
            temperature=parsed.temperature,
            top_p=parsed.top_p,
            stop=tuple(parsed.stop_sequences or ()),
            top_k=parsed.top_k,
        ),
        parsed.metadata.user_id if parsed.metadata else None,
    )
    display = request.thinking.display if request.thinking else None
    return ParsedMessages(request, extra.options(), bool(parsed.stream), display == "omitted")


def parse_count(body: bytes, betas: Sequence[str] = ()) -> ChatRequest:
    """The question in the body of a question after its length. Raises what `parse_messages` raises."""
    return _chat_request(_read(CountTokensBody, body), body, betas, Sampling(), None)


def _read(kind: type[_Body], body: bytes) -> _Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise explained(error) from None


def _chat_request(
    body: CountTokensBody, raw: bytes, betas: Sequence[str], sampling: Sampling, user: str | None
) -> ChatRequest:
    inputs = RawInputs(raw.decode()).found if b'"tool_use"' in raw else {}
    choice, config = body.tool_choice, body.output_config
    if isinstance(choice, ToolChoiceBody) and choice.name not in {tool.name for tool in body.tools or ()}:
        raise InvalidRequest("'tool_choice.name' is none of the 'tools'.", "tool_choice.name")
    parallel = None if choice is None or isinstance(choice, NoneChoice) else choice.disable_parallel_tool_use
    request = ChatRequest(
        model=body.model,
        messages=(*_instructions(body), *_messages(body.messages, inputs)),
        sampling=sampling,
        tools=tuple(map(_tool, body.tools or ())),
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=None if parallel is None else not parallel,
        response_format=ResponseFormat("json_schema", "answer", _json(config.format.schema_, "output_config"), True)
        if config and config.format
        else None,
        reasoning_effort=config.effort if config else None,
        user=user,
        thinking=_thinking(body),
        prefill=body.messages[-1].role == "assistant",
        betas=_betas(betas),
        cache=body.cache,
    )
    check_request(request)
    return request


def _betas(values: Sequence[str]) -> tuple[str, ...]:
    names = sorted({name for value in values for name in map(str.strip, value.split(",")) if name})
    if unknown := [name for name in names if name not in BETAS]:
        where = "anthropic-beta"
        raise UnsupportedFeature(
            f"'{unknown[0][:64]}' in the header '{where}' is not supported; leave it out. Supported are "
            f"{', '.join(sorted(BETAS))}.",
            where,
        )
    return tuple(names)


def _thinking(body: CountTokensBody) -> Thinking | None:
    match body.thinking:
        case EnabledThinking(budget_tokens=budget, display=display):
            return Thinking("budget", budget, display)
        case AdaptiveThinking(display=display):
            return Thinking("adaptive", None, display)
        case DisabledThinking():
            return Thinking("off")
    return Thinking() if body.output_config and body.output_config.effort else None


def _tool(body: ToolBody) -> Tool:
    return Tool(body.name, body.description, _json(body.input_schema, "tools"), body.strict, body.cache)


def _tool_choice(choice: Any) -> ToolChoice | None:
    if choice is None:
        return None
    if isinstance(choice, ToolChoiceBody):
        return ToolChoice("tool", choice.name)
    return ToolChoice(_CHOICES[choice.type])


def _json(value: dict[str, Any], where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise InvalidRequest(f"'{where}' has a number that is not finite, which is not JSON.", where) from None


# ---- the conversation ----------------------------------------------------------------------------------------------


def _instructions(body: CountTokensBody) -> Iterator[Message]:
    if isinstance(body.system, str):
        yield Message("system", (TextPart(body.system),))
    elif body.system:
        yield Message("system", tuple(TextPart(block.text, block.cache) for block in body.system))


def _messages(bodies: Sequence[MessageBody], inputs: dict[tuple[int, int], str]) -> Iterator[Message]:
    for index, body in enumerate(bodies):
        if isinstance(body.content, str):
            yield Message(body.role, (TextPart(body.content),))
            continue
        for number, block in enumerate(body.content):
            if not isinstance(block, _ALLOWED[body.role]):
                where = f"messages.{index}.content.{number}"
                raise InvalidRequest(f"'{where}': a {body.role} message has no {block.type} blocks.", where)
        if body.role == "assistant":
            raw = {number: text for (message, number), text in inputs.items() if message == index}
            yield from _assistant(body.content, raw)
        else:
            yield from _user(body, body.content, index)


def _user(body: MessageBody, blocks: Sequence[Block], index: int) -> Iterator[Message]:
    """Tool results are messages of their own here; they come first there too, so that nothing changes its place."""
    parts: list[Part] = []
    for number, block in enumerate(blocks):
        if not isinstance(block, ToolResultBlock):
            parts.append(_part(block))
        elif parts:
            where = f"messages.{index}.content.{number}"
            raise InvalidRequest(f"'{where}': tool results come before everything else in a message.", where)
        else:
            yield _result(block)
    if parts:
        yield Message(body.role, tuple(parts))


def _result(block: ToolResultBlock) -> Message:
    content = block.content or ""
    parts = (TextPart(content),) if isinstance(content, str) else tuple(map(_part, content))
    return Message(
        "tool",
        parts or (TextPart(""),),
        tool_call_id=block.tool_use_id,
        is_error=bool(block.is_error),
        cache=block.cache,
    )


def _assistant(blocks: Sequence[Block], raw: dict[int, str]) -> Iterator[Message]:
    """What follows on a tool call is the next message, which keeps the order; an adapter joins them again."""
    parts: list[Part] = []
    calls: list[ToolCall] = []
    for number, block in enumerate(blocks):
        if isinstance(block, ToolUseBlock):
            arguments = raw.get(number) or _json(block.input, "messages")
            calls.append(ToolCall(block.id, block.name, arguments, block.cache))
            continue
        if calls:
            yield Message("assistant", tuple(parts), tuple(calls))
            parts, calls = [], []
        parts.append(_part(block))
    yield Message("assistant", tuple(parts), tuple(calls))


def _part(block: Block) -> Part:
    match block:
        case TextBlock():
            return TextPart(block.text, block.cache)
        case ImageBlock(source=UrlSource(url=url)):
            return ImagePart(url, cache=block.cache)
        case ImageBlock(source=Base64Source(media_type=kind, data=data)):
            return ImagePart(f"data:{kind};base64,{data}", cache=block.cache)
        case ThinkingBlock():
            return ReasoningPart(block.thinking, block.signature or None)
        case RedactedThinkingBlock():
            return ReasoningPart("", redacted=block.data)
    raise TypeError(type(block))
