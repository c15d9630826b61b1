"""vLLM's own parsers of tool calls, given texts as models write them, in any number of tokens at once. No engine."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.messages import ChatRequest, Completion, Message, TextPart, Tool, fold
from models.vllm_request import openai_request, unbounded_request_class
from models.vllm_tools import parsers

ONE = ['{"city": "Zürich 😀", "days": 1.0}', '{"city" : "Zürich 😀",  "days":1.0}']
TEXTS = {
    "hermes": (
        'Let me see.\n<tool_call>\n{{"name": "weather", "arguments": {one}}}\n</tool_call>\n'
        '<tool_call>\n{{"name": "clock", "arguments": {{}}}}\n</tool_call>'
    ),
    "mistral": '[TOOL_CALLS] [{{"name": "weather", "arguments": {one}}}, {{"name": "clock", "arguments": {{}}}}]',
}


@pytest.fixture(scope="module")
def tokenizer(smoke_folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smoke_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
    return tokenizer


def answers(name: str, tokenizer: Any, text: str, times: int) -> list[Completion]:
    """What `text` is read as, each time in other pieces."""
    from vllm.parser import ParserManager

    kind: Any = ParserManager.get_parser(tool_parser_name=name, enable_auto_tools=True, model_name="m")
    request = ChatRequest("m", (Message("user", (TextPart("?"),)),), tools=(Tool("weather"), Tool("clock")))
    asked = unbounded_request_class()(**openai_request(request, streamed=True))
    kind(tokenizer, asked.tools, model_config=None).adjust_request(asked)
    serving = SimpleNamespace(
        parser_cls=kind,
        renderer=SimpleNamespace(tokenizer=tokenizer),
        model_config=None,
        enable_auto_tools=True,
        _effective_chat_template_kwargs=lambda asked: {},
    )
    make = parsers(serving, asked, request)
    assert make is not None
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    draw = random.Random(3)
    found = []
    for _ in range(times):
        cuts = sorted(draw.sample(range(1, len(tokens)), draw.randint(0, len(tokens) - 1)))
        found.append(fold(read(make(0), tokenizer, tokens, cuts)))
    return found


def read(parser: Any, tokenizer: Any, tokens: list[int], cuts: list[int]) -> list[Any]:
    events, begin, shown = [], 0, ""
    for end in [*cuts, len(tokens)]:
        whole = tokenizer.decode(tokens[:end]).rstrip("\ufffd")
        output = SimpleNamespace(
            text=whole[len(shown) :],
            token_ids=tokens[begin:end],
            finish_reason="stop" if end == len(tokens) else None,
            index=0,
        )
        events += parser.read(output, [1, 2, 3])
        begin, shown = end, whole
    return events


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("one", ONE, ids=["tight", "loose"])
@pytest.mark.parametrize("name", TEXTS)
def test_arguments_come_byte_for_byte_however_many_tokens_come_at_once(name: str, one: str, tokenizer: Any) -> None:
    for answer in answers(name, tokenizer, TEXTS[name].format(one=one), 100):
        assert [(call.name, call.arguments) for call in answer.tool_calls] == [("weather", one), ("clock", "{}")]
        assert answer.text.strip() == ("Let me see." if name == "hermes" else "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TEXTS)
def test_plain_text_stays_text_to_its_last_character(name: str, tokenizer: Any) -> None:
    text = "A < B, and <tool is no call. [1, 2] <"
    assert {answer.text for answer in answers(name, tokenizer, text, 40)} == {text}
