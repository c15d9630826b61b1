from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from router.collecting import YOUNG, Collector


@pytest.fixture
def collector() -> Iterator[Collector]:
    before = gc.get_threshold()
    yield Collector()
    gc.set_threshold(*before)
    gc.unfreeze()


def test_what_a_process_has_begun_with_is_passed_over(collector: Collector) -> None:
    before, held = gc.get_freeze_count(), [[] for _ in range(1_000)]
    collector.settled()
    assert gc.get_freeze_count() >= before + len(held)


def test_what_is_there_is_passed_over_whenever_there_is_a_quarter_more(collector: Collector) -> None:
    assert gc.get_threshold()[0] == YOUNG
    counts = []
    held = []
    for entries in (10, 4_999, 5_000, 6_000, 6_251, 5_000):
        held.append([[] for _ in range(1_000)])
        collector.grown(entries)
        counts.append(gc.get_freeze_count())
    assert counts[0] == counts[1] == 0 < counts[2]
    assert counts[3] <= counts[2] < counts[4] and counts[5] <= counts[4]
