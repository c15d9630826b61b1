"""Who asks, and what they may: API keys, scopes, allow-lists and requests per minute."""

from __future__ import annotations

import hmac
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from models.errors import AuthenticationFailed, Overloaded, PermissionDenied, RateLimited
from router.accounting.directory import DEFAULT_ORG, SCOPES, Key, Rules
from router.accounting.keys import hash_key, keyed_hash
from router.accounting.registrar import Follower
from router.config import IngressSettings, KeySettings, TenantSettings
from router.events import Principal

__all__ = ["DEFAULT_ORG", "Login", "Place", "Tenants"]

_WINDOW_S = 60
_PREFIX = 16  # hex digits of a key's digest: what it is looked up by (the rest is compared in constant time) and its id
_MAX_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model runs: in this cluster, or at a provider; `region` as the configuration names it."""

    local: bool
    region: str = ""


class Login(Protocol):
    """Another way in than a key."""

    def takes(self, text: str) -> bool:
        """Whether this looks like something it knows."""

    def principal(self, text: str) -> Principal:
        """Raises `AuthenticationFailed`."""


class Tenants:
    """The keys in force: `keys` (from the environment or the data folder), those of the settings, and those that
    administrators made, which `follower` knows by their hashes with `pepper`.

    With `auth` off everybody is the org `default`, with every scope. places: of every model there is.
    """

    def __init__(
        self,
        keys: Sequence[KeySettings],
        settings: IngressSettings,
        auth: bool = True,
        clock: Callable[[], float] = time.monotonic,
        follower: Follower | None = None,
        pepper: str = "",
        places: Mapping[str, Place] | None = None,
        login: Login | None = None,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._fixed_keys = tuple(keys)
        self._auth = auth
        self._clock, self._unix_s = clock, unix_s
        self._follower, self._pepper, self._login = follower, pepper, login
        self.places = dict(places or {})
        self._allowed: dict[tuple[str, str, str], tuple[str, ...] | None] = {}
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
        self.forget()

    def forget(self) -> None:
        """Drop what was concluded from the directory: it has changed."""
        self._allowed.clear()

    # ---- who -------------------------------------------------------------------------------------------------------

    def authenticate(self, authorization: str | None, x_api_key: str | None, scope: str = "infer") -> Principal:
        """Whose key this is. Raises what `identify` and `require` raise."""
        principal = self.identify(authorization, x_api_key)
        self.require(principal, scope)
        return principal

    def identify(self, authorization: str | None, x_api_key: str | None) -> Principal:
        """Whose key, or token, this is. Raises `AuthenticationFailed`, `PermissionDenied` where its org or team is
        disabled, and `Overloaded` before the keys are known."""
        if not self._auth:
            return _ANYBODY
        text = _bearer(authorization) or (x_api_key or "").strip()
        if not text:
            raise AuthenticationFailed(
                "No API key: send it as 'Authorization: Bearer <key>' or 'x-api-key: <key>'.", "authorization"
            )
        principal = self._configured(text) or self._registered(text)
        if principal is None and self._login is not None and self._login.takes(text):
            principal = self._login.principal(text)
        if principal is None:
            raise self._unknown()
        self._check_open(principal)
        return principal

    def require(self, principal: Principal, scope: str) -> None:
        """Raises `PermissionDenied` when the principal lacks `scope`."""
        if scope not in principal.scopes:
            raise PermissionDenied(
                f"This API key may not do that: it has the scopes {', '.join(sorted(principal.scopes))} "
                f"and this needs '{scope}'; use another key."
            )

    def check_still(self, principal: Principal) -> None:
        """That somebody who was let in earlier still would be. Raises `AuthenticationFailed` or `PermissionDenied`."""
        key = self._follower.directory.find(Key, principal.key_id) if self._follower else None
        if key is not None and key.ended(self._now_unix_ms()):
            raise _ended(key)
        self._check_open(principal)

    def _configured(self, text: str) -> Principal | None:
        digest = hash_key(text)
        known, principal = self._principals.get(digest[:_PREFIX], ("", _ANYBODY))
        return principal if hmac.compare_digest(known, digest) else None

    def _registered(self, text: str) -> Principal | None:
        if self._follower is None:
            return None
        mac = keyed_hash(text, self._pepper)
        key = self._follower.directory.key_of(mac)
        if key is None or not hmac.compare_digest(key.mac, mac):
            return None
        if key.ended(self._now_unix_ms()):
            raise _ended(key)
        return Principal(key.org, key.team, key.key_id, key.user, frozenset(key.scopes))

    def _check_open(self, principal: Principal) -> None:
        shut = self._follower.directory.shut(principal.org, principal.team) if self._follower else None
        if shut is not None:
            raise PermissionDenied(f"{shut} is disabled; ask its administrator.")

    def _unknown(self) -> AuthenticationFailed | Overloaded:
        if self._follower is not None and not self._follower.loaded:
            return Overloaded("The keys are not loaded yet, and this one may be among them; try again.", None, 1.0)
        return AuthenticationFailed(
            "This API key is not known here; check that it is whole and for this server, or ask for a new one.",
            "authorization",
        )

    def _now_unix_ms(self) -> int:
        return int(self._unix_s() * 1000)

    # ---- what they may ---------------------------------------------------------------------------------------------

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

    def allowed_models(self, principal: Principal) -> tuple[str, ...] | None:
        """What the configuration and the rules of org, team and key leave. None: all of them."""
        who = (principal.org, principal.team, principal.key_id)
        if who not in self._allowed:
            if len(self._allowed) >= _MAX_REMEMBERED:
                self._allowed.clear()
            self._allowed[who] = self._conclude(*who)
        return self._allowed[who]

    def _conclude(self, org: str, team: str, key_id: str) -> tuple[str, ...] | None:
        rules = [] if (listed := self.limits(org).models) is None else [Rules(listed)]
        if self._follower is not None:
            rules += self._follower.directory.rules_over(org, team, key_id)
        if not rules:
            return None
        names = next((rule.models for rule in rules if rule.models is not None), tuple(self.places))
        return tuple(name for name in names if all(self._passes(rule, name) for rule in rules))

    def _passes(self, rule: Rules, name: str) -> bool:
        """A model of which nobody knows where it runs passes no rule about places."""
        place = self.places.get(name, Place(False))
        if rule.local_only and not place.local:
            return False
        if rule.regions is not None and place.region not in rule.regions:
            return False
        return rule.models is None or name in rule.models


_ANYBODY = Principal(DEFAULT_ORG, scopes=frozenset(SCOPES))


def _ended(key: Key) -> AuthenticationFailed:
    how = "was revoked" if key.revoked_at_unix_ms is not None else "has expired"
    return AuthenticationFailed(f"This API key {how}; ask for a new one.", "authorization")


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
