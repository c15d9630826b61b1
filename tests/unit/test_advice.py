from __future__ import annotations

from typing import Any

from models.catalog import ModelEntry, Price
from router.accounting.advice import Words, recommendations, savings
from router.accounting.prices import PriceBook, Quote
from router.accounting.usage_sql import SUMS


def quotes(**usd_per_million: float) -> dict[str, Quote]:
    entries = [
        ModelEntry(name=name, engine="simulated", context_tokens=4096, price=Price(input=usd, output=usd))
        for name, usd in usd_per_million.items()
    ]
    book = PriceBook(entries, {}, {})
    return {entry.name: book.quote(entry.name) for entry in entries}


def used(model: str, requests: int, cost: int, tokens: int, **more: Any) -> dict[str, Any]:
    row = {"model": model, "task": "math", "status": "ok", "strategy": "hybrid", "cache_verdict": "miss"}
    return row | dict.fromkeys(SUMS, 0) | {"requests": requests, "cost_microusd": cost, "input_tokens": tokens} | more


QUOTES = quotes(small=1.0, big=10.0)


def test_routing_saved_what_the_same_tokens_would_have_cost_elsewhere() -> None:
    rows = [used("small", 100, 1_000, 1_000), used("big", 10, 5_000, 500), used("big", 1, 900, 90, strategy="pinned")]
    hits = [used("", 7, 0, 0, hits=7, saved_microusd=70, cache_verdict="hit-exact")]
    told = savings([*hits, used("", 5, 0, 0)], rows, QUOTES)
    assert told["cache"] == {
        "hits": 7,
        "saved_microusd": 70,
        "by_verdict": {"hit-exact": {"hits": 7, "saved_microusd": 70}},
    }
    lines = {each["baseline"]: each for each in told["routing"]["baselines"]}
    assert told["routing"]["cost_microusd"] == 6_000
    assert (lines["always-dearest"]["model"], lines["always-dearest"]["saved_microusd"]) == ("big", 9_000)
    assert (lines["always-cheapest"]["model"], lines["always-cheapest"]["saved_microusd"]) == ("small", -4_500)
    assert set(lines) == {"always-dearest", "always-cheapest", "always-small", "always-big"}
    assert savings([], [], QUOTES)["routing"]["baselines"] == []


def test_a_cheaper_model_is_recommended_by_what_callers_said_of_it() -> None:
    rows = [used("big", 1_000, 1_000_000, 100_000)]
    words = {("big", "math"): Words(100, 0.9), ("small", "math"): Words(400, 0.92)}
    (move,) = recommendations(rows, QUOTES, words)
    assert (move["kind"], move["from"], move["to"], move["saves_microusd"]) == ("move", "big", "small", 900_000)
    assert "saved 0.90 of 1.00 USD, at 92% good answers instead of 90%" in move["reason"]
    assert move["quality"]["to"]["low"] > 0.85
    assert recommendations(rows, QUOTES, {**words, ("small", "math"): Words(400, 0.7)}) == []
    (unknown,) = recommendations(rows, QUOTES, {("small", "math"): Words(3, 0.0)})
    assert unknown["kind"] == "try" and "is not known" in unknown["reason"]


def test_small_change_is_not_worth_a_word() -> None:
    assert recommendations([used("big", 10, 10_000, 1_000)], QUOTES, {}) == []
    rows = [used("big", 100, 1_000, 100, task="chat"), used("small", 100_000, 10_000_000, 10_000_000)]
    assert recommendations(rows, QUOTES, {}) == []


def test_a_model_that_fails_often_is_named() -> None:
    rows = [used("big", 900, 10, 10), used("big", 100, 500_000, 10, status="error", errors=100)]
    (failing,) = recommendations(rows, {}, {})
    assert failing["kind"] == "failing" and failing["reason"].startswith("100 of 1000 requests to big failed (10.0%")
    assert recommendations([used("big", 90, 10, 10), used("big", 1, 0, 0, status="error", errors=1)], {}, {}) == []
