"""A provider that takes no time, for `cluster/bench/gateway.py`: OpenAI's chat completions, always the same answer.

    python -m cluster.bench.upstream --port 8001

A stream is `CHUNKS` chunks, each in a packet of its own and all at once, then the usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

CHUNKS = 64
WORDS = [f"wagon {number} " for number in range(CHUNKS)]
TEXT = "".join(WORDS)
USAGE = {"prompt_tokens": 24, "completion_tokens": CHUNKS, "total_tokens": 24 + CHUNKS}

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CHUNK_LINES = re.compile(rb"(?:^|\r\n)[0-9a-fA-F]+\r\n")


class Upstream(asyncio.Protocol):
    """One keep-alive connection of HTTP/1.1."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (request := taken(self._received)) is not None:
            for packet in answer(*request):
                self._transport.write(packet)


def taken(received: bytearray) -> tuple[bytes, bytes] | None:
    """Head and body of the first request in `received`, which are taken out of it; None while it is not all there."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head, body_at = bytes(received[:end]), end + 4
    if _CHUNKED.search(head):
        ends_at = received.find(b"0\r\n\r\n", body_at)
        if ends_at < 0:
            return None
        body = _CHUNK_LINES.sub(b"", bytes(received[body_at:ends_at])).removesuffix(b"\r\n")
        del received[: ends_at + 5]
        return head, body
    length = _LENGTH.search(head)
    ends_at = body_at + (int(length[1]) if length else 0)
    if len(received) < ends_at:
        return None
    body = bytes(received[body_at:ends_at])
    del received[:ends_at]
    return head, body


def answer(head: bytes, body: bytes) -> Sequence[bytes]:
    """The packets of the answer to a request."""
    if head.startswith(b"GET "):  # is it up, and which models has it
        return (_whole(200, {"object": "list", "data": [{"id": "bench", "object": "model"}]}),)
    if not head.startswith(b"POST /v1/chat/completions "):
        return (_whole(404, {"error": {"message": "no such path"}}),)
    try:
        asked = json.loads(body)
    except ValueError:
        return (_whole(400, {"error": {"message": "the body is no JSON"}}),)
    if not asked.get("stream"):
        return (_UNARY,)
    counted = (asked.get("stream_options") or {}).get("include_usage")
    return (*_STREAM, _STREAM_USAGE, _STREAM_END) if counted else (*_STREAM, _STREAM_END)


def _whole(status: int, content: dict[str, Any]) -> bytes:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _event(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return f"{len(event):x}\r\n".encode() + event + b"\r\n"


def _chunk(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
    named = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1767225600, "model": "bench"}
    return _event(json.dumps({**named, "choices": choices, **({"usage": usage} if usage else {})}))


def _delta(delta: dict[str, str], finish_reason: str | None = None) -> list[dict[str, Any]]:
    return [{"index": 0, "delta": delta, "finish_reason": finish_reason}]


_UNARY = _whole(
    200,
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1767225600,
        "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": USAGE,
    },
)
_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    _chunk(_delta({"role": "assistant", "content": ""})),
    *(_chunk(_delta({"content": word})) for word in WORDS),
    _chunk(_delta({}, "stop")),
)
_STREAM_USAGE = _chunk([], USAGE)
_STREAM_END = _event("[DONE]") + b"0\r\n\r\n"


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cluster.bench.upstream", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(serve(parser.parse_args(argv).port))


if __name__ == "__main__":
    main()
