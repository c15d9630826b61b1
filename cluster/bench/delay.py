"""How long a token is on its way from the engine to the client, beside a bare Serve application in the same run.

    python -m cluster.bench.delay --json delay.json

A simulated model writes the time at which it lets go of each token as that token's text, and the client compares it
with the time at which the bytes arrive: all processes of a machine read the same clock. There is one client on an idle
machine. The first token leaves as soon as the question has come in, the later ones follow slowly, so each is on its way
alone. The bare application (`deployments/bare.py`) is one hop to the same replica.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import itertools
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.bench import overhead
from cluster.bench.connection import Connection, RequestFailed, post
from cluster.bench.session import exit_code, first_in_line, own_cluster, write_json

TOKENS = 4
TOKENS_PER_S = 20
WARM_UP_STREAMS = 10
STREAMS_PER_TURN = 10
_STAMP = re.compile(rb'"content": ?"(\d+)"')


@dataclass(frozen=True, slots=True)
class Delays:
    """Milliseconds from the engine to the client, over all streams."""

    server: str
    streams: int
    first_p50_ms: float
    first_p99_ms: float
    later_p50_ms: float
    later_p99_ms: float


class _StampedConnection(Connection):
    """Knows of each token of the last answer how long it was on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.delays_ms: list[float] = []
        self._looked_to = 0

    async def delays(self, request: bytes) -> list[float]:
        """Of the tokens of an answer, in milliseconds. Raises RequestFailed when it has not all its tokens."""
        self.delays_ms, self._looked_to = [], 0
        answer = await self.ask(request)
        if len(self.delays_ms) != TOKENS:
            raise RequestFailed(f"{len(self.delays_ms)} of {TOKENS} tokens came: {answer.body[:500].decode()}")
        return self.delays_ms

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        super().data_received(data)
        for found in _STAMP.finditer(self._received, self._looked_to):
            self.delays_ms.append((now_ns - int(found[1])) / 1e6)
            self._looked_to = found.end()


@dataclass(frozen=True, slots=True)
class Side:
    """A server to measure. `extra` is added to the body of every request."""

    server: str
    url: str
    key: str
    extra: dict[str, Any]

    def request(self, number: int) -> bytes:
        question = f"Question {number}: when does the train leave?"
        body = {"model": overhead.MODEL, "messages": [{"role": "user", "content": question}], "stream": True}
        return post(self.url, json.dumps(body | self.extra).encode(), self.key)


async def measure(sides: Sequence[Side], streams: int) -> list[Delays]:
    """`streams` streams from each side, one after the other, the sides in turns of a few."""
    numbers = itertools.count(time.time_ns() % 10**9)
    found: dict[str, list[list[float]]] = {side.server: [] for side in sides}
    for side in sides:
        await _ask(side, WARM_UP_STREAMS, numbers)
    while left := streams - len(found[sides[-1].server]):
        for side in sides:
            found[side.server] += await _ask(side, min(left, STREAMS_PER_TURN), numbers)
    return [_summary(server, delays) for server, delays in found.items()]


async def _ask(side: Side, streams: int, numbers: Iterator[int]) -> list[list[float]]:
    connection = await _StampedConnection.open(side.url)
    try:
        return [await connection.delays(side.request(next(numbers))) for _ in range(streams)]
    finally:
        await connection.close()


def _summary(server: str, streams: Sequence[Sequence[float]]) -> Delays:
    first = [delays[0] for delays in streams]
    later = [delay for delays in streams for delay in delays[1:]]
    return Delays(server, len(streams), *_p50_p99(first), *_p50_p99(later))


def _p50_p99(values: Sequence[float]) -> tuple[float, float]:
    percentiles = statistics.quantiles(values, n=100, method="inclusive")
    return round(percentiles[49], 3), round(percentiles[98], 3)


def table(rows: Sequence[Delays]) -> str:
    """As Markdown."""
    lines = ["| from the engine to the client, ms | first token p50 / p99 | later tokens p50 / p99 |", "|---|---|---|"]
    lines += [
        f"| {row.server} | {row.first_p50_ms:.2f} / {row.first_p99_ms:.2f} "
        f"| {row.later_p50_ms:.2f} / {row.later_p99_ms:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def config() -> dict[str, Any]:
    """The two applications of the benchmark of the overhead, with a slow model that stamps its tokens."""
    slow = copy.deepcopy(overhead.CONFIG)
    (model,) = slow["applications"][0]["args"]["local_models"]
    model["engine_args"] = {"stamped": True, "output_tokens": TOKENS, "tokens_per_s": TOKENS_PER_S}
    return slow


def _run(options: argparse.Namespace) -> None:
    load = os.getloadavg()[0]
    with own_cluster(config()) as cluster:
        sides = [
            Side(
                "Switchyard",
                f"{cluster.base_url}/v1/chat/completions",
                cluster.api_key,
                {"switchyard": {"cache": "off"}},
            ),
            Side("bare one-hop application", f"{cluster.base_url}/bare/hop", cluster.api_key, {}),
        ]
        with first_in_line():
            rows = asyncio.run(measure(sides, options.streams))
    write_json(options.json, {"machine": overhead.machine(load), "servers": [asdict(row) for row in rows]})
    print(table(rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.bench.delay", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--streams", type=int, default=200, help="from each server (default 200)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args(argv)
    return exit_code(lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())
