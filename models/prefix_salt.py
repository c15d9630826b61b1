"""What keeps the tenants of one engine apart in its prefix cache.

An engine that has the beginning of a prompt in its cache answers sooner, so that whoever sends guesses and looks at the
clock could find out what others asked. vLLM keeps blocks apart whose requests have another `cache_salt`
(https://docs.vllm.ai/en/latest/design/prefix_caching.html). A tenant's own requests share theirs as before.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets


class PrefixSalt:
    """key: a secret that all processes that ask the same engine have; None: a new one, for an engine that only this
    process asks."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(32)

    @classmethod
    def of_endpoint(cls, api_key: str | None) -> PrefixSalt:
        """Its key is what all processes that ask it have in common; without one each has a salt of its own."""
        return cls(api_key.encode() if api_key else None)

    def of(self, tenant: str) -> str | None:
        """43 characters that say nothing of the tenant's name without the key; None for nobody's request."""
        if not tenant:
            return None
        mac = hmac.new(self._key, b"prefix cache of " + tenant.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return base64.urlsafe_b64encode(mac.digest()).decode().rstrip("=")
