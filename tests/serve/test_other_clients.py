"""Client stacks that others wrote on top of the official SDKs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from anthropic import AsyncAnthropic
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tests.serve.product import Product

LOCAL_AND_CLOUD = ["smoke-small", "smoke-vllm", "gpt", "claude"]
QUESTION = "Name three rivers."


@pytest.fixture(params=LOCAL_AND_CLOUD)
def chat(request: pytest.FixtureRequest, product: Product) -> ChatOpenAI:
    return ChatOpenAI(
        model=request.param,
        base_url=f"{product.cluster.base_url}/v1",
        api_key=product.key("acme"),
        temperature=0,
        max_retries=0,
        max_tokens=12,
        stream_usage=True,
    )


def test_langchain_invokes_and_streams(chat: ChatOpenAI) -> None:
    whole = chat.invoke(QUESTION)
    pieces = list(chat.stream(QUESTION))
    assert whole.content and "".join(piece.content for piece in pieces) == whole.content
    assert whole.usage_metadata["output_tokens"] == 12
    assert next(p.usage_metadata for p in reversed(pieces) if p.usage_metadata)["output_tokens"] == 12
    assert whole.response_metadata["finish_reason"] == "length"


def models(product: Product, name: str) -> Iterator[Model]:
    """One model by each API that Switchyard speaks."""
    openai = OpenAIProvider(base_url=f"{product.cluster.base_url}/v1", api_key=product.key("acme"))
    yield OpenAIChatModel(name, provider=openai)
    yield OpenAIResponsesModel(name, provider=openai)
    sdk = AsyncAnthropic(base_url=product.cluster.base_url, api_key=product.key("acme"), max_retries=0)
    yield AnthropicModel(name, provider=AnthropicProvider(anthropic_client=sdk))


@pytest.mark.asyncio(loop_scope="session")  # Pydantic AI keeps its connections for all agents of a process
@pytest.mark.parametrize("name", LOCAL_AND_CLOUD)
async def test_pydantic_ai_runs_and_streams_by_every_api(product: Product, name: str) -> None:
    texts = set()
    for model in models(product, name):
        agent = Agent(model, model_settings={"max_tokens": 12, "temperature": 0.0})
        whole = await agent.run(QUESTION)
        async with agent.run_stream(QUESTION) as run:
            streamed = await run.get_output()
        assert whole.usage.output_tokens == run.usage.output_tokens == 12
        texts |= {whole.output, streamed}
    assert len(texts) == 1  # greedy, and the same model behind all of them
