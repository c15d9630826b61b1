"""Streamed tokens per second through Switchyard, beside the engine's own server in the same run.

    python -m cluster.bench.streams --json streams.json

Starts a cluster with one model of `serve_config.vllm.yaml`, and vLLM's own server on the very same folder of weights
with the same engine settings. The two are never asked at once: they take turns, so that a change of the machine's mood
hits both. Each client keeps one connection and asks one question after the other, and all begin together. Tokens are
the servers' own count (`stream_options.include_usage`). The questions are all different and Switchyard's caches are
off, so every token is generated.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.bench import vllm_server
from cluster.bench.connection import Connection, RequestFailed, post
from cluster.bench.overhead import machine
from cluster.bench.session import exit_code, first_in_line, own_cluster, tell, waited_s, write_json
from cluster.checks import StartError
from cluster.runtime import Config, load_config
from cluster.state import Cluster

CONFIG = Path(__file__).parents[2] / "serve_config.vllm.yaml"

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
    """`client_cores` is what the client itself took of a processor core: near 1 it would have been the bottleneck.
    `client_waited` is the share of the time in which it had to wait for one: more than little, and the times are not
    the server's alone."""

    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    client_cores: float
    client_waited: float


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
        began = _clocks_s()
        await asyncio.gather(*(client(connection) for connection in connections))
        took_s, took_cpu_s, took_waiting_s = (end - begin for end, begin in zip(_clocks_s(), began, strict=True))
    finally:
        for connection in connections:
            await connection.close()
    percentiles = statistics.quantiles(ttft_ms, n=100, method="inclusive")
    return Round(sum(counts) / took_s, percentiles[49], percentiles[98], took_cpu_s / took_s, took_waiting_s / took_s)


def _clocks_s() -> tuple[float, float, float]:
    """Of this process: time that has passed, that it ran, and that it was ready and did not run."""
    return time.perf_counter(), time.process_time(), waited_s()


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


# ---- the two servers -----------------------------------------------------------------------------------------------


def only(config: Config, model: str) -> tuple[Config, dict[str, Any]]:
    """The config with this one model, and what it says of it. Raises StartError when it has no such vLLM model."""
    (application,) = config["applications"]
    args = application["args"]
    for listed in args["local_models"]:
        if listed["name"] == model and listed.get("entry", {}).get("engine") == "vllm":
            return {**config, "applications": [{**application, "args": {**args, "local_models": [listed]}}]}, listed
    raise StartError(f"the configuration has no model '{model}' with an `entry` for vLLM: choose one with --model")


def engine_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """What Switchyard gives vLLM's engine for a model of its config (`deployments/llm_server.py`)."""
    entry = model["entry"]
    told = {"dtype": entry["dtype"], "max_model_len": entry["context_tokens"], "max_num_seqs": entry["max_batch"]}
    arguments: dict[str, Any] = told | model.get("engine_args", {})
    return arguments


def engine_environment(model: Mapping[str, Any]) -> dict[str, str]:
    """As Switchyard's replica has it: as many threads as it reserves cores, and none of them tied to a core."""
    threads = max(1, int(model.get("scale", {}).get("num_cpus", 1)))
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def weights_of(model: Mapping[str, Any], cluster: Cluster) -> Path:
    """The folder from which the replica has loaded a model."""
    source = str(model["entry"]["source"])
    if not source.startswith("smoke:"):
        return Path(source).expanduser()
    (folder,) = Path(cluster.data_dir, "smoke").glob(f"smoke-{source.removeprefix('smoke:')}-v*")
    return folder


# ---- the command ---------------------------------------------------------------------------------------------------


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cluster.bench.streams", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--config", type=Path, default=CONFIG, help="with the model (default serve_config.vllm.yaml)")
    parser.add_argument("--model", default="smoke-small", help="one that has an `entry` there (default smoke-small)")
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer, at most")
    parser.add_argument("--requests", type=int, default=4, help="questions per client and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results here too")
    return parser.parse_args(argv)


def _run(chosen: argparse.Namespace) -> None:
    load = os.getloadavg()[0]
    config, model = only(load_config(chosen.config), chosen.model)
    arguments = engine_arguments(model)
    with own_cluster(config) as cluster:
        tell("starting vLLM's own server")
        log = Path(cluster.scratch_dir, "vllm.log")
        own = {**arguments, "disable_uvicorn_access_log": True}
        weights = weights_of(model, cluster)
        with vllm_server.serving(weights, chosen.model, own, log, engine_environment(model)) as peer_url:
            targets = [
                Target("Switchyard", cluster.base_url, chosen.model, cluster.api_key, {"switchyard": {"cache": "off"}}),
                Target("vLLM's own server", peer_url, chosen.model),
            ]
            with first_in_line():
                results = asyncio.run(measure(targets, chosen.clients, chosen.requests, chosen.tokens, chosen.rounds))
    figures = {"tokens": chosen.tokens, "engine": arguments, "servers": [asdict(result) for result in results]}
    write_json(chosen.json, {"machine": machine(load), **figures})
    print(table(results))
    for result in results:
        if result.median.client_waited > 0.1:
            tell(f"note: {result.name}: the client waited for a core {result.median.client_waited:.0%} of the time")


def main(argv: Sequence[str] | None = None) -> int:
    chosen = _arguments(argv)
    return exit_code(lambda: _run(chosen))


if __name__ == "__main__":
    sys.exit(main())
