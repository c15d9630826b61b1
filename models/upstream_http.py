"""A provider's HTTP API: one streamed POST per answer, and aiohttp's errors as ours.

What it says is read by a `Decoder` of the dialect. aiohttp since it takes a quarter of the processor time of httpx, and
leaves no connection behind when a request is cancelled early, as httpx does.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from models.errors import DeadlineExceeded, SwitchyardError
from models.joining import joined
from models.messages import Event
from models.upstream import CONNECT_TIMEOUT_S, UpstreamCall

if TYPE_CHECKING:
    import aiohttp

_KEEPALIVE_S = 15.0
_LARGE_BYTES = 2**20
"""Above it a body is written in pieces, since aiohttp would write it at once and warn."""
_MAX_ERROR_BYTES = 64 * 1024
_DRAIN_S = 0.5

Credentials = Callable[[], Awaitable[Mapping[str, str]]]
"""The headers that show who asks, for those whose key does not stay the same."""
Refusal = Callable[[UpstreamCall, int, Mapping[str, str], object], SwitchyardError]
"""The error for an answer other than 200: its status, headers and the decoded body's `error`."""


class Decoder(Protocol):
    """Reads the body of one answer. `done`: nothing that follows matters."""

    done: bool

    def feed(self, chunk: bytes) -> Iterable[Event]:
        """Gives what can be read, and then raises what `UpstreamCall.broken` gives where the body is not of the
        dialect."""

    def end(self) -> list[Event]:
        """`Finish` of each choice and the usage, once the body has ended."""


def _refused(upstream: UpstreamCall, status: int, headers: Mapping[str, str], error: object) -> SwitchyardError:
    return upstream.refused(status, headers, error)


class HttpUpstream:
    """The connections to one provider. `headers` go with every request, `query` with every address. A path may be a
    whole address too."""

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
        credentials: Credentials | None = None,
        refusal: Refusal = _refused,
    ) -> None:
        self._base_url, self._query = base_url.rstrip("/"), dict(query or {})
        # A compressed stream would be a buffered one.
        self._headers = {**headers, "content-type": "application/json", "accept-encoding": "identity"}
        self._credentials, self._refusal = credentials, refusal
        self._proxy = _proxy_for(base_url)
        self._session: aiohttp.ClientSession | None = None
        self.is_closed = False

    @asynccontextmanager
    async def post(
        self, upstream: UpstreamCall, path: str, body: bytes, query: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The provider's answer, when its head is there and its status is 200. Leaving the block closes its connection,
        unless the answer has been read to its end."""
        with translated(upstream):
            data = body if len(body) <= _LARGE_BYTES else io.BytesIO(body)
            headers = await self._who_asks(upstream)
            await _see_what_is_closed()
            asking = self._open().post(
                self._url(path),
                data=data,
                headers=headers,
                params={**self._query, **(query or {})},
                proxy=self._proxy,
                allow_redirects=False,
            )
            response = await upstream.wait(asking)
            try:
                if response.status != 200:
                    error = await error_of(response, upstream)
                    raise self._refusal(upstream, response.status, response.headers, error)
                yield response
            finally:
                response.close()

    async def stream(
        self, upstream: UpstreamCall, path: str, body: bytes, decoder: Decoder, query: Mapping[str, str] | None = None
    ) -> AsyncIterator[Event]:
        """The events of the answer to a POST, joined where they came together. Closing this closes its connection."""
        import aiohttp

        async with self.post(upstream, path, body, query) as response:
            while not decoder.done and (chunk := await upstream.wait(response.content.readany())):
                for event in joined(_noted(upstream, decoder.feed(chunk))):
                    yield event
            if not response.content.at_eof():
                with suppress(DeadlineExceeded, aiohttp.ClientError):
                    # A body read to its end leaves a connection that the next request can use.
                    await UpstreamCall("", _DRAIN_S).wait(response.content.readany())
            for event in decoder.end():
                yield event

    async def check_health(self, upstream: UpstreamCall, path: str | None) -> None:
        """Asks for something that costs nothing; an endpoint that does not have it is healthy if it answers. Without
        a path only for credentials."""
        try:
            with translated(upstream):
                headers = await self._who_asks(upstream)
                if path is None:
                    return
                await _see_what_is_closed()
                asking = self._open().get(
                    self._url(path), headers=headers, params=self._query, proxy=self._proxy, allow_redirects=False
                )
                response = await upstream.wait(asking)
                try:
                    error = await error_of(response, upstream) if response.status != 200 else None
                finally:
                    response.close()
        except DeadlineExceeded:
            raise upstream.unreachable() from None
        if response.status in (400, 401, 402, 403):
            refusal = self._refusal(upstream, response.status, response.headers, error)
            if refusal.code == "model_unavailable":
                raise refusal
        if response.status >= 500:
            raise upstream.unreachable()

    async def close(self) -> None:
        self.is_closed = True
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        """Made by the first request, since it belongs to the event loop."""
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                # Only connecting has a limit of its own: a model may think for minutes, and the call has its deadline.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            )
        return self._session

    def _url(self, path: str) -> str:
        return path if "://" in path else f"{self._base_url}/{path}"

    async def _who_asks(self, upstream: UpstreamCall) -> Mapping[str, str]:
        return await upstream.wait(self._credentials()) if self._credentials else {}


def _noted(upstream: UpstreamCall, events: Iterable[Event]) -> Iterator[Event]:
    """`events`; with the first of them the answer has begun, also when the next cannot be read."""
    for event in events:
        upstream.started = True
        yield event


async def _see_what_is_closed() -> None:
    """Lets the loop look at its sockets, so that no connection is used again that the provider has closed by now:
    once to hear of it, once to act on it."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def _proxy_for(base_url: str) -> str | None:
    """What the environment says (HTTPS_PROXY, NO_PROXY). Looked up once: aiohttp's `trust_env` does it per request, and
    reads passwords from ~/.netrc with it."""
    url = urlsplit(base_url)
    return None if not url.hostname or proxy_bypass(url.hostname) else getproxies().get(url.scheme)


@contextmanager
def translated(upstream: UpstreamCall) -> Iterator[None]:
    """aiohttp's errors as ours (https://docs.aiohttp.org/en/stable/client_reference.html#client-exceptions)."""
    import aiohttp

    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
        raise upstream.unreachable() from error
    except aiohttp.ClientError as error:
        raise upstream.broken("broke off") from error


async def error_of(response: aiohttp.ClientResponse, upstream: UpstreamCall) -> object:
    """The `error` of an error answer; None when there is none to be found."""
    body = b""
    while len(body) < _MAX_ERROR_BYTES and (chunk := await upstream.wait(response.content.readany())):
        body += chunk
    try:
        decoded = json.loads(body)
    except ValueError:
        return None
    if isinstance(decoded, list) and decoded:  # Google wraps the error of a stream in a list
        decoded = decoded[0]
    # vLLM before 0.10 and some others put the fields at the top.
    return decoded.get("error", decoded) if isinstance(decoded, dict) else None
