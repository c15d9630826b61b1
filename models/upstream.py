"""One call at a provider: its clock, and how the provider's failures become our errors.

Nothing that a provider wrote reaches the caller, since it may quote the prompt or the key, except short identifiers
(the name of a parameter, an error code).
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from models.base import Call, check_supported
from models.catalog import ModelEntry
from models.errors import (
    BodyTooLarge,
    ContentRefused,
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    RateLimited,
    StreamInterrupted,
    SwitchyardError,
    UpstreamFailed,
)
from models.messages import ChatRequest, ResponseFormat

CONNECT_TIMEOUT_S = 10.0
HEALTH_TIMEOUT_S = 5.0
MAX_RETRY_AFTER_S = 3600.0
GARBLED = (ValueError, TypeError, AttributeError, KeyError)
"""What comes of decoding what is not of the dialect."""

_T = TypeVar("_T")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_.\[\]-]{0,63}")
_PARAM_AT_START = re.compile(rf"({_IDENTIFIER.pattern}): ")
# OpenAI and Groq send a code; vLLM, Anthropic, Mistral and Gemini only words.
_OVERFLOW = re.compile(
    r"context[_ ]length|context (window|limit)|maximum context|prompt is too long|too large for model|"
    r"maximum number of tokens|reduce the length",
    re.IGNORECASE,
)

_FILTERS = frozenset(
    {
        "content_filter",  # Azure, Moonshot
        "ResponsibleAIPolicyViolation",  # Azure, in `innererror`
        "content_policy_violation",
        "image_content_policy_violation",
        "misalignment_policy_violation",
        "bio_policy",
        "invalid_prompt",  # OpenAI's reasoning models: "flagged as potentially violating our usage policy"
    }
)
"""What providers call a content filter that stopped a request. Anthropic and DeepSeek have only words for it."""
_FILTER_WORDS = re.compile(r"blocked by content filtering policy|Content Exists Risk", re.IGNORECASE)


class UpstreamCall:
    """`started` is set with the first event: from then on a failure is `StreamInterrupted`, which nobody retries."""

    def __init__(self, model: str, timeout_s: float) -> None:
        self._model = model
        self._timeout_s = timeout_s
        self._deadline_s = asyncio.get_running_loop().time() + timeout_s
        self.started = False

    async def wait(self, awaitable: Awaitable[_T]) -> _T:
        """What `awaitable` gives, within the call's time. Raises `DeadlineExceeded`.

        The limit is set around each wait and never across a `yield`: there it would strike whatever the consumer does.
        """
        try:
            async with asyncio.timeout_at(self._deadline_s):
                return await awaitable
        except TimeoutError:
            raise DeadlineExceeded(
                f"Model '{self._model}' had not finished after {self._timeout_s:g} s; allow more time or fewer tokens."
            ) from None

    def unreachable(self) -> ModelUnavailable:
        return ModelUnavailable(
            f"The provider of model '{self._model}' cannot be reached; send the request again, and check `base_url` "
            "in the configuration if this stays."
        )

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Around the decoding of what the provider sent: `what` it should have been."""
        try:
            yield
        except GARBLED as error:
            raise self.garbled(what) from error

    def garbled(self, what: str) -> UpstreamFailed | StreamInterrupted:
        """For one of `GARBLED`, where `reading` around each of many pieces would take as long as they do."""
        return self.broken(f"sent something other than {what}")

    def broken(self, what: str) -> UpstreamFailed | StreamInterrupted:
        """The provider did not keep to its protocol. `what` continues 'The provider ...'."""
        error = StreamInterrupted if self.started else UpstreamFailed
        return error(f"The provider of model '{self._model}' {what}; send the request again.")

    def refused(self, status: int, headers: Mapping[str, str], error: object) -> SwitchyardError:
        """The error for an HTTP answer other than 200. `error` is the decoded body's `error`, whatever it is. Its
        `details` hold the provider's status."""
        if self.started:
            return self.broken(f"ended its answer with an error ({status})")
        refusal = self._refusal(status, headers, error)
        refusal.details["provider_status"] = status
        return refusal

    def _refusal(self, status: int, headers: Mapping[str, str], error: object) -> SwitchyardError:
        fields = error if isinstance(error, dict) else {}
        message = str(fields.get("message") or (error if isinstance(error, str) else ""))
        code = _identifier(fields.get("code")) or _identifier(fields.get("type"))
        named = f"The provider of model '{self._model}'"
        match status:
            case 401 | 402 | 403:
                trouble = {402: "says that its account has no credit", 401: "refused its key", 403: "refused access"}
                return ModelUnavailable(
                    f"{named} {trouble[status]}; the operator should check the provider's key and account. "
                    "The caller's own key is not at fault."
                )
            case 404:
                return ModelUnavailable(
                    f"{named} does not know it; the operator should check the entry's `source` and the `base_url`."
                )
            case 429 if code == "insufficient_quota":
                return ModelUnavailable(
                    f"{named} says that its quota is used up; the operator should check the account."
                )
            case 429:
                return RateLimited(
                    f"{named} limits our rate; wait and send the request again.", None, retry_after_s(headers)
                )
            case 400 | 413 | 422 if code == "context_length_exceeded" or _OVERFLOW.search(message):
                return ContextLengthExceeded(
                    f"The prompt and its answer do not fit into the context of model '{self._model}'; shorten the "
                    "prompt, ask for fewer tokens or choose a model with a longer context.",
                    "messages",
                )
            case 200 | 400 | 422 | 500 if _is_filter(fields, message):  # 200 and 500: of an error within a stream
                return ContentRefused(
                    f"{named} refuses the prompt for its content; change it or choose another model.",
                    "messages",
                )
            case 413:
                return BodyTooLarge(f"The request is too large for the provider of model '{self._model}'; shorten it.")
            case 400 | 422:
                at_start = _PARAM_AT_START.match(message)
                param = _identifier(fields.get("param")) or (at_start and at_start[1]) or None
                return InvalidRequest(
                    f"{named} does not accept the request (parameter: {param or 'not named'}, code: {code or status}); "
                    "correct it or choose another model.",
                    param,
                )
        return UpstreamFailed(f"{named} failed ({status}); send the request again.", None, retry_after_s(headers))


