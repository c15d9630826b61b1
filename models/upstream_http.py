"""A provider's HTTP API: one streamed POST per answer, and httpx2's errors as ours.

What it says is read by a `Decoder` of the dialect.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from models.errors import DeadlineExceeded, SwitchyardError
from models.messages import Event
from models.upstream import CONNECT_TIMEOUT_S, UpstreamCall

if TYPE_CHECKING:
    import httpx2

_KEEPALIVE = 64
_MAX_ERROR_BYTES = 64 * 1024
_DRAIN_S = 0.5

Credentials = Callable[[], Awaitable[Mapping[str, str]]]
"""The headers that show who asks, for those whose key does not stay the same."""
Refusal = Callable[[UpstreamCall, int, Mapping[str, str], object], SwitchyardError]
"""The error for an answer other than 200: its status, headers and the decoded body's `error`."""


class Decoder(Protocol):
    """Reads the body of one answer. `done`: nothing that follows matters."""

    done: bool

    def feed(self, chunk: bytes) -> list[Event]:
        """Raises what `UpstreamCall.broken` gives for a body that is not of the dialect."""

    def end(self) -> list[Event]:
        """`Finish` of each choice and the usage, once the body has ended."""


def _refused(upstream: UpstreamCall, status: int, headers: Mapping[str, str], error: object) -> SwitchyardError:
    return upstream.refused(status, headers, error)


class HttpUpstream:
    """The connections to one provider. `headers` go with every request, `query` with every address."""

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
        credentials: Credentials | None = None,
        refusal: Refusal = _refused,
    ) -> None:
        import httpx2

        self._credentials = credentials
        self._refusal = refusal
        self.client = httpx2.AsyncClient(
            base_url=base_url,
            params=dict(query or {}),
            headers={
                **headers,
                "content-type": "application/json",
                "accept-encoding": "identity",  # a compressed stream is a buffered one
            },
            # Only connecting has a limit of its own: a model may think for minutes, and the call has its deadline.
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=_KEEPALIVE),
        )

    @property
    def is_closed(self) -> bool:
        return self.client.is_closed

    async def stream(
        self, upstream: UpstreamCall, path: str, body: bytes, decoder: Decoder, query: Mapping[str, str] | None = None
    ) -> AsyncIterator[Event]:
        """The events of the answer to a POST. Closing this closes its connection."""
        import httpx2

        with translated(upstream):
            headers = await self._who_asks(upstream)
            post = self.client.build_request("POST", path, content=body, headers=headers, params=query)
            response = await upstream.wait(self.client.send(post, stream=True))
            try:
                if response.status_code != 200:
                    error = await error_of(response, upstream)
                    raise self._refusal(upstream, response.status_code, response.headers, error)
                async with aclosing(response.aiter_bytes()) as chunks:
                    while not decoder.done and (chunk := await upstream.wait(anext(chunks, None))) is not None:
                        for event in decoder.feed(chunk):
                            upstream.started = True
                            yield event
                    with suppress(DeadlineExceeded, httpx2.HTTPError):
                        # A body read to its end leaves a connection that the next request can use.
                        await UpstreamCall("", _DRAIN_S).wait(anext(chunks, None))
                for event in decoder.end():
                    yield event
            finally:
                await response.aclose()

    async def check_health(self, upstream: UpstreamCall, path: str | None) -> None:
        """Asks for something that costs nothing; an endpoint that does not have it is healthy if it answers. Without
        a path only for credentials."""
        try:
            with translated(upstream):
                headers = await self._who_asks(upstream)
                if path is None:
                    return
                response = await upstream.wait(self.client.get(path, headers=headers))
                error = await error_of(response, upstream) if response.status_code != 200 else None
        except DeadlineExceeded:
            raise upstream.unreachable() from None
        if response.status_code in (400, 401, 402, 403):
            refusal = self._refusal(upstream, response.status_code, response.headers, error)
            if refusal.code == "model_unavailable":
                raise refusal
        if response.status_code >= 500:
            raise upstream.unreachable()

    async def close(self) -> None:
        await self.client.aclose()

    async def _who_asks(self, upstream: UpstreamCall) -> Mapping[str, str]:
        return await upstream.wait(self._credentials()) if self._credentials else {}


@contextmanager
def translated(upstream: UpstreamCall) -> Iterator[None]:
    """httpx2's errors as ours (https://www.python-httpx.org/exceptions)."""
    import httpx2

    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, httpx2.UnsupportedProtocol) as error:
        raise upstream.unreachable() from error
    except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
        raise upstream.broken("broke off") from error


async def error_of(response: httpx2.Response, upstream: UpstreamCall) -> object:
    """The `error` of an error answer; None when there is none to be found."""
    body = b""
    async with aclosing(response.aiter_bytes()) as chunks:
        while len(body) < _MAX_ERROR_BYTES and (chunk := await upstream.wait(anext(chunks, None))) is not None:
            body += chunk
    try:
        decoded = json.loads(body)
    except ValueError:
        return None
    if isinstance(decoded, list) and decoded:  # Google wraps the error of a stream in a list
        decoded = decoded[0]
    # vLLM before 0.10 and some others put the fields at the top.
    return decoded.get("error", decoded) if isinstance(decoded, dict) else None
