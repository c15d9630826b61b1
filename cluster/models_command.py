"""`switchyard models`: the catalogue as a configuration makes it, with prices and their sources, and what is enabled.

It looks at the environment that it is run in, not at a cluster that runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from cluster.checks import StartError, application_args, listed
from models.catalog import ModelEntry
from models.catalog_file import load_catalogue
from router.accounting.prices import PriceBook
from router.cloud import is_installed, provider_states, resolved
from router.settings import IngressSettings
from router.topology import Topology

LOCAL = "local"
"""The name under which the models of the configuration's own machines are listed."""
_COLUMNS = ("MODEL", "TIER", "CONTEXT", "ANSWER", "IN", "CACHED", "WRITE", "OUT", "THINKING", "BATCH", "PRICED", "CAN")
_RIGHT = range(2, 10)


@dataclass(frozen=True)
class Group:
    """The models of one provider. why_not: None when it is enabled."""

    provider: str
    enabled: bool
    why_not: str | None
    key_variable: str | None
    models: list[dict[str, Any]]


def groups(config: Mapping[str, Any], provider: str | None = None) -> list[Group]:
    """Of each provider, or only of `provider`, the models that `config` gives it.

    Raises StartError for a configuration or a catalogue that cannot be used, and for a provider that nobody knows.
    """
    try:
        found = [group for args in application_args(config) for group in _of(args, _settings(config))]
    except (ValueError, ValidationError) as error:
        raise StartError(" ".join(str(error).split())) from None
    chosen = [group for group in found if provider in (None, group.provider)]
    if not chosen:
        raise StartError(f"there is no provider '{provider}': {', '.join(group.provider for group in found)}")
    return chosen


def _settings(config: Mapping[str, Any]) -> IngressSettings:
    """The `user_config` of the Ingress, which may have prices of its own."""
    for application in config.get("applications") or ():
        for deployment in listed(application, "deployments"):
            if deployment.get("name") == "Ingress":
                return IngressSettings.model_validate(deployment.get("user_config") or {})
    return IngressSettings()


def _of(args: Mapping[str, Any], settings: IngressSettings) -> list[Group]:
    given = Topology.model_validate(args)
    catalogue = load_catalogue(Path(given.catalogue).expanduser() if given.catalogue else None)
    topology = resolved(given, catalogue)
    entries = {endpoint.name: endpoint.models for endpoint in topology.cloud}
    local = [model.resolve() for model in topology.local_models]
    found = [Group(LOCAL, True, None, None, _described(local, settings))] if local else []
    for state in provider_states(topology, os.environ, is_installed):
        rows = entries.get(state.name) or catalogue.get(state.name, ())
        described = _described(rows, settings)
        found.append(Group(state.name, state.enabled, state.why_not, state.key_variable, described))
    return found


def _described(entries: Iterable[ModelEntry], settings: IngressSettings) -> list[dict[str, Any]]:
    entries = list(entries)
    book = PriceBook(entries, settings.prices, settings.node_prices)
    return [
        {
            "name": entry.name,
            "source": entry.source,
            "tier": entry.tier,
            "context_tokens": entry.context_tokens,
            "max_output_tokens": entry.max_output_tokens,
            "capabilities": [name for name, can in asdict(entry.capabilities).items() if can],
            "price": book.quote(entry.name).details,
            "price_version": book.quote(entry.name).version,
            "note": entry.note,
        }
        for entry in entries
    ]


def as_json(found: Sequence[Group]) -> str:
    return json.dumps([asdict(group) for group in found], indent=2)


def as_table(found: Sequence[Group]) -> str:
    """Prices in USD per million tokens."""
    lines: list[str] = []
    for group in found:
        state = "enabled" if group.enabled else f"not enabled: {group.why_not}"
        lines += [f"{group.provider}: {state}", *_table(group.models), ""]
    lines.append(
        "Prices are USD per million tokens (=: as IN, or for THINKING as OUT; *: long prompts cost more). --json has "
        "their sources in full."
    )
    return "\n".join(lines)


def _table(models: Sequence[Mapping[str, Any]]) -> list[str]:
    if not models:
        return []
    rows = [_COLUMNS, *map(_row, models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if column in _RIGHT else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row(model: Mapping[str, Any]) -> tuple[str, ...]:
    price: Mapping[str, str] = model["price"]
    plain, answer = price["input"], price["output"]
    return (
        model["name"],
        model["tier"],
        str(model["context_tokens"]),
        str(model["max_output_tokens"] or "-"),
        plain,
        _unless(price["cached_input"], plain),
        _unless(price["cache_write_5m"], plain),
        answer + ("*" if "long_output" in price else ""),
        _unless(price["reasoning"], answer),
        f"x {price['batch_factor']}" if "batch_factor" in price else "-",
        f"{price.get('date') or ''} {urlsplit(price.get('source', '')).hostname or ''}".strip() or "-",
        ", ".join(model["capabilities"]),
    )


def _unless(value: str, plain: str) -> str:
    return "=" if value == plain else value
