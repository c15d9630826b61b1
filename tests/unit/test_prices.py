from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

import pytest
from anthropic.types import Usage as AnthropicUsage
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CompletionUsage

from models.catalog import BUILT_IN, LongContextPrices, ModelEntry, NodePrice, Price
from models.errors import ModelNotFound
from models.messages import Usage
from router.accounting.prices import PriceBook

# A small model's list prices of early 2026, in USD per million tokens, with each kind different from the others.
SONNET = Price(
    input=Decimal("3"),
    cached_input=Decimal("0.30"),
    cache_write_5m=Decimal("3.75"),
    cache_write_1h=Decimal("6"),
    output=Decimal("15"),
    version="2026-01",
    source="https://docs.anthropic.com/en/docs/about-claude/pricing",
)
REASONER = Price(input=Decimal("1.10"), cached_input=Decimal("0.275"), output=Decimal("4.40"), version="2026-01")


def entry(name: str = "m", price: Price | None = None, node_price: NodePrice | None = None) -> ModelEntry:
    return ModelEntry(name=name, engine="simulated", context_tokens=1000, price=price, node_price=node_price)


def book(price: Price | None = None, node_price: NodePrice | None = None) -> PriceBook:
    return PriceBook([entry(price=price, node_price=node_price)], {}, {})


def from_openai(usage: CompletionUsage) -> Usage:
    """OpenAI counts cached tokens within the prompt and reasoning tokens within the completion."""
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        cached_input_tokens=(prompt and prompt.cached_tokens) or 0,
        reasoning_tokens=(completion and completion.reasoning_tokens) or 0,
    )


def from_anthropic(usage: AnthropicUsage) -> Usage:
    """Anthropic counts what it read from and wrote to its cache beside `input_tokens`, not within."""
    read, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    hour = usage.cache_creation.ephemeral_1h_input_tokens if usage.cache_creation else 0
    return Usage(usage.input_tokens + read + written, usage.output_tokens, read, written - hour, hour)


