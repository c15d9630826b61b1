"""Which cloud providers there are for a topology, where their keys are, and why one of them is not enabled.

Pure: the environment and the installed packages are arguments, so that only `deployments/app.py` reads secrets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from models.catalog import ModelEntry
from models.catalog_file import Catalogue, load_catalogue
from models.providers import PROVIDERS, Package, known_provider
from router.topology import CloudEndpoint, Topology

MAX_KEYS = 16
"""Of one provider: `NAME` (several, with commas between them), `NAME_2` and so on."""

_PLACEHOLDER = re.compile(r"\{([A-Z][A-Z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class ProviderState:
    """What was found out about one provider when the graph was built. No secrets.

    why_not: None when it is enabled. key_variable: the name of the environment variable that has its key, or would.
    """

    name: str
    why_not: str | None
    key_variable: str | None
    models: tuple[str, ...]

    @property
    def enabled(self) -> bool:
        return self.why_not is None


def resolved(topology: Topology, catalogue: Catalogue | None = None) -> Topology:
    """`topology` with all that is known about each provider filled in, and with the providers that a key alone enables.
    The endpoints that it lists come first: an automatic one gives way where it has the same name, and its models where
    they have. Raises ValueError for a catalogue that cannot be used, and for names that are there twice."""
    rows = catalogue if catalogue is not None else load_catalogue(_path(topology))
    listed = [_placed(_filled(endpoint, rows)) for endpoint in topology.cloud]
    changed = topology.model_copy(update={"cloud": tuple(listed)})
    names = changed.model_names()
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"model names must be unique, these are not: {', '.join(doubled)}")
    return changed.model_copy(update={"cloud": (*listed, *_automatic(changed, rows))})


def _placed(endpoint: CloudEndpoint) -> CloudEndpoint:
    """Its models run where it does, unless they say otherwise."""

    def there(entries: tuple[ModelEntry, ...]) -> tuple[ModelEntry, ...]:
        return tuple(
            entry if entry.region else entry.model_copy(update={"region": endpoint.region}) for entry in entries
        )

    if not endpoint.region:
        return endpoint
    models, embedding_models = there(endpoint.models), there(endpoint.embedding_models)
    return endpoint.model_copy(update={"models": models, "embedding_models": embedding_models})


def _path(topology: Topology) -> Path | None:
    return Path(topology.catalogue).expanduser() if topology.catalogue else None


def _automatic(topology: Topology, rows: Catalogue) -> list[CloudEndpoint]:
    if not topology.auto_providers:
        return []
    there = {endpoint.name for endpoint in topology.cloud} | {endpoint.provider for endpoint in topology.cloud}
    taken = set(topology.model_names())
    endpoints = [
        _filled(CloudEndpoint(provider=provider.name, name=provider.name), rows, listed=False)
        for provider in PROVIDERS
        if provider.auto and provider.name not in there
    ]
    return [
        endpoint.model_copy(update={"models": tuple(entry for entry in endpoint.models if entry.name not in taken)})
        for endpoint in endpoints
    ]


def _filled(endpoint: CloudEndpoint, rows: Catalogue, listed: bool = True) -> CloudEndpoint:
    provider = known_provider(endpoint.provider or "")
    if provider is None:
        return endpoint.model_copy(update={"models": _named(_chosen(endpoint, ()), endpoint)})
    keys = endpoint.api_key_env if "api_key_env" in endpoint.model_fields_set else provider.key_variables or None
    return endpoint.model_copy(
        update={
            "dialect": endpoint.dialect or provider.dialect,
            "platform": endpoint.platform or provider.platform,
            "base_url": endpoint.base_url or provider.base_url,
            "api_key_env": keys,
            "models": _named(_chosen(endpoint, rows.get(provider.name, ())), endpoint),
            "quirks": endpoint.quirks or provider.quirks,
            # Credentials that a machine has for whatever purpose enable only what the configuration names.
            "ambient": endpoint.ambient or (listed and provider.ambient),
        }
    )


def _chosen(endpoint: CloudEndpoint, rows: tuple[ModelEntry, ...]) -> tuple[ModelEntry, ...]:
    entries = endpoint.models or rows
    if endpoint.only is None:
        return entries
    if unknown := sorted(set(endpoint.only) - {entry.name for entry in entries}):
        known = ", ".join(entry.name for entry in entries) or "none"
        raise ValueError(f"provider '{endpoint.name}' has no model {', '.join(unknown)} (it has {known})")
    return tuple(entry for entry in entries if entry.name in endpoint.only)


def _named(entries: tuple[ModelEntry, ...], endpoint: CloudEndpoint) -> tuple[ModelEntry, ...]:
    return tuple(entry.model_copy(update={"provider": endpoint.name}) for entry in entries)


def is_installed(module: str) -> bool:
    """Whether `module` can be imported here."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


