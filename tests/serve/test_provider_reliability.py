"""What is around a provider's adapter, in a running cluster."""

from __future__ import annotations

from tests.serve.product import Product, until

PROVIDER = "CloudModel:anthropic"


def test_the_metrics_of_each_provider_are_with_all_others(product: Product) -> None:
    assert product.chat("Hello", "gpt", max_tokens=4).status_code == 200
    text = product.http().get("/metrics").text
    for model, provider in (("gpt", "loopback"), ("claude", "anthropic")):
        assert f'switchyard_provider_breaker_open{{model="{model}",provider="{provider}"}} 0.0' in text


def test_its_settings_change_without_a_restart(product: Product) -> None:
    replicas = product.replicas(PROVIDER)

    def status() -> int:
        return product.chat(
            "Count as far as you can.", "claude", max_tokens=800, switchyard={"cache": "off"}
        ).status_code

    assert status() == 200
    with product.reconfigured(PROVIDER, reliability={"timeouts": {"total_s": 0.01}}):
        until(lambda: status() == 504)
        assert product.metric("switchyard_provider_timeouts_total", provider="anthropic", limit="total") >= 1
    until(lambda: status() == 200)
    assert product.replicas(PROVIDER) == replicas
