"""The providers that Switchyard knows by name. A vendor is data: its address, where its key comes from, its quirks.

A provider whose dialect is known and that is not here is an endpoint in the configuration (`cloud` of Topology).
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.catalog import Engine
from models.tool_call_ids import MISTRALS, OPENAIS

Dialect = Literal["openai", "responses", "anthropic", "gemini", "cohere"]
Platform = Literal["bedrock", "vertex"]
Package = tuple[str, str]
"""A module to be there, and what to install where it is not."""

ENGINES: dict[Dialect, Engine] = {
    "openai": "openai_compatible",
    "responses": "openai_responses",
    "anthropic": "anthropic",
    "gemini": "gemini",
    "cohere": "cohere",
}


class Quirks(BaseModel):
    """Where an endpoint deviates from OpenAI's chat completions.

    max_tokens_field: OpenAI's reasoning models only know the newer name, most other servers only the older one.
    key_header: the header that has the key, as `Bearer` in `authorization` and bare in any other.
    reasoning_field: where an assistant's message has what it thought before; None: the endpoint refuses it or has no
        use for it, so it is left out.
    no_thinking: how it is told not to think: `reasoning_effort: none`, or `thinking: {type: disabled}`.
    tool_call_ids: a regular expression that matches the ids of tool calls which it takes; others, made by another
        provider, are exchanged for ids of nine letters and digits (`models/tool_call_ids.py`). None: it takes all.
    prefix_salt: it takes vLLM's `cache_salt`, by which its prefix cache keeps tenants apart (`models/prefix_salt.py`).
    leaves_out: what the endpoint refuses, and what changes no answer when it is left out.
    knows: what it has beyond the others, and what changes no answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seed_field: Literal["seed", "random_seed"] = "seed"
    key_header: Literal["authorization", "api-key", "x-api-key"] = "authorization"
    reasoning_field: Literal["reasoning_content", "reasoning"] | None = None
    no_thinking: Literal["reasoning_effort", "thinking"] = "reasoning_effort"
    tool_call_ids: re.Pattern[str] | None = None
    prefix_salt: bool = False
    leaves_out: tuple[Literal["stream_options", "user", "name"], ...] = ()
    knows: tuple[Literal["prompt_cache_key", "safety_identifier"], ...] = ()
    query: dict[str, str] = Field({}, description="parameters of every address, such as api-version")
    headers: dict[str, str] = Field({}, description="of every request; no place for a key: they are printed")


