"""Asks a model by every API that Switchyard speaks, whole and streamed, with Pydantic AI; prints what came as JSON.

A program of its own, since Pydantic AI keeps its connections open until its process ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator

from anthropic import AsyncAnthropic
from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


def models(url: str, key: str, name: str) -> Iterator[Model]:
    openai = OpenAIProvider(base_url=f"{url}/v1", api_key=key)
    yield OpenAIChatModel(name, provider=openai)
    yield OpenAIResponsesModel(name, provider=openai)
    sdk = AsyncAnthropic(base_url=url, api_key=key, max_retries=0)
    yield AnthropicModel(name, provider=AnthropicProvider(anthropic_client=sdk))


async def main(url: str, key: str, question: str, names: list[str]) -> None:
    told: dict[str, list[dict[str, object]]] = {}
    for name in names:
        for model in models(url, key, name):
            agent = Agent(model, model_settings={"max_tokens": 12, "temperature": 0.0})
            whole = await agent.run(question)
            async with agent.run_stream(question) as run:
                streamed = await run.get_output()
            tokens = [whole.usage.output_tokens, run.usage.output_tokens]
            told.setdefault(name, []).append({"whole": whole.output, "streamed": streamed, "tokens": tokens})
    print(json.dumps(told))


if __name__ == "__main__":
    address, secret, asked, *served = sys.argv[1:]
    asyncio.run(main(address, secret, asked, served))
