"""The benchmark of the way of a token, against a server on loopback that sends it late by known times."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from cluster.bench import delay
from cluster.bench.connection import RequestFailed
from cluster.bench.delay import TOKENS, Delays, Side, measure, table

LATE_MS = (1_000_000.0, 10_000.0, 10_000.0, 10_000.0)
"""So much that it does not matter how busy the machine of the test is."""


class Server:
    """Stamps tokens with times that have passed by then, and sends as many of them as it is told."""

    def __init__(self) -> None:
        self.tokens = TOKENS
        self.bodies: list[dict[str, object]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.bodies.append(json.loads(await reader.readexactly(length)))
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                for late_ms in LATE_MS[: self.tokens]:
                    stamp = time.monotonic_ns() - int(late_ms * 1e6)
                    self._chunk(writer, {"choices": [{"index": 0, "delta": {"content": str(stamp)}}]})
                    await asyncio.sleep(0.001)
                writer.write(b"0\r\n\r\n")
        writer.close()

    def _chunk(self, writer: asyncio.StreamWriter, body: dict[str, object]) -> None:
        event = b"data: " + json.dumps(body).encode() + b"\n\n"
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    served = Server()
    async with await asyncio.start_server(served.serve, "127.0.0.1", 0) as listening:
        yield served, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/x"


async def test_first_and_later_tokens_are_told_apart(server: tuple[Server, str]) -> None:
    served, url = server
    sides = [Side("ours", url, "key", {"switchyard": {"cache": "off"}}), Side("bare", url, "key", {})]
    ours, bare = await measure(sides, streams=15)
    for found in (ours, bare):
        assert found.streams == 15
        assert LATE_MS[0] < found.first_p50_ms <= found.first_p99_ms
        assert LATE_MS[1] < found.later_p50_ms <= found.later_p99_ms < LATE_MS[0]
    assert sum("switchyard" in body for body in served.bodies) == len(served.bodies) // 2
    questions = [body["messages"][0]["content"] for body in served.bodies]  # type: ignore[index]
    assert len(set(questions)) == len(questions)


async def test_a_token_that_is_missing_is_a_failure(server: tuple[Server, str]) -> None:
    served, url = server
    served.tokens -= 1
    with pytest.raises(RequestFailed, match=f"{TOKENS - 1} of {TOKENS}"):
        await measure([Side("ours", url, "key", {})], streams=1)


def test_the_model_of_the_benchmark_is_slow_and_stamps() -> None:
    (model,) = delay.config()["applications"][0]["args"]["local_models"]
    assert model["engine_args"] == {"stamped": True, "output_tokens": TOKENS, "tokens_per_s": delay.TOKENS_PER_S}


def test_the_table() -> None:
    assert table([Delays("ours", 9, 1.0, 2.0, 0.5, 0.75)]).splitlines()[-1] == "| ours | 1.00 / 2.00 | 0.50 / 0.75 |"
