"""What a topology serves: where each of its models runs, and whether settings name what is there."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import SecretStr

from router.accounting.jwt_login import JwtLogin
from router.accounting.tenants import Place
from router.embeddings import encoder_entry
from router.settings import ClassifierSettings, IngressSettings
from router.topology import Topology


def places_of(topology: Topology) -> dict[str, Place]:
    """Where each model runs, those that make embeddings too."""
    places = {model.name: Place(True, model.resolve().region or topology.region) for model in topology.local_models}
    places[encoder_entry(topology.encoder).name] = Place(True, topology.region)
    for endpoint in topology.cloud:
        for entry in (*endpoint.models, *endpoint.embedding_models):
            places[entry.name] = Place(False, entry.region)
    return places


def check_names(settings: IngressSettings, topology: Topology, jwt_key: SecretStr) -> None:
    """A name that is nobody's would silently price or allow nothing, a login without its secret let nobody in.
    Raises ValueError."""
    if settings.jwt is not None:
        JwtLogin(settings.jwt, jwt_key.get_secret_value())
    named = {
        *settings.prices,
        *settings.node_prices,
        *settings.spare_attempts,
        *(m for t in settings.tenants.values() for m in t.models or ()),
        *(model for routing in settings.routing.variants() for model in routing.models_named()),
    }
    if unknown := named - places_of(topology).keys():
        raise ValueError(f"user_config of Ingress names models that are not served: {', '.join(sorted(unknown))}")
    check_heads(settings.classifier, topology.model_names())
    inline = {endpoint.name for endpoint in topology.cloud if endpoint.placement == "inline"}
    if elsewhere := settings.cloud.keys() - inline:
        raise ValueError(
            f"`cloud` in the user_config of Ingress is for providers that are placed inline, which these are not: "
            f"{', '.join(sorted(elsewhere))}"
        )


def check_heads(settings: ClassifierSettings, models: Collection[str]) -> None:
    """What is known of a model that is none would be fitted and never asked. Raises ValueError."""
    if unknown := settings.heads.keys() - set(models):
        raise ValueError(
            f"`heads` of the classifier names models that are not served: {', '.join(sorted(unknown))}; correct the "
            "names or take them out"
        )
