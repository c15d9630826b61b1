"""Client stacks that others wrote on top of the official SDKs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.serve.product import Product

if TYPE_CHECKING:  # seconds to import, for every process that only looks which tests there are
    from langchain_openai import ChatOpenAI

LOCAL_AND_CLOUD = ["smoke-small", "smoke-vllm", "gpt", "claude"]
QUESTION = "Name three rivers."


@pytest.fixture(params=LOCAL_AND_CLOUD)
def chat(request: pytest.FixtureRequest, product: Product) -> ChatOpenAI:
    from langchain_openai import ChatOpenAI

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


def test_pydantic_ai_runs_and_streams_by_every_api(product: Product) -> None:
    program = str(Path(__file__).with_name("pydantic_ai_client.py"))
    asked = [product.cluster.base_url, product.key("acme"), QUESTION, *LOCAL_AND_CLOUD]
    done = subprocess.run([sys.executable, program, *asked], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert list(told) == LOCAL_AND_CLOUD
    for name, answers in told.items():
        assert len(answers) == 3 and all(answer["tokens"] == [12, 12] for answer in answers), name
        texts = {text for answer in answers for text in (answer["whole"], answer["streamed"])}
        assert len(texts) == 1, name  # greedy, and the same model behind all of them
