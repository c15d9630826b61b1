"""Streams: tokens as they come, and work that ends with its client or its replica."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.serve.product import Product, until, user
from tests.vllm_server import running_requests

OFF = {"switchyard": {"cache": "off"}}
LONG = {"max_tokens": 900, "temperature": 0, **OFF}
"""Drawn by lot, an answer of the smoke models may end by itself after a few tokens."""


def streaming(product: Product, text: str, model: str, **body: Any) -> Iterator[str]:
    """The pieces of the answer as they come. Closing it closes the connection."""
    stream = product.sdk().chat.completions.create(
        model=model, messages=user(text), stream=True, extra_body=OFF, **body
    )
    with stream:
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content


def test_tokens_arrive_one_by_one_as_the_model_makes_them(product: Product) -> None:
    """40 tokens at 20 a second, the first after 0.8 s."""
    began = time.monotonic()
    arrived = [time.monotonic() - began for _ in streaming(product, "Slowly", "sim-slow")]
    assert len(arrived) == 40
    assert arrived[0] < arrived[-1] / 2
    assert max(later - earlier for earlier, later in pairwise(arrived)) < (arrived[-1] - arrived[0]) / 2


async def test_many_streams_at_once_do_not_mix(product: Product) -> None:
    async with AsyncOpenAI(base_url=product.sdk().base_url, api_key=product.key("acme"), max_retries=0) as sdk:

        async def ask(number: int, stream: bool) -> str:
            body = {"model": "smoke-small", "messages": user(f"Say {number}"), "temperature": 0, "max_tokens": 20}
            answer = await sdk.chat.completions.create(**body, stream=stream, extra_body=OFF)
            if not stream:
                return answer.choices[0].message.content
            return "".join([c.choices[0].delta.content or "" async for c in answer if c.choices])

        streamed = await asyncio.gather(*(ask(number, True) for number in range(16)))
        assert streamed == list(await asyncio.gather(*(ask(number, False) for number in range(16))))
        assert len(set(streamed)) > 8


# ---- clients that leave --------------------------------------------------------------------------------------------


def idle(product: Product) -> bool:
    return product.metric("switchyard_open_requests") == 0


LEAVES_S = 15.0
"""Milliseconds on an idle machine, as the receipt's clock shows, but seconds where others have the processor. That the
answer was stopped, its tokens say."""


@pytest.mark.parametrize("model", ["smoke-small", "smoke-vllm", "sim-slow", "gpt", "claude"])
def test_a_client_that_leaves_its_stream_ends_the_work(product: Product, vllm_url: str, model: str) -> None:
    until(lambda: idle(product))
    body = {"model": model, "messages": user("A long story"), "stream": True, **LONG}
    with product.http().stream("POST", "/v1/chat/completions", json=body) as answer:
        next(line for line in answer.iter_lines() if '"content":' in line)  # the model is at work
    left_unix_s = time.time()
    until(lambda: idle(product) and running_requests(vllm_url) == 0)
    receipt = product.receipt(answer.headers["x-switchyard-request-id"])
    assert receipt["status"] == "cancelled"
    assert receipt["closed_at_unix_ms"] / 1000 - left_unix_s < LEAVES_S
    assert [attempt["outcome"] for attempt in receipt["attempts"]] == ["cancelled"]
    assert receipt["usage"]["output_tokens"] < 900 and receipt["estimated"]


@pytest.mark.parametrize("model", ["smoke-small", "smoke-vllm", "sim-slow", "gpt", "claude"])
def test_a_client_that_does_not_wait_for_its_answer_ends_the_work(product: Product, vllm_url: str, model: str) -> None:
    """Its request comes in two packets, head and body, as from every client that is built on httpx."""
    until(lambda: idle(product))
    cancelled = product.metric("switchyard_requests_total", model=model, status="cancelled")
    body = {"model": model, "messages": user("A long story"), **LONG}

    async def leave() -> None:
        async with httpx.AsyncClient(headers=product.http().headers, timeout=30.0) as client:
            asked = asyncio.create_task(client.post(f"{product.cluster.base_url}/v1/chat/completions", json=body))
            await asyncio.to_thread(until, lambda: not idle(product))
            asked.cancel()

    asyncio.run(leave())
    until(lambda: idle(product) and running_requests(vllm_url) == 0)
    assert product.metric("switchyard_requests_total", model=model, status="cancelled") == cancelled + 1


def test_a_place_is_free_again_when_its_client_has_left(product: Product) -> None:
    """The engine of smoke-small works on 16 requests at once: two rounds of that many leave, and one more is served."""
    for _ in range(2):
        streams = [streaming(product, f"Story {number}", "smoke-small", max_tokens=900) for number in range(16)]
        for stream in streams:
            next(stream)
        for stream in streams:
            stream.close()
    began = time.monotonic()
    assert list(streaming(product, "And now?", "smoke-small", max_tokens=3))
    assert time.monotonic() - began < 5.0


# ---- replicas that die ---------------------------------------------------------------------------------------------


def test_a_replica_that_dies_before_the_first_byte_is_not_noticed(product: Product) -> None:
    killed: list[str] = []

    def kill() -> None:
        until(lambda: not idle(product))
        killed.append(product.kill_a_replica("SimulatedModel:sim-slow"))

    until(lambda: idle(product))
    killer = threading.Thread(target=kill)
    killer.start()
    answer = product.chat("Who answers this?", "sim-slow", stream=True, **OFF)
    killer.join()
    assert answer.status_code == 200 and "[DONE]" in answer.text
    receipt = product.receipt(answer.headers["x-switchyard-request-id"])
    assert [attempt["outcome"] for attempt in receipt["attempts"]] == ["model_unavailable", "ok"]
    assert killed[0] not in product.replicas("SimulatedModel:sim-slow")


def test_a_replica_that_dies_later_ends_the_stream_with_an_error(product: Product) -> None:
    until(lambda: product.replicas("SimulatedModel:sim-slow"))
    stream = streaming(product, "Who ends this?", "sim-slow")
    came = next(stream)
    product.kill_a_replica("SimulatedModel:sim-slow")
    with pytest.raises(openai.APIError) as caught:
        for piece in stream:
            came += piece
    assert caught.value.code in ("stream_interrupted", "model_unavailable")
    assert "Traceback" not in str(caught.value.body) and "ray" not in str(caught.value.body).lower()
    assert 1 <= len(came.split()) < 40
    assert product.chat("Are you back?", "sim-slow", **OFF).status_code == 200
