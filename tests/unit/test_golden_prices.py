"""What real usage objects cost: read by the adapter that reads them in production, priced by hand beside each."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from anthropic.types import MessageDeltaUsage
from anthropic.types import Usage as AnthropicUsage

from models import anthropic, cohere, gemini, openai_compatible
from models.catalog import LongContextPrices, ModelEntry, Price
from models.messages import Usage
from router.accounting.prices import PriceBook


def price(**prices: float | str) -> Price:
    return Price(**{kind: Decimal(str(usd)) for kind, usd in prices.items()}, version="golden")


GPT = price(input=0.75, cached_input=0.075, output=4.5)
GPT_WRITES = price(input=2, cached_input=0.2, cache_write_5m=2.5, output=10)
CLAUDE = price(input=3, cached_input=0.3, cache_write_5m=3.75, cache_write_1h=6, output=15)
GEMINI = Price(
    input=Decimal("1.25"),
    cached_input=Decimal("0.125"),
    output=Decimal(10),
    long_context=LongContextPrices(
        input=Decimal("2.5"), cached_input=Decimal("0.25"), output=Decimal(15), above_input_tokens=200_000
    ),
)
DEEPSEEK = price(input=0.28, cached_input=0.028, output=0.42)
COMMAND = price(input=2.5, output=10)


def by_openai(usage: dict[str, Any]) -> Usage:
    found = openai_compatible.token_usage(usage, "prompt", "completion")
    assert found is not None
    return found


def by_anthropic(*counts: Any) -> Usage:
    """The counts of `message_start` and `message_delta`, as the SDK parses them."""
    answer = anthropic._Answer()
    for count in counts:
        answer._count(count)
    return answer.usage


def by_cohere(usage: dict[str, Any]) -> Usage:
    answer = cohere.Answer(SimpleNamespace())
    answer._close({"finish_reason": "COMPLETE", "usage": usage})
    assert answer._usage is not None
    return answer._usage


def openai_usage(prompt: int, completion: int, details: dict[str, int], reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"audio_tokens": 0, **details},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
    }


@pytest.mark.parametrize(
    ("read", "list_price", "microusd"),
    [
        # 86 x 0.75 + 1920 x 0.075 + 300 x 4.5 = 64.5 + 144 + 1350 (reasoning is part of the output, at its price)
        pytest.param(lambda: by_openai(openai_usage(2006, 300, {"cached_tokens": 1920}, 192)), GPT, 1559, id="openai"),
        # 6 x 2 + 1000 x 0.2 + 1000 x 2.5 + 10 x 10 = 12 + 200 + 2500 + 100
        pytest.param(
            lambda: by_openai(openai_usage(2006, 10, {"cached_tokens": 1000, "cache_write_tokens": 1000})),
            *(GPT_WRITES, 2812),
            id="openai, written to its cache",
        ),
        # writes without a price of their own cost what fresh tokens do: 1006 x 0.75 + 1000 x 0.075 + 10 x 4.5
        pytest.param(
            lambda: by_openai(openai_usage(2006, 10, {"cached_tokens": 1000, "cache_write_tokens": 900})),
            *(GPT, 875),
            id="openai, writes are not priced",
        ),
        # more written than was not read cannot be: 0 x 2 + 1500 x 0.2 + 506 x 2.5 + 10 x 10
        pytest.param(
            lambda: by_openai(openai_usage(2006, 10, {"cached_tokens": 1500, "cache_write_tokens": 2006})),
            *(GPT_WRITES, 1665),
            id="openai, unadjusted writes",
        ),
        # 2048 x 3 + 1800 x 0.3 + 148 x 3.75 + 100 x 6 + 503 x 15 = 6144 + 540 + 555 + 600 + 7545
        pytest.param(
            lambda: by_anthropic(
                AnthropicUsage.model_validate(
                    {
                        "input_tokens": 2048,
                        "cache_read_input_tokens": 1800,
                        "cache_creation_input_tokens": 248,
                        "output_tokens": 1,
                        "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
                    }
                ),
                MessageDeltaUsage(output_tokens=503),
            ),
            *(CLAUDE, 15384),
            id="anthropic, streamed",
        ),
        # 10 x 3 + 1000 x 3.75 + 1 x 15
        pytest.param(
            lambda: by_anthropic(AnthropicUsage(input_tokens=10, output_tokens=1, cache_creation_input_tokens=1000)),
            *(CLAUDE, 3795),
            id="anthropic, no split by lifetime",
        ),
        # 500 x 1.25 + 500 x 0.125 + (40 + 60 thoughts) x 10
        pytest.param(
            lambda: gemini._usage(
                {
                    "promptTokenCount": 1000,
                    "cachedContentTokenCount": 500,
                    "candidatesTokenCount": 40,
                    "thoughtsTokenCount": 60,
                    "totalTokenCount": 1100,
                }
            ),
            *(GEMINI, 1688),
            id="gemini",
        ),
        # over 200,000 all of it is dearer: 200,001 x 2.5 + 100 x 15 = 500,002.5 + 1500
        pytest.param(
            lambda: gemini._usage({"promptTokenCount": 200_001, "candidatesTokenCount": 100}),
            *(GEMINI, 501_503),
            id="gemini, long",
        ),
        # 200 x 0.28 + 800 x 0.028 + 100 x 0.42 = 56 + 22.4 + 42
        pytest.param(
            lambda: by_openai(
                {
                    "prompt_tokens": 1000,
                    "completion_tokens": 100,
                    "prompt_cache_hit_tokens": 800,
                    "prompt_cache_miss_tokens": 200,
                }
            ),
            *(DEEPSEEK, 121),
            id="deepseek",
        ),
        # what is billed, not what was read: 60 x 2.5 + 20 x 10
        pytest.param(
            lambda: by_cohere(
                {
                    "billed_units": {"input_tokens": 60.0, "output_tokens": 20.0},
                    "tokens": {"input_tokens": 560.0, "output_tokens": 22.0},
                }
            ),
            *(COMMAND, 350),
            id="cohere",
        ),
    ],
)
def test_a_real_usage_object_costs_what_the_provider_bills(
    read: Callable[[], Usage], list_price: Price, microusd: int
) -> None:
    usage = read()
    entry = ModelEntry(name="m", engine="simulated", context_tokens=10**6, price=list_price)
    assert PriceBook([entry], {}, {}).cost_microusd("m", usage) == microusd
    cached = usage.cached_input_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    assert cached <= usage.input_tokens and usage.reasoning_tokens <= usage.output_tokens