class Provider(BaseModel):
    """One vendor.

    base_url: `{NAME}` in it stands for the environment variable NAME. None: whoever configures it says where it is.
    key_variables: the first that is set counts. Empty: it takes no key, so a line in the configuration enables it.
    auto: a key in the environment is enough. Not for those whose key or credentials are often there for another
        purpose, nor where the account decides which models there are: they need a line in the configuration.
    ambient: without a key the platform's SDK finds credentials by itself (an instance's role, a login's).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dialect: Dialect
    platform: Platform | None = None
    base_url: str | None = None
    key_variables: tuple[str, ...] = ()
    settings: dict[str, str] = Field({}, description="environment variable -> what it says; all of them are needed")
    packages: tuple[Package, ...] = ()
    quirks: Quirks = Quirks()
    auto: bool = True
    ambient: bool = False
    note: str = ""


_NEWER = Quirks(max_tokens_field="max_completion_tokens")
_OPENAI = Quirks(max_tokens_field="max_completion_tokens", tool_call_ids=OPENAIS)
_ANTHROPIC: Package = ("anthropic", "pip install 'switchyard[cloud]'")
_VERTEX_SETTINGS = {
    "GOOGLE_CLOUD_PROJECT": "the project's id",
    "GOOGLE_CLOUD_LOCATION": "a region, or global",
}

PROVIDERS: tuple[Provider, ...] = (
    Provider(
        name="openai",
        dialect="openai",
        base_url="https://api.openai.com/v1",
        key_variables=("OPENAI_API_KEY",),
        quirks=_OPENAI.model_copy(update={"knows": ("prompt_cache_key", "safety_identifier")}),
    ),
    Provider(
        name="anthropic",
        dialect="anthropic",
        base_url="https://api.anthropic.com",
        key_variables=("ANTHROPIC_API_KEY",),
        packages=(_ANTHROPIC,),
    ),
    Provider(
        name="gemini",
        dialect="gemini",
        base_url="https://generativelanguage.googleapis.com/v1beta",
        key_variables=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    ),
    Provider(
        name="mistral",
        dialect="openai",
        base_url="https://api.mistral.ai/v1",
        key_variables=("MISTRAL_API_KEY",),
        # It answers 422 to any field that it does not know, and a stream has its usage unasked.
        quirks=Quirks(seed_field="random_seed", leaves_out=("stream_options", "user", "name"), tool_call_ids=MISTRALS),
    ),
    Provider(
        name="deepseek",
        dialect="openai",
        base_url="https://api.deepseek.com/v1",
        key_variables=("DEEPSEEK_API_KEY",),
        quirks=Quirks(reasoning_field="reasoning_content", no_thinking="thinking"),
    ),
    Provider(
        name="cohere",
        dialect="cohere",
        base_url="https://api.cohere.com/v2",
        key_variables=("COHERE_API_KEY", "CO_API_KEY"),
    ),
    Provider(
        name="groq",
        dialect="openai",
        base_url="https://api.groq.com/openai/v1",
        key_variables=("GROQ_API_KEY",),
        quirks=_NEWER,
    ),
    Provider(
        name="cerebras",
        dialect="openai",
        base_url="https://api.cerebras.ai/v1",
        key_variables=("CEREBRAS_API_KEY",),
        quirks=_NEWER,
    ),
    Provider(
        name="together",
        dialect="openai",
        base_url="https://api.together.xyz/v1",
        key_variables=("TOGETHER_API_KEY",),
    ),
    Provider(
        name="fireworks",
        dialect="openai",
        base_url="https://api.fireworks.ai/inference/v1",
        key_variables=("FIREWORKS_API_KEY",),
    ),
    Provider(
        name="openrouter",
        dialect="openai",
        base_url="https://openrouter.ai/api/v1",
        key_variables=("OPENROUTER_API_KEY",),
        # It hands ids on to whom it asks: what both OpenAI and Anthropic take.
        quirks=Quirks(reasoning_field="reasoning", tool_call_ids=re.compile(r"[a-zA-Z0-9_-]{1,40}")),
    ),
    Provider(
        name="huggingface",
        dialect="openai",
        base_url="https://router.huggingface.co/v1",
        key_variables=("HF_TOKEN",),
        auto=False,
        note="HF_TOKEN is often there to download weights",
    ),
    Provider(
        name="azure",
        dialect="openai",
        base_url="{AZURE_OPENAI_ENDPOINT}/openai/v1",
        key_variables=("AZURE_OPENAI_API_KEY",),
        settings={"AZURE_OPENAI_ENDPOINT": "such as https://NAME.openai.azure.com"},
        quirks=_OPENAI.model_copy(update={"key_header": "api-key"}),
        auto=False,
        note="which deployments there are is the account's choice: name them with `only`, or list them as `models`",
    ),
    Provider(
        name="bedrock",
        dialect="anthropic",
        platform="bedrock",
        key_variables=("AWS_BEARER_TOKEN_BEDROCK",),
        settings={"AWS_REGION": "such as us-east-1"},
        packages=(_ANTHROPIC, ("boto3", "pip install boto3")),
        ambient=True,
    ),
    Provider(
        name="vertex-claude",
        dialect="anthropic",
        platform="vertex",
        settings=_VERTEX_SETTINGS,
        packages=(_ANTHROPIC, ("google.auth.transport.requests", "pip install google-auth requests")),
        auto=False,
        ambient=True,
        note="Google's application default credentials are often there for another purpose",
    ),
    Provider(
        name="vertex-gemini",
        dialect="gemini",
        platform="vertex",
        settings=_VERTEX_SETTINGS,
        packages=(("google.auth.transport.requests", "pip install google-auth requests"),),
        auto=False,
        ambient=True,
        note="Google's application default credentials are often there for another purpose",
    ),
    Provider(
        name="ollama",
        dialect="openai",
        base_url="http://127.0.0.1:11434/v1",
        auto=False,
        note="list as `models` what it has pulled",
    ),
    Provider(
        name="vllm",
        dialect="openai",
        quirks=Quirks(reasoning_field="reasoning", prefix_salt=True),
        auto=False,
        note="say where it is with `base_url`, and list as `models` what it serves",
    ),
)


def known_provider(name: str) -> Provider | None:
    return next((provider for provider in PROVIDERS if provider.name == name), None)
