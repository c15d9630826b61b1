"""The adapter beside a server on loopback that speaks OpenAI's dialect."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from deployments.cloud import CloudModel, cloud_deployment, cloud_embedders
from models.catalog import ModelEntry
from models.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelUnavailable,
    RateLimited,
    SwitchyardError,
    UpstreamFailed,
)
from models.openai_embeddings import OpenAIEmbeddings
from models.providers import Quirks
from router.ports import Embedded
from router.topology import CloudEndpoint

ENTRY = ModelEntry(name="vectors", engine="openai_compatible", source="text-embedding-x", context_tokens=8192)


class Server:
    """Answers every POST with `status` and `body`, and keeps what it was asked. `refusals` come before, one each."""

    def __init__(self) -> None:
        self.status, self.body = 200, b""
        self.refusals: list[int] = []
        self.asked: list[tuple[bytes, dict[str, Any]]] = []
        self.hangs = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(row.split(b":")[1]) for row in head.lower().split(b"\r\n") if row.startswith(b"content-length")
        )
        self.asked.append((head, json.loads(await reader.readexactly(length))))
        if self.hangs:
            await reader.read()
        status = self.refusals.pop(0) if self.refusals else self.status
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(self.body)))
        writer.write(self.body)
        await writer.drain()
        writer.close()

    def says(self, *vectors: Any, **usage: int) -> None:
        data = [{"index": number, "embedding": vector} for number, vector in enumerate(vectors)][::-1]
        self.body = json.dumps({"data": data, "usage": usage}).encode()


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[Server, OpenAIEmbeddings]]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    model = OpenAIEmbeddings({"vectors": ENTRY}, f"http://127.0.0.1:{port}/v1", "sk-1", Quirks())
    model.base_url = f"http://127.0.0.1:{port}/v1"
    yield server, model
    await model.close()
    listening.close()
    await listening.wait_closed()


async def test_vectors_as_bytes_or_numbers_come_in_the_order_of_the_texts(upstream: Any) -> None:
    server, model = upstream
    server.says(base64.b64encode(struct.pack("<2f", 1.0, 2.0)).decode(), [3.0, 4.0], prompt_tokens=5, total_tokens=5)
    vectors, tokens = await model.embed("vectors", ["a", "b"], 2, 5.0)
    assert [struct.unpack("<2f", vector) for vector in vectors] == [(1.0, 2.0), (3.0, 4.0)]
    assert tokens == 5
    head, body = server.asked[0]
    assert head.startswith(b"POST /v1/embeddings ") and b"Bearer sk-1" in head
    assert body == {"model": "text-embedding-x", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 2}


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (429, b"{}", RateLimited),
        (401, b'{"error": {"message": "wrong key sk-1"}}', ModelUnavailable),
        (500, b"oops", SwitchyardError),
        (200, b"oops", UpstreamFailed),
        (200, b'{"data": []}', UpstreamFailed),
        (200, b'{"data": [{"index": 0, "embedding": "AAA="}]}', UpstreamFailed),
    ],
)
async def test_what_the_provider_does_wrong_is_an_error_of_ours(
    upstream: Any, status: int, body: bytes, error: type[SwitchyardError]
) -> None:
    server, model = upstream
    server.status, server.body = status, body
    with pytest.raises(error) as raised:
        await model.embed("vectors", ["a"], None, 5.0)
    assert "sk-1" not in str(raised.value)


async def test_a_provider_that_hangs_meets_the_deadline(upstream: Any) -> None:
    server, model = upstream
    server.hangs = True
    with pytest.raises(DeadlineExceeded):
        await model.embed("vectors", ["a"], None, 0.2)


def endpoint(base_url: str, **changes: Any) -> CloudEndpoint:
    chat = ModelEntry(name="gpt", engine="openai_compatible", context_tokens=100)
    fields = {"name": "x", "dialect": "openai", "api_key_env": None, "models": (chat,), "base_url": base_url}
    return CloudEndpoint(**fields | {"embedding_models": ({"name": "vectors", "context_tokens": 8192},)} | changes)


async def test_a_providers_embedding_models_are_found_by_name(upstream: Any) -> None:
    server, model = upstream
    server.says([1.0], prompt_tokens=2)
    there = endpoint(model.base_url)
    cloud = CloudModel(there, [])
    (found,) = cloud_embedders([there, endpoint("", name="off")], {}, {"x": cloud}).items()
    name, (entry, embedder) = found
    assert (name, entry.name, entry.engine) == ("vectors", "vectors", "openai_compatible")
    assert await embedder.embed(["a"], None) == Embedded([struct.pack("<f", 1.0)], 2, "vectors")
    await cloud.close()


@pytest.mark.parametrize(
    ("refusals", "keys", "error"),
    [
        ([401], ["one", "two"], None),
        ([429], ["one", "two"], None),
        ([500, 503], ["one", "two", "one"], None),
        ([400], ["one"], InvalidRequest),
        ([401, 401], ["one", "two"], ModelUnavailable),
    ],
)
async def test_vectors_are_retried_and_take_the_keys_in_turn_as_answers_do(
    upstream: Any, refusals: list[int], keys: list[str], error: type[SwitchyardError] | None
) -> None:
    server, model = upstream
    server.says([1.0], prompt_tokens=2)
    server.refusals = refusals
    cloud = CloudModel(endpoint(model.base_url), [SecretStr("one"), SecretStr("two")])
    cloud.reconfigure({"reliability": {"retries": {"base_s": 0.001, "max_backoff_s": 0.001}}})
    if error is None:
        assert await cloud.embed("vectors", ["a"], None) == ([struct.pack("<f", 1.0)], 2)
    else:
        with pytest.raises(error):
            await cloud.embed("vectors", ["a"], None)
    assert [head.partition(b"Bearer ")[2].split(b"\r\n")[0].decode() for head, _ in server.asked] == keys
    assert (await cloud.stats())["breaker_open"] == {"gpt": 0, "vectors": 0}
    await cloud.close()


def test_a_dialect_without_embeddings_is_refused_when_the_graph_is_built() -> None:
    with pytest.raises(ValueError, match="only the dialect 'openai'"):
        cloud_deployment(endpoint("", dialect="anthropic"), [])
