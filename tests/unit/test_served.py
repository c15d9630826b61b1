"""Settings that name what a topology serves, and those that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

from deployments.classifier import ComplexityClassifier
from deployments.served import check_names
from router.settings import IngressSettings
from router.topology import Topology

NONE = SecretStr("")
TOPOLOGY = Topology.model_validate(
    {
        "local_models": [{"name": "sim", "entry": {"name": "sim", "engine": "simulated", "context_tokens": 100}}],
        "cloud": [
            {
                "name": "acme",
                "dialect": "openai",
                "placement": "inline",
                "api_key_env": None,
                "models": [{"name": "acme-1", "engine": "openai_compatible", "context_tokens": 100}],
            }
        ],
    }
)


NODE_PRICE = {"usd_per_hour": "1", "input_tokens_per_hour": 1, "output_tokens_per_hour": 1}
NAMING: dict[str, Callable[[str], dict[str, Any]]] = {
    "node_prices": lambda model: {"node_prices": {model: NODE_PRICE}},
    "spare_attempts": lambda model: {"spare_attempts": {model: 1}},
    "tenants": lambda model: {"tenants": {"a": {"models": [model]}}},
    "heads": lambda model: {"classifier": {"heads": {model: None}}},
}


@pytest.mark.parametrize("naming", NAMING.values(), ids=NAMING)
def test_a_model_that_is_not_served_is_no_name(naming: Callable[[str], dict[str, Any]]) -> None:
    for model in ("sim", "acme-1"):
        check_names(IngressSettings.model_validate(naming(model)), TOPOLOGY, NONE)
    with pytest.raises(ValueError, match="not served: acme-2"):
        check_names(IngressSettings.model_validate(naming("acme-2")), TOPOLOGY, NONE)


def test_a_provider_that_is_not_inline_has_no_settings_here() -> None:
    check_names(IngressSettings.model_validate({"cloud": {"acme": {}}}), TOPOLOGY, NONE)
    with pytest.raises(ValueError, match=r"placed inline.*other"):
        check_names(IngressSettings.model_validate({"cloud": {"other": {}}}), TOPOLOGY, NONE)


def test_the_classifiers_own_settings_are_looked_at_too() -> None:
    classifier = ComplexityClassifier({}, TOPOLOGY.model_names())
    classifier.reconfigure({"heads": {"acme-1": None}})
    with pytest.raises(ValueError, match="not served: acme-2"):
        ComplexityClassifier({}, TOPOLOGY.model_names()).reconfigure({"heads": {"acme-2": None}})
