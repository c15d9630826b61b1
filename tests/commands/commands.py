"""The command line as a user runs it, and what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from cluster import state
from cluster.state import Cluster

CONFIG = """
applications:
  - name: switchyard
    import_path: deployments.app:build
    route_prefix: /
    args:
      semantic_cache: "off"
      classifier: inline
      local_models:
        - name: sim
          entry: {name: sim, engine: simulated, context_tokens: 4096}
          engine_args: {output_tokens: 4000, tokens_per_s: 20}
"""
QUESTION = {"model": "sim", "max_tokens": 4, "messages": [{"role": "user", "content": "Where is the station?"}]}
START_S, STOP_S = 300.0, 15.0


class Commands:
    """The command line in a folder of its own, with a home of its own."""

    def __init__(self, folder: Path, config: str = CONFIG) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.output = folder / "up.out"
        (folder / "serve_config.yaml").write_text(config)
        (folder / "home" / ".ray").mkdir(parents=True)
        self.environment = {**os.environ, "HOME": str(folder / "home"), "SWITCHYARD_DATA_DIR": str(self.data_dir)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cluster.cli", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=START_S
        )

    @contextmanager
    def up(self, *arguments: str, until: str = "switchyard ready") -> Iterator[subprocess.Popen[bytes]]:
        """`switchyard up` in the background, once it has said `until`; killed afterwards if a test left it running."""
        command = [sys.executable, "-m", "cluster.cli", "up", *arguments]
        with open(self.output, "wb") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            wait_until(lambda: until in self.output.read_text() or process.poll() is not None, START_S)
            assert process.poll() is None, self.output.read_text()
            yield process
        finally:
            process.kill()
            process.wait()
            state.find(self.data_dir)

    def cluster(self) -> Cluster:
        found = state.find(self.data_dir)
        assert found is not None
        return found


def wait_until(condition: Callable[[], bool], seconds: float) -> float:
    """How long it took, in seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"still waiting after {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - began


def session(leader: int) -> list[int]:
    """The processes of a session, less those that only wait to be collected."""
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            process_state, _, _, sid = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == leader and process_state != "Z":
            members.append(int(path.parent.name))
    return members


def ask(cluster: Cluster, key: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{cluster.base_url}/v1/chat/completions", json=QUESTION, headers=headers, timeout=30.0)


@contextmanager
def open_stream(cluster: Cluster, key: str, model: str) -> Iterator[Iterator[str]]:
    """The lines of an answer, of which the first is here."""
    question = {**QUESTION, "model": model, "max_tokens": 3000, "stream": True}
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{cluster.base_url}/v1/chat/completions"
    with httpx.stream("POST", url, json=question, headers=headers, timeout=30.0) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        yield lines


def ends(up: subprocess.Popen[bytes], cluster: Cluster) -> None:
    """In time, and with nothing left afterwards."""
    assert up.wait(STOP_S) == 0
    assert session(cluster.ray_pid) == []
    assert not Path(cluster.scratch_dir).exists()
