"""Errors as Anthropic writes them.

Source: https://platform.claude.com/docs/en/api/errors.
"""

from __future__ import annotations

import json

from models.errors import SwitchyardError

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",  # Anthropic's own status for it is 529; ours stays what it is on every other route
    504: "timeout_error",
}


def anthropic_error(error: SwitchyardError, request_id: str) -> bytes:
    """The body of an error response."""
    fields = {"type": _ERROR_TYPES.get(error.http_status, "api_error"), "message": error.message}
    extra = {"code": error.code, "param": error.param, "retryable": error.retryable, **error.details}
    body = {"type": "error", "error": fields | {"switchyard": extra}, "request_id": request_id}
    return json.dumps(body).encode()
