"""What the cache could learn from audits on a stream of requests whose answers are known, and what it does learn.

    python -m cluster.bench.cache_learning --data DATA

`DATA/stream.jsonl.gz` has one request a line: `body` (OpenAI's chat completion), `ans` (requests with the same one have
the same answer), `maybe` (answers of which nobody knows whether they are the same). Everything is stored that no exact
or other spelling of it is there for, so the candidates are more than the cache itself would have. Printed are

- how many answers are there to be found, and what keeps them from being given: no candidate, or a veto;
- how many are right where the verifier's score is cut off, with hindsight, so that a share of all requests is wrong;
  also where a pair that may be the same counts as wrong, as it does for whoever only hears "the same" or "another";
- the same for a score that is corrected as the labels come: Bayes' logistic regression over the verifier's features,
  one Gaussian over the weights (Spiegelhalter and Lauritzen 1990), which begins with the verifier's own score.
  It hears of all candidates below `SERVED` and of `AUDITED` of those above.

and what the verifier took for the candidates of a request.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.encoder import Encoder
from models.trees import load
from router.cache_entries import Entry
from router.cache_eval import Bench
from router.facts import facts
from router.pair_features import FEATURES, pair_features
from router.ports import CacheKey
from router.scope_index import Vector
from router.verifier import WEIGHTS, Judgement, packaged
from router.vetoes import veto

SERVED, AUDITED = 0.3, 0.05
WRONG = (0.003, 0.004, 0.005)
SPREADS = (0.003, 0.01, 0.03, 0.1)
"""Variances of the features' weights before the first label, in the square of the features' spread over the stream."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidate:
    """same: None where nobody knows."""

    objection: str | None
    features: tuple[float, ...]
    same: bool | None
    score: float


@dataclass(slots=True)
class Asked:
    """One request. hit: whether the answer was right that was there in the same spelling, None without one."""

    possible: bool
    hit: bool | None = None
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def best(self) -> Candidate | None:
        """Of those that no veto rules out."""
        return max((each for each in self.candidates if not each.objection), key=lambda each: each.score, default=None)

    @property
    def ruled_out(self) -> list[bool | None]:
        """Whether it was the same that a veto alone holds back: the best one, if the score lets it through."""
        least = float(np.log(SERVED / (1 - SERVED)))
        if (best := self.best) is not None and best.score >= least:
            return []
        vetoed = max((each for each in self.candidates if each.objection), key=lambda each: each.score, default=None)
        return [vetoed.same] if vetoed is not None and vetoed.score >= least else []


class Reader:
    """The product's cache with a verifier that writes down what it sees and gives no answer."""

    def __init__(self) -> None:
        self._bench = Bench(Encoder())
        self._bench.reset({"audit": 0, "min_score": 1.0})
        self._store = self._bench._store
        self._trees, self._verifier = load(WEIGHTS), packaged()
        self.judged_s: list[float] = []  # of the processor, for each lookup with a candidate
        self._seen: tuple[str, Sequence[tuple[float, str]]] = ("", ())
        self._names: list[str] = []
        self._store._judge = self._judge
        self._find, self._store._candidates = self._store._candidates, self._candidates  # type: ignore[method-assign]
        self._stored: dict[str, dict[str, Any]] = {}
        self._answers: set[str] = set()

    def read(self, row: dict[str, Any]) -> Asked:
        told = self._looked_up(row["body"])
        asked = Asked(possible=row["ans"] in self._answers)
        if told["hit"]:
            asked.hit = self._same(row, told["key"])
            return asked
        text, near = self._seen
        if near:
            began_s = time.thread_time()
            self._verifier.judge(text, near)
            self.judged_s.append(time.thread_time() - began_s)
        for (cosine, stored), name in zip(near, self._names, strict=True):
            known, new = facts(stored), facts(text)
            features = pair_features(known, new, cosine)
            score = float(self._trees.raw(np.array([features]))[0])
            asked.candidates.append(Candidate(veto(known, new), features, self._same(row, name), score))
        name = f"request {len(self._stored)}"
        self._stored[name] = row
        self._answers.add(row["ans"])
        self._bench.insert(row["body"], name)
        return asked

    def _looked_up(self, body: dict[str, Any]) -> dict[str, Any]:
        self._seen, self._names = ("", ()), []
        return self._bench.lookup(body)

    def _same(self, row: dict[str, Any], name: str) -> bool | None:
        other = self._stored[name]
        if other["ans"] == row["ans"]:
            return True
        return None if other["ans"] in row["maybe"] or row["ans"] in other["maybe"] else False

    def _candidates(self, key: CacheKey, vector: Vector) -> list[tuple[float, int, Entry]]:
        found = self._find(key, vector)
        self._names = [entry.answer.answer_id for _, _, entry in found]
        return found

    def _judge(self, text: str, near: Sequence[tuple[float, str]]) -> list[Judgement]:
        self._seen = text, near
        return [Judgement(0.0, "nobody's") for _ in near]


