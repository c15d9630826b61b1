"""What a full cache is worth by what it keeps: GreedyDual-Size-Frequency beside least recently used.

    python -m cluster.bench.keeping

A made-up trace, since no public one has costs: questions drawn by Zipf's law (exponent 0.9), a share of which goes out
of fashion with time, answers of log-normal length, by a local model (cents per million tokens) or a dear one, at
random.
"""

from __future__ import annotations

import argparse
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from router.keeping import GreedyDual

BYTES_PER_TOKEN, ENTRY_BYTES = 100, 2600
"""About what the store counts for a text event, and for an entry with a vector."""


@dataclass(frozen=True, slots=True)
class Question:
    number: int
    size_bytes: int
    microusd: int


class Order(Protocol):
    def add(self, entry_id: int, microusd: int, size_bytes: int) -> None: ...

    def use(self, entry_id: int) -> None: ...

    def drop(self, entry_id: int) -> None: ...

    def least(self) -> int: ...


class LeastRecentlyUsed:
    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()

    def add(self, entry_id: int, microusd: int, size_bytes: int) -> None:
        self._order[entry_id] = None

    def use(self, entry_id: int) -> None:
        self._order.move_to_end(entry_id)

    def drop(self, entry_id: int) -> None:
        del self._order[entry_id]

    def least(self) -> int:
        return next(iter(self._order))


def trace(questions: int, requests: int, seed: int) -> list[Question]:
    rng = random.Random(seed)
    made = []
    for number in range(questions):
        tokens = min(2000, max(8, round(rng.lognormvariate(4.8, 0.9))))
        price = rng.choices((0.05, 0.6, 15.0), (0.6, 0.25, 0.15))[0]  # USD per million tokens
        made.append(Question(number, ENTRY_BYTES + BYTES_PER_TOKEN * tokens, round(price * tokens)))
    weights = list(accumulate(1 / (rank + 1) ** 0.9 for rank in range(questions)))
    asked = []
    for _ in range(20):  # a tenth of the ranks changes hands each time
        for _ in range(questions // 20):
            one, other = rng.randrange(questions), rng.randrange(questions)
            made[one], made[other] = made[other], made[one]
        asked += rng.choices(made, cum_weights=weights, k=requests // 20)
    return asked


def replay(asked: Sequence[Question], order: Order, max_bytes: int) -> tuple[float, float]:
    """The share of requests that hit, and the share of the cost that this saves."""
    held: dict[int, Question] = {}
    used = hits = saved = 0
    for question in asked:
        if question.number in held:
            order.use(question.number)
            hits, saved = hits + 1, saved + question.microusd
            continue
        held[question.number] = question
        order.add(question.number, question.microusd, question.size_bytes)
        used += question.size_bytes
        while used > max_bytes:
            least = order.least()
            order.drop(least)
            used -= held.pop(least).size_bytes
    return hits / len(asked), saved / max(1, sum(question.microusd for question in asked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=20_000)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    asked = trace(arguments.questions, arguments.requests, arguments.seed)
    whole = sum({question.number: question.size_bytes for question in asked}.values())
    print("room    least recently used    GreedyDual-Size-Frequency   (hits, cost saved)")
    for share in (0.01, 0.03, 0.1, 0.3):
        old, new = (replay(asked, order, int(whole * share)) for order in (LeastRecentlyUsed(), GreedyDual()))
        print(f"{share:4.0%}    {old[0]:6.1%}  {old[1]:6.1%}         {new[0]:6.1%}  {new[1]:6.1%}")


if __name__ == "__main__":
    main()
