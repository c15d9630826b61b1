"""Estimates of a prompt's length: the expected one, and the one that a budget reserves."""

from __future__ import annotations

from models.messages import (
    ChatRequest,
    ImagePart,
    Message,
    ReasoningDelta,
    ReasoningPart,
    ResponseFormat,
    TextDelta,
    TextPart,
    Tool,
    ToolCallDelta,
)
from router.tokens import (
    MAX_TOKENS_PER_IMAGE,
    MAX_TOKENS_PER_SMALL_IMAGE,
    TOKENS_PER_IMAGE,
    TOKENS_PER_SMALL_IMAGE,
    output_tokens,
    prompt_tokens,
)


def asked(*parts: TextPart | ImagePart) -> ChatRequest:
    return ChatRequest("m", (Message("user", (TextPart("what is this?"), *parts)),))


def test_an_image_counts_what_the_dearest_provider_counts_at_most() -> None:
    plain = prompt_tokens(asked())
    for detail, expected, most in (
        ("auto", TOKENS_PER_IMAGE, MAX_TOKENS_PER_IMAGE),
        ("high", TOKENS_PER_IMAGE, MAX_TOKENS_PER_IMAGE),
        ("low", TOKENS_PER_SMALL_IMAGE, MAX_TOKENS_PER_SMALL_IMAGE),
    ):
        image = ImagePart("https://x/y.png", detail)
        seen = prompt_tokens(asked(image, image))
        assert seen.expected == plain.expected + 2 * expected
        assert seen.at_most == plain.at_most + 2 * most
        assert seen.at_least == plain.at_least


def test_a_data_uri_counts_as_an_image_not_as_text() -> None:
    short, long = (prompt_tokens(asked(ImagePart("data:image/png;base64," + "A" * size))) for size in (4, 40_000))
    assert short == long


def test_a_tool_counts_all_that_the_model_reads_of_it() -> None:
    tool = Tool("clock", "Tells the time.", '{"type": "object"}')
    with_tool = prompt_tokens(ChatRequest("m", asked().messages, tools=(tool,)))
    read = len(tool.name + tool.description + tool.parameters)
    assert with_tool.at_most >= prompt_tokens(asked()).at_most + read


def test_a_schema_counts_with_what_is_said_of_it() -> None:
    shape = ResponseFormat("json_schema", "n", '{"type": "object"}', None, "a place " * 20)
    with_shape = prompt_tokens(ChatRequest("m", asked().messages, response_format=shape))
    assert with_shape.at_most == prompt_tokens(asked()).at_most + len('{"type": "object"}') + len("a place " * 20)


def test_thoughts_that_only_their_provider_can_read_count_too() -> None:
    def tokens(*thoughts: ReasoningPart) -> int:
        return prompt_tokens(ChatRequest("m", (Message("assistant", thoughts),))).at_most

    assert tokens(ReasoningPart("", redacted="x" * 100)) == tokens(ReasoningPart("x" * 100)) == tokens() + 100


def test_an_answer_that_broke_off_counts_by_what_the_engine_said_or_by_its_length() -> None:
    assert output_tokens([TextDelta("abc", 5)]) == 5
    assert output_tokens([TextDelta("a" * 8), ReasoningDelta("b" * 4), ToolCallDelta(0, "i", "f", "c" * 7)]) == 5
