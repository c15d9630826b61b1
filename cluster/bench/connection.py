"""One keep-alive HTTP/1.1 connection with a clock, for benchmarks.

A general HTTP client costs more per request than a bare server does, and would hide the difference between two of them.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

_TEXT = re.compile(rb'"content": ?"[^"]')


class RequestFailed(Exception):
    """No whole answer came."""


@dataclass(frozen=True, slots=True)
class Response:
    """`first_ms` is until the first text of the answer, `total_ms` until its last byte. `body` is as it came."""

    status: int
    headers: dict[str, str]
    body: bytes
    first_ms: float
    total_ms: float


def post(url: str, body: bytes, key: str, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a POST of JSON."""
    address = urlsplit(url)
    further = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\n{further}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(url: str, key: str) -> bytes:
    address = urlsplit(url)
    return f"GET {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {key}\r\n\r\n".encode()


class Connection(asyncio.Protocol):
    """One request at a time. Reads bodies with a length and in chunks, and looks in them for the first text only."""

    def __init__(self) -> None:
        self._address = ("", 0)
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._body_at = 0
        self._first_s = 0.0
        self._headers: dict[str, str] = {}
        self._done: asyncio.Future[None] | None = None
        self._lost = asyncio.Event()

    @classmethod
    async def open(cls, url: str) -> Self:
        address = urlsplit(url)
        if address.hostname is None:
            raise ValueError(f"'{url}' names no host")
        connection = cls()
        connection._address = (address.hostname, address.port or 80)
        await connection._open()
        return connection

    async def _open(self) -> None:
        self._lost.clear()
        self._headers = {}
        await asyncio.get_running_loop().create_connection(lambda: self, *self._address)

    async def close(self) -> None:
        self._transport.close()
        await self._lost.wait()

    async def ask(self, request: bytes) -> Response:
        """On a new connection where the server has said that it closes the one there was, as HAProxy does when it is
        configured anew. Raises RequestFailed when the server hangs up without that."""
        if self._headers.get("connection", "").lower() == "close":
            await self.close()
            await self._open()
        if self._transport.is_closing():
            raise RequestFailed("the server closed the connection between two requests")
        self._received.clear()
        self._body_at, self._first_s = 0, 0.0
        self._done = asyncio.get_running_loop().create_future()
        began_s = time.perf_counter()
        self._transport.write(request)
        await self._done
        ended_s = time.perf_counter()
        status = int(self._received[9:12])
        first_s = self._first_s or ended_s
        body = bytes(self._received[self._body_at :])
        return Response(status, self._headers, body, (first_s - began_s) * 1000, (ended_s - began_s) * 1000)

    # ---- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._body_at:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            self._body_at = end + 4
            lines = self._received[:end].decode("latin-1").split("\r\n")[1:]
            self._headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if not self._first_s and _TEXT.search(self._received, self._body_at):
            self._first_s = time.perf_counter()
        if self._complete() and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost.set()
        if self._done is not None and not self._done.done():
            self._done.set_exception(
                RequestFailed(f"the server closed the connection in the middle of an answer ({exc})")
            )

    def _complete(self) -> bool:
        length = self._headers.get("content-length")
        if length is not None:
            return len(self._received) - self._body_at >= int(length)
        return self._received.endswith(b"0\r\n\r\n", self._body_at)
