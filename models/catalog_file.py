"""The catalogue of cloud models: a YAML file in the package, and one of the same form by which users override it.

    providers:
      groq:                                       # one of models/providers.py
        - name: groq/gpt-oss-120b                 # as callers name it
          source: openai/gpt-oss-120b             # as the provider does; default: the name
          tier: medium
          context_tokens: 131072
          capabilities: [tools, json_object]      # all that it can do
          price: {input: 0.15, output: 0.6, date: 2026-11-21, source: https://...}

A row of a user's file with the name of one that is there replaces the fields that it has, a price as a whole; any other
row is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from models.catalog import ModelEntry
from models.providers import ENGINES, PROVIDERS, known_provider

PACKAGED = Path(__file__).parent / "catalogue.yaml"
Catalogue = Mapping[str, tuple[ModelEntry, ...]]
"""By provider: its rows."""

_Rows = dict[str, dict[str, dict[str, Any]]]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    providers: dict[str, list[dict[str, Any]]]


def load_catalogue(override: Path | None = None) -> Catalogue:
    """The packaged rows, and those of the file `override` before them. Raises ValueError with what to correct."""
    return _packaged() if override is None else _entries(_merged(_rows(PACKAGED), _rows(override)), override)


@cache
def _packaged() -> Catalogue:
    return _entries(_rows(PACKAGED), PACKAGED)


def _rows(path: Path) -> _Rows:
    """By provider and name, as they are written."""
    import yaml

    try:
        text = path.read_text()
        file = _File.model_validate(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {})
    except OSError as error:
        raise ValueError(f"the catalogue {path} cannot be read ({error.strerror}); correct `catalogue`") from None
    except yaml.YAMLError as error:
        raise ValueError(f"the catalogue {path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise ValueError(f"the catalogue {path}: {_first(error)}") from None
    rows: _Rows = {}
    for provider, listed in file.providers.items():
        if known_provider(provider) is None:
            known = ", ".join(each.name for each in PROVIDERS)
            raise ValueError(
                f"the catalogue {path}: there is no provider '{provider}' ({known}); "
                "a provider of your own is an endpoint in `cloud`, with its models"
            )
        rows[provider] = {str(row.get("name")): row for row in listed}
        if len(rows[provider]) < len(listed):
            raise ValueError(f"the catalogue {path}: two rows of '{provider}' have the same name")
    return rows


def _merged(packaged: _Rows, own: _Rows) -> _Rows:
    merged = {provider: dict(rows) for provider, rows in packaged.items()}
    for provider, rows in own.items():
        for name, row in rows.items():
            there = merged.setdefault(provider, {})
            there[name] = {**there.get(name, {}), **row}
    return merged


def _entries(rows: _Rows, path: Path) -> Catalogue:
    catalogue: dict[str, tuple[ModelEntry, ...]] = {}
    for provider, by_name in rows.items():
        known = known_provider(provider)
        assert known is not None  # `_rows` has seen to that
        filled = {"engine": ENGINES[known.dialect], "provider": provider}
        entries: list[ModelEntry] = []
        for name, row in by_name.items():
            try:
                entries.append(ModelEntry.model_validate({**filled, "source": name, **row}))
            except ValidationError as error:
                raise ValueError(f"the catalogue {path}: model '{name}' of '{provider}': {_first(error)}") from None
        catalogue[provider] = tuple(entries)
    return catalogue


def _first(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
