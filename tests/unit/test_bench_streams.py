"""The benchmark of streams, against a server on loopback whose answers are known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from cluster.bench import vllm_server
from cluster.bench.connection import RequestFailed
from cluster.bench.streams import (
    CONFIG,
    Result,
    Round,
    Target,
    engine_arguments,
    engine_environment,
    measure,
    only,
    table,
)
from cluster.checks import StartError
from cluster.runtime import load_config
from deployments.llm_server import _environment, llm_config
from router.topology import LocalModel

TOKENS = 7


class Server:
    """Streams two words and the usage, whose line it cuts in two."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, object]] = []
        self.usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": TOKENS}})

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with_text = json.dumps({"choices": [{"index": 0, "delta": {"content": "word"}}]})
        text = f"data: {with_text}\n\ndata: {with_text}\n\ndata: {self.usage}\n\ndata: [DONE]\n\n"
        cut = text.index("completion_") + 5
        while head := await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b"":
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            self.bodies.append(json.loads(await reader.readexactly(length)))
            chunks = "".join(f"{len(part):x}\r\n{part}\r\n" for part in (text[:cut], text[cut:]))
            writer.write(f"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n".encode())
            await writer.drain()


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    served = Server()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await served.answer(reader, writer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield served, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def test_both_servers_are_asked_in_turns_and_never_the_same_question(server: tuple[Server, str]) -> None:
    served, url = server
    targets = [Target("ours", url, "m", "key", {"switchyard": {"cache": "off"}}), Target("theirs", url, "m")]
    ours, theirs = await measure(targets, clients=3, requests=2, tokens=5, rounds=2)
    questions = [body["messages"][0]["content"] for body in served.bodies]  # type: ignore[index]
    assert len(questions) == len(set(questions)) == 2 * 3 * (1 + 2 * 2)
    assert sum("switchyard" in body for body in served.bodies) == len(questions) // 2
    for result in (ours, theirs):
        assert result.clients == 3 and len(result.tokens_per_s) == 2
        assert result.median.tokens_per_s > 0 < result.median.ttft_p50_ms <= result.median.ttft_p99_ms
        assert result.median.client_cores > 0 <= result.median.client_waited


async def test_an_answer_without_usage_is_a_failure(server: tuple[Server, str]) -> None:
    served, url = server
    served.usage = "{}" + " " * 20 + '"completion_'
    with pytest.raises(RequestFailed, match="no usage"):
        await measure([Target("ours", url, "m")], 1, 1, 5, 1)


def test_the_shares_are_of_the_last_row() -> None:
    results = [
        Result("a", 48, Round(600.0, 10.0, 20.0, 0.1, 0.0), (600.0,)),
        Result("b", 48, Round(1000.0, 5.0, 9.0, 0.1, 0.0), ()),
    ]
    assert table(results).splitlines()[2:] == [
        "| a | 48 | 600 | 60% | 10 ms | 20 ms |",
        "| b | 48 | 1,000 | 100% | 5 ms | 9 ms |",
    ]


# ---- the yardstick is given what Switchyard gives its engine -------------------------------------------------------


@pytest.mark.parametrize("name", ["smoke-small", "smoke-medium"])
def test_vllms_own_server_gets_the_engine_settings_of_the_replica(name: str) -> None:
    config, model = only(load_config(CONFIG), name)
    assert [listed["name"] for listed in config["applications"][0]["args"]["local_models"]] == [name]
    served = LocalModel.model_validate(model)
    assert engine_arguments(model) == llm_config(served)["engine_kwargs"]
    assert engine_environment(model).items() <= _environment(served, served.resolve()).items()


def test_a_model_that_cannot_be_compared_is_refused() -> None:
    config = load_config(CONFIG)
    config["applications"][0]["args"]["local_models"].append({"name": "phi-2"})
    for name in ("phi-2", "no-such-model"):
        with pytest.raises(StartError, match="--model"):
            only(config, name)


def test_arguments_become_flags() -> None:
    flags = vllm_server._flags({"max_num_seqs": 4, "enforce_eager": True, "enable_prefix_caching": False})
    assert flags == ["--max-num-seqs", "4", "--enforce-eager", "--no-enable-prefix-caching"]