# ---- what the environment says ------------------------------------------------------------------------------------


def keys_of(endpoint: CloudEndpoint, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The keys of a provider, in order, each once: those of the first of its variables that is set."""
    for variable in endpoint.key_variables:
        texts = [environment.get(variable, ""), *(environment.get(name, "") for name in _numbered(variable))]
        keys = dict.fromkeys(key.strip() for text in texts for key in text.split(",") if key.strip())
        if keys:
            return tuple(keys)[:MAX_KEYS]
    return ()


def secret_names(topology: Topology) -> list[str]:
    """Every environment variable that may hold a provider's key or credentials."""
    variables = {variable for endpoint in topology.cloud for variable in endpoint.key_variables}
    variables |= {variable for provider in PROVIDERS for variable in provider.key_variables}
    return sorted({name for variable in variables for name in (variable, *_numbered(variable))} | _CREDENTIALS)


_CREDENTIALS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS"}


def _numbered(variable: str) -> list[str]:
    return [f"{variable}_{number}" for number in range(2, MAX_KEYS + 1)]


def with_settings(endpoint: CloudEndpoint, environment: Mapping[str, str]) -> CloudEndpoint:
    """`endpoint` with what it needs from the environment besides its key, also in its address."""
    provider = known_provider(endpoint.provider or "")
    found = {name: environment[name] for name in (provider.settings if provider else {}) if environment.get(name)}
    settings = {**found, **endpoint.settings}

    def value(match: re.Match[str]) -> str:
        return settings.get(match[1], match[0]).rstrip("/")

    base_url = _PLACEHOLDER.sub(value, endpoint.base_url) if endpoint.base_url else None
    return endpoint.model_copy(update={"settings": settings, "base_url": base_url})


def why_not(endpoint: CloudEndpoint, environment: Mapping[str, str], installed: Callable[[str], bool]) -> str | None:
    """Why a resolved endpoint is not enabled, and what to do about it; None when it is.

    installed: whether a module can be imported.
    """
    provider = known_provider(endpoint.provider or "")
    if endpoint.key_variables and not endpoint.ambient and not keys_of(endpoint, environment):
        return f"{' or '.join(endpoint.key_variables)} is not set"
    ready = with_settings(endpoint, environment)
    for variable, text in (provider.settings if provider else {}).items():
        needed = endpoint.platform is not None or f"{{{variable}}}" in (endpoint.base_url or "")
        if needed and variable not in ready.settings:
            return f"{variable} is not set ({text})"
    if provider and ready.base_url is None and ready.platform is None:
        return "it has no `base_url`: say where it is, in its line of `cloud`"
    for module, install in _packages(endpoint):
        if not installed(module):
            return f"the package '{module.split('.')[0]}' is not installed: {install}"
    if not endpoint.models:
        return "it has no models: list them as `models` in its line of `cloud`"
    return None


def _packages(endpoint: CloudEndpoint) -> tuple[Package, ...]:
    """What the adapter of an endpoint imports: of one of your own that of the provider whose dialect it speaks."""
    provider = known_provider(endpoint.provider or endpoint.dialect or "")
    return provider.packages if provider else ()


def provider_states(
    topology: Topology, environment: Mapping[str, str], installed: Callable[[str], bool]
) -> tuple[ProviderState, ...]:
    """Every provider of a resolved topology, and every known one that it leaves out."""
    states = [
        ProviderState(
            endpoint.name,
            why_not(endpoint, environment, installed),
            _key_variable(endpoint, environment),
            tuple(entry.name for entry in endpoint.models),
        )
        for endpoint in topology.cloud
    ]
    there = {endpoint.name for endpoint in topology.cloud} | {endpoint.provider for endpoint in topology.cloud}
    for provider in PROVIDERS:
        if provider.name not in there:
            line = f"the configuration has no line for it: `cloud: [{{provider: {provider.name}}}]`"
            because = f"{line} ({provider.note})" if provider.note else line
            states.append(ProviderState(provider.name, because, next(iter(provider.key_variables), None), ()))
    return tuple(states)


def require_a_model(topology: Topology, providers: Iterable[ProviderState]) -> None:
    """Raises ValueError where neither a local model is listed nor a provider enabled."""
    if not topology.local_models and not any(provider.enabled for provider in providers):
        raise ValueError(
            "no model to serve: list one in 'local_models', or set a provider's key (`switchyard models` lists them)"
        )


def _key_variable(endpoint: CloudEndpoint, environment: Mapping[str, str]) -> str | None:
    variables = endpoint.key_variables
    of_a_key = (v for v in variables if keys_of(endpoint.model_copy(update={"api_key_env": v}), environment))
    return next(of_a_key, next(iter(variables), None))
