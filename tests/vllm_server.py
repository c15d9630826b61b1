"""vLLM's own server as the tests run it, and how busy it is."""

from __future__ import annotations

import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path

from cluster.bench import vllm_server

CONTEXT_TOKENS = 1024
MODEL = "smoke"
TOOL_PARSER = "hermes"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ '<|system|>\\n# Tools\\n' + (tools | tojson) + eos_token + '\\n' }}{% endif %}"
    "{% for m in messages %}"
    "{{ '<|' + ('system' if m['role'] == 'developer' else m['role']) + '|>\\n' + (m['content'] or '') }}"
    "{% for call in m['tool_calls'] or [] %}{{ '<tool_call>' + (call['function'] | tojson) + '</tool_call>' }}"
    "{% endfor %}{{ eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
"""The smoke models' own, with a place for tools and calls."""

_ARGUMENTS = {
    "dtype": "float32",
    "max_model_len": CONTEXT_TOKENS,
    "max_num_seqs": 16,
    "enforce_eager": True,
    "enable_auto_tool_choice": True,
    "tool_call_parser": TOOL_PARSER,
    "chat_template": CHAT_TEMPLATE,
    "distributed_executor_backend": "uni",
}
ONE_ENGINE_PROCESS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
"""With the "uni" executor: on a CPU vLLM would start its worker as one process more, for the sake of its threads. More
than one thread would wait for work by spinning."""


def serving(model_folder: Path, log: Path) -> AbstractContextManager[str]:
    """The address of a server for the model, which it calls `MODEL`."""
    return vllm_server.serving(
        model_folder, MODEL, _ARGUMENTS, log, {"VLLM_CPU_KVCACHE_SPACE": "1", **ONE_ENGINE_PROCESS}
    )


def running_requests(url: str) -> int:
    """How many requests the server at `url` works on or has in its queue."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    kinds = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(kinds))
