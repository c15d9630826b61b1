"""vLLM's own server as the tests run it, and how busy it is."""

from __future__ import annotations

import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path

from cluster.bench import vllm_server

CONTEXT_TOKENS = 1024
MODEL = "smoke"
_ARGUMENTS = {"dtype": "float32", "max_model_len": CONTEXT_TOKENS, "max_num_seqs": 16, "enforce_eager": True}


def serving(model_folder: Path, log: Path) -> AbstractContextManager[str]:
    """The address of a server for the model, which it calls `MODEL`."""
    return vllm_server.serving(model_folder, MODEL, _ARGUMENTS, log, {"VLLM_CPU_KVCACHE_SPACE": "1"})


def running_requests(url: str) -> int:
    """How many requests the server at `url` works on or has in its queue."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    kinds = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(kinds))
