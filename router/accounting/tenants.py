"""Who asks, and what they may: API keys, scopes, allow-lists and requests per minute."""

from __future__ import annotations

import hmac
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from models.errors import AuthenticationFailed, PermissionDenied, RateLimited
from router.accounting.keys import hash_key
from router.config import IngressSettings, KeySettings, TenantSettings
from router.events import Principal

DEFAULT_ORG = "default"
_WINDOW_S = 60
_PREFIX = 16  # hex digits of a key's digest: what it is looked up by (the rest is compared in constant time) and its id


class Tenants:
    """The keys in force: `keys` (from the environment or the data folder) and those of the settings.

    With `auth` off everybody is the org `default`, with every scope.
    """

    def __init__(
        self,
        keys: Sequence[KeySettings],
        settings: IngressSettings,
        auth: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed_keys = tuple(keys)
        self._auth = auth
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self.reconfigure(settings)

    def reconfigure(self, settings: IngressSettings) -> None:
        """Put `settings` in force at once. Requests already counted against a limit stay counted."""
        keys = (*self._fixed_keys, *settings.keys)
        self._principals = {
            key.sha256[:_PREFIX]: (
                key.sha256,
                Principal(key.org, key.team, key.sha256[:_PREFIX], key.user, frozenset(key.scopes)),
            )
            for key in keys
        }
        self._tenants, self._default = settings.tenants, settings.default_tenant
        orgs = {key.org for key in keys} | {DEFAULT_ORG}
        self._windows = {org: window for org, window in self._windows.items() if org in orgs}

    def authenticate(self, authorization: str | None, x_api_key: str | None, scope: str = "infer") -> Principal:
        """Whose key this is. Raises `AuthenticationFailed`, or `PermissionDenied` when the key lacks `scope`."""
        if not self._auth:
            return _ANYBODY
        text = _bearer(authorization) or (x_api_key or "").strip()
        if not text:
            raise AuthenticationFailed(
                "No API key: send it as 'Authorization: Bearer <key>' or 'x-api-key: <key>'.", "authorization"
            )
        digest = hash_key(text)
        known, principal = self._principals.get(digest[:_PREFIX], ("", _ANYBODY))
        if not hmac.compare_digest(known, digest):
            raise AuthenticationFailed(
                "This API key is not known here; check that it is whole and for this server, or ask for a new one.",
                "authorization",
            )
        if scope not in principal.scopes:
            raise PermissionDenied(
                f"This API key may not do that: it has the scopes {', '.join(sorted(principal.scopes))} "
                f"and this needs '{scope}'; use another key."
            )
        return principal

    def check_rate(self, principal: Principal) -> None:
        """Count one request of the principal's org. Raises `RateLimited` when its last minute is full already."""
        limit = self.limits(principal.org).requests_per_minute
        if limit is None:
            return
        window = self._windows.get(principal.org)
        if window is None:
            window = self._windows[principal.org] = _Window()
        retry_after_s = window.take(self._clock(), limit)
        if retry_after_s is not None:
            raise RateLimited(
                f"Organisation '{principal.org}' may send {limit} requests per minute; "
                f"try again in {math.ceil(retry_after_s)} s.",
                None,
                retry_after_s,
            )

    def limits(self, org: str) -> TenantSettings:
        return self._tenants.get(org, self._default)

    def budget_microusd(self, org: str) -> int | None:
        """Of one calendar month (UTC). None: no budget."""
        return self.limits(org).monthly_budget_microusd

    def allowed_models(self, org: str) -> tuple[str, ...] | None:
        """None: all of them."""
        return self.limits(org).models


_ANYBODY = Principal(DEFAULT_ORG, scopes=frozenset({"infer", "admin", "usage", "audit"}))


class _Window:
    """The requests of the last 60 s, counted by the second, so in 61 cells at most.

    A cell ends only when its last instant is 60 s past: the limit holds over every 60 s, to the cost of up to 1 s.
    """

    __slots__ = ("_cells", "_total")

    def __init__(self) -> None:
        self._cells: deque[list[int]] = deque()
        self._total = 0

    def take(self, now_s: float, limit: int) -> float | None:
        """Count one request, or say how many seconds it would have to wait."""
        second = int(now_s)
        while self._cells and self._cells[0][0] < second - _WINDOW_S:
            self._total -= self._cells.popleft()[1]
        if self._total >= limit:
            return self._cells[0][0] + _WINDOW_S + 1 - now_s
        if not self._cells or self._cells[-1][0] != second:
            self._cells.append([second, 0])
        self._cells[-1][1] += 1
        self._total += 1
        return None


def _bearer(authorization: str | None) -> str | None:
    scheme, _, text = (authorization or "").strip().partition(" ")
    return text.strip() if scheme.lower() == "bearer" else None
