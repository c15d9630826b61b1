"""How much memory each part of a profile takes once it has answered.

    python -m cluster.bench.memory --config serve_config.yaml

Starts the profile on free ports, asks each model one question, and reads the proportional set size of every process of
the cluster (/proc/PID/smaps_rollup: pages that several share are divided between them, so that the sum is right).
A replica whose engine has processes of its own is listed with them apart: their names say whose they are.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx

from cluster.bench.session import exit_code, own_cluster, write_json
from cluster.state import Cluster

_REPLICA = "ray::ServeReplica:switchyard:"
_ANSWER_S = 600.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.bench.memory", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--config", type=Path, default=Path("serve_config.yaml"))
    parser.add_argument("--tokens", type=int, default=64, help="of each model's answer, at most (default 64)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    with own_cluster(arguments.config) as cluster:
        speeds = {model: _ask(cluster, model, arguments.tokens) for model in _models(cluster)}
        sizes_mb = {name: size // 1024 for name, size in _pss_kb(cluster.ray_pid).most_common()}
    print("| part | memory, MB |\n|---|---|")
    for name, size in sizes_mb.items():
        print(f"| {name} | {size} |")
    print(f"| all | {sum(sizes_mb.values())} |")
    write_json(arguments.json, {"memory_mb": sizes_mb, "tokens_per_s": speeds})


def _models(cluster: Cluster) -> list[str]:
    listed = httpx.get(f"{cluster.base_url}/v1/models", headers=_key(cluster), timeout=30).raise_for_status().json()
    return [model["id"] for model in listed["data"] if model["id"] != "auto" and model["tier"]]  # not the encoder


def _ask(cluster: Cluster, model: str, tokens: int) -> float:
    """One answer, so that what is allocated at first use is. Returns its tokens per second, for one client."""
    question = {"role": "user", "content": "Count from one to a hundred and say why."}
    body = {"model": model, "messages": [question], "max_tokens": tokens, "switchyard": {"cache": "off"}}
    started_s = time.perf_counter()
    answer = httpx.post(f"{cluster.base_url}/v1/chat/completions", headers=_key(cluster), json=body, timeout=_ANSWER_S)
    took_s = time.perf_counter() - started_s
    tokens_made: int = answer.raise_for_status().json()["usage"]["completion_tokens"]
    return round(tokens_made / took_s, 1)


def _key(cluster: Cluster) -> dict[str, str]:
    return {"authorization": f"Bearer {cluster.api_key}"}


def _pss_kb(session: int) -> Counter[str]:
    """Of the processes in a session and their children, by part."""
    sizes: Counter[str] = Counter()
    for pid in _members(session):
        try:
            rollup = (Path("/proc") / str(pid) / "smaps_rollup").read_text()
            name = (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue  # it has ended
        sizes[_part(name)] += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return sizes


def _members(session: int) -> set[int]:
    """Processes of the session, and those below them that lead one of their own."""
    parents: dict[int, int] = {}
    members: set[int] = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(folder.name)] = int(fields[1])
            if int(fields[3]) == session:
                members.add(int(folder.name))
    while found := {pid for pid, parent in parents.items() if parent in members and pid not in members}:
        members |= found
    return members


def _part(command: str) -> str:
    if command.startswith(_REPLICA):
        return command.removeprefix(_REPLICA).split(" ")[0]
    return command.split(" ")[0] if command.startswith("VLLM") else "Ray and Serve themselves"


if __name__ == "__main__":
    sys.exit(main())
