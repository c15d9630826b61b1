"""Several choices and log probabilities through the whole cluster, asked by OpenAI's own client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.serve.product import Product, until, user

SEEDED: dict[str, Any] = {"temperature": 0.9, "seed": 3, "max_tokens": 12, "n": 3, "logprobs": True, "top_logprobs": 2}


@pytest.mark.parametrize("model", ["smoke-small", "smoke-vllm"])
def test_each_choice_comes_whole_and_streamed_and_from_the_cache(product: Product, model: str) -> None:
    question = {"model": model, "messages": user("Name a river."), **SEEDED}
    raw = product.sdk().chat.completions.with_raw_response.create(
        **question, extra_body={"switchyard": {"cache": "refresh"}}
    )
    whole = raw.parse()
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3
    assert all(choice.finish_reason in ("stop", "length") for choice in whole.choices)
    for choice in whole.choices:
        assert choice.logprobs and choice.logprobs.content
        assert all(row.logprob <= 0 and len(row.top_logprobs) == 2 for row in choice.logprobs.content)
    assert whole.usage and whole.usage.completion_tokens > 12

    def again() -> Any:
        found = product.sdk().chat.completions.with_raw_response.create(**question)
        return found if found.headers["x-switchyard-cache"] == "hit-exact" else None

    replayed = until(again).parse()
    assert [choice.message.content for choice in replayed.choices] == texts
    assert replayed.choices[2].logprobs == whole.choices[2].logprobs

    for cache in ("off", "on"):
        stream = product.sdk().chat.completions.create(
            **question, stream=True, extra_body={"switchyard": {"cache": cache}}
        )
        spoken, ends, rows = ["", "", ""], dict[int, str](), [0, 0, 0]
        for chunk in stream:
            for part in chunk.choices:
                spoken[part.index] += part.delta.content or ""
                rows[part.index] += len(part.logprobs.content or ()) if part.logprobs else 0
                if part.finish_reason:
                    ends[part.index] = part.finish_reason
        assert spoken == texts
        assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
        assert all(rows)


def test_log_probabilities_that_were_not_asked_for_are_not_there(product: Product) -> None:
    answer = product.chat("Name a lake.", model="smoke-small", max_tokens=4, logprobs=False).json()
    assert answer["choices"][0]["logprobs"] is None


def test_what_the_model_cannot_do_is_refused_with_the_reason(product: Product) -> None:
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
    for change, param in (
        ({"tools": [tool]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y"}}]}]},
            "messages",
        ),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            product.sdk().chat.completions.create(**{"model": "smoke-small", "messages": user("Hi"), **change})
        assert (caught.value.code, caught.value.param) == ("unsupported_feature", param)
