"""What a gateway adds to a fast provider: Switchyard beside LiteLLM proxy and Portkey gateway, in the same run.

    make bench-peers
    python -m cluster.bench.gateway --json gateway.json

All pass the same questions through to the same provider, which takes no time (`cluster/bench/upstream.py`), whole and
as a stream of 64 chunks. They take turns, twice each, with the provider by itself, so that a change of the machine's
mood hits all; what is added is the difference to the provider's own time at that number of clients. Each client keeps
one connection and asks one question after the other. Peers that are not installed are left out.

Switchyard authenticates, chooses the model (`auto`) and keeps its books; its caches are off, so that every question
goes out. Its adapter is placed once in the Ingress and once in a deployment of its own: two organisations, of which
each may use one of the two.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.bench.connection import Connection, RequestFailed, Response, post
from cluster.bench.overhead import machine, percentile
from cluster.bench.peers import MODEL, PEERS, Target, installed
from cluster.bench.server_process import free_port, running_server
from cluster.bench.session import exit_code, first_in_line, own_cluster, tell, write_json
from cluster.bench.upstream import TEXT
from cluster.checks import StartError
from router.accounting.keys import hash_key, new_key

UPSTREAM = "the provider alone"
PLACEMENTS = ("inline", "deployment")
KINDS = ("whole", "stream")
MAX_CLIENTS = 256
WARM_UP_REQUESTS = 20
TURN_LIMIT_S = 30.0
MEASURE_FOR_S = 540.0
"""When this has passed, no further row is begun."""
_CHUNK_HEAD = re.compile(rb"(?:^|\r\n)[0-9a-fA-F]+\r\n")


# ---- the servers ---------------------------------------------------------------------------------------------------


def config(upstream_url: str, keys: Mapping[str, str]) -> dict[str, Any]:
    """Of a Switchyard that is a gateway and nothing else. keys: of the organisation of each placement."""
    args = {
        "auto_providers": False,
        "semantic_cache": "off",
        "classifier": "inline",
        "cloud": [_endpoint(upstream_url, placement) for placement in PLACEMENTS],
    }
    settings = {
        "exact_cache": {"enabled": False},
        "keys": [{"sha256": hash_key(key), "org": placement} for placement, key in keys.items()],
        "tenants": {placement: {"models": [_model(placement)]} for placement in keys},
    }
    application = {
        "name": "switchyard",
        "import_path": "deployments.app:build",
        "route_prefix": "/",
        "args": args,
        "deployments": [{"name": "Ingress", "user_config": settings}],
    }
    return {"applications": [application]}


def _model(placement: str) -> str:
    return f"{MODEL}-{placement}"


def _endpoint(upstream_url: str, placement: str) -> dict[str, Any]:
    price = {"input": "0.15", "output": "0.6", "version": "bench"}
    model = {"name": _model(placement), "source": MODEL, "tier": "large", "context_tokens": 8192, "price": price}
    return {
        "name": placement,
        "dialect": "openai",
        "base_url": f"{upstream_url}/v1",
        "api_key_env": None,
        "placement": placement,
        "max_concurrency": 2 * MAX_CLIENTS,
        "models": [model],
    }


@contextmanager
def _servers(peers: Sequence[str]) -> Iterator[list[Target]]:
    """All of them up, the provider first. Raises StartError; a peer that does not come up is left out."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="switchyard-bench-")))
        port = free_port()
        upstream_url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "cluster.bench.upstream", "--port", str(port)]
        log = scratch / "upstream.log"
        stack.enter_context(running_server("the provider", command, f"{upstream_url}/health", log, {}, 30.0))
        keys = {placement: new_key() for placement in PLACEMENTS}
        cluster = stack.enter_context(own_cluster(config(upstream_url, keys)))
        path = "/v1/chat/completions"
        targets = [Target(UPSTREAM, upstream_url + path, MODEL, "none")]
        for placement, key in keys.items():
            targets.append(Target(f"Switchyard, {placement}", cluster.base_url + path, "auto", key))
        for name in peers:
            if not installed(name):
                tell(f"note: {name} is not installed and left out: make bench-peers")
                continue
            tell(f"starting {name}")
            try:
                targets.append(stack.enter_context(PEERS[name](upstream_url, scratch)))
            except (StartError, OSError) as error:
                tell(f"note: {name} is left out: {error}")
        yield targets


