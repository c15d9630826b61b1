"""`CloudModel:<name>`: one provider's adapter and its keys, which no other process holds.

Placed inline the same class runs in each Ingress: no hop, and the keys are in those processes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import SecretStr
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.hop import call, method
from deployments.live_settings import LiveSettings
from deployments.model import InlineModel, model_deployment
from models import gemini
from models.anthropic import AnthropicModel
from models.anthropic_platforms import platform_client
from models.base import Call, ChatModel
from models.cohere import CohereModel
from models.messages import ChatRequest
from models.openai_compatible import OpenAICompatibleModel
from models.openai_embeddings import EmbeddingQuestion, OpenAIEmbeddings, WithEmbeddings
from models.openai_responses import ResponsesModel
from models.provider_health import Watched
from models.providers import Quirks
from models.reliability.stack import ReliableModel
from router.embeddings import Embedders
from router.ports import Embedded
from router.settings import CloudModelSettings
from router.topology import CloudEndpoint

OPENAI_BASE_URL = "https://api.openai.com/v1"
HEALTH_WAIT_S = 1.0
EMBED_TIMEOUT_S = 600.0


class CloudModel(InlineModel):
    """The deployment, or its like in an Ingress. `api_keys` travel as secrets, so that nothing that prints these
    arguments prints them."""

    def __init__(self, endpoint: CloudEndpoint, api_keys: Sequence[SecretStr]) -> None:
        keys: list[str | None] = [key.get_secret_value() for key in api_keys]
        keys = keys or [None]
        self._settings = LiveSettings(CloudModelSettings)
        self._reliable = reliable(endpoint, [adapter(endpoint, key) for key in keys])
        self._watched = Watched(self._reliable)
        super().__init__(self._watched)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        if settings := self._settings.accept(user_config):
            self._reliable.settings = settings.reliability

    async def count_tokens(self, request: ChatRequest, call: Call) -> int | None:
        return await self._reliable.count_tokens(request, call)

    async def embed(self, model: str, texts: Sequence[str], dimensions: int | None) -> tuple[list[bytes], int]:
        """See `OpenAIEmbeddings.embed`; with the keys in turn, retries and breakers that answers have."""
        question = EmbeddingQuestion.of(model, texts, dimensions)
        async with aclosing(self._watched.stream(question, Call("embeddings", timeout_s=EMBED_TIMEOUT_S))) as events:  # type: ignore[type-var]
            async for _ in events:
                pass
        return question.vectors[0]

    async def stats(self) -> dict[str, dict[str, int]]:
        """What the wrappers around the adapter did, for the metrics: see `ReliableModel.stats`."""
        return self._reliable.stats()

    async def provider_health(self) -> dict[str, Any]:
        """How the provider does: see `Watched.health`."""
        return await self._watched.health(HEALTH_WAIT_S)

    async def close(self) -> None:
        """Give the connections back."""
        await self._watched.close()

    async def check_health(self) -> None:
        """This process answers, that is all: a provider that is down or refuses the key is not cured by a new replica,
        and must not keep the rest of the graph from starting."""


@dataclass(frozen=True, slots=True)
class InlineCloud:
    """A provider that each Ingress makes a `CloudModel` of for itself."""

    endpoint: CloudEndpoint
    api_keys: tuple[SecretStr, ...]

    @property
    def backend(self) -> str:
        return f"{CloudModel.__name__}:{self.endpoint.name}"

    def open(self) -> CloudModel:
        return CloudModel(self.endpoint, self.api_keys)


def adapter(endpoint: CloudEndpoint, api_key: str | None) -> ChatModel:
    """The adapter for the dialect that `endpoint` speaks, with one of its keys."""
    entries = {entry.name: entry for entry in endpoint.models}
    match endpoint.dialect:
        case "openai":
            base_url = endpoint.base_url or OPENAI_BASE_URL
            model = OpenAICompatibleModel(entries, base_url, api_key, endpoint.quirks)
            vectors = {entry.name: entry for entry in endpoint.embedding_models}
            if not vectors:
                return model
            return WithEmbeddings(model, OpenAIEmbeddings(vectors, base_url, api_key, endpoint.quirks or Quirks()))
        case "responses":
            return ResponsesModel(entries, api_key, endpoint.base_url, endpoint.quirks)
        case "anthropic" if endpoint.platform:
            client = platform_client(endpoint.platform, endpoint.settings, api_key, endpoint.base_url)
            return AnthropicModel(entries, None, platform=client)
        case "anthropic":
            return AnthropicModel(entries, api_key, endpoint.base_url)
        case "gemini" if endpoint.platform:
            place = endpoint.settings["GOOGLE_CLOUD_PROJECT"], endpoint.settings["GOOGLE_CLOUD_LOCATION"]
            return gemini.vertex(entries, *place, endpoint.base_url)
        case "gemini":
            return gemini.ai_studio(entries, api_key, endpoint.base_url)
        case "cohere":
            return CohereModel(entries, api_key, endpoint.base_url)
    raise ValueError(f"endpoint '{endpoint.name}' has no dialect")


class CloudEmbedder:
    """Fills `router.embeddings.EmbedderPort` for one model; `embed` is `CloudModel.embed`, here or over a hop."""

    def __init__(
        self, embed: Callable[[str, Sequence[str], int | None], Awaitable[tuple[list[bytes], int]]], model: str
    ) -> None:
        self._embed, self._model = embed, model

    async def embed(self, texts: Sequence[str], dimensions: int | None) -> Embedded:
        return Embedded(*await self._embed(self._model, texts, dimensions), self._model)


def cloud_embedders(
    endpoints: Iterable[CloudEndpoint], handles: Mapping[str, DeploymentHandle], inline: Mapping[str, CloudModel]
) -> Embedders:
    """Of the providers that are enabled, by name: those with a deployment, and those placed `inline`."""
    found: Embedders = {}
    for endpoint in endpoints:
        if endpoint.name in inline:
            embed: Any = inline[endpoint.name].embed
        elif endpoint.name in handles:
            embed = partial(call, method(handles[endpoint.name], "embed"))
        else:
            continue
        for entry in endpoint.embedding_models:
            found[entry.name] = (entry, CloudEmbedder(embed, entry.name))
    return found


def _check_embedding(endpoint: CloudEndpoint) -> None:
    if endpoint.embedding_models and endpoint.dialect != "openai":
        raise ValueError(f"provider '{endpoint.name}': only the dialect 'openai' has `embedding_models`; take them out")


def reliable(endpoint: CloudEndpoint, models: Sequence[ChatModel]) -> ReliableModel:
    """`models`, the endpoint with each of its keys, as one that retries, gives up in time and rotates the keys."""
    return ReliableModel(endpoint.name, models, (*endpoint.models, *endpoint.embedding_models))


def cloud_deployment(endpoint: CloudEndpoint, api_keys: Sequence[str]) -> Application:
    """`CloudModel:<name>`. No key: the endpoint needs none. Raises ValueError."""
    _check_embedding(endpoint)
    shell = model_deployment(CloudModel, endpoint.name, endpoint.scale, endpoint.max_concurrency)
    return shell.options(user_config={}).bind(endpoint, [SecretStr(key) for key in api_keys])


def inline_cloud(endpoint: CloudEndpoint, api_keys: Sequence[str]) -> InlineCloud:
    """No key: the endpoint needs none. Raises ValueError."""
    _check_embedding(endpoint)
    return InlineCloud(endpoint, tuple(SecretStr(key) for key in api_keys))
