"""Google's application default credentials: a service account's file, a login, or the machine's own identity.

Source: https://cloud.google.com/docs/authentication/application-default-credentials. The only file that imports
`google.auth`, which asks over `requests`, so it does it in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from models.errors import ModelUnavailable

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class GoogleCredentials:
    """Gives the header of a request; a token is asked for when there is none or it has expired, by one caller at a
    time. `credentials`: a `google.auth.credentials.Credentials`; None: the default ones."""

    def __init__(self, credentials: Any = None) -> None:
        self._credentials = credentials
        self._lock = asyncio.Lock()

    async def headers(self) -> Mapping[str, str]:
        """Raises `ModelUnavailable` when there are no credentials, or Google does not take them."""
        async with self._lock:
            if self._credentials is None or not self._credentials.valid:
                await asyncio.to_thread(self._refresh)
            return {"authorization": f"Bearer {self._credentials.token}"}

    def _refresh(self) -> None:
        import google.auth
        import google.auth.exceptions
        import google.auth.transport.requests

        try:
            if self._credentials is None:
                self._credentials, _ = google.auth.default(scopes=[_SCOPE])
            self._credentials.refresh(google.auth.transport.requests.Request())
        except google.auth.exceptions.GoogleAuthError as error:
            raise ModelUnavailable(
                "Google's application default credentials are missing or refused; the operator should check "
                "GOOGLE_APPLICATION_CREDENTIALS or the machine's service account."
            ) from error
