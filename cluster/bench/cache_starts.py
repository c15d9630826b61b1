"""How often each threshold of the verifier is wrong on a stream of requests whose answers are known.

    python -m cluster.bench.cache_starts --data DATA

`DATA/stream.jsonl.gz` is that of `cluster.bench.cache_learning`. For each threshold the product's cache goes through
the stream from the start, without audits. Counted are the requests that were left to the verifier (no exact or other
spelling answered), those that it answered wrongly, and what that says at most of other requests of the kind: the upper
end of Wilson's 95 % interval. A cache that has learnt nothing starts by these figures (`router.error_bound.SHOWN`).
Answers of which nobody knows whether they are the same count neither way; how many there were is printed too.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.encoder import Encoder
from router.accounting.feedback import wilson
from router.cache_eval import Bench

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


class OnceEncoder(Encoder):
    """Encodes a text once, since each threshold asks for the same ones."""

    def __init__(self) -> None:
        self._known: dict[str, NDArray[np.float32]] = {}
        super().__init__()  # encodes a first text

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        for text in texts:
            if text not in self._known:
                self._known[text] = super().encode([text])[0]
        return np.stack([self._known[text] for text in texts])


def verdicts(bench: Bench, rows: Iterable[dict[str, Any]]) -> Counter[str]:
    """What the verifier made of the requests that were left to it: right, wrong, unknown, miss."""
    found, stored = Counter[str](), dict[str, dict[str, Any]]()
    for row in rows:
        told = bench.lookup(row["body"])
        if not told["hit"]:
            name = f"request {len(stored)}"
            stored[name] = row
            bench.insert(row["body"], name)
            found["miss"] += 1
        elif told["score"] not in (None, 1.0):  # of exact matches, and of other spellings
            other = stored[told["key"]]
            unknown = other["ans"] in row["maybe"] or row["ans"] in other["maybe"]
            found["right" if other["ans"] == row["ans"] else "unknown" if unknown else "wrong"] += 1
    return found


def at_most(wrong: int, requests: int) -> float:
    """The share that is wrong, at most."""
    return wilson(wrong, requests)[1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--at", type=float, nargs="+", default=THRESHOLDS, help="thresholds")
    arguments = parser.parse_args(argv)
    with gzip.open(arguments.data / "stream.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    bench = Bench(OnceEncoder())
    for threshold in arguments.at:
        bench.reset({"audit": 0, "min_score": threshold, "delta": 0.999})
        found = verdicts(bench, rows)
        left = found.total()
        told = ", ".join(f"{name} {found[name]}" for name in ("right", "wrong", "unknown"))
        most = at_most(found["wrong"], left)
        print(f"from {threshold}: {left} left to the verifier, {told}; wrong at most {most:.3%}", flush=True)


if __name__ == "__main__":
    main()