OPENAI_USAGE = CompletionUsage.model_validate(
    {
        "prompt_tokens": 2006,
        "completion_tokens": 300,
        "total_tokens": 2306,
        "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 192,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
)
ANTHROPIC_USAGE = AnthropicUsage.model_validate(
    {
        "input_tokens": 2048,
        "cache_read_input_tokens": 1800,
        "cache_creation_input_tokens": 248,
        "output_tokens": 503,
        "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
    }
)


def test_openai_cached_and_reasoning_tokens() -> None:
    # 86 x 1.10 + 1920 x 0.275 + 300 x 4.40 = 94.6 + 528 + 1320
    assert book(REASONER).cost_microusd("m", from_openai(OPENAI_USAGE)) == 1943
    dearer = REASONER.model_copy(update={"reasoning": Decimal("10")})
    # ... with 108 of the output at 4.40 and 192 at 10: 94.6 + 528 + 475.2 + 1920
    assert book(dearer).cost_microusd("m", from_openai(OPENAI_USAGE)) == 3018


def test_anthropic_cache_writes_and_reads() -> None:
    # 2048 x 3 + 1800 x 0.30 + 148 x 3.75 + 100 x 6 + 503 x 15 = 6144 + 540 + 555 + 600 + 7545
    assert book(SONNET).cost_microusd("m", from_anthropic(ANTHROPIC_USAGE)) == 15384


def test_anthropic_usage_without_cache_details_is_a_five_minute_write() -> None:
    usage = AnthropicUsage(input_tokens=10, output_tokens=1, cache_creation_input_tokens=1000)
    assert book(SONNET).cost_microusd("m", from_anthropic(usage)) == 30 + 3750 + 15


def test_kinds_without_a_price_cost_what_their_plain_kind_does() -> None:
    plain = Price(input=Decimal(2), output=Decimal(7))
    assert book(plain).cost_microusd("m", Usage(10, 4, 3, 2, 1, 4)) == 10 * 2 + 4 * 7


def test_a_local_token_costs_its_share_of_the_machine_and_the_quote_shows_both() -> None:
    node = NodePrice(
        usd_per_hour=Decimal("0.17"),
        replicas_per_node=2,
        input_tokens_per_hour=20_000_000,
        output_tokens_per_hour=4_000_000,
        source="a list",
    )
    local = book(node_price=node)
    assert local.cost_microusd("m", Usage(1_000_000, 1_000_000)) == 4250 + 21250
    details = local.quote("m").details
    assert details["input"] == "0.00425" and details["output"] == "0.02125"
    assert details["node_usd_per_hour"] == "0.17" and details["replicas_per_node"] == "2"
    assert details["source"] == "a list" and all(isinstance(value, str) for value in details.values())


def test_a_price_without_a_finite_decimal_expansion_is_still_exact() -> None:
    node = NodePrice(
        usd_per_hour=Decimal(1), replicas_per_node=3, input_tokens_per_hour=7_000_000, output_tokens_per_hour=7_000_000
    )
    assert book(node_price=node).cost_microusd("m", Usage(21_000_000, 0)) == 1_000_000
    assert book(node_price=node).quote("m").details["input"] == "0.047619047619"


def test_the_operators_prices_stand_first_and_the_version_names_the_numbers() -> None:
    node = NodePrice(usd_per_hour=Decimal(1), input_tokens_per_hour=1_000_000, output_tokens_per_hour=1_000_000)
    listed, override = Price(input=Decimal(5)), Price(input=Decimal(9), version="contract")
    both = entry(price=listed, node_price=node)
    usage = Usage(1, 0)
    assert PriceBook([both], {}, {}).cost_microusd("m", usage) == 5
    assert PriceBook([both], {}, {"m": node}).cost_microusd("m", usage) == 1
    assert PriceBook([both], {"m": override}, {"m": node}).cost_microusd("m", usage) == 9
    first = PriceBook([both], {"m": override}, {}).quote("m").version
    dearer = override.model_copy(update={"input": Decimal(10)})
    assert first.startswith("contract-") and first != PriceBook([both], {"m": dearer}, {}).quote("m").version


def test_unpriced_and_unknown_models() -> None:
    assert book().cost_microusd("m", Usage(10, 10)) == 0
    assert book().quote("m").version.startswith("unpriced")
    with pytest.raises(ModelNotFound):
        book().quote("other")


def test_every_built_in_local_model_has_a_price() -> None:
    prices = PriceBook(BUILT_IN, {}, {})
    assert all(prices.cost_microusd(entry.name, Usage(10**6, 10**6)) > 0 for entry in BUILT_IN)


GEMINI_PRO = Price.model_validate(
    {
        "input": "1.25",
        "cached_input": "0.125",
        "output": "10",
        "long_context": {"above_input_tokens": 200_000, "input": "2.5", "cached_input": "0.25", "output": "15"},
        "batch_factor": "0.5",
        "date": "2026-11-21",
        "source": "https://ai.google.dev/gemini-api/docs/pricing",
    }
)


def test_a_long_prompt_makes_every_token_of_its_request_dearer() -> None:
    prices = book(GEMINI_PRO)
    # 100000 x 1.25 + 100000 x 0.125 + 1000 x 10
    assert prices.cost_microusd("m", Usage(200_000, 1000, cached_input_tokens=100_000)) == 147_500
    # 100001 x 2.5 + 100000 x 0.25 + 1000 x 15 = 290002.5
    assert prices.cost_microusd("m", Usage(200_001, 1000, cached_input_tokens=100_000)) == 290_003
    assert prices.worst_case_microusd("m", 200_000, 10) == 250_100
    assert prices.worst_case_microusd("m", 200_001, 10) == 500_153


def test_the_batch_api_has_its_own_price_and_a_provider_without_one_has_no_discount() -> None:
    usage = Usage(300_001, 1000, reasoning_tokens=400)
    assert book(GEMINI_PRO).cost_microusd("m", usage) == 765_003
    assert book(GEMINI_PRO).cost_microusd("m", usage, batch=True) == 382_502
    assert book(SONNET).cost_microusd("m", usage, batch=True) == book(SONNET).cost_microusd("m", usage)


def test_idle_time_of_a_local_model_costs_what_the_operator_says() -> None:
    node = {"usd_per_hour": "0.36", "input_tokens_per_hour": 1_000_000, "output_tokens_per_hour": 360_000}
    usage = Usage(1000, 1000)  # 360 + 1000 micro-USD
    assert book(node_price=NodePrice.model_validate(node)).cost_microusd("m", usage, batch=True) == 680
    tenth = NodePrice.model_validate({**node, "batch_factor": "0.1"})
    assert book(node_price=tenth).cost_microusd("m", usage, batch=True) == 136
    assert book(node_price=tenth).cost_microusd("m", usage) == 1360


def test_the_quote_shows_every_number_of_the_list_and_where_it_is_from() -> None:
    quote = book(GEMINI_PRO).quote("m")
    assert quote.version.startswith("2026-11-21-")
    assert quote.details | {"long_input": "2.5", "batch_factor": "0.5", "date": "2026-11-21"} == quote.details
    dearer = LongContextPrices(above_input_tokens=200_000, input=Decimal(3), output=Decimal(15))
    assert book(GEMINI_PRO.model_copy(update={"long_context": dearer})).quote("m").version != quote.version


amount = st.decimals("0", "100", places=4)
counts = st.integers(0, 10**6)


@given(amount, amount, amount, amount, amount, amount, st.tuples(*[counts] * 6))
def test_costs_are_exact_and_never_above_the_worst_case(
    plain: Decimal, cached: Decimal, w5: Decimal, w1: Decimal, out: Decimal, think: Decimal, n: tuple[int, ...]
) -> None:
    price = Price(input=plain, cached_input=cached, cache_write_5m=w5, cache_write_1h=w1, output=out, reasoning=think)
    usage = Usage(sum(n[:4]), n[4] + n[5], n[1], n[2], n[3], n[5])
    prices = book(price)
    exact = sum((Decimal(c) * p for c, p in zip(n, (plain, cached, w5, w1, out, think), strict=True)), Decimal(0))
    assert prices.cost_microusd("m", usage) == int(exact.to_integral_value(ROUND_CEILING))
    worst = prices.worst_case_microusd("m", usage.input_tokens, usage.output_tokens)
    assert exact <= worst
    dearest = max(plain, cached, w5, w1) * usage.input_tokens + max(out, think) * usage.output_tokens
    assert worst == int(dearest.to_integral_value(ROUND_CEILING))


def test_a_replica_costs_its_part_of_the_node_at_work_or_not() -> None:
    node = NodePrice(usd_per_hour="0.9", replicas_per_node=3, input_tokens_per_hour=1, output_tokens_per_hour=1)
    local = ModelEntry(name="here", engine="simulated", context_tokens=1024, node_price=node)
    other = ModelEntry(name="elsewhere", engine="simulated", context_tokens=1024)
    book = PriceBook((local, other), {}, {})
    assert book.replica_microusd_per_hour("here") == 300_000
    assert book.replica_microusd_per_hour("elsewhere") is None
    dearer = node.model_copy(update={"replicas_per_node": 1})
    assert PriceBook((local,), {}, {"here": dearer}).replica_microusd_per_hour("here") == 900_000
