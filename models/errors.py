"""Every error a caller can meet. Each becomes HTTP in one place (the doors in `deployments/`).

    SwitchyardError
    ├── InvalidRequest              400  the request itself is wrong
    │   ├── UnsupportedFeature      400  the chosen model or this version cannot do that
    │   ├── ContextLengthExceeded   400  the prompt fits no eligible model
    │   ├── ContentRefused          400  a provider's content filter stopped the prompt
    │   └── BodyTooLarge            413
    ├── AuthenticationFailed        401
    ├── PermissionDenied            403
    ├── NotFound                    404
    │   └── ModelNotFound           404
    ├── BudgetExceeded              402
    ├── NoEligibleModel             422  constraints exclude every model
    ├── RateLimited                 429  the tenant's limit, the queue or the provider's
    ├── Overloaded                  503  no capacity now
    ├── DeadlineExceeded            504
    ├── NotCached                   504  an answer from the cache was wanted, or none
    ├── ModelUnavailable            503  the replica or provider is down, cold or not loadable
    ├── UpstreamFailed              502  the provider broke its protocol or answered 5xx
    ├── StreamInterrupted           502  after the first byte: nothing is retried silently
    └── InternalError               500

Messages say what to do next and never hold a key, a prompt or a traceback. All pickle, since they cross Serve hops.
"""

from __future__ import annotations

from typing import Any


class SwitchyardError(Exception):
    """`details` holds plain JSON values for the caller; `retry_after_s` becomes the Retry-After header.

    abandoned: how many attempts at a provider were given up before they answered. Each may have cost its prompt.
    """

    code = "internal_error"
    http_status = 500
    retryable = False
    abandoned = 0

    def __init__(
        self,
        message: str,
        param: str | None = None,
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.details = details or {}

    def __reduce__(self) -> tuple[type[SwitchyardError], tuple[Any, ...], dict[str, Any]]:
        return type(self), (self.message, self.param, self.retry_after_s, self.details), vars(self).copy()


class InvalidRequest(SwitchyardError):
    code, http_status = "invalid_request", 400


class UnsupportedFeature(InvalidRequest):
    code = "unsupported_feature"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class ContentRefused(InvalidRequest):
    """What a provider says instead of an answer that its filter ends. The prompt has been read by then, and Azure bills
    it (https://learn.microsoft.com/azure/ai-services/openai/how-to/manage-costs)."""

    code, abandoned = "content_filter", 1


class BodyTooLarge(InvalidRequest):
    code, http_status = "body_too_large", 413


class AuthenticationFailed(SwitchyardError):
    code, http_status = "invalid_api_key", 401


class PermissionDenied(SwitchyardError):
    code, http_status = "permission_denied", 403


class NotFound(SwitchyardError):
    code, http_status = "not_found", 404


class ModelNotFound(NotFound):
    code = "model_not_found"


class BudgetExceeded(SwitchyardError):
    code, http_status = "budget_exceeded", 402


class NoEligibleModel(SwitchyardError):
    code, http_status = "no_eligible_model", 422


class RateLimited(SwitchyardError):
    code, http_status, retryable = "rate_limited", 429, True


class Overloaded(SwitchyardError):
    code, http_status, retryable = "overloaded", 503, True


class DeadlineExceeded(SwitchyardError):
    code, http_status = "deadline_exceeded", 504


class NotCached(SwitchyardError):
    """The caller wanted an answer from the cache or none (RFC 9111, 5.2.1.7)."""

    code, http_status = "not_cached", 504


class ModelUnavailable(SwitchyardError):
    code, http_status, retryable = "model_unavailable", 503, True


def is_refusal(error: SwitchyardError | None) -> bool:
    """Whether a provider is there and will not do this (403): for its content, its place, the rights of a key on a
    model. It says nothing of what the next request will get, so nobody else is to wait for it."""
    return isinstance(error, ModelUnavailable) and error.details.get("provider_status") == 403


class UpstreamFailed(SwitchyardError):
    code, http_status, retryable = "upstream_failed", 502, True


class StreamInterrupted(SwitchyardError):
    code, http_status = "stream_interrupted", 502


class InternalError(SwitchyardError):
    code, http_status = "internal_error", 500
