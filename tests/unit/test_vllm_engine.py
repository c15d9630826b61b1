"""What of the vLLM engine needs no vLLM: the request it is given, and the reading of its outputs."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from models.messages import (
    ChatRequest,
    Event,
    Finish,
    Message,
    ReasoningPart,
    ResponseFormat,
    Sampling,
    TextDelta,
    TextPart,
    TokenLogprob,
    Usage,
    UsageReport,
)
from models.vllm_output import OutputReader, token_logprobs
from models.vllm_request import openai_request


def choice(text: str, tokens: int, reason: str | None = None, index: int = 0) -> Any:
    return SimpleNamespace(text=text, token_ids=range(tokens), finish_reason=reason, index=index, stop_reason=None)


def read(*steps: tuple[Any, ...], top_logprobs: int | None = None, parsers: Any = None) -> list[list[Event]]:
    """The batches made of `steps`, of which each is the choices of one output; the last one ends the request."""
    reader = OutputReader(top_logprobs, parsers)
    batches = []
    for number, choices in enumerate(steps, 1):
        ends = number == len(steps)
        batches.append(
            reader.read(SimpleNamespace(outputs=choices, finished=ends, prompt_token_ids=[0] * 5, num_cached_tokens=2))
        )
        assert reader.finished is ends
    return batches


def test_each_output_is_one_batch() -> None:
    assert read((choice("a", 1),), (choice("bc", 2),), (choice("d", 1, "length"),)) == [
        [TextDelta("a", 1)],
        [TextDelta("bc", 2)],
        [TextDelta("d", 1), Finish("length"), UsageReport(Usage(5, 4, 2))],
    ]


def test_tokens_that_are_no_text_yet_count_with_the_next_text() -> None:
    assert read((choice("", 1),), (choice("é", 1),), (choice("", 1, "stop"),)) == [
        [],
        [TextDelta("é", 2)],
        [TextDelta("", 1), Finish("stop"), UsageReport(Usage(5, 3, 2))],
    ]


def test_the_sequence_that_ended_the_answer_is_told() -> None:
    ended, by_token = choice("a", 1, "stop"), choice("a", 1, "stop")
    ended.stop_reason, by_token.stop_reason = "###", 7
    assert read((ended,))[0][1] == Finish("stop", 0, "###")
    assert read((by_token,))[0][1] == Finish("stop")


def test_an_empty_answer_has_no_delta() -> None:
    assert read((choice("", 0, "stop"),)) == [[Finish("stop"), UsageReport(Usage(5, 0, 2))]]


def test_log_probabilities_wait_for_their_text() -> None:
    rows = [{0: SimpleNamespace(logprob=-0.1, rank=1, decoded_token="x")}]
    held, last = choice("", 1), choice("y", 1, "stop")
    held.logprobs = last.logprobs = rows
    batches = read((held,), (last,), top_logprobs=0)
    assert batches[1][0] == TextDelta("y", 2, (TokenLogprob("x", -0.1),) * 2)


def test_the_likeliest_tokens_are_told_without_a_drawn_one_that_is_not_among_them() -> None:
    def entry(rank: int, logprob: float, text: str) -> Any:
        return SimpleNamespace(logprob=logprob, rank=rank, decoded_token=text)

    drawn = {7: entry(40, -math.inf, "x"), 1: entry(1, -0.1, "a"), 2: entry(2, -2.0, "b")}
    output = SimpleNamespace(token_ids=[7], logprobs=[drawn])
    assert token_logprobs(output, 2) == (
        TokenLogprob("x", -9999.0, (TokenLogprob("a", -0.1), TokenLogprob("b", -2.0))),
    )
    assert token_logprobs(output, 0)[0].top == ()


def test_choices_are_apart() -> None:
    first, last = read(
        (choice("a", 1, index=0), choice("", 1, index=1)), (choice("b", 1, "stop", 1), choice("c", 1, "length", 0))
    )
    assert first == [TextDelta("a", 1)]
    assert last[:-1] == [TextDelta("b", 2, choice=1), Finish("stop", 1), TextDelta("c", 1), Finish("length", 0)]
    assert last[-1] == UsageReport(Usage(5, 4, 2))


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_end_that_is_none_is_a_failure(reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        read((choice("a", 1, reason),))


def test_the_request_is_openais_without_a_length() -> None:
    sampling = Sampling(64, 0.5, 0.9, 7, ("\n",), 2, 0.1, 0.2, 3, 40, logit_bias=((5, -1.0),))
    request = ChatRequest("m", (Message("user", (TextPart("Hi"),), name="ann"),), sampling)
    assert openai_request(request, streamed=True) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi", "name": "ann"}],
        "stream": True,
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 7,
        "stop": ["\n"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": {"5": -1.0},
        "logprobs": True,
        "top_logprobs": 3,
    }


def test_what_the_caller_left_open_stays_open() -> None:
    request = ChatRequest("m", (Message("user", (TextPart("Hi"),)),))
    assert set(openai_request(request, streamed=False)) == {"model", "messages", "stream", "n"}


def test_parts_stay_apart_and_reasoning_is_handed_on() -> None:
    parts = (ReasoningPart("hm"), TextPart("a"), TextPart("b"))
    request = ChatRequest("m", (Message("assistant", parts), Message("user")))
    assert openai_request(request, streamed=True)["messages"] == [
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "reasoning": "hm",
        },
        {"role": "user", "content": ""},
    ]


def test_a_schema_is_read_only_now() -> None:
    wanted = ResponseFormat("json_schema", None, '{"type": "object"}', True, "a place")
    request = ChatRequest("m", (Message("user", (TextPart("Hi"),)),), response_format=wanted)
    assert openai_request(request, streamed=True)["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True, "description": "a place"},
    }
