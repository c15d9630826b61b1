"""A full shard stays as large as it is, whatever comes and goes: a few seconds of the cache's soak."""

from __future__ import annotations

from collections import Counter

import pytest

from cluster.bench.cache_soak import Soak, longer, tables
from router import scope_index


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
