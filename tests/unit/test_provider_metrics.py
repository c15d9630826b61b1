from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deployments import provider_metrics
from deployments.provider_metrics import ProviderMetrics
from models.catalog import ModelEntry
from models.errors import UpstreamFailed
from models.reliability.settings import ReliabilitySettings, RetrySettings
from models.reliability.stack import ReliableModel
from models.reliability.tally import COUNTS
from tests.unit.models.reliability.scripted import GOOD, Scripted, collect
from tests.unit.test_metrics import samples

ENTRIES = [ModelEntry(name="m", engine="openai_compatible", context_tokens=100)]


class Replicas:
    """Stands in for a handle: Serve is the border. `said` is what each replica answers, or what the call raises."""

    deployment_name = "CloudModel:acme"

    def __init__(self, said: Any, asked: str = "stats") -> None:
        self._said = said
        self._asked = asked

    def broadcast(self, name: str) -> Replicas:
        assert name == self._asked
        return self

    async def results_async(self, timeout_s: float, return_exceptions: bool) -> Any:
        if self._said is None:
            await asyncio.wait_for(asyncio.Event().wait(), timeout_s)
        if isinstance(self._said, Exception):
            raise self._said
        return self._said


async def worked(keys: int) -> dict[str, dict[str, int]]:
    models = [Scripted([(UpstreamFailed("down"),), GOOD]) for _ in range(keys)]
    settings = ReliabilitySettings(retries=RetrySettings(base_s=0.001))
    model = ReliableModel("acme", models, ENTRIES, settings)
    await collect(model)
    return model.stats()


async def test_what_the_replicas_of_a_provider_say_is_summed() -> None:
    replicas = Replicas([await worked(2), await worked(2), ValueError("a replica that goes")])
    found = samples(await ProviderMetrics({"acme": replicas, "other": Replicas([await worked(1)])}).text())
    model = "[('model', 'm'), ('provider', '{}')]"
    assert found["switchyard_provider_retries_total" + model.format("acme")] >= 2
    assert found["switchyard_provider_breaker_open" + model.format("acme")] == 0
    assert found["switchyard_provider_keys_resting[('provider', 'acme')]"] == 0
    assert "switchyard_provider_keys_resting[('provider', 'other')]" not in found


async def test_what_the_doors_say_of_the_providers_in_them_is_summed() -> None:
    doors = Replicas([{"near": await worked(2)}, {"near": await worked(2)}], "inline_stats")
    found = samples(await ProviderMetrics({"far": Replicas([await worked(2)])}, lambda: doors).text())
    name = "switchyard_provider_retries_total[('model', 'm'), ('provider', '{}')]"
    assert found[name.format("near")] == 2 * found[name.format("far")] > 0


async def test_a_provider_that_hangs_or_has_no_replica_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_metrics, "ASK_TIMEOUT_S", 0.02)
    assert samples(await ProviderMetrics({"a": Replicas(None), "b": Replicas(RuntimeError())}).text()) == {}


def test_every_count_of_the_wrappers_is_shown() -> None:
    assert set(COUNTS) == provider_metrics._COUNTERS.keys()
