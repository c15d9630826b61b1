"""Who asks, and what they may: keys, scopes, allow-lists, budgets and limits."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from models.errors import AuthenticationFailed, Overloaded, PermissionDenied
from router.accounting.directory import DEFAULT_ORG, SCOPES, Key, Rules
from router.accounting.keys import hash_key, keyed_hash
from router.accounting.limits import Account, Claim, Limit
from router.accounting.registrar import Follower
from router.events import Principal
from router.settings import IngressSettings, JwtSettings, KeySettings, TenantSettings

__all__ = ["DEFAULT_ORG", "Login", "Place", "Tenants"]

_PREFIX = 16  # hex digits of a key's digest: what it is looked up by (the rest is compared in constant time) and its id
_MAX_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model runs: in this cluster, or at a provider; `region` as the configuration names it."""

    local: bool
    region: str = ""


class Login(Protocol):
    """Another way in than a key."""

    settings: JwtSettings

    def takes(self, text: str) -> bool:
        """Whether this looks like something it knows."""

    def principal(self, text: str) -> Principal:
        """Raises `AuthenticationFailed`."""

    def refresh(self) -> None:
        """Learn of new keys; may block. Raises `SwitchyardError`, and goes on with the old ones."""


class Tenants:
    """The keys in force: `keys` (from the environment or the data folder), those of the settings, and those that
    administrators made, which `follower` knows by their hashes with `pepper`.

    With `auth` off everybody is the org `default`, with every scope. places: of every model there is. make_login: for
    the tokens that the settings take; raises ValueError where that cannot be.
    """

    def __init__(
        self,
        keys: Sequence[KeySettings],
        settings: IngressSettings,
        auth: bool = True,
        follower: Follower | None = None,
        pepper: str = "",
        places: Mapping[str, Place] | None = None,
        make_login: Callable[[JwtSettings], Login] | None = None,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._fixed_keys = tuple(keys)
        self._auth = auth
        self._unix_s = unix_s
        self._follower, self._pepper, self._make_login = follower, pepper, make_login
        self.login: Login | None = None
        self.places = dict(places or {})
        self._allowed: dict[tuple[str, str, str], tuple[str, ...] | None] = {}
        self._met: dict[tuple[str, str, str, str], tuple[tuple[Limit, ...], tuple[Limit, ...]]] = {}
        self.reconfigure(settings)

    def reconfigure(self, settings: IngressSettings) -> None:
        """Put `settings` in force at once."""
        if settings.jwt is None or self._make_login is None:
            self.login = None
        elif self.login is None or self.login.settings != settings.jwt:
            self.login = self._make_login(settings.jwt)
        keys = (*self._fixed_keys, *settings.keys)
        self._principals = {
            key.sha256[:_PREFIX]: (
                key.sha256,
                Principal(key.org, key.team, key.sha256[:_PREFIX], key.user, frozenset(key.scopes)),
            )
            for key in keys
        }
        self._tenants, self._default = settings.tenants, settings.default_tenant
        self.forget()

    def forget(self) -> None:
        """Drop what was concluded from the directory: it has changed."""
        self._allowed.clear()
        self._met.clear()

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
        if principal is None and self.login is not None and self.login.takes(text):
            principal = self.login.principal(text)
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

    def limits(self, org: str) -> TenantSettings:
        return self._tenants.get(org, self._default)

    def door_limits(self, claim: Claim) -> tuple[Limit, ...]:
        """Those that a request meets before anybody looks at it: so many per minute."""
        return self._hard(claim)[0]

    def limits_of(self, claim: Claim) -> tuple[Limit, ...]:
        """Those that a try at a model meets: money, tokens, concurrency, and requests per minute for this model."""
        return self._hard(claim)[1]

    def limit_of(self, account: Account) -> int | None:
        """How much of an account there is. None: it is not limited."""
        return next(
            (limit.amount for limit in self._over(account.org) if limit.account == account and limit.hard), None
        )

    def limits_over(self, principal: Principal) -> list[Limit]:
        """All limits, soft ones too, that what this principal does may count for."""
        return [limit for limit in self._over(principal.org) if limit.account.covers(principal)]

    def _hard(self, claim: Claim) -> tuple[tuple[Limit, ...], tuple[Limit, ...]]:
        who = claim.principal
        key = (who.org, who.team, who.key_id, claim.model)
        found = self._met.get(key)
        if found is None:
            if len(self._met) >= _MAX_REMEMBERED:
                self._met.clear()
            hard = [limit for limit in self.limits_over(who) if limit.hard]
            door = [x for x in hard if x.account.unit == "requests" and not x.account.model]
            rest = [x for x in hard if x not in door and x.account.model in ("", claim.model)]
            found = self._met[key] = (tuple(door), tuple(rest))
        return found

    def _over(self, org: str) -> list[Limit]:
        """Of the configuration and of the directory; of both for one account the smaller one."""
        configured = self.limits(org)
        amounts: dict[Account, Limit] = {}
        for account, amount in (
            (Account(org, "microusd", "month"), configured.monthly_budget_microusd),
            (Account(org, "requests", "minute"), configured.requests_per_minute),
            (Account(org, "tokens", "minute"), configured.tokens_per_minute),
            (Account(org, "concurrent", "now"), configured.concurrent_requests),
        ):
            if amount is not None:
                amounts[account] = Limit(account, amount)
        for policy in self._follower.directory.policies_of(org) if self._follower else ():
            account = Account(org, policy.unit, policy.span, policy.team, policy.key_id, policy.model)
            before = amounts.get(account)
            if before is None or policy.amount < before.amount:
                amounts[account] = Limit(account, policy.amount, policy.hard or before is not None)
        return list(amounts.values())

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


def _bearer(authorization: str | None) -> str | None:
    scheme, _, text = (authorization or "").strip().partition(" ")
    return text.strip() if scheme.lower() == "bearer" else None
