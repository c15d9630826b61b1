"""Tokens of an identity provider, made by PyJWT with real keys."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from models.errors import AuthenticationFailed, PermissionDenied, UpstreamFailed
from router.accounting import jwt_login
from router.accounting.jwt_login import JwtLogin
from router.accounting.tenants import Tenants
from router.events import Principal
from router.settings import IngressSettings, JwtSettings

SECRET = "a secret of the tests that has more than 32 bytes"
HS256 = JwtSettings(issuer="https://id.example", audience="switchyard", algorithm="HS256")
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    given = {
        "iss": "https://id.example",
        "aud": "switchyard",
        "sub": "ann",
        "org": "acme",
        "exp": now + 3600,
        **changes,
    }
    return {name: value for name, value in given.items() if value is not None}


def hs256(secret: str = SECRET, **changes: Any) -> str:
    return jwt.encode(claims(**changes), secret, "HS256")


def jwks(key: Any = RSA, kid: str = "k1", **more: Any) -> dict[str, Any]:
    return {"keys": [json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())) | {"kid": kid, **more}]}


def tenants(settings: JwtSettings, secret: str = SECRET) -> Tenants:
    return Tenants([], IngressSettings(jwt=settings), make_login=lambda s: JwtLogin(s, secret))


def test_a_token_says_who_asks_and_what_they_may() -> None:
    door = tenants(HS256)
    who = door.authenticate(f"Bearer {hs256(team='web', scope='infer usage admin')}", None, "usage")
    assert (who.org, who.team, who.user, who.scopes) == ("acme", "web", "ann", frozenset({"infer", "usage"}))
    again = door.authenticate(None, hs256())
    assert again.key_id == who.key_id and again.scopes == frozenset({"infer"})
    with pytest.raises(PermissionDenied):  # more than the settings allow any token
        door.authenticate(f"Bearer {hs256(scope='admin')}", None, "admin")


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (hs256("another secret that has more than 32 bytes!"), "has a wrong signature"),
        (hs256(exp=int(time.time()) - 120), "has expired"),
        (hs256(nbf=int(time.time()) + 3600), "is not valid yet"),
        (hs256(iss="https://evil.example"), "is of another issuer"),
        (hs256(aud="another"), "is for somebody else"),
        (hs256(exp=None), "lacks one of the claims"),
        (hs256(sub=None), "lacks one of the claims"),
        (hs256(org=None), "names no organisation"),
        (hs256(org="a/b"), "names no organisation"),
        (hs256(org={"a": 1}), "names no organisation"),
        (hs256(org="default"), "does not speak for"),
        (hs256(team=7), "names no team"),
        (jwt.encode(claims(), "", "none"), "is signed in another way"),
        (jwt.encode(claims(), RSA, "RS256"), "is signed in another way"),
        ("eyJhbGciOiJIUzI1NiJ9.e30.AAAA", "has a wrong signature"),
        ("eyJ.eyJ.eyJ", "is not valid"),
    ],
)
def test_a_token_that_does_not_hold_is_refused_without_being_repeated(token: str, why: str) -> None:
    with pytest.raises(AuthenticationFailed, match=why) as refused:
        tenants(HS256).authenticate(f"Bearer {token}", None)
    assert token[10:] not in refused.value.message and refused.value.http_status == 401


def test_public_keys_by_kid_and_no_public_key_is_a_shared_secret() -> None:
    settings = HS256.model_copy(update={"algorithm": "RS256", "jwks": jwks()})
    door = tenants(settings)
    assert door.authenticate(jwt_header(RSA, "k1"), None) == door.authenticate(jwt_header(RSA, "k1"), None)
    for wrong in (jwt_header(OTHER_RSA, "k1"), jwt_header(RSA, "k2"), jwt_header(RSA, None)):
        with pytest.raises(AuthenticationFailed):
            door.authenticate(wrong, None)
    public = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = jwt.utils.base64url_encode(b'{"alg":"HS256","kid":"k1"}')
    body = header + b"." + jwt.utils.base64url_encode(json.dumps(claims()).encode())
    import hashlib
    import hmac

    forged = body + b"." + jwt.utils.base64url_encode(hmac.new(public, body, hashlib.sha256).digest())
    with pytest.raises(AuthenticationFailed, match="in another way"):
        door.authenticate(f"Bearer {forged.decode()}", None)


def jwt_header(key: Any, kid: str | None) -> str:
    return "Bearer " + jwt.encode(claims(), key, "RS256", headers={"kid": kid} if kid else None)


def test_elliptic_curves_too() -> None:
    key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC.public_key())) | {"kid": "e"}
    settings = HS256.model_copy(update={"algorithm": "ES256", "jwks": {"keys": [key]}})
    token = jwt.encode(claims(), EC, "ES256", headers={"kid": "e"})
    assert tenants(settings).authenticate(f"Bearer {token}", None).org == "acme"


def test_settings_that_could_let_nobody_in_are_refused() -> None:
    with pytest.raises(ValueError, match="SWITCHYARD_JWT_SECRET"):
        JwtLogin(HS256, "short")
    with pytest.raises(ValueError, match="jwks"):
        JwtLogin(HS256.model_copy(update={"algorithm": "RS256"}))
    with pytest.raises(ValueError, match="no key for RS256"):
        JwtLogin(HS256.model_copy(update={"algorithm": "RS256", "jwks": jwks(use="enc")}))


@contextmanager
def identity_provider(served: dict[str, Any]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if served["keys"] else 500)
            self.end_headers()
            self.wfile.write(json.dumps(served).encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/jwks"
        finally:
            server.shutdown()
            thread.join()


def test_keys_come_from_a_url_roll_over_and_survive_its_failure() -> None:
    served = jwks()
    with identity_provider(served) as url:
        door = tenants(HS256.model_copy(update={"algorithm": "RS256", "jwks_url": url}))
        with pytest.raises(AuthenticationFailed, match="does not know"):
            door.authenticate(jwt_header(RSA, "k1"), None)
        assert door.login is not None
        door.login.refresh()
        assert door.authenticate(jwt_header(RSA, "k1"), None)
        served["keys"] += jwks(OTHER_RSA, "k2")["keys"]
        door.login.refresh()
        assert door.authenticate(jwt_header(OTHER_RSA, "k2"), None) and door.authenticate(jwt_header(RSA, "k1"), None)
        served["keys"] = []
        with pytest.raises(UpstreamFailed):
            door.login.refresh()
        assert door.authenticate(jwt_header(RSA, "k1"), None)
    with pytest.raises(UpstreamFailed):
        door.login.refresh()


def test_an_issuer_speaks_for_those_it_is_set_for_only() -> None:
    door = tenants(HS256.model_copy(update={"orgs": ("acme", "default")}))
    assert door.authenticate(None, hs256(org="default")).org == "default"
    with pytest.raises(AuthenticationFailed, match="does not speak for"):
        door.authenticate(None, hs256(org="globex"))
    assert isinstance(door.authenticate(None, hs256()), Principal)


async def test_a_provider_that_is_down_at_the_start_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt_login, "LOOK_EVERY_S", 0.02)
    served: dict[str, Any] = {"keys": []}
    with identity_provider(served) as url:
        door = tenants(HS256.model_copy(update={"algorithm": "RS256", "jwks_url": url}))
        task = asyncio.create_task(jwt_login.keep_fresh(lambda: door.login))
        await asyncio.sleep(0.1)
        served["keys"] = jwks()["keys"]
        async with asyncio.timeout(30):
            while True:
                try:
                    assert door.authenticate(jwt_header(RSA, "k1"), None).org == "acme"
                    break
                except AuthenticationFailed:
                    await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait({task})
