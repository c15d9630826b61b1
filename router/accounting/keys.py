"""API keys, and the files that a cluster keeps its own secrets in."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

KEY_FILE = "api_key"
"""The operator's own key, in the data folder."""
PEPPER_FILE = "key_pepper"
"""What keys are hashed with, in the data folder. Without it no key that was made here is known any more."""


def new_secret() -> str:
    """256 random bits, of characters that need no quoting in a shell, a header or a URL."""
    return secrets.token_urlsafe(32)


def new_key() -> str:
    """A fresh API key: `sy-` and 256 random bits."""
    return f"sy-{new_secret()}"


def hash_key(text: str) -> str:
    """What is kept of a key: its SHA-256 in hex (of 256 random bits, so it needs neither salt nor stretching)."""
    return hashlib.sha256(text.encode()).hexdigest()


def keyed_hash(text: str, pepper: str) -> str:
    """What the ledger keeps of a key that was made here: HMAC-SHA256 in hex. Whoever copies the database, but not the
    pepper, cannot even tell whether a key they found is one of these."""
    return hmac.new(pepper.encode(), text.encode(), hashlib.sha256).hexdigest()


def shown_prefix(text: str) -> str:
    """The start of a key, to recognise it by: of its 256 random bits about 200 stay unknown."""
    return text[:12]


def kept_secret(path: Path, make: Callable[[], str]) -> str:
    """What the file holds; `make` makes it where there is no file yet. Only the file's owner can read it.

    Who makes the file makes it whole, so nobody reads half a secret, and of several at once all get the same one.
    Raises OSError when it cannot be read or made, ValueError when it is empty: that would let everybody in.
    """
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-") as file:  # mode 0600
            file.write(make() + "\n")
            file.flush()
            with suppress(FileExistsError):
                os.link(file.name, path)
    secret = path.read_text().strip()
    if not secret:
        raise ValueError(f"{path} is empty: remove it, and a new secret is made at the next start")
    return secret
