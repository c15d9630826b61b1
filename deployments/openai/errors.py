"""Errors as OpenAI writes them.

Source: https://platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

import json

from models.errors import SwitchyardError

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


def openai_error(error: SwitchyardError, request_id: str) -> bytes:
    """The body of an error response."""
    kind = _ERROR_TYPES.get(error.http_status, "api_error")
    fields = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    extra = {"request_id": request_id, "retryable": error.retryable, **error.details}
    return json.dumps({"error": fields | {"switchyard": extra}}).encode()
