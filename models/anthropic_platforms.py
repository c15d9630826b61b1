"""Claude on Amazon Bedrock and on Google's Vertex AI, through the SDK's own clients for them.

Bedrock needs `boto3` (it signs requests and reads AWS' event streams), Vertex `google-auth`: neither comes with
Switchyard, and a provider without its package is not enabled (`router/cloud.py: why_not`).
Source: https://platform.claude.com/docs/en/build-with-claude/claude-on-amazon-bedrock, .../claude-on-vertex-ai.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from models.errors import ModelUnavailable
from models.providers import Platform
from models.upstream import CONNECT_TIMEOUT_S

if TYPE_CHECKING:
    import anthropic

    PlatformClient = anthropic.AsyncAnthropicBedrock | anthropic.AsyncAnthropicVertex


def platform_client(
    platform: Platform, settings: Mapping[str, str], api_key: str | None, base_url: str | None = None
) -> PlatformClient:
    """`settings`: AWS_REGION, or GOOGLE_CLOUD_PROJECT and GOOGLE_CLOUD_LOCATION. Without a key the SDK looks for
    credentials by itself: AWS' chain, Google's application default ones."""
    import anthropic

    common: dict[str, Any] = {
        "base_url": base_url,
        "timeout": anthropic.Timeout(None, connect=CONNECT_TIMEOUT_S),
        "max_retries": 0,
        "open_telemetry": False,
    }
    if platform == "bedrock":
        return anthropic.AsyncAnthropicBedrock(aws_region=settings["AWS_REGION"], api_key=api_key, **common)
    return anthropic.AsyncAnthropicVertex(
        region=settings["GOOGLE_CLOUD_LOCATION"], project_id=settings["GOOGLE_CLOUD_PROJECT"], **common
    )


def no_credentials(error: Exception) -> ModelUnavailable | None:
    """What `error` says where it comes from the search for credentials, else None. Its text is left behind."""
    module = type(error).__module__
    unresolved = isinstance(error, RuntimeError) and str(error).startswith("Could not resolve")
    if not (unresolved or module.startswith(("botocore.", "google.auth."))):
        return None
    return ModelUnavailable(
        "The platform's credentials are missing or refused; the operator should check the key, the login or the role "
        "of the machine that Switchyard runs on."
    )
