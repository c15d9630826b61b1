"""The whole graph. `build` is what serve_config.yaml names: the only file that knows every deployment, and the only
one that reads secrets from the environment."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from pydantic import SecretStr
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.archive import archive_deployment
from deployments.autoscaling import autoscaling
from deployments.batcher import batcher_deployment
from deployments.cache import cache_deployments
from deployments.classifier import classifier_deployment
from deployments.cloud import InlineCloud, cloud_deployment, inline_cloud
from deployments.ingress import BackendBinding, Ingress
from deployments.ledger import ledger_deployment
from deployments.llm_server import llm_deployment
from deployments.model import DRAIN_S, simulated_deployment, transformers_deployment
from router.accounting.keys import KEY_FILE, PEPPER_FILE, hash_key, kept_secret, new_key, new_secret
from router.cloud import (
    ProviderState,
    is_installed,
    keys_of,
    provider_states,
    require_a_model,
    resolved,
    secret_names,
    with_settings,
)
from router.outside import check_url
from router.sealing import KEY_VARIABLE
from router.settings import KeySettings
from router.topology import CloudEndpoint, Topology

ALERT_SECRETS = "SWITCHYARD_ALERT_"
STORE_VARIABLE = "SWITCHYARD_CACHE_STORE_URL"
STREAMS_PER_INGRESS = 256
"""Requests under way from which another ingress is worth its memory."""


def build(args: dict[str, Any]) -> Application:
    """The application for `args` (see `router.topology.Topology`). Raises ValueError saying what is wrong with them."""
    topology = resolved(Topology.model_validate(args))
    data_dir = (
        Path(os.environ.get("SWITCHYARD_DATA_DIR") or topology.data_dir or "~/.switchyard").expanduser().resolve()
    )
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    providers = provider_states(topology, os.environ, is_installed)
    require_a_model(topology, providers)
    enabled = _enabled(topology, providers)
    bindings = {**_local_backends(topology, data_dir), **_cloud_backends(enabled)}
    inline = _inline_cloud(enabled)
    places = {name: places for name, (_, places) in bindings.items()}
    batcher = batcher_deployment(places, {cloud.backend: cloud.endpoint.max_concurrency for cloud in inline})
    return _ingress_deployment(topology).bind(
        topology=topology,
        data_dir=str(data_dir),
        bootstrap_key=_bootstrap_key(topology, data_dir),
        backends={name: binding for name, (binding, _) in bindings.items()},
        inline=inline,
        batcher=batcher,
        ledger=ledger_deployment(str(data_dir), SecretStr(_secret("SWITCHYARD_LEDGER_URL")), _alert_secrets()),
        archive=archive_deployment(str(data_dir), batcher, topology.max_body_bytes, SecretStr(_secret(KEY_VARIABLE))),
        caches=cache_deployments(topology, str(data_dir), SecretStr(_secret(KEY_VARIABLE)), _cache_store(topology)),
        classifier=classifier_deployment(topology) if topology.classifier == "deployment" else None,
        providers=providers,
        pepper=SecretStr(_secret("SWITCHYARD_KEY_PEPPER") or kept_secret(data_dir / PEPPER_FILE, new_secret)),
        jwt_key=SecretStr(_secret("SWITCHYARD_JWT_SECRET")),
    )


Backends = dict[str, tuple[BackendBinding, int]]
"""By backend name: its deployment, its models and how many requests one replica works on at once."""

_LOCAL = {
    "transformers": ("TransformersModel", transformers_deployment),
    "simulated": ("SimulatedModel", simulated_deployment),
    "vllm": ("LLMServer", llm_deployment),  # its file imports no vLLM: only a replica does
}


def _local_backends(topology: Topology, data_dir: Path) -> Backends:
    backends: Backends = {}
    for model in topology.local_models:
        entry = model.resolve()
        if entry.engine not in _LOCAL:
            raise ValueError(f"model '{model.name}': engine '{entry.engine}' is a provider's; list it in 'cloud'")
        name, deployment = _LOCAL[entry.engine]
        here = entry.model_copy(update={"region": entry.region or topology.region})
        binding = BackendBinding(_handle(deployment(model, str(data_dir))), (here,))
        backends[f"{name}:{model.name}"] = (binding, entry.max_batch)
    return backends


def _handle(bound: Application) -> DeploymentHandle:
    """What Serve puts in its place where it is an argument of another one."""
    return cast("DeploymentHandle", bound)


def _enabled(topology: Topology, providers: Iterable[ProviderState]) -> list[CloudEndpoint]:
    """The endpoints of those providers that are enabled, with all that the environment has for them but the keys."""
    names = {provider.name for provider in providers if provider.enabled}
    return [with_settings(endpoint, os.environ) for endpoint in topology.cloud if endpoint.name in names]


def _cloud_backends(endpoints: Iterable[CloudEndpoint]) -> Backends:
    backends: Backends = {}
    for endpoint in endpoints:
        if endpoint.placement == "deployment":
            bound = cloud_deployment(endpoint, keys_of(endpoint, os.environ))
            binding = BackendBinding(_handle(bound), endpoint.models)
            backends[f"CloudModel:{endpoint.name}"] = (binding, endpoint.max_concurrency)
    return backends


def _inline_cloud(endpoints: Iterable[CloudEndpoint]) -> tuple[InlineCloud, ...]:
    return tuple(inline_cloud(e, keys_of(e, os.environ)) for e in endpoints if e.placement == "inline")


def _secret(name: str) -> str:
    return os.environ.get(name, "").strip()


def _cache_store(topology: Topology) -> SecretStr:
    """The address of the store of answers, which may have a password in it; empty: there is none. Raises ValueError."""
    url = _secret(STORE_VARIABLE) or topology.cache_store or ""
    if url:
        check_url(url)
    return SecretStr(url)


def _alert_secrets() -> dict[str, SecretStr]:
    """For the channels of alerts, which name them."""
    return {name: SecretStr(_secret(name)) for name in os.environ if name.startswith(ALERT_SECRETS)}


def _bootstrap_key(topology: Topology, data_dir: Path) -> KeySettings | None:
    """The operator's key, as a digest: SWITCHYARD_API_KEY, else the data folder's, made at the first start."""
    if not topology.auth:
        return None
    text = _secret("SWITCHYARD_API_KEY") or kept_secret(data_dir / KEY_FILE, new_key)
    return KeySettings(sha256=hash_key(text), org="default", scopes=("infer", "admin", "usage", "audit"))


def _ingress_deployment(topology: Topology) -> Any:
    scale = topology.ingress.model_copy(update={"min_replicas": max(1, topology.ingress.min_replicas)})
    return serve.deployment(
        Ingress,
        name="Ingress",
        user_config={},
        # Mostly waiting for models: bounded by the memory of open streams, not by work.
        max_ongoing_requests=1024,
        max_queued_requests=1024,
        autoscaling_config=autoscaling(scale, STREAMS_PER_INGRESS),
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": scale.num_cpus, "runtime_env": {"env_vars": _no_provider_keys(topology)}},
    )


def _no_provider_keys(topology: Topology) -> dict[str, str]:
    """Ray's processes inherit the environment of their node. The public door's has no provider's key in it, nor
    the database's password, and its memory only the keys of providers that are placed inline."""
    names = (*secret_names(topology), "SWITCHYARD_LEDGER_URL", STORE_VARIABLE, KEY_VARIABLE, *_alert_secrets())
    return {name: "" for name in names if os.environ.get(name)}