def corrected(rows: Array, scores: Array, labels: Sequence[bool | None], spread: float, seed: int = 0) -> Array:
    """Log odds of each candidate by what was heard before it. rows [n, d], scores: the verifier's log odds [n]."""
    rng = random.Random(seed)
    scaled = np.nan_to_num(rows, nan=0.5)
    scaled = (scaled - scaled.mean(axis=0)) / (scaled.std(axis=0) + 1e-9)
    inputs = np.column_stack([np.ones(len(rows)), scores, scaled])
    weights = np.zeros(inputs.shape[1])
    weights[1] = 1.0
    covariance = np.diag([1.0, 0.25] + [spread] * rows.shape[1])
    odds = np.zeros(len(rows))
    for at, given in enumerate(inputs):
        odds[at] = given @ weights
        chance = float(1 / (1 + np.exp(-odds[at])))
        if chance >= SERVED and rng.random() >= AUDITED:
            continue
        curvature = max(chance * (1 - chance), 1e-3)
        moved = covariance @ given
        gain = moved / (1 / curvature + given @ moved)
        weights = weights + gain * (float(labels[at] is True) - chance) / curvature
        covariance = covariance - np.outer(gain, moved)
    return odds


def right_at(odds: Array, labels: Sequence[bool | None], before: tuple[int, int], most_wrong: int, loose: bool) -> int:
    """How many are right when the candidates are taken from the likeliest down until more than `most_wrong` are wrong.
    before: right and wrong without them. loose: what nobody knows is wrong too."""
    right, wrong = before
    found = right
    for at in np.argsort(-odds, kind="stable"):
        right += labels[at] is True
        wrong += labels[at] is False or (loose and labels[at] is None)
        if wrong > most_wrong:
            break
        found = right
    return found


def report(stream: Sequence[Asked]) -> None:
    count = len(stream)
    before = sum(each.hit is True for each in stream), sum(each.hit is False for each in stream)
    left = [each for each in stream if each.hit is None and each.possible]
    held = Counter[str]()
    for each in left:
        right = [candidate for candidate in each.candidates if candidate.same]
        free = any(not candidate.objection for candidate in right)
        held["a candidate without a veto" if free else "only with a veto" if right else "no candidate"] += 1
    print(f"{count} requests, right in the same spelling {before[0] / count:.2%}, wrong {before[1] / count:.2%}")
    print("answers that are there besides:", ", ".join(f"{n} {what} ({n / count:.2%})" for what, n in held.items()))
    findable = before[0] + held["a candidate without a veto"]
    print(f"right at most, with these vetoes: {findable / count:.2%}")

    ruled_out = Counter(_NAMES[same] for each in stream for same in each.ruled_out)
    print(f"the best candidates behind a veto, of requests with none from {SERVED} up without: {dict(ruled_out)}")
    best = [candidate for each in stream if (candidate := each.best) is not None]
    labels, scores = [each.same for each in best], np.array([each.score for each in best])
    served = [same for same, odds in zip(labels, scores, strict=True) if 1 / (1 + np.exp(-odds)) >= SERVED]
    told = ", ".join(f"{sum(same is of for same in served)} {name}" for of, name in _NAMES.items())
    print(f"best candidates from {SERVED} up: {told}; in all {Counter(map(_NAMES.get, labels))}")
    rows = np.array([each.features for each in best]).reshape(len(best), len(FEATURES))
    kinds = {
        "the score": scores,
        **{f"corrected, {spread}": corrected(rows, scores, labels, spread) for spread in SPREADS},
    }
    for name, odds in kinds.items():
        for loose in (False, True):
            found = [right_at(odds, labels, before, int(most * count), loose) / count for most in WRONG]
            told = ", ".join(f"{share:.2%} at {most:.1%}" for share, most in zip(found, WRONG, strict=True))
            print(f"{name}, wrong {'or unknown' if loose else 'for sure'}: right {told}")


_NAMES = {True: "the same", False: "another", None: "unknown"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args(argv)
    reader = Reader()
    with gzip.open(arguments.data / "stream.jsonl.gz", "rt", encoding="utf-8") as lines:
        report([reader.read(json.loads(line)) for line in lines])
    cuts = quantiles((each * 1000 for each in reader.judged_s), n=100)
    print(f"the verifier, processor time of {len(reader.judged_s)} lookups: p50 {cuts[49]:.2f}, p95 {cuts[94]:.2f} ms")


if __name__ == "__main__":
    main()
