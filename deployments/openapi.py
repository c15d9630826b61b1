"""The OpenAPI document of the public door.

Source: https://spec.openapis.org/oas/v3.1.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from deployments.door import Operation

_CONVERTER = re.compile(r":\w+}")
"""Of a part of a path, for the router only: that it may have slashes in it."""


def openapi(operations: Iterable[Operation]) -> bytes:
    """The document, as JSON."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(_CONVERTER.sub("}", operation.path), {})[operation.method.lower()] = _operation(operation)
        if operation.body is not None:
            schema = operation.body.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {})
            schemas[operation.body.__name__] = schema
    document = {
        "openapi": "3.1.0",
        "info": {"title": "Switchyard", "version": version("switchyard")},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }
    return json.dumps(document).encode()


def _operation(operation: Operation) -> dict[str, Any]:
    """An OpenAPI operation object."""
    described: dict[str, Any] = {
        "operationId": getattr(operation.handler, "__name__", operation.path),
        "security": [{"key": []}] if operation.path.startswith("/v1/") else [],
        "responses": {"200": {"description": "OK"}, "default": {"description": "an error"}},
    }
    if operation.body is not None:
        schema = {"$ref": f"#/components/schemas/{operation.body.__name__}"}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if names := re.findall(r"{(\w+)", operation.path):
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return described
