"""Providers of a running cluster: which are enabled, and how they do."""

from __future__ import annotations

from typing import Any

import httpx

from tests.serve.product import Product, until


def providers(product: Product) -> dict[str, Any]:
    listed = product.http().get("/v1/providers").json()["data"]
    return {provider["name"]: provider for provider in listed}


def test_enabled_providers_are_looked_at_where_their_keys_are(product: Product) -> None:
    until(
        lambda: {providers(product)[name]["health"]["state"] for name in ("anthropic", "loopback")} == {"healthy"}, 20
    )
    found = providers(product)
    assert found["anthropic"]["key_variable"] == "ANTHROPIC_API_KEY"
    assert (found["anthropic"]["models"], found["loopback"]["models"]) == (["claude"], ["gpt"])
    assert found["anthropic"]["health"]["checked_at"].endswith("+00:00")
    assert found["anthropic"]["health"]["last_error_code"] is None


def test_the_others_say_why_not(product: Product) -> None:
    found = providers(product)
    assert found["without-a-key"] == {
        "name": "without-a-key",
        "enabled": False,
        "why_not": "NOBODY_HAS_THIS_API_KEY is not set",
        "key_variable": "NOBODY_HAS_THIS_API_KEY",
        "models": ["never"],
        "health": None,
    }
    assert "cloud: [{provider: groq}]" in found["groq"]["why_not"]


def test_no_key_is_shown_and_one_is_needed(product: Product) -> None:
    answer = product.http().get("/v1/providers")
    assert answer.status_code == 200 and "sk-ant-of-the-tests" not in answer.text
    assert httpx.get(f"{product.cluster.base_url}/v1/providers").status_code == 401
