"""What tokens cost. A provider's price list or, for a local model, its machine: USD per hour over tokens per hour.

Exact: a price vector is integers over one common denominator, so a cost is integer arithmetic and is rounded once,
up, to whole micro-USD (USD per million tokens is micro-USD per token): nothing that took tokens is free.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

from models.catalog import ModelEntry, NodePrice, Price, TokenPrices
from models.errors import ModelNotFound
from models.messages import Usage

_KINDS = ("input", "cached_input", "cache_write_5m", "cache_write_1h", "output", "reasoning")
_DISPLAY = Context(prec=12)
_UNPRICED = Price.model_validate({})


@dataclass(frozen=True, slots=True)
class Quote:
    """The price of a model's tokens, as it goes into a receipt.

    version: the price list's version and a digest of the numbers, so that it names this very vector.
    details: USD per million tokens by kind, as text (12 digits), and where they come from; of a local model its
        machine too.
    numerators: by kind, micro-USD per token over `denominator`.
    long_numerators: the same, of a request with more input tokens than `long_above_tokens` (None: all cost the same).
    batch_factor: of all of them, for work sent through the provider's batch API; 1 where it has none. Of a local
        model, for lines of batches.
    """

    version: str
    details: dict[str, str]
    numerators: tuple[int, ...]
    denominator: int
    long_numerators: tuple[int, ...] = ()
    long_above_tokens: int | None = None
    batch_factor: Fraction = Fraction(1)

    def numerators_for(self, input_tokens: int) -> tuple[int, ...]:
        is_long = self.long_above_tokens is not None and input_tokens > self.long_above_tokens
        return self.long_numerators if is_long else self.numerators


class PriceBook:
    """The price of each of `entries`. The operator's `prices` stand before `node_prices`, both before the entry's own
    `price` and `node_price`. A model with none of them costs nothing and its version says `unpriced`."""

    def __init__(
        self, entries: Iterable[ModelEntry], prices: Mapping[str, Price], node_prices: Mapping[str, NodePrice]
    ) -> None:
        entries = tuple(entries)
        self._quotes = {
            entry.name: _quote(prices.get(entry.name) or node_prices.get(entry.name) or entry.price or entry.node_price)
            for entry in entries
        }
        self._nodes = {entry.name: node_prices.get(entry.name) or entry.node_price for entry in entries}
        self._listed = {e.name for e in entries if e.name in prices or (e.price and e.name not in node_prices)}

    def replica_microusd_per_hour(self, model: str) -> float | None:
        """What a replica of a local model costs, at work or not; None: nobody says what its node costs."""
        node = self._nodes.get(model)
        return None if node is None else float(_replica_microusd_per_hour(node))

    def replica_seconds(self, model: str, input_tokens: float, output_tokens: float) -> float | None:
        """How long a busy replica takes for so many tokens, by the list; None: they are not priced by their node."""
        node = self._nodes.get(model)
        if node is None or model in self._listed:
            return None
        return 3600 * (input_tokens / node.input_tokens_per_hour + output_tokens / node.output_tokens_per_hour)

    def quote(self, model: str) -> Quote:
        """Raises `ModelNotFound`."""
        try:
            return self._quotes[model]
        except KeyError:
            raise ModelNotFound(
                f"There is no model '{model}'; GET /v1/models lists those there are.", "model"
            ) from None

    def cost_microusd(self, model: str, usage: Usage, batch: bool = False) -> int:
        """What `usage` cost, each kind of token at its own price. `batch`: through the provider's batch API
        or, of a local model, as a line of a batch."""
        quote = self.quote(model)
        cached, write_5m, write_1h = usage.cached_input_tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens
        tokens = (
            max(0, usage.input_tokens - cached - write_5m - write_1h),
            cached,
            write_5m,
            write_1h,
            max(0, usage.output_tokens - usage.reasoning_tokens),
            usage.reasoning_tokens,
        )
        prices = quote.numerators_for(usage.input_tokens)
        total = sum(count * price for count, price in zip(tokens, prices, strict=True))
        factor = quote.batch_factor if batch else Fraction(1)
        return -(-total * factor.numerator // (quote.denominator * factor.denominator))

    def worst_case_microusd(self, model: str, input_tokens: int, max_output_tokens: int) -> int:
        """The most that so many tokens can cost: all input of the dearest input kind, all output of the dearer one."""
        quote = self.quote(model)
        prices = quote.numerators_for(input_tokens)
        total = input_tokens * max(prices[:4]) + max_output_tokens * max(prices[4:])
        return -(-total // quote.denominator)


def _quote(price: Price | NodePrice | None) -> Quote:
    if isinstance(price, NodePrice):
        vector, details = _node(price)
        long, factor = None, Fraction(price.batch_factor)
    else:
        price = price or _UNPRICED
        vector, details = _listed(price), {}
        long, factor = price.long_context, Fraction(1 if price.batch_factor is None else price.batch_factor)
    shown = {kind: _text(value) for kind, value in zip(_KINDS, vector, strict=True)}
    if factor != 1:
        shown["batch_factor"] = _text(factor)
    long_vector = _listed(long) if long else []
    if long:
        shown["long_above_input_tokens"] = str(long.above_input_tokens)
        shown |= {f"long_{kind}": _text(value) for kind, value in zip(_KINDS, long_vector, strict=True)}
    digest = hashlib.sha256(repr(sorted({**shown, **details}.items())).encode()).hexdigest()[:8]
    details = {"unit": "USD per million tokens", **shown, **details}
    if price.source:
        details["source"] = price.source
    if isinstance(price, Price) and price.date:
        details["date"] = price.date.isoformat()
    denominator = math.lcm(*(value.denominator for value in [*vector, *long_vector]))
    return Quote(
        f"{price.version}-{digest}",
        details,
        tuple(int(value * denominator) for value in vector),
        denominator,
        tuple(int(value * denominator) for value in long_vector),
        long.above_input_tokens if long else None,
        factor,
    )


def _listed(price: TokenPrices) -> list[Fraction]:
    given = (
        price.input,
        price.cached_input,
        price.cache_write_5m,
        price.cache_write_1h,
        price.output,
        price.reasoning,
    )
    plain = (price.input,) * 4 + (price.output,) * 2
    return [Fraction(other if value is None else value) for value, other in zip(given, plain, strict=True)]


def _replica_microusd_per_hour(node: NodePrice) -> Fraction:
    return Fraction(node.usd_per_hour) / node.replicas_per_node * 1_000_000


def _node(node: NodePrice) -> tuple[list[Fraction], dict[str, str]]:
    per_hour = _replica_microusd_per_hour(node)
    input_price = per_hour / node.input_tokens_per_hour
    output_price = per_hour / node.output_tokens_per_hour
    details = {
        "node_usd_per_hour": str(node.usd_per_hour),
        "replicas_per_node": str(node.replicas_per_node),
        "input_tokens_per_hour": str(node.input_tokens_per_hour),
        "output_tokens_per_hour": str(node.output_tokens_per_hour),
    }
    return [input_price] * 4 + [output_price] * 2, details


def _text(value: Fraction) -> str:
    shown = _DISPLAY.divide(Decimal(value.numerator), Decimal(value.denominator))
    return f"{shown.normalize(_DISPLAY):f}"
