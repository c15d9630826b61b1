"""What one organisation asked makes no request of another one faster, in vLLM's engine and on vLLM's server; and marks
for a prompt cache are understood."""

from __future__ import annotations

import urllib.request
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from models.anthropic import AnthropicModel
from models.base import Call, Capabilities
from models.catalog import ModelEntry
from models.messages import ChatRequest, Message, Sampling, TextPart, Tool, fold
from models.openai_compatible import OpenAICompatibleModel
from models.providers import known_provider
from router.prefix_marks import with_marks
from tests.contract.conftest import Subject
from tests.vllm_server import CONTEXT_TOKENS, MODEL

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def salted(vllm_url: str) -> AsyncIterator[OpenAICompatibleModel]:
    entry = ModelEntry(name="gpt", engine="openai_compatible", source=MODEL, context_tokens=CONTEXT_TOKENS)
    vllm = known_provider("vllm")
    assert vllm is not None
    model = OpenAICompatibleModel({"gpt": entry}, f"{vllm_url}/v1", "key", vllm.quirks)
    yield model
    await model.close()


def question(model: str, raw: bool = False) -> ChatRequest:
    """Of several of the cache's blocks, and in no other test."""
    text = f"{model} {raw} " + " ".join(f"{number} apples" for number in range(120))
    return ChatRequest(model, (Message("user", (TextPart(text),)),), Sampling(1, 0.0), raw_prompt=raw)


@pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")
@pytest.mark.parametrize("raw", [False, True])
async def test_in_the_engine(vllm: Subject, raw: bool) -> None:
    async def cached(tenant: str) -> int:
        call = Call(f"request {tenant}", tenant, timeout_s=60.0)
        return fold(await vllm.model.complete(question("local", raw), call)).usage.cached_input_tokens

    assert await cached("acme") == 0
    assert await cached("acme") > 0
    assert await cached("other") == 0
    assert await cached("") == 0


async def test_on_a_server(salted: OpenAICompatibleModel, vllm_url: str) -> None:
    async def cached(tenant: str) -> int:
        before = prefix_hits(vllm_url)
        call = Call(f"request {tenant}", tenant, timeout_s=60.0)
        async for _ in salted.stream(question("gpt"), call):
            pass
        return prefix_hits(vllm_url) - before

    assert await cached("acme") == 0
    assert await cached("acme") > 0
    assert await cached("other") == 0


async def test_vllms_anthropic_server_takes_marks(vllm_url: str) -> None:
    able = Capabilities(tools=True)
    entry = ModelEntry(
        name="claude", engine="anthropic", source=MODEL, context_tokens=CONTEXT_TOKENS, capabilities=able
    )
    entry = entry.model_copy(update={"cached_from_tokens": 20})
    system = Message("system", (TextPart("Say one word at a time, and no more. " * 8),))
    asked = ChatRequest("claude", (system, Message("user", (TextPart("Hi"),))), Sampling(4, 0.0), (Tool("clock"),))
    request, told = with_marks(asked, entry)
    assert told and request != asked
    model = AnthropicModel({"claude": entry}, None, vllm_url)
    answers = []
    for each in (asked, request):
        answers.append(fold([event async for event in model.stream(each, Call("marks", timeout_s=60.0))]))
    await model.close()
    assert answers[0].text == answers[1].text and answers[1].usage.output_tokens > 0


def prefix_hits(url: str) -> int:
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))
