"""Who reads whose answer along: askers that differ in time, urgency, rights and wishes, and what ends a flight."""

from __future__ import annotations

import pytest

from router.events import Record, RequestClosed
from tests.unit.test_coalescing import read, replicas, settled, shut, upstream


async def test_a_close_that_cannot_be_written_leaves_no_flight_behind() -> None:
    (world,) = replicas(1)

    def full(record: Record) -> None:
        if isinstance(record, RequestClosed):
            raise OSError(28, "No space left on device")

    world.pipeline.stages.sinks.insert(0, full)
    assert len(await read(world)) == 66
    await settled([world])
    shut([world])  # the sinks after it are told, and nobody is waited for
    assert upstream([world]) == 1


async def test_a_close_that_fails_itself_leaves_no_flight_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    (world,) = replicas(1)

    def broken(*args: object) -> None:
        raise RuntimeError("no receipt")

    monkeypatch.setattr("router.receipts.closed", broken)
    with pytest.raises(RuntimeError):
        await read(world)
    assert len(world.pipeline.flights) == 0
