"""A second way in: tokens (JWT, RFC 7519) of an identity provider, instead of a key.

Checked are the signature, the issuer, the audience, the expiry and, before anything else, that the algorithm is the one
that the configuration names: a public key never serves as a shared secret.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from models.errors import AuthenticationFailed, SwitchyardError, UpstreamFailed
from router.accounting.directory import DEFAULT_ORG
from router.accounting.tenants import Login
from router.events import Principal
from router.settings import JwtSettings

logger = logging.getLogger(__name__)

REFRESH_EVERY_S = 300.0
LOOK_EVERY_S = 5.0
FETCH_TIMEOUT_S = 10.0
_MAX_JWKS_BYTES = 256 * 1024
_MAX_TOKEN_CHARS = 16_384
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class JwtLogin:
    """secret: of HS256 (at least 32 bytes). Public keys come by `load`, from the settings or from `jwks_url`."""

    def __init__(self, settings: JwtSettings, secret: str = "") -> None:
        """Raises ValueError where something that the settings need is missing."""
        self.settings, self._secret = settings, secret
        self._keys: dict[str, Any] = {}
        if settings.algorithm == "HS256":
            if len(secret.encode()) < 32:
                raise ValueError("`jwt` with HS256 needs SWITCHYARD_JWT_SECRET in the environment: 32 bytes or more")
        elif settings.jwks is not None:
            self.load(settings.jwks)
        elif settings.jwks_url is None:
            raise ValueError(f"`jwt` with {settings.algorithm} needs `jwks` or `jwks_url`")

    def takes(self, text: str) -> bool:
        return text.startswith("eyJ") and text.count(".") == 2 and len(text) <= _MAX_TOKEN_CHARS

    def principal(self, text: str) -> Principal:
        """Raises `AuthenticationFailed`, which never repeats the token."""
        import jwt

        wanted = self.settings
        try:
            claims: dict[str, Any] = jwt.decode(
                text,
                self._key(jwt.get_unverified_header(text)),
                algorithms=[wanted.algorithm],
                issuer=wanted.issuer,
                audience=wanted.audience,
                leeway=wanted.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise _refused(_REASONS.get(type(error).__name__, "is not valid")) from None
        return self._known(claims)

    def load(self, jwks: Mapping[str, Any]) -> None:
        """Take over a JSON Web Key Set (RFC 7517). Raises ValueError when no key in it can be used."""
        import jwt

        keys = {}
        for each in jwks.get("keys", ()):
            if each.get("use", "sig") == "sig" and each.get("alg", self.settings.algorithm) == self.settings.algorithm:
                try:
                    keys[str(each.get("kid", ""))] = jwt.PyJWK(each, self.settings.algorithm).key
                except (jwt.PyJWTError, ValueError, TypeError):
                    continue
        if not keys:
            raise ValueError(f"there is no key for {self.settings.algorithm} in the JSON Web Key Set")
        self._keys = keys

    def refresh(self) -> None:
        """Fetch the keys anew, where they are at a URL; blocks. Raises `UpstreamFailed`; the old ones stay then."""
        if self.settings.jwks_url is None:
            return
        try:
            with urllib.request.urlopen(self.settings.jwks_url, timeout=FETCH_TIMEOUT_S) as answer:
                self.load(json.loads(answer.read(_MAX_JWKS_BYTES)))
        except (OSError, ValueError, AttributeError) as error:
            raise UpstreamFailed(
                f"The identity provider's keys could not be fetched ({type(error).__name__})."
            ) from None

    def _key(self, header: Mapping[str, Any]) -> Any:
        if header.get("alg") != self.settings.algorithm:
            raise _refused("is signed in another way than this server takes")
        if self.settings.algorithm == "HS256":
            return self._secret
        key = self._keys.get(str(header.get("kid", "")))
        if key is None:
            raise _refused("is signed with a key that this server does not know (yet)")
        return key

    def _known(self, claims: Mapping[str, Any]) -> Principal:
        wanted = self.settings
        org, team = claims.get(wanted.org_claim), claims.get(wanted.team_claim, "")
        if not isinstance(org, str) or not _NAME.fullmatch(org):
            raise _refused(f"names no organisation in its claim '{wanted.org_claim}'")
        if org not in wanted.orgs if wanted.orgs is not None else org == DEFAULT_ORG:
            raise _refused("names an organisation that its issuer does not speak for")
        if not isinstance(team, str) or (team and not _NAME.fullmatch(team)):
            raise _refused(f"names no team in its claim '{wanted.team_claim}'")
        subject = str(claims["sub"])[:256]
        given = claims.get("scope", "infer")
        named = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
        scopes = frozenset(wanted.scopes) & frozenset(str(scope) for scope in named)
        key_id = "jwt_" + hashlib.sha256(f"{wanted.issuer}\n{subject}".encode()).hexdigest()[:16]
        return Principal(org, team, key_id, subject, scopes)


async def keep_fresh(login_of: Callable[[], Login | None]) -> None:
    """Refresh the login that there is, again and again, for ever."""
    fresh, due_s = None, 0.0
    while True:
        login = login_of()
        if login is not None and (login is not fresh or time.monotonic() >= due_s):
            try:
                await asyncio.to_thread(login.refresh)
                fresh, due_s = login, time.monotonic() + REFRESH_EVERY_S
            except SwitchyardError as error:
                logger.error("%s It is tried again; keys that are known stay.", error.message)
        await asyncio.sleep(LOOK_EVERY_S)


_REASONS = {
    "ExpiredSignatureError": "has expired",
    "ImmatureSignatureError": "is not valid yet",
    "InvalidIssuerError": "is of another issuer",
    "InvalidAudienceError": "is for somebody else",
    "InvalidSignatureError": "has a wrong signature",
    "MissingRequiredClaimError": "lacks one of the claims exp, iss, aud and sub",
}


def _refused(why: str) -> AuthenticationFailed:
    return AuthenticationFailed(f"This token {why}; get a new one for this server.", "authorization")
