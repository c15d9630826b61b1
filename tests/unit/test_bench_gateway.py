"""The benchmark of gateways: its provider, its measurement against real servers on loopback, and its arithmetic."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from cluster.bench import gateway, peers
from cluster.bench.connection import RequestFailed, Response
from cluster.bench.gateway import (
    UPSTREAM,
    Figures,
    Tally,
    answer_of,
    check,
    compare,
    config,
    measure,
    passing,
    ratios,
    table,
)
from cluster.bench.peers import Target
from cluster.bench.server_process import free_port, running_server
from cluster.bench.upstream import CHUNKS, TEXT, USAGE, Upstream, taken
from cluster.checks import StartError
from deployments.app import build

PATH = "/v1/chat/completions"


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


# ---- the provider --------------------------------------------------------------------------------------------------


async def test_the_provider_says_the_same_whole_and_streamed(upstream: str) -> None:
    async with httpx.AsyncClient(base_url=upstream, trust_env=False) as client:
        whole = (await client.post(PATH, json={"model": "bench"})).json()
        assert (whole["choices"][0]["message"]["content"], whole["usage"]) == (TEXT, USAGE)
        for options, counted in (({}, 0), ({"stream_options": {"include_usage": True}}, 1)):
            streamed = (await client.post(PATH, json={"model": "bench", "stream": True, **options})).text.splitlines()
            lines = [line for line in streamed if line]
            chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
            assert lines[-1] == "data: [DONE]" and len(chunks) == CHUNKS + 2 + counted
            assert "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"]) == TEXT
        assert (await client.get("/v1/models")).json()["data"]
        assert (await client.post("/v1/other", json={})).status_code == 404
        assert (await client.post(PATH, content=b"{")).status_code == 400


def test_requests_are_taken_one_by_one_however_they_arrive() -> None:
    plain = b"POST /x HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc"
    chunked = b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    received, found = bytearray(), []
    for byte in plain + chunked + b"GET /health HTTP/1.1\r\n\r\n":
        received.append(byte)
        if (request := taken(received)) is not None:
            found.append(request)
    assert [body for _, body in found] == [b"abc", b"abc", b""] and not received
    assert found[2][0].startswith(b"GET /health")


# ---- measuring -----------------------------------------------------------------------------------------------------


async def test_every_target_is_measured_in_each_row(upstream: str) -> None:
    alone = Target(UPSTREAM, upstream + PATH, "bench", "none")
    rows = await measure([alone, Target("Switchyard", upstream + PATH, "auto", "k", headers={"x-a": "b"})], [1, 3], 0.1)
    assert [(row.kind, row.clients, row.gateway) for row in rows] == [
        (kind, clients, name) for kind in ("whole", "stream") for clients in (1, 3) for name in (UPSTREAM, "Switchyard")
    ]
    for row in rows:
        assert row.requests > 0 and row.requests_per_s > 0 and not row.failed
        assert 0 < row.first_p50_ms <= row.p50_ms <= row.p99_ms
    assert all(row.added_p50_ms == row.added_p99_ms == 0 for row in rows if row.gateway == UPSTREAM)


async def test_refusals_are_counted_and_stop_the_warm_up(upstream: str) -> None:
    lost = Target("lost", f"{upstream}/elsewhere", "bench", "none")
    with pytest.raises(RequestFailed, match="lost: answered 404"):
        await check(lost, itertools.count())
    assert await passing([replace(lost, peer=True)], itertools.count()) == []
    tally = Tally()
    await gateway.turn(lost, "whole", 2, 0.05, tally, itertools.count())
    assert tally.failed["404"] > 0 and not tally.total_ms


async def test_a_server_that_hangs_up_or_never_answers_does_not_hold_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "TURN_LIMIT_S", 0.1)

    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.close()

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(closes, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{PATH}"
        tally = Tally()
        await gateway.turn(Target("rude", url, "m", "k"), "whole", 2, 0.15, tally, itertools.count())
        assert tally.failed["no answer"] >= 2 and tally.wall_s < 2
    async with await asyncio.start_server(waits, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{PATH}"
        tally = Tally()
        await gateway.turn(Target("mute", url, "m", "k"), "whole", 2, 0.05, tally, itertools.count())
        assert tally.failed == {"no answer in time": 1} and tally.wall_s < 2
    tally = Tally()
    await gateway.turn(Target("gone", url, "m", "k"), "whole", 2, 0.05, tally, itertools.count())
    assert tally.failed == {"no connection": 1}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"choices": [], "usage": {"completion_tokens": 1}}', b"[1]"])
@pytest.mark.parametrize("kind", ["whole", "stream"])
def test_what_is_no_whole_answer_is_a_failure(kind: str, body: bytes) -> None:
    with pytest.raises(RequestFailed, match="not a whole answer"):
        answer_of(kind, Response(200, {}, body, 1.0, 1.0))


def test_a_line_may_be_cut_in_two_by_the_transfer_encoding() -> None:
    text = json.dumps({"choices": [{"delta": {"content": "wagon"}}]})
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": 1}})
    events = f"data: {text}\n\ndata: {usage}\n\ndata: [DONE]\n\n".encode()
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (events[:50], events[50:])) + b"0\r\n\r\n"
    assert answer_of("stream", Response(200, {"transfer-encoding": "chunked"}, body, 1.0, 1.0)) == "wagon"


# ---- the figures ---------------------------------------------------------------------------------------------------


def figures() -> list[Figures]:
    return compare(
        "whole",
        16,
        {
            UPSTREAM: Tally([1.0, 2.0], [1.0, 1.0], 1.0),
            "Switchyard, inline": Tally([2.0] * 10, [2.0] * 10, 1.0),
            "LiteLLM proxy": Tally([5.0] * 2, [5.0] * 2, 2.0, Counter({"500": 1})),
            "Portkey gateway": Tally(),
        },
    )


def test_what_is_added_is_over_the_provider_in_the_same_row() -> None:
    alone, ours, theirs, nothing = figures()
    assert (alone.requests_per_s, alone.added_p50_ms, alone.added_p99_ms) == (2.0, 0.0, 0.0)
    assert (ours.requests_per_s, ours.added_p50_ms, ours.added_p99_ms) == (10.0, 1.0, 0.0)
    assert (theirs.requests_per_s, theirs.added_p50_ms, theirs.failed) == (1.0, 4.0, {"500": 1})
    assert (nothing.requests, nothing.requests_per_s) == (0, 0.0)


def test_ratios_are_to_a_peer_of_the_same_row_that_answered() -> None:
    rows = figures()
    assert ratios(rows[1], rows, "LiteLLM proxy") == (10.0, 0.25)
    for row, peer in ((rows[0], "LiteLLM proxy"), (rows[1], "Portkey gateway"), (rows[2], "LiteLLM proxy")):
        assert ratios(row, rows, peer) is None
    head, _, alone, ours, *_ = table(rows, ["LiteLLM proxy", "Portkey gateway"]).splitlines()
    assert head.endswith("| req/s, added p50: x LiteLLM proxy | req/s, added p50: x Portkey gateway |")
    assert alone == "| whole | 16 | the provider alone | 2 | 1.00 / 2.00 |  | 1.00 |  |  |"
    assert ours == "| whole | 16 | Switchyard, inline | 10 | 2.00 / 2.00 | 1.00 / 0.00 | 2.00 | 10.00, 0.25 |  |"


# ---- the servers ---------------------------------------------------------------------------------------------------


def test_switchyard_has_the_adapter_once_inside_and_once_outside(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SWITCHYARD_DATA_DIR", str(tmp_path))
    (application,) = config("http://127.0.0.1:9", {"inline": "a", "deployment": "b"})["applications"]
    door = build(application["args"])._bound_deployment.init_kwargs
    assert [cloud.backend for cloud in door["inline"]] == ["CloudModel:inline"]
    assert list(door["backends"]) == ["CloudModel:deployment"] and not door["caches"]
    assert application["deployments"][0]["user_config"]["tenants"]["inline"] == {"models": ["bench-inline"]}


def test_a_peer_is_there_when_its_installation_has_ended(tmp_path: Path) -> None:
    (tmp_path / "litellm").mkdir()
    assert not peers.installed("litellm", tmp_path)
    (tmp_path / ".litellm").touch()
    assert peers.installed("litellm", tmp_path)


def test_a_server_runs_for_as_long_as_the_block(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "cluster.bench.upstream", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/health"
    with running_server("the provider", command, url, tmp_path / "log", {}, 30.0):
        assert httpx.get(url, trust_env=False).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


def test_a_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no licence')"]
    with (
        pytest.raises(StartError, match="it did not come up:\nno licence"),
        running_server("it", command, "http://127.0.0.1:9/", tmp_path / "log", {}, 30.0),
    ):
        pass