# ---- measuring -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """What came back from one gateway in its turns. `failed` counts by status, or by what came in place of one."""

    total_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one gateway with a kind of answer and a number of clients. Times are until the last byte, `first` until the
    first text; `added` is over the provider alone."""

    kind: str
    clients: int
    gateway: str
    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    added_p50_ms: float
    added_p99_ms: float
    failed: dict[str, int]


def request(target: Target, kind: str, number: int) -> bytes:
    body: dict[str, Any] = {
        "model": target.model,
        "messages": [{"role": "user", "content": f"Question {number}: which way does a wagon take through the yard?"}],
    }
    if kind == "stream":
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return post(target.url, json.dumps(body).encode(), target.key, target.headers)


def answer_of(kind: str, response: Response) -> str:
    """The text of an answer that has also said what it cost. Raises RequestFailed."""
    chunked = response.headers.get("transfer-encoding") == "chunked"  # and a line may be cut in two by it
    said = (_CHUNK_HEAD.sub(b"", response.body) if chunked else response.body).decode(errors="replace")
    if response.status != 200:
        raise RequestFailed(f"answered {response.status}: {said[:500]}")
    try:
        if kind == "whole":
            whole = json.loads(said)
            assert whole["usage"]["completion_tokens"]
            return str(whole["choices"][0]["message"]["content"])
        chunks = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
        assert chunks[-1]["usage"]["completion_tokens"]
        deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
        return "".join(deltas)
    except (AssertionError, IndexError, KeyError, TypeError, ValueError):
        raise RequestFailed(f"answered what is not a whole answer with its usage: {said[:500]}") from None


async def check(target: Target, numbers: Iterator[int]) -> None:
    """Warm it up, and see that what it passes on is what the provider said. Raises RequestFailed."""
    connection = await Connection.open(target.url)
    try:
        for kind in KINDS:
            for _ in range(WARM_UP_REQUESTS):
                text = answer_of(kind, await connection.ask(request(target, kind, next(numbers))))
                if text != TEXT:
                    raise RequestFailed(f"changed the answer to: {text[:500]}")
    except RequestFailed as error:
        raise RequestFailed(f"{target.name}: {error}") from None
    finally:
        await connection.close()


async def turn(target: Target, kind: str, clients: int, seconds: float, tally: Tally, numbers: Iterator[int]) -> None:
    """Let `clients` clients ask for `seconds`, all at once, and wait for the answers for `TURN_LIMIT_S` at most."""
    connections: list[Connection] = []

    async def client(place: int) -> None:
        while time.perf_counter() - began_s < seconds:
            try:
                response = await connections[place].ask(request(target, kind, next(numbers)))
            except RequestFailed:
                tally.failed["no answer"] += 1
                await asyncio.sleep(0.05)
                connections[place] = await Connection.open(target.url)
                continue
            if response.status != 200:
                tally.failed[str(response.status)] += 1
                continue
            if kind == "stream" and b"[DONE]" not in response.body[-64:]:
                tally.failed["broken off"] += 1
                continue
            tally.total_ms.append(response.total_ms)
            tally.first_ms.append(response.first_ms)

    began_s = time.perf_counter()
    try:
        for _ in range(clients):
            connections.append(await Connection.open(target.url))
        began_s = time.perf_counter()
        async with asyncio.timeout(seconds + TURN_LIMIT_S), asyncio.TaskGroup() as group:
            for place in range(clients):
                group.create_task(client(place))
    except* TimeoutError:
        tally.failed["no answer in time"] += 1
    except* OSError:
        tally.failed["no connection"] += 1
    finally:
        tally.wall_s += time.perf_counter() - began_s
        await asyncio.gather(*(connection.close() for connection in connections))


async def passing(targets: Sequence[Target], numbers: Iterator[int]) -> list[Target]:
    """Those that pass the provider's answers on; a peer that does not is left out. Raises RequestFailed."""
    found = []
    for target in targets:
        try:
            await check(target, numbers)
        except (RequestFailed, OSError) as error:
            if not target.peer:
                raise
            tell(f"note: {target.name} is left out: {error}")
        else:
            found.append(target)
    return found


