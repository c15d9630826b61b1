"""How many tokens a prompt may have, before a tokenizer has seen it. Estimates only; the engine's count holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from models.messages import ChatRequest, Event, ImagePart, ReasoningDelta, ReasoningPart, TextDelta, ToolCallDelta

CHARS_PER_TOKEN = 4
MAX_CHARS_PER_TOKEN = 16
TOKENS_PER_MESSAGE = 16
TOKENS_PER_IMAGE = 800
"""Expected of a picture of a megapixel: OpenAI's GPT-4o 765, Anthropic about 1300, Gemini 258."""
TOKENS_PER_SMALL_IMAGE = 85
"""Expected where the caller asks for low detail (OpenAI)."""
MAX_TOKENS_PER_IMAGE = 2833 + 8 * 5667
MAX_TOKENS_PER_SMALL_IMAGE = 2833
"""Nobody counts more than GPT-4o mini: so much for the whole and, in high detail, for each of up to eight tiles (scaled
into 2048 x 2048, then to 768 on the shorter side). https://platform.openai.com/docs/guides/images-vision"""


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """`expected`: four characters a token. `at_least`: sixteen, which hardly any text reaches: a model with less room
    surely cannot take it. `at_most`: one token a UTF-8 byte, which no byte-level tokenizer exceeds, the template's, and
    the most that any provider counts for an image.
    """

    at_least: int
    expected: int
    at_most: int


def prompt_tokens(request: ChatRequest) -> PromptTokens:
    texts = [message.text for message in request.messages]
    texts += [message.name for message in request.messages if message.name]
    texts += [call.id + call.name + call.arguments for message in request.messages for call in message.tool_calls]
    thoughts = [part for m in request.messages for part in m.parts if isinstance(part, ReasoningPart)]
    texts += [part.text + (part.redacted or "") for part in thoughts]
    texts += [tool.name + tool.description + tool.parameters for tool in request.tools]
    if request.response_format:
        texts.append((request.response_format.schema or "") + (request.response_format.description or ""))
    chars = sum(map(len, texts))
    size_bytes = sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
    images = [part.detail == "low" for m in request.messages for part in m.parts if isinstance(part, ImagePart)]
    small = sum(images)
    large = len(images) - small
    return PromptTokens(
        chars // MAX_CHARS_PER_TOKEN,
        chars // CHARS_PER_TOKEN + 1 + TOKENS_PER_SMALL_IMAGE * small + TOKENS_PER_IMAGE * large,
        size_bytes
        + TOKENS_PER_MESSAGE * (len(request.messages) + len(request.tools) + 1)
        + MAX_TOKENS_PER_SMALL_IMAGE * small
        + MAX_TOKENS_PER_IMAGE * large,
    )


def output_tokens(events: Iterable[Event]) -> int:
    """What an answer that broke off before its usage came has taken: what the engine counted, or by its length."""
    counted = chars = 0
    for event in events:
        if isinstance(event, TextDelta):
            counted += event.tokens
            chars += len(event.text)
        elif isinstance(event, ReasoningDelta):
            chars += len(event.text)
        elif isinstance(event, ToolCallDelta):
            chars += len(event.arguments) + len(event.name or "")
    return max(counted, -(-chars // CHARS_PER_TOKEN))