def begin(
    entries: Mapping[str, ModelEntry], request: ChatRequest, call: Call, is_closed: bool
) -> tuple[ModelEntry, UpstreamCall]:
    """What every stream at a provider starts with: the entry that `request` names, and the clock of its call.

    entries: of the provider, by catalogue name. is_closed: the adapter's client is. Raises `ModelNotFound`,
    `UnsupportedFeature`, `ModelUnavailable`; nothing has been sent then.
    """
    entry = entries.get(request.model)
    if entry is None:
        raise ModelNotFound(
            f"This provider has no model '{request.model}'; GET /v1/models lists what there is.", "model"
        )
    check_supported(request, entry.capabilities, entry.name)
    _check_open(entry.name, is_closed)
    return entry, UpstreamCall(entry.name, call.timeout_s)


def begin_health_check(entries: Mapping[str, ModelEntry], is_closed: bool) -> UpstreamCall:
    """The clock of a question after a provider's health. Raises `ModelUnavailable`."""
    names = ", ".join(entries)
    _check_open(names, is_closed)
    return UpstreamCall(names, HEALTH_TIMEOUT_S)


def _check_open(names: str, is_closed: bool) -> None:
    if is_closed:
        raise ModelUnavailable(f"Model '{names}' is shut down; send the request again in a moment.")


def _is_filter(error: Mapping[str, Any], message: str) -> bool:
    inner = error.get("innererror") or error.get("inner_error")
    codes = (error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None)
    return any(isinstance(code, str) and code in _FILTERS for code in codes) or bool(_FILTER_WORDS.search(message))


def _identifier(value: object) -> str | None:
    return value if isinstance(value, str) and _IDENTIFIER.fullmatch(value) else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after-ms` or Retry-After (RFC 9110, section 10.2.3: seconds or a date); None: not said.

    Whatever a provider says, it is from 0 to `MAX_RETRY_AFTER_S`.
    """
    try:
        if milliseconds := headers.get("retry-after-ms"):
            seconds = float(milliseconds) / 1000
        else:
            seconds = _seconds(headers.get("retry-after") or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def _seconds(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()


def described_schema(wanted: ResponseFormat) -> Any:
    """The schema of a `json_schema`, with what it is for in it: for an API that has no other place for that. A schema
    that says so itself stays as it is, and so does one that is only a reference, beside which nothing may stand."""
    schema = parse_json(wanted.schema or "{}", "response_format")
    if wanted.description is None or not isinstance(schema, dict) or "$ref" in schema:
        return schema
    return {"description": wanted.description, **schema}


def parse_json(text: str, param: str) -> Any:
    """The value of JSON that a caller wrote. Raises `InvalidRequest`, since only the caller can mend it."""
    try:
        return json.loads(text)
    except ValueError:
        raise InvalidRequest(f"A value in '{param}' is not JSON; correct it.", param) from None
