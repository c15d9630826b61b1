"""Streamed tokens per second through Switchyard, beside the engine's own server in the same run.

    python -m cluster.bench.streams --url http://127.0.0.1:8000 --key KEY --model smoke-small \\
        --peer-url http://127.0.0.1:8001 --peer-model smoke-small --json streams.json

Each client keeps one connection and asks one question after the other. Tokens are the servers' own count
(`stream_options.include_usage`). The questions are all different and Switchyard's caches are off, so every token is
generated. The two take turns, so that a change of the machine's mood hits both.

The engine's own server for the models of serve_config.vllm.yaml, with the settings that Switchyard gives its engine:

    VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 \\
        python -m vllm.entrypoints.openai.api_server --model ~/.switchyard/smoke/smoke-small-v1 --port 8001 \\
        --served-model-name smoke-small --dtype float32 --max-num-seqs 64 --disable-uvicorn-access-log
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster.bench.connection import Connection, RequestFailed, post

_CHUNK_HEAD = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


@dataclass(frozen=True, slots=True)
class Target:
    """A server to measure. `extra` is added to the body of every request."""

    name: str
    url: str
    model: str
    key: str = "none"
    extra: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Round:
    """`client_cores` is what the client itself took of a processor core: near 1 it would have been the bottleneck."""

    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    client_cores: float


@dataclass(frozen=True, slots=True)
class Result:
    """Medians over the rounds, and each round's tokens per second."""

    name: str
    clients: int
    median: Round
    tokens_per_s: tuple[float, ...]


class _StreamConnection(Connection):
    def tokens(self) -> int:
        """How many tokens the server says that the last answer had."""
        # A line of the body may have been cut in two by the transfer encoding.
        found = _TOKENS.findall(_CHUNK_HEAD.sub(b"", self._received))
        if not found:
            raise RequestFailed(f"no usage in the answer: {bytes(self._received[:500]).decode(errors='replace')}")
        return int(found[-1])


def _request(target: Target, number: int, tokens: int) -> bytes:
    question = f"Question {number}: what is the way of a wagon through the yard?"
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **target.extra,
    }
    return post(f"{target.url.rstrip('/')}/v1/chat/completions", json.dumps(body).encode(), target.key)


async def _round(target: Target, clients: int, requests: int, tokens: int, numbers: itertools.count[int]) -> Round:
    """`clients` clients ask `requests` questions each, all at once."""
    ttft_ms: list[float] = []
    counts: list[int] = []

    async def client(connection: _StreamConnection) -> None:
        for _ in range(requests):
            response = await connection.ask(_request(target, next(numbers), tokens))
            counts.append(connection.tokens())
            ttft_ms.append(response.first_ms)

    connections = [await _StreamConnection.open(target.url) for _ in range(clients)]
    try:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(client(connection) for connection in connections))
        took_s, took_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    finally:
        for connection in connections:
            await connection.close()
    percentiles = statistics.quantiles(ttft_ms, n=100, method="inclusive")
    return Round(sum(counts) / took_s, percentiles[49], percentiles[98], took_cpu_s / took_s)


async def measure(targets: list[Target], clients: int, requests: int, tokens: int, rounds: int) -> list[Result]:
    """One round per target to warm up, then `rounds` rounds of each in turns."""
    numbers = itertools.count(time.time_ns() % 10**9)
    for target in targets:
        await _round(target, clients, 1, tokens, numbers)
    done: dict[str, list[Round]] = {target.name: [] for target in targets}
    for _ in range(rounds):
        for target in targets:
            done[target.name].append(await _round(target, clients, requests, tokens, numbers))
    return [_result(name, clients, found) for name, found in done.items()]


def _result(name: str, clients: int, rounds: list[Round]) -> Result:
    columns = zip(*(asdict(one).values() for one in rounds), strict=True)
    median = Round(*(round(statistics.median(column), 3) for column in columns))
    return Result(name, clients, median, tuple(round(one.tokens_per_s, 1) for one in rounds))


def table(results: list[Result]) -> str:
    """As Markdown. The shares are of the last row, which is the peer when there is one."""
    lines = ["| server | streams | tokens/s | of the peer | TTFT p50 | TTFT p99 |", "|---|---|---|---|---|---|"]
    for result in results:
        median = result.median
        share = median.tokens_per_s / results[-1].median.tokens_per_s
        lines.append(
            f"| {result.name} | {result.clients} | {median.tokens_per_s:,.0f} | {share:.0%} "
            f"| {median.ttft_p50_ms:.0f} ms | {median.ttft_p99_ms:.0f} ms |"
        )
    return "\n".join(lines)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cluster.bench.streams", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--url", required=True, help="Switchyard's base URL, without /v1")
    parser.add_argument("--key", default="none", help="an API key of it")
    parser.add_argument("--model", required=True)
    parser.add_argument("--peer-url", help="base URL of the engine's own server, measured in the same run")
    parser.add_argument("--peer-model", help="its name of the model, when it is another one")
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer, at most")
    parser.add_argument("--requests", type=int, default=4, help="questions per client and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results here too")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    chosen = _arguments(argv)
    targets = [Target("switchyard", chosen.url, chosen.model, chosen.key, {"switchyard": {"cache": "off"}})]
    if chosen.peer_url:
        targets.append(Target("engine's own server", chosen.peer_url, chosen.peer_model or chosen.model))
    results = asyncio.run(measure(targets, chosen.clients, chosen.requests, chosen.tokens, chosen.rounds))
    report = json.dumps([asdict(result) for result in results], indent=2)
    print(report, table(results), sep="\n\n")
    if chosen.json:
        chosen.json.write_text(report + "\n")


if __name__ == "__main__":
    main()
