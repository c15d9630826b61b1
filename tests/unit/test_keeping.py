"""What a full cache keeps."""

from __future__ import annotations

import random

import pytest

from cluster.bench.keeping import LeastRecentlyUsed, replay, trace
from router.keeping import GreedyDual


def test_the_cheapest_per_byte_and_use_goes_first() -> None:
    order = GreedyDual()
    order.add(1, 1000, 100)
    order.add(2, 1000, 10_000)  # as dear, but large
    order.add(3, 10, 100)
    order.add(4, 0, 100)  # costs nothing, yet is worth something
    gone = []
    for _ in range(4):
        gone.append(order.least())
        order.drop(gone[-1])
    assert gone == [4, 2, 3, 1] or gone == [4, 3, 2, 1]
    with pytest.raises(IndexError):
        order.least()


def test_use_makes_it_stay_and_age_makes_what_was_dear_go() -> None:
    order = GreedyDual()
    order.add(0, 50, 1)  # dear, and never asked for again
    order.add(1, 5, 1)
    order.use(1)
    for number in range(2, 100):
        order.add(number, 5, 1)
        order.use(1)
        least = order.least()
        order.drop(least)
        assert least != 1
        if least == 0:
            return
    pytest.fail("what nobody asks for stays for ever")


def test_the_heap_does_not_grow_with_use() -> None:
    order, rng = GreedyDual(), random.Random(0)
    for number in range(50):
        order.add(number, number, 10)
    for _ in range(20_000):
        order.use(rng.randrange(50))
    assert len(order._heap) < 500
    assert order.least() == min(order._worths, key=lambda number: order._worths[number].worth)


def test_it_saves_more_of_the_cost_than_least_recently_used() -> None:
    asked = trace(2_000, 20_000, seed=5)
    room = sum({question.number: question.size_bytes for question in asked}.values()) // 20
    (_, old), (_, new) = (replay(asked, order, room) for order in (LeastRecentlyUsed(), GreedyDual()))
    assert new > old + 0.1
