"""Whether a configuration is one of Switchyard, before anything is started for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster.checks import StartError
from router.cloud import is_installed, provider_states, require_a_model, resolved
from router.settings import (
    ArchiveSettings,
    BatcherSettings,
    CacheSettings,
    ClassifierSettings,
    CloudModelSettings,
    IngressSettings,
    LedgerSettings,
)
from router.topology import Topology

PRODUCT = "deployments.app:build"
_SETTINGS: dict[str, type[BaseModel]] = {
    "Archive": ArchiveSettings,
    "Batcher": BatcherSettings,
    "CloudModel": CloudModelSettings,
    "ComplexityClassifier": ClassifierSettings,
    "Ingress": IngressSettings,
    "Ledger": LedgerSettings,
    "SemanticCache": CacheSettings,
}
"""By the name of a deployment, up to a colon."""


def check_config(config: Mapping[str, Any]) -> None:
    """Raises StartError naming the first value that the graph would refuse. Other applications are not looked at."""
    for application in config["applications"]:
        if application.get("import_path") != PRODUCT:
            continue
        _check(Topology, application.get("args") or {}, "args")
        for deployment in application.get("deployments") or ():
            settings = _SETTINGS.get(str(deployment.get("name")).partition(":")[0])
            if settings is not None:
                _check(settings, deployment.get("user_config") or {}, f"user_config of {deployment['name']}")
        try:
            topology = resolved(Topology.model_validate(application.get("args") or {}))
            require_a_model(topology, provider_states(topology, os.environ, is_installed))
        except ValueError as error:
            raise StartError(f"args: {error}") from None


def _check(kind: type[BaseModel], values: Any, where: str) -> None:
    try:
        kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise StartError(f"{where}{': ' + path if path else ''}: {first['msg']}") from None
