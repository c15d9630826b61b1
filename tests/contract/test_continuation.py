"""A text to go on with, without a chat template: beside the completions of vLLM's own server on the same weights."""

from __future__ import annotations

import httpx
import pytest

from models.base import Call
from models.messages import ChatRequest, Completion, Message, Sampling, TextPart, fold
from tests.contract.conftest import _VLLM, Subject
from tests.vllm_server import MODEL

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = "Once upon a time there was a"


async def go_on(subject: Subject, raw: bool) -> Completion:
    messages = (Message("user", (TextPart(PROMPT),)),)
    request = ChatRequest(
        subject.entry.name, messages, Sampling(max_tokens=24, temperature=0.0, stop=()), raw_prompt=raw
    )
    return fold([event async for event in subject.model.stream(request, Call("request-1"))])


@pytest.fixture(params=["transformers", _VLLM])
def local(request: pytest.FixtureRequest) -> Subject:
    """The engines that have a tokenizer of their own."""
    return request.getfixturevalue(request.param)


async def test_it_is_continued_as_vllms_own_server_continues_it(local: Subject, vllm_url: str) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    async with httpx.AsyncClient(trust_env=False, timeout=60.0) as client:
        theirs = (await client.post(f"{vllm_url}/v1/completions", json=body)).json()
    ours = await go_on(local, raw=True)
    assert ours.text == theirs["choices"][0]["text"]
    assert ours.usage.input_tokens == theirs["usage"]["prompt_tokens"]
    as_a_turn = await go_on(local, raw=False)
    assert as_a_turn.usage.input_tokens > ours.usage.input_tokens
