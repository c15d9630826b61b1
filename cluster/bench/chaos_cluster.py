"""Money under fire, over HTTP: a whole cluster that answers, whose replicas are killed again and again.

    python -m cluster.bench.chaos_cluster --seconds 600 --kills 30

Starts a cluster of its own on loopback, with three ingresses, a ledger over SQLite and a simulated model that costs
something, and asks it by HTTP, half of the answers as streams. Meanwhile replicas of the three are killed (SIGKILL) at
random moments; Ray starts others. In the end the load stops, the cluster comes to rest and is stopped, and the books
are opened and checked as in `cluster.bench.chaos`: every answer that a client had whole is in them once, at its cost.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cluster.bench.chaos import TIGHT_MICROUSD, WIDE_MICROUSD, judged
from cluster.bench.connection import Connection, RequestFailed, Response, post
from cluster.bench.session import exit_code, tell
from cluster.checks import StartError
from cluster.runtime import applications, is_ready, running
from cluster.state import Cluster
from router.accounting.keys import hash_key, new_key
from router.accounting.store import LEDGER_FILE

APP, MODEL = "switchyard", "chaos"
VICTIMS = ("Ingress", "Ledger", f"SimulatedModel:{MODEL}")
ORGS = ("tight", "wide")
CLIENTS = 8
COST_MICROUSD = 32
"""Of every whole answer: 16 tokens at 2 USD for a million."""
REQUEST_S = 10.0
"""After which the cluster gives a request up."""
PATIENCE_S = 30.0
"""After which a client does. An ingress that was killed hangs up at once."""
REST_S = 90.0
"""For replicas that were killed to be back, and what they left open to be closed."""


def config(keys: dict[str, str]) -> dict[str, Any]:
    """keys: of each organisation."""
    model = {"name": MODEL, "engine": "simulated", "tier": "small", "context_tokens": 8192, "max_batch": 64}
    arguments = {"output_tokens": 16, "ttft_ms": 20, "tokens_per_s": 200}
    settings = {
        "keys": [{"sha256": hash_key(key), "org": org} for org, key in keys.items()],
        "tenants": {
            "tight": {"monthly_budget_microusd": TIGHT_MICROUSD},
            "wide": {"monthly_budget_microusd": WIDE_MICROUSD},
        },
        "prices": {MODEL: {"input": "0", "output": "2", "version": "chaos"}},
        "request_timeout_s": REQUEST_S,
    }
    topology = {
        "local_models": [{"name": MODEL, "entry": model, "engine_args": arguments}],
        "auto_providers": False,
        "semantic_cache": "off",
        "classifier": "inline",
        "ingress": {"min_replicas": 3, "max_replicas": 3},
    }
    application = {"name": APP, "import_path": "deployments.app:build", "route_prefix": "/", "args": topology}
    return {"applications": [{**application, "deployments": [{"name": "Ingress", "user_config": settings}]}]}


@dataclass(slots=True)
class Told:
    """What clients saw. finished: organisation, request id and cost of each answer that came whole."""

    finished: list[tuple[str, str, str]] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    last_s: float = field(default_factory=time.monotonic)
    longest_gap_s: float = 0.0

    def took(self, org: str, answer: Response, streamed: bool) -> bool:
        """Whether it is a whole answer."""
        if answer.status != 200 or (streamed and b"data: [DONE]" not in answer.body):
            self.other[str(answer.status) if answer.status != 200 else "stream with an error"] += 1
            return False
        cost = str(COST_MICROUSD) if streamed else answer.headers["x-switchyard-cost-microusd"]
        self.finished.append((org, answer.headers["x-switchyard-request-id"], cost))
        now = time.monotonic()
        self.longest_gap_s, self.last_s = max(self.longest_gap_s, now - self.last_s), now
        return True


async def client(base_url: str, keys: dict[str, str], told: Told, number: int, ended: asyncio.Event) -> None:
    """Asks one question after the other, until it is ended."""
    connection: Connection | None = None
    for turn in itertools.count():
        if ended.is_set():
            break
        org, streamed = ORGS[turn % 4 != 0], bool(turn % 2)
        body = {"model": MODEL, "messages": [{"role": "user", "content": f"{number} asks {turn}"}], "max_tokens": 16}
        body |= {"stream": streamed, "switchyard": {"cache": "off"}}
        try:
            async with asyncio.timeout(PATIENCE_S):
                connection = connection or await Connection.open(base_url)
                request = post(f"{base_url}/v1/chat/completions", json.dumps(body).encode(), keys[org])
                whole = told.took(org, await connection.ask(request), streamed)
        except (RequestFailed, OSError, TimeoutError) as error:
            told.other[type(error).__name__] += 1
            whole = False
            if connection is not None:
                await connection.close()
            connection = None
        if not whole:
            await asyncio.sleep(0.1)
    if connection is not None:
        await connection.close()


def replicas(cluster: Cluster) -> dict[str, list[int]]:
    """Process ids of those that run, by deployment; nothing while Ray does not answer."""
    with suppress(httpx.HTTPError, KeyError):
        deployments = applications(cluster)[APP]["deployments"]
        return {
            name: [each["pid"] for each in deployment["replicas"] if each["state"] == "RUNNING" and each["pid"]]
            for name, deployment in deployments.items()
        }
    return {}


def kill_one(cluster: Cluster, chance: random.Random) -> str | None:
    """Of which deployment; None: none of that kind runs now."""
    victim = chance.choice(VICTIMS)
    if not (running_now := replicas(cluster).get(victim)):
        return None
    with suppress(ProcessLookupError):  # killed before, and not yet noticed
        os.kill(chance.choice(running_now), signal.SIGKILL)
        return victim
    return None


async def under_fire(
    cluster: Cluster, keys: dict[str, str], arguments: argparse.Namespace
) -> tuple[Told, Counter[str]]:
    chance = random.Random(arguments.seed)
    moments = sorted(chance.uniform(0.05, 0.85) * arguments.seconds for _ in range(arguments.kills))
    told, killed, ended = Told(), Counter[str](), asyncio.Event()
    load = [asyncio.create_task(client(cluster.base_url, keys, told, n, ended)) for n in range(CLIENTS)]
    began = time.monotonic()
    try:
        for moment in moments:
            await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
            while (victim := await asyncio.to_thread(kill_one, cluster, chance)) is None:
                if time.monotonic() > began + arguments.seconds:
                    raise RequestFailed("the replicas that were killed did not come back")
                await asyncio.sleep(0.5)
            killed[victim] += 1
            tell(f"{time.monotonic() - began:6.1f} s: killed {victim}; {len(told.finished)} answers so far")
        await asyncio.sleep(max(0.0, began + arguments.seconds - time.monotonic()))
    finally:
        ended.set()
        await asyncio.gather(*load)
    return told, killed


def at_rest(cluster: Cluster) -> tuple[float, int]:
    """Wait until all replicas are back and no request is open: how long it took, and how many are open after all."""
    began, wanted = time.monotonic(), {"Ingress": 3}
    books = f"file:{Path(cluster.data_dir) / LEDGER_FILE}?mode=ro"
    while True:
        with closing(sqlite3.connect(books, uri=True)) as database:
            (left,) = database.execute("SELECT COUNT(*) FROM open_requests").fetchone()
        found = replicas(cluster)
        whole = all(len(found.get(name, ())) >= wanted.get(name, 1) for name in VICTIMS) and is_ready(cluster)
        took_s = time.monotonic() - began
        if (whole and not left) or took_s > REST_S:
            return took_s, left
        time.sleep(0.5)


def run(folder: Path, arguments: argparse.Namespace) -> bool:
    """Prints what was seen. Returns whether everything holds."""
    if os.environ.get("SWITCHYARD_LEDGER_URL"):
        raise StartError("this looks into the books in SQLite: take SWITCHYARD_LEDGER_URL out of the environment")
    keys = {org: new_key() for org in ORGS}
    with running(config(keys), data_dir=folder, port=0, num_cpus=8, report=tell) as cluster:
        told, killed = asyncio.run(under_fire(cluster, keys, arguments))
        rest_s, left_open = at_rest(cluster)
    outcome = asyncio.run(judged(folder, "", arguments.seconds, dict(killed), told.finished))
    holds = outcome.holds and not left_open
    seen = {"killed": dict(killed), "not_answered": dict(told.other), "at_rest_after_s": round(rest_s, 1)}
    seen |= {"open_at_rest": left_open, "longest_without_an_answer_s": round(told.longest_gap_s, 1)}
    print(json.dumps(asdict(outcome) | seen, indent=2))
    print("holds" if holds else "DOES NOT HOLD")
    return holds


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="an empty one, which is kept (default: a temporary one)")
    arguments = parser.parse_args(argv)
    holds = False

    def measure() -> None:
        nonlocal holds
        with tempfile.TemporaryDirectory(prefix="switchyard-chaos-") as scratch:
            holds = run(arguments.folder or Path(scratch), arguments)

    return exit_code(measure) or int(not holds)


if __name__ == "__main__":
    sys.exit(main())