async def measure(targets: Sequence[Target], clients: Sequence[int], seconds: float) -> list[Figures]:
    """`seconds` for each target, kind and number of clients. The first target is the provider."""
    numbers = itertools.count(time.time_ns() % 10**9)
    targets = await passing(targets, numbers)
    rows: list[Figures] = []
    give_up_s = time.perf_counter() + MEASURE_FOR_S
    for kind, number in itertools.product(KINDS, clients):
        if time.perf_counter() > give_up_s:
            tell(f"note: no time left for {kind}, {number} clients")
            continue
        tallies = {target.name: Tally() for target in targets}
        for target in (*targets, *targets):
            await turn(target, kind, number, seconds / 2, tallies[target.name], numbers)
        rows += (figures := compare(kind, number, tallies))
        for row in figures:
            tell(f"{row.kind}, {row.clients} clients, {row.gateway}: {row.requests_per_s:.0f}/s, {row.p50_ms:.2f} ms")
    return rows


def compare(kind: str, clients: int, tallies: Mapping[str, Tally]) -> list[Figures]:
    """By gateway; the first is the provider alone."""
    first = next(iter(tallies.values()))
    alone = percentile(first.total_ms, 50), percentile(first.total_ms, 99)
    rows = []
    for name, tally in tallies.items():
        p50_ms, p99_ms = percentile(tally.total_ms, 50), percentile(tally.total_ms, 99)
        rows.append(
            Figures(
                kind,
                clients,
                name,
                len(tally.total_ms),
                round(len(tally.total_ms) / tally.wall_s, 1) if tally.wall_s else 0.0,
                p50_ms,
                p99_ms,
                percentile(tally.first_ms, 50),
                round(p50_ms - alone[0], 3),
                round(p99_ms - alone[1], 3),
                dict(tally.failed),
            )
        )
    return rows


# ---- reporting -----------------------------------------------------------------------------------------------------


def ratios(row: Figures, rows: Sequence[Figures], peer: str) -> tuple[float, float] | None:
    """Requests per second and added median latency as multiples of `peer`'s in the same row; None where it has none."""
    same = [one for one in rows if (one.kind, one.clients, one.gateway) == (row.kind, row.clients, peer)]
    if not same or same[0] is row or row.gateway == UPSTREAM:
        return None
    (theirs,) = same
    if not theirs.requests_per_s or theirs.added_p50_ms <= 0:
        return None
    return row.requests_per_s / theirs.requests_per_s, row.added_p50_ms / theirs.added_p50_ms


def table(rows: Sequence[Figures], peers: Sequence[str]) -> str:
    """As Markdown, with a column for each peer: how many times its requests per second and its added latency."""
    columns = ["answer", "clients", "gateway", "req/s", "p50 / p99 ms", "added p50 / p99 ms", "first text p50 ms"]
    columns += [f"req/s, added p50: x {peer}" for peer in peers]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        alone = row.gateway == UPSTREAM
        cells = [
            row.kind,
            str(row.clients),
            row.gateway,
            f"{row.requests_per_s:,.0f}",
            f"{row.p50_ms:.2f} / {row.p99_ms:.2f}",
            "" if alone else f"{row.added_p50_ms:.2f} / {row.added_p99_ms:.2f}",
            f"{row.first_p50_ms:.2f}",
        ]
        for peer in peers:
            found = ratios(row, rows, peer)
            cells.append(f"{found[0]:.2f}, {found[1]:.2f}" if found else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# ---- the command ---------------------------------------------------------------------------------------------------


def _clients(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MAX_CLIENTS:
        raise argparse.ArgumentTypeError(f"{number} is not between 1 and {MAX_CLIENTS}")
    return number


def _run(options: argparse.Namespace) -> None:
    load = os.getloadavg()[0]
    with _servers(options.peers) as targets, first_in_line():
        rows = asyncio.run(measure(targets, options.clients, options.seconds))
    write_json(options.json, {"machine": machine(load), "rows": [asdict(row) for row in rows]})
    print(table(rows, [target.name for target in targets if target.peer]))
    for row in rows:
        if row.failed:
            tell(f"note: {row.kind}, {row.clients} clients, {row.gateway}: failed {row.failed} beside {row.requests}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.bench.gateway", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--clients", type=_clients, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each gateway in each row (default 4)")
    parser.add_argument("--peers", nargs="*", choices=sorted(PEERS), default=sorted(PEERS), help="default: all")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args(argv)
    return exit_code(lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())
