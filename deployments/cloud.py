"""`CloudModel:<name>`: one provider's adapter and its key, which no other process holds."""

from __future__ import annotations

from pydantic import SecretStr
from ray.serve import Application

from deployments.model import InlineModel, model_deployment
from models.anthropic import AnthropicModel
from models.base import ChatModel
from models.openai_compatible import OpenAICompatibleModel
from router.config import CloudEndpoint

OPENAI_BASE_URL = "https://api.openai.com/v1"


class CloudModel(InlineModel):
    """The deployment. `api_key` travels as a secret, so that nothing that prints these arguments prints it."""

    def __init__(self, endpoint: CloudEndpoint, api_key: SecretStr | None) -> None:
        super().__init__(adapter(endpoint, api_key.get_secret_value() if api_key else None))

    async def check_health(self) -> None:
        """This process answers, that is all: a provider that is down or refuses the key is not cured by a new replica,
        and must not keep the rest of the graph from starting."""


def adapter(endpoint: CloudEndpoint, api_key: str | None) -> ChatModel:
    """The adapter for the dialect that `endpoint` speaks."""
    entries = {entry.name: entry for entry in endpoint.models}
    match endpoint.dialect:
        case "openai":
            return OpenAICompatibleModel(entries, endpoint.base_url or OPENAI_BASE_URL, api_key)
        case "anthropic":
            return AnthropicModel(entries, api_key, endpoint.base_url)


def cloud_deployment(endpoint: CloudEndpoint, api_key: str | None) -> Application:
    """`CloudModel:<name>`. `api_key` None: the endpoint needs none."""
    shell = model_deployment(CloudModel, endpoint.name, endpoint.scale, endpoint.max_concurrency)
    return shell.bind(endpoint, SecretStr(api_key) if api_key else None)
