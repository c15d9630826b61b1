"""The same question from many at once, over all ingress replicas."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import httpx

from tests.serve.product import Product, until, user

MANY, REPLICAS = 100, 2


@dataclass
class Answer:
    verdict: str
    request_id: str
    text: str
    chunks: int


async def _stream(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    pieces = []
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                pieces += [choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"]]
    headers = response.headers
    return Answer(
        headers["x-switchyard-cache"],
        headers["x-switchyard-request-id"],
        "".join(pieces),
        len([p for p in pieces if p]),
    )


def _client(product: Product, org: str = "acme") -> httpx.AsyncClient:
    # A connection for each, so that the load balancer spreads them over the replicas.
    limits = httpx.Limits(max_connections=MANY, max_keepalive_connections=0)
    headers = {"Authorization": f"Bearer {product.key(org)}"}
    return httpx.AsyncClient(
        base_url=product.cluster.base_url, headers=headers, limits=limits, trust_env=False, timeout=60.0
    )


def test_a_hundred_identical_questions_are_one_upstream_call_and_a_hundred_identical_streams(product: Product) -> None:
    body = {"model": "sim-slow", "messages": user("What do a hundred ask at once?"), "stream": True}

    async def all_at_once() -> list[Answer]:
        async with _client(product) as client:
            return await asyncio.gather(*(_stream(client, body) for _ in range(MANY)))

    before = product.metric("switchyard_attempts_total", model="sim-slow")
    answers = asyncio.run(all_at_once())
    leaders = {answer.request_id: product.receipt(answer.request_id) for answer in answers if answer.verdict == "miss"}
    assert product.metric("switchyard_attempts_total", model="sim-slow") == before + len(leaders)
    # A replica to which the shared cache does not answer in time, on a busy machine, has one made for itself.
    alone = [name for name, receipt in leaders.items() if "semantic_cache" in receipt["degraded"]]
    assert len(leaders) == 1 or (len(leaders) == REPLICAS and alone)
    assert len({answer.text for answer in answers}) == 1 and answers[0].text.count(" ") == 39
    followers = [answer for answer in answers if answer.request_id not in leaders]
    assert {answer.verdict for answer in followers} <= {"coalesced", "hit-exact"}
    assert sum(answer.verdict == "coalesced" for answer in followers) > MANY // 2
    assert max(answer.chunks for answer in followers) > 10  # as it comes, not at its end
    receipt = product.receipt(followers[0].request_id)
    assert receipt["cost_microusd"] == 0 and receipt["cached_from"] in leaders


def test_who_began_it_may_leave_while_others_read_on(product: Product) -> None:
    body = {"model": "sim-slow", "messages": user("What if the first one leaves?"), "stream": True}

    async def first_leaves() -> list[Answer]:
        async with _client(product) as client:
            first = asyncio.create_task(_stream(client, body))
            await asyncio.sleep(0.3)
            others = [asyncio.create_task(_stream(client, body)) for _ in range(6)]
            await asyncio.sleep(0.3)
            first.cancel()
            return await asyncio.gather(*others)

    before = product.metric("switchyard_attempts_total", model="sim-slow", outcome="ok")
    answers = asyncio.run(first_leaves())
    assert {(answer.verdict, answer.text.count(" ")) for answer in answers} == {("coalesced", 39)}
    until(
        lambda: product.metric("switchyard_attempts_total", model="sim-slow", outcome="ok") == before + 1, within_s=5.0
    )


def test_nobody_reads_along_with_another_organisation(product: Product) -> None:
    body = {"model": "sim-slow", "messages": user("Whose question is this?"), "stream": True}

    async def both() -> list[Answer]:
        async with _client(product) as acme, _client(product, "globex") as globex:
            return await asyncio.gather(_stream(acme, body), _stream(globex, body))

    assert [answer.verdict for answer in asyncio.run(both())] == ["miss", "miss"]
