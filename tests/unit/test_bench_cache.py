"""The cache's benches: a few seconds of its soak, and what is counted where it starts and how fast it is."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, cast

import pytest

from cluster.bench import cache_scale
from cluster.bench.cache_soak import Soak, longer, tables
from cluster.bench.cache_starts import at_most, verdicts
from router import scope_index
from router.error_bound import SHOWN


def test_no_table_of_a_full_shard_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope_index, "PROMOTE_AT", 32)
    soak = Soak(max_bytes=350_000)
    most: Counter[str] = Counter()
    for part in range(8):
        for _ in range(100):
            soak.step()
        if part in (3, 4, 5):
            most |= tables(soak.store)
    stats = soak.store.stats()
    assert min(stats[name] for name in ("evicted", "expired", "invalidated", "disliked", "compared", "claimed")) > 0
    assert 300_000 < stats["used_bytes"] <= 350_000
    assert any(path.endswith("._graph") and length > 32 for path, length in most.items())
    assert longer(most, tables(soak.store)) == {}


def test_a_table_that_grows_is_found() -> None:
    soak = Soak(max_bytes=10**9)
    for _ in range(50):
        soak.step()
    before = tables(soak.store)
    for _ in range(450):
        soak.step()
    assert "SemanticStore._entries" in longer(before, tables(soak.store))


class Answers:
    """A cache that answers as it is told, by the text of the question: which stored one, and at which score."""

    def __init__(self, told: dict[str, tuple[str, float | None]]) -> None:
        self._told, self._names = told, dict[str, str]()

    def lookup(self, body: dict[str, str]) -> dict[str, Any]:
        text, score = self._told.get(body["text"], (None, None))
        return {"hit": text is not None, "key": self._names.get(text or ""), "score": score}

    def insert(self, body: dict[str, str], name: str) -> None:
        self._names[body["text"]] = name


def test_only_what_the_verifier_answers_counts_where_it_starts() -> None:
    asked = {"a": "A", "b": "B", "same": "A", "exact": "A", "spelling": "B", "other": "B", "maybe": "C"}
    told = {"same": ("a", 0.9), "exact": ("a", None), "spelling": ("a", 1.0), "other": ("a", 0.4), "maybe": ("a", 0.4)}
    rows = [{"body": {"text": text}, "ans": ans, "maybe": ["A"] * (ans == "C")} for text, ans in asked.items()]
    found = verdicts(cast(Any, Answers(told)), rows)
    assert found == {"miss": 2, "right": 1, "wrong": 1, "unknown": 1}


def test_a_cache_starts_by_what_was_counted() -> None:
    """docs/cache.md has the counts."""
    measured = {0.1: (62, 7971), 0.2: (38, 7955)}
    measured |= {0.3: (24, 7963), 0.4: (18, 7957), 0.5: (16, 7951), 0.6: (11, 7944), 0.7: (8, 7943), 0.8: (5, 7933)}
    measured[0.9] = (0, 7886)
    assert {threshold: math.ceil(at_most(*counts) * 10_000) / 10_000 for threshold, counts in measured.items()} == dict(
        SHOWN
    )


def test_every_lookup_of_the_exact_bench_is_a_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_scale, "INSERTED", 20)
    took = cache_scale.exact_hits(30)
    assert len(took) == 30 and min(wall_s for wall_s, _ in took) > 0
