"""What the cache and the routing saved, and what else would save money: each with the numbers it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.accounting.feedback import wilson
from router.accounting.prices import Quote

LEAST_SHARE = 0.02
"""Of all that was spent, from which a saving is worth a word."""
LEAST_REQUESTS = 50
LEAST_WORDS = 20
"""Of feedback on a model, from which it says something."""
AS_GOOD = 0.05
"""By how much lower the share of good answers may be at the least, to count as as good."""
_MOST = 10
_CHOSEN = (None, "pinned")  # strategies that chose nothing

HOW = (
    "the tokens of the requests that were decided and answered, as much of them cached, at the baseline's price now; "
    "another model may have used more or fewer"
)


def at_price_of(quote: Quote, row: Mapping[str, Any], cached: bool) -> float:
    """Micro-USD of the tokens of a row of usage at another model's price (that of short prompts). cached: whether what
    a provider's prompt cache held would have been in the other's too; else all of the input is at its full price."""
    kinds = [row[f"{kind}_tokens"] for kind in ("cached_input", "cache_write_5m", "cache_write_1h")]
    inputs = (max(0, row["input_tokens"] - sum(kinds)), *kinds) if cached else (row["input_tokens"], 0, 0, 0)
    tokens = (*inputs, max(0, row["output_tokens"] - row["reasoning_tokens"]), row["reasoning_tokens"])
    total: int = sum(count * price for count, price in zip(tokens, quote.numerators, strict=True))
    return total / quote.denominator


def savings(
    by_verdict: Iterable[Mapping[str, Any]], by_model: Sequence[Mapping[str, Any]], quotes: Mapping[str, Quote]
) -> dict[str, Any]:
    """by_verdict: usage by cache verdict. by_model: usage by model, strategy and status. quotes: of the models that may
    answer now. Baselines: each of them for everything, the dearest and the cheapest by name."""
    hits = {row["cache_verdict"]: row for row in by_verdict if row["hits"]}
    cache = {
        "hits": sum(row["hits"] for row in hits.values()),
        "saved_microusd": sum(row["saved_microusd"] for row in hits.values()),
        "by_verdict": {
            verdict: {"hits": row["hits"], "saved_microusd": row["saved_microusd"]} for verdict, row in hits.items()
        },
    }
    chosen = [row for row in by_model if row["strategy"] not in _CHOSEN and row["status"] == "ok" and row["model"]]
    spent = sum(row["cost_microusd"] for row in chosen)
    costs = {model: sum(at_price_of(quote, row, True) for row in chosen) for model, quote in quotes.items()}
    baselines = []
    if costs and chosen:
        named = {
            "always-dearest": max(costs, key=costs.__getitem__),
            "always-cheapest": min(costs, key=costs.__getitem__),
        }
        named |= {f"always-{model}": model for model in costs}
        baselines = [
            {
                "baseline": name,
                "model": model,
                "cost_microusd": round(costs[model]),
                "saved_microusd": round(costs[model] - spent),
            }
            for name, model in named.items()
        ]
    routing = {
        "requests": sum(row["requests"] - row["hits"] for row in chosen),
        "cost_microusd": spent,
        "baselines": baselines,
        "how": HOW,
    }
    return {"cache": cache, "routing": routing}


@dataclass(frozen=True, slots=True)
class Words:
    """Feedback on a model's answers to one kind of work: how many, and the share of good."""

    count: int
    good: float

    def shown(self) -> dict[str, Any]:
        low, high = wilson(self.good * self.count, self.count)
        return {"count": self.count, "good": round(self.good, 3), "low": round(low, 3), "high": round(high, 3)}


def recommendations(
    by_task: Sequence[Mapping[str, Any]],
    quotes: Mapping[str, Quote],
    words: Mapping[tuple[str, str], Words],
) -> list[dict[str, Any]]:
    """The one that saves most first. by_task: usage by model, task and status. words: by model and task."""
    answered = [row for row in by_task if row["status"] == "ok" and row["model"] and row["requests"] > row["hits"]]
    total = sum(row["cost_microusd"] for row in by_task)
    found = [move for row in answered if (move := _move(row, total, quotes, words))]
    found.sort(key=lambda each: -each["saves_microusd"])
    return (found + _failing(by_task))[:_MOST]


def _move(
    row: Mapping[str, Any], total: int, quotes: Mapping[str, Quote], words: Mapping[tuple[str, str], Words]
) -> dict[str, Any] | None:
    """What this traffic would have cost elsewhere: at a model that is as good by what callers said, else at one of
    which nothing is known and which is worth a try. One that they say is worse is not named."""
    model, task, cost = row["model"], row["task"] or "", row["cost_microusd"]
    requests, here = row["requests"] - row["hits"], words.get((model, task))
    best: dict[str, Any] | None = None
    for other, quote in quotes.items():
        saves = cost - at_price_of(quote, row, False)
        if other == model or saves < LEAST_SHARE * total or requests < LEAST_REQUESTS or saves <= 0:
            continue
        there = words.get((other, task))
        known = here is not None and there is not None and min(here.count, there.count) >= LEAST_WORDS
        if known and here and there and there.shown()["low"] < here.good - AS_GOOD:
            continue
        rank = (known, saves)
        if best is None or rank > (best["kind"] == "move", best["saves_microusd"]):
            best = _moved(row, other, round(saves), known, here, there)
    return best


def _moved(
    row: Mapping[str, Any], other: str, saves: int, known: bool, here: Words | None, there: Words | None
) -> dict[str, Any]:
    model, task, requests = row["model"], row["task"] or "", row["requests"] - row["hits"]
    what = f"{requests} requests" + (f" of the kind '{task}'" if task else "")
    saved = f"{saves / 1e6:.2f} of {row['cost_microusd'] / 1e6:.2f} USD"
    told = f"Moving {what} from {model} to {other} would have saved {saved}"
    if known and here and there:
        ending = (
            f", at {there.good:.0%} good answers instead of {here.good:.0%} ({there.count} and {here.count} judged)."
        )
    else:
        ending = "; whether it answers as well is not known: set `routing.exploration` and give feedback to learn it."
    return {
        "kind": "move" if known else "try",
        "saves_microusd": saves,
        "cost_microusd": row["cost_microusd"],
        "requests": requests,
        "task": task or None,
        "from": model,
        "to": other,
        "quality": {"from": here.shown() if here else None, "to": there.shown() if there else None},
        "reason": told + ending,
    }


def _failing(by_task: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Models that fail often."""
    sums: dict[str, list[int]] = {}
    for row in by_task:
        if row["model"]:
            each = sums.setdefault(row["model"], [0, 0, 0])
            each[0] += row["requests"] - row["hits"]
            each[1] += row["errors"]
            each[2] += row["cost_microusd"] if row["errors"] else 0
    found = []
    for model, (requests, errors, cost) in sums.items():
        low, high = wilson(errors, requests)
        if requests < LEAST_REQUESTS or low <= 0.02:
            continue
        share = f"{errors / requests:.1%}, 95 % interval {low:.1%} to {high:.1%}"
        found.append(
            {
                "kind": "failing",
                "saves_microusd": cost,
                "requests": requests,
                "errors": errors,
                "from": model,
                "reason": f"{errors} of {requests} requests to {model} failed ({share}), which cost "
                f"{cost / 1e6:.2f} USD: give it `routing.fallbacks`, or leave it out.",
            }
        )
    return sorted(found, key=lambda each: -each["errors"])
