"""Whether text is, or can become, the JSON that was asked for. Enough to notice a wrong answer, not a validator."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 32
"""Deeper down nothing is compared: a schema may be a caller's."""

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: (
        not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    ),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
_OPENING = re.compile(r'\s*(?:$|\{\s*(?:$|\}|"))')


class _Nothing:
    """What text that is no JSON parses to: `null` is JSON."""


NOTHING = _Nothing()


def begins_json(text: str) -> bool:
    """Whether `text` may be the beginning of a JSON object: a brace, then a key or the end of it."""
    return _OPENING.match(text) is not None


def parsed(text: str) -> Any:
    """The value, `NOTHING` when `text` is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return NOTHING


def fits_schema(value: Any, schema: Any, depth: int = 0) -> bool:
    """Whether `value` has the types, required and allowed properties, items, constants and choices that a JSON Schema
    says. Other keywords (patterns, bounds, references, combinations) are taken as met."""
    if schema is False:
        return False
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return True
    if "const" in schema and value != schema["const"]:
        return False
    if isinstance(schema.get("enum"), list) and value not in schema["enum"]:
        return False
    types = schema.get("type")
    names = types if isinstance(types, list) else [types] if isinstance(types, str) else []
    if names and not any(_TYPES.get(name, lambda _: True)(value) for name in names):
        return False
    if isinstance(value, dict):
        return _object_fits(value, schema, depth)
    if isinstance(value, list):
        return all(fits_schema(item, schema.get("items"), depth + 1) for item in value)
    return True


def _object_fits(value: dict[str, Any], schema: dict[str, Any], depth: int) -> bool:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    required = schema.get("required")
    if isinstance(required, list) and any(name not in value for name in required):
        return False
    if "patternProperties" in schema:
        others: Any = True
    else:
        others = schema.get("additionalProperties", True)
    return all(fits_schema(item, properties.get(name, others), depth + 1) for name, item in value.items())
