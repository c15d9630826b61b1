"""A provider that says what was recorded: a real HTTP server on loopback which cuts its bytes wherever it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass
class Recorded:
    """One request, as it came over the wire."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Replay:
    """Answers every request alike. `pieces` are sent one by one; with `hangs` the connection stays open after them."""

    pieces: Sequence[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False
    url: str = ""
    requests: list[Recorded] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *rest = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in rest)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append(Recorded(line, headers, body))
            told = {"content-type": "text/event-stream", "transfer-encoding": "chunked", **self.headers}
            fields = "".join(f"{name}: {value}\r\n" for name, value in told.items())
            writer.write(f"HTTP/1.1 {self.status} Recorded\r\n{fields}\r\n".encode())
            for piece in self.pieces:
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
                await asyncio.sleep(0)
            if self.hangs:
                await reader.read()  # ends when the client leaves
                self.left.set()
            else:
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()


@asynccontextmanager
async def replayed(*pieces: bytes, **how: Any) -> AsyncIterator[Replay]:
    replay = Replay(pieces, **how)
    server = await asyncio.start_server(replay.answer, "127.0.0.1", 0)
    replay.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield replay


def events(*datas: Any, newline: str = "\r\n") -> bytes:
    """Server-sent events."""
    return "".join(f"data: {json.dumps(data, ensure_ascii=False)}{newline}{newline}" for data in datas).encode()


def cut(whole: bytes, at: Sequence[int]) -> list[bytes]:
    """`whole` in pieces, cut at the places in `at` that lie within it."""
    places = sorted({place % len(whole) for place in at} | {0, len(whole)}) if whole else [0]
    return [whole[begin:end] for begin, end in pairwise(places)]
