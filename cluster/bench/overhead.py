"""What Switchyard adds to a request, beside a bare Serve application in the same run and on the same cluster.

    python -m cluster.bench.overhead --json overhead.json

Starts a cluster with a simulated model without think time, so that everything measured is overhead, and with the
application of `deployments/bare.py`, which answers from memory or calls the same replica of the same model over one
hop. The paths (exact hit, semantic hit, miss unary and streamed in 64 chunks, with and without the encoder) at several
numbers of clients.
Switchyard and the bare application take turns, so that a change of the machine's mood hits both. Each client keeps one
connection and asks one question after the other.

The encoder's own time is what the response header `x-switchyard-encoder-ms` says; it is shown apart, since a bare
application encodes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.bench.connection import Connection, RequestFailed, Response, get, post
from cluster.checks import StartError
from cluster.runtime import running

MODEL = "bench"
CHUNKS = 64
WARM_UP_REQUESTS = 30
STORED_WITHIN_S = 20.0
RECEIPTS = 20
MEASURE_FOR_S = 200.0
"""A machine so slow that this passes gets fewer rows, so that the whole run ends within five minutes."""
QUESTION = (
    "How does a railway switchyard sort the wagons of a freight train into new trains, and who decides where each goes?"
)

CONFIG: dict[str, Any] = {
    "applications": [
        {
            "name": "switchyard",
            "import_path": "deployments.app:build",
            "route_prefix": "/",
            "args": {
                "local_models": [
                    {
                        "name": MODEL,
                        "entry": {
                            "name": MODEL,
                            "engine": "simulated",
                            "tier": "small",
                            "context_tokens": 8192,
                            "max_batch": 256,
                        },
                        "engine_args": {"output_tokens": CHUNKS},
                    }
                ]
            },
        },
        {
            "name": "bare",
            "import_path": "deployments.bare:build",
            "route_prefix": "/bare",
            "args": {"app": "switchyard", "deployment": f"SimulatedModel:{MODEL}", "model": MODEL},
        },
    ]
}


# ---- what is asked -------------------------------------------------------------------------------------------------


def _same(number: int) -> str:
    return QUESTION


def _reworded(number: int) -> str:
    """The question with other spaces: another text for the exact cache, the same meaning for the encoder."""
    first, *others = QUESTION.split(" ")
    return first + "".join(" " * (1 + (number >> place & 1)) + word for place, word in enumerate(others))


def _new(number: int) -> str:
    """Another number is another question, however similar."""
    return f"Question {number}: describe the way of a freight train through a switchyard."


@dataclass(frozen=True, slots=True)
class Route:
    """A way through Switchyard, and the bare application's way that does the same work."""

    name: str
    verdict: str
    bare: str
    prompt: Callable[[int], str]
    stream: bool = False
    seeded: bool = False
    """A question with a seed is answered by no similar one, so nothing is encoded: the path without the encoder."""


ROUTES = (
    Route("exact hit", "hit-exact", "/bare/hit", _same),
    Route("semantic hit", "hit-semantic", "/bare/hop", _reworded),
    Route("miss, unary", "miss", "/bare/hop", _new),
    Route(f"miss, {CHUNKS}-chunk stream", "miss", "/bare/hop", _new, stream=True),
    Route("miss, seeded, unary", "miss", "/bare/hop", _new, seeded=True),
    Route(f"miss, seeded, {CHUNKS}-chunk stream", "miss", "/bare/hop", _new, stream=True, seeded=True),
)


# ---- measuring -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """What one side answered. Times are in milliseconds; `other` counts answers with an unexpected cache verdict."""

    total_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    less_encoder_ms: list[float] = field(default_factory=list)
    encoder_ms: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        return {
            "requests": len(self.total_ms),
            "requests_per_s": round(len(self.total_ms) / self.wall_s, 1),
            "p50_ms": percentile(self.total_ms, 50),
            "p99_ms": percentile(self.total_ms, 99),
            "first_token_p50_ms": percentile(self.first_ms, 50),
            "less_encoder_p50_ms": percentile(self.less_encoder_ms, 50),
            "less_encoder_p99_ms": percentile(self.less_encoder_ms, 99),
            "encoder_p50_ms": percentile(self.encoder_ms, 50),
            "failed": dict(self.failed),
            "other_verdicts": dict(self.other),
        }


