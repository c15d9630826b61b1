from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from cluster.bench import overhead
from cluster.bench.connection import Connection, RequestFailed, get, post


@asynccontextmanager
async def server(*answers: bytes, pause_s: float = 0.0) -> AsyncIterator[str]:
    """A server that writes the same pieces for every request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                for answer in answers:
                    writer.write(answer)
                    await asyncio.sleep(pause_s)
                if answers[-1].endswith(b"..."):
                    break
        writer.close()
        await writer.wait_closed()
        served.set()

    served = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        await served.wait()


async def ask(url: str, times: int = 1) -> list:
    connection = await Connection.open(url)
    try:
        return [await connection.ask(post(url + "/x", b"{}", "key")) for _ in range(times)]
    finally:
        await connection.close()


async def test_a_body_with_a_length() -> None:
    async with server(
        b"HTTP/1.1 200 OK\r\nX-Verdict: Hit\r\nContent-Le", b"ngth: 4\r\n\r\n{}", b"{}", pause_s=0.01
    ) as url:
        first, second = await ask(url, 2)
    assert (first.status, first.headers["x-verdict"], second.status) == (200, "Hit", 200)
    assert first.total_ms >= 20 and first.first_ms == first.total_ms


async def test_a_stream_has_a_first_text() -> None:
    opening = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n"content": ""\r\n\r\n'
    async with server(opening, b'12\r\n"content": "word"\n\r\n', b"0\r\n\r\n", pause_s=0.03) as url:
        (answer,) = await ask(url)
    assert 25 < answer.first_ms < answer.total_ms


async def test_a_server_that_hangs_up_is_an_error() -> None:
    async with server(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n...") as url:
        with pytest.raises(RequestFailed):
            await ask(url)


def test_reworded_questions_differ_in_spaces_alone() -> None:
    asked = [overhead._reworded(number) for number in range(1, 5000)]
    assert len(set(asked)) == len(asked)
    assert {" ".join(text.split()) for text in asked} == {overhead.QUESTION}
    assert overhead.QUESTION not in asked


def test_percentiles_are_by_nearest_rank() -> None:
    assert [overhead.percentile(list(range(1, 101)), percent) for percent in (50, 99)] == [50, 99]
    assert overhead.percentile([7.0], 99) == 7.0
    assert overhead.percentile([], 50) == 0


def test_what_went_wrong_is_told() -> None:
    ours = overhead.Tally(total_ms=[1.0], wall_s=1, other=Counter({"miss": 2}))
    row = {"path": "exact hit", "clients": 4, "switchyard": ours.figures(), "bare": overhead.Tally(wall_s=1).figures()}
    assert overhead.complaints([row]) == ["exact hit, 4 clients, switchyard: {'miss': 2} of 1 requests"]


async def test_a_connection_that_the_server_closes_as_it_said_is_opened_anew() -> None:
    clients: list[int] = []

    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.append(writer.get_extra_info("peername")[1])
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        writer.close()

    async with await asyncio.start_server(closes, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        connection = await Connection.open(url)
        answers = [await connection.ask(get(f"{url}/", "k")) for _ in range(3)]
        await connection.close()
    assert [answer.body for answer in answers] == [b"hi"] * 3 and len(set(clients)) == 3
