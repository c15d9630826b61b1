"""`CloudModel:<name>`: one provider's adapter and its keys, which no other process holds.

Placed inline the same class runs in each Ingress: no hop, and the keys are in those processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from ray.serve import Application

from deployments.live_settings import LiveSettings
from deployments.model import InlineModel, model_deployment
from models import gemini
from models.anthropic import AnthropicModel
from models.anthropic_platforms import platform_client
from models.base import Call, ChatModel
from models.cohere import CohereModel
from models.messages import ChatRequest
from models.openai_compatible import OpenAICompatibleModel
from models.provider_health import Watched
from models.reliability.stack import ReliableModel
from router.config import CloudEndpoint, CloudModelSettings

OPENAI_BASE_URL = "https://api.openai.com/v1"
HEALTH_WAIT_S = 1.0


class CloudModel(InlineModel):
    """The deployment, or its like in an Ingress. `api_keys` travel as secrets, so that nothing that prints these
    arguments prints them."""

    def __init__(self, endpoint: CloudEndpoint, api_keys: Sequence[SecretStr]) -> None:
        keys = [key.get_secret_value() for key in api_keys] or [None]
        self._settings = LiveSettings(CloudModelSettings)
        self._reliable = reliable(endpoint, [adapter(endpoint, key) for key in keys])
        self._watched = Watched(self._reliable)
        super().__init__(self._watched)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        if settings := self._settings.accept(user_config):
            self._reliable.settings = settings.reliability

    async def count_tokens(self, request: ChatRequest, call: Call) -> int | None:
        return await self._reliable.count_tokens(request, call)

    async def stats(self) -> dict[str, dict[str, int]]:
        """What the wrappers around the adapter did, for the metrics: see `ReliableModel.stats`."""
        return self._reliable.stats()

    async def provider_health(self) -> dict[str, Any]:
        """How the provider does: see `Watched.health`."""
        return await self._watched.health(HEALTH_WAIT_S)

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
            return OpenAICompatibleModel(entries, base_url, api_key, endpoint.quirks)
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


def reliable(endpoint: CloudEndpoint, models: Sequence[ChatModel]) -> ReliableModel:
    """`models`, the endpoint with each of its keys, as one that retries, gives up in time and rotates the keys."""
    return ReliableModel(endpoint.name, models, endpoint.models)


def cloud_deployment(endpoint: CloudEndpoint, api_keys: Sequence[str]) -> Application:
    """`CloudModel:<name>`. No key: the endpoint needs none."""
    shell = model_deployment(CloudModel, endpoint.name, endpoint.scale, endpoint.max_concurrency)
    return shell.options(user_config={}).bind(endpoint, [SecretStr(key) for key in api_keys])


def inline_cloud(endpoint: CloudEndpoint, api_keys: Sequence[str]) -> InlineCloud:
    """No key: the endpoint needs none."""
    return InlineCloud(endpoint, tuple(SecretStr(key) for key in api_keys))