def percentile(values: Sequence[float], percent: int) -> float:
    """By nearest rank; 0 of nothing."""
    ranked = sorted(values)
    return round(ranked[max(0, -(-len(ranked) * percent // 100) - 1)], 3) if ranked else 0.0


@dataclass(frozen=True, slots=True)
class Bench:
    """The two sides and the questions, which never come again. `key` is Switchyard's API key."""

    url: str
    key: str
    seconds: float
    numbers: Iterator[int]

    def request(self, route: Route, bare: bool) -> bytes:
        path = route.bare if bare else "/v1/chat/completions"
        body = {
            "model": MODEL if bare else "auto",
            "messages": [{"role": "user", "content": route.prompt(next(self.numbers))}],
            "stream": route.stream,
        }
        if route.seeded:
            body["seed"] = 1
        return post(self.url + path, json.dumps(body).encode(), self.key)

    async def turn(self, route: Route, bare: bool, clients: int, tally: Tally, seconds: float) -> None:
        """Let `clients` clients ask for `seconds`, all at once."""
        connections = [await Connection.open(self.url) for _ in range(clients)]
        began_s = time.perf_counter()

        async def client(connection: Connection) -> None:
            while time.perf_counter() - began_s < seconds:
                await self._ask(connection, route, bare, tally)

        try:
            await asyncio.gather(*map(client, connections))
            tally.wall_s += time.perf_counter() - began_s
        finally:
            await asyncio.gather(*(connection.close() for connection in connections))

    async def _ask(self, connection: Connection, route: Route, bare: bool, tally: Tally) -> str:
        answer = await connection.ask(self.request(route, bare))
        verdict = _verdict(answer)
        if answer.status != 200:
            tally.failed[str(answer.status)] += 1
        elif not bare and verdict != route.verdict:
            tally.other[verdict] += 1
        else:
            encoder_ms = float(answer.headers.get("x-switchyard-encoder-ms", 0.0))
            tally.total_ms.append(answer.total_ms)
            tally.first_ms.append(answer.first_ms)
            tally.encoder_ms.append(encoder_ms)
            tally.less_encoder_ms.append(max(0.0, answer.total_ms - encoder_ms))
        return verdict

    async def prepare(self, route: Route) -> None:
        """Warm both sides, and wait until Switchyard answers with the verdict that is to be measured: a cache stores
        in the background. Raises RequestFailed when it never does."""
        connection = await Connection.open(self.url)
        try:
            give_up_s = time.perf_counter() + STORED_WITHIN_S
            while (verdict := await self._ask(connection, route, False, Tally())) != route.verdict:
                if time.perf_counter() > give_up_s:
                    raise RequestFailed(f"{route.name}: the cache verdict stays '{verdict}', not '{route.verdict}'")
                await asyncio.sleep(0.1)
            for _ in range(WARM_UP_REQUESTS):
                await self._ask(connection, route, False, Tally())
                await self._ask(connection, route, True, Tally())
        finally:
            await connection.close()

    async def stages(self, route: Route) -> dict[str, float]:
        """Where Switchyard's time goes with one client: the median milliseconds of each stage, from the receipts."""
        connection = await Connection.open(self.url)
        try:
            answers = [await connection.ask(self.request(route, False)) for _ in range(RECEIPTS)]
            ids = [answer.headers["x-switchyard-request-id"] for answer in answers if _verdict(answer) == route.verdict]
            receipts = [await connection.ask(get(f"{self.url}/v1/receipts/{id}", self.key)) for id in ids]
        finally:
            await connection.close()
        if any(receipt.status != 200 for receipt in receipts):
            raise RequestFailed(f"{route.name}: a request has no receipt: {receipts[-1].body.decode()}")
        timings = [json.loads(receipt.body)["stage_ms"] for receipt in receipts]
        stages = dict.fromkeys(stage for timing in timings for stage in timing)
        return {stage: percentile([timing.get(stage, 0.0) for timing in timings], 50) for stage in stages}

    async def compare(self, route: Route, clients: int) -> dict[str, Any]:
        """One row: both sides in turns, twice each."""
        ours, bare = Tally(), Tally()
        for _ in range(2):
            await self.turn(route, False, clients, ours, self.seconds / 2)
            await self.turn(route, True, clients, bare, self.seconds / 2)
        ours_figures, bare_figures = ours.figures(), bare.figures()
        return {
            "path": route.name,
            "clients": clients,
            "switchyard": ours_figures,
            "bare": bare_figures,
            "added_p50_ms": round(ours_figures["p50_ms"] - bare_figures["p50_ms"], 3),
            "added_p99_ms": round(ours_figures["p99_ms"] - bare_figures["p99_ms"], 3),
            "ratio_p50": _ratio(ours_figures["p50_ms"], bare_figures["p50_ms"]),
            "ratio_p50_less_encoder": _ratio(ours_figures["less_encoder_p50_ms"], bare_figures["p50_ms"]),
        }


def _verdict(answer: Response) -> str:
    return answer.headers.get("x-switchyard-cache", "")


def _ratio(ours: float, bare: float) -> float | None:
    return round(ours / bare, 2) if bare else None


async def measure(url: str, key: str, clients: Sequence[int], seconds: float) -> dict[str, Any]:
    """`rows`: one for every path and number of clients, `seconds` a side. `stage_ms`: by path and stage."""
    bench = Bench(url, key, seconds, iter(range(1, sys.maxsize)))
    rows: list[dict[str, Any]] = []
    stages: dict[str, dict[str, float]] = {}
    give_up_s = time.perf_counter() + MEASURE_FOR_S
    for route in ROUTES:
        await bench.prepare(route)
        stages[route.name] = await bench.stages(route)
        for number in clients:
            if time.perf_counter() > give_up_s:
                print(f"note: no time left for {route.name}, {number} clients", file=sys.stderr)
                continue
            rows.append(await bench.compare(route, number))
            print(_line(rows[-1]), file=sys.stderr, flush=True)
    return {"rows": rows, "stage_ms": stages}


# ---- reporting -----------------------------------------------------------------------------------------------------

HEAD = (
    "| path | clients | Switchyard p50 / p99 ms | req/s | bare p50 / p99 ms | req/s | added p50 / p99 ms "
    "| encoder p50 ms | less encoder, x bare |\n|---|---|---|---|---|---|---|---|---|"
)


def _line(row: dict[str, Any]) -> str:
    ours, bare = row["switchyard"], row["bare"]
    cells = (
        row["path"],
        row["clients"],
        f"{ours['p50_ms']:.2f} / {ours['p99_ms']:.2f}",
        f"{ours['requests_per_s']:.0f}",
        f"{bare['p50_ms']:.2f} / {bare['p99_ms']:.2f}",
        f"{bare['requests_per_s']:.0f}",
        f"{row['added_p50_ms']:.2f} / {row['added_p99_ms']:.2f}",
        f"{ours['encoder_p50_ms']:.2f}",
        row["ratio_p50_less_encoder"],
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def report(figures: dict[str, Any]) -> str:
    """Both tables in Markdown."""
    stages = [
        f"| {path} | {', '.join(f'{stage} {ms:.2f}' for stage, ms in timing.items())} |"
        for path, timing in figures["stage_ms"].items()
    ]
    head = "| path, 1 client | median ms by stage inside the ingress |\n|---|---|"
    return "\n".join([HEAD, *map(_line, figures["rows"]), "", head, *stages])


def complaints(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What should make a reader distrust a row."""
    return [
        f"{row['path']}, {row['clients']} clients, {side}: {figures[what]} of {figures['requests']} requests"
        for row in rows
        for side, figures in (("switchyard", row["switchyard"]), ("bare", row["bare"]))
        for what in ("failed", "other_verdicts")
        if figures[what]
    ]


def machine(load: float) -> dict[str, Any]:
    """`load` is the machine's own before the measurement: figures from a busy one are not worth keeping."""
    return {
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "system": platform.system(),
        "load_before": round(load, 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="cluster.bench.overhead", description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each side of each row (default 2)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args(argv)
    load = os.getloadavg()[0]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the cluster is stopped then too
    try:
        with (
            tempfile.TemporaryDirectory(prefix="switchyard-bench-") as folder,
            running(CONFIG, data_dir=Path(folder), port=0, report=lambda line: print(line, file=sys.stderr)) as cluster,
        ):
            figures = asyncio.run(measure(cluster.base_url, cluster.api_key, options.clients, options.seconds))
    except (StartError, RequestFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(load), **figures}, indent=1) + "\n")
    print(report(figures))
    for complaint in complaints(figures["rows"]):
        print(f"note: {complaint}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
