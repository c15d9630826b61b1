"""Prometheus metrics of what the wrappers around each provider did: retries, breakers, hedges, keys.

Labels are bounded: providers and models come from the configuration, all else from fixed sets. A key is never a label.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from ray.serve.handle import DeploymentHandle

from deployments.hop import ask_all
from deployments.metrics import exposition

ASK_TIMEOUT_S = 1.0

Stats = Mapping[str, Mapping[str, int]]
"""What `ReliableModel.stats` says: numbers by name and label."""

_COUNTERS = {
    "retries": ("model", "Further attempts after a failure that passes"),
    "retries_over_budget": ("model", "Retries and hedges not made since the retry budget was spent"),
    "timeouts": ("limit", "Attempts given up: no first event, a stall, or the whole time"),
    "breaker_opened": ("model", "Times that a circuit breaker opened"),
    "breaker_refused": ("model", "Attempts not made since the breaker was open"),
    "hedges": ("model", "Second attempts beside a slow first one"),
    "hedges_won": ("model", "Second attempts that answered first"),
    "key_rests": ("reason", "Times that a key was set aside"),
    "usage_replaced": ("model", "Counts of a provider that could not be, with an estimate in their place"),
}
_BREAKER = "Replicas whose circuit breaker for the model is open or half-open"
_KEYS = "Keys set aside just now, over all replicas"


class ProviderMetrics:
    """Asks all replicas of each provider's deployment; one that does not answer in time is left out, and none is
    started for it.

    doors: gives the handle of the Ingress, whose replicas are asked for `inline_stats`; None: no provider is inline.
    """

    def __init__(
        self, providers: Mapping[str, DeploymentHandle], doors: Callable[[], DeploymentHandle] | None = None
    ) -> None:
        self._providers = dict(providers)
        self._doors = doors

    async def text(self) -> str:
        """In Prometheus' text format, after `ASK_TIMEOUT_S` at most."""
        inline, *answers = await asyncio.gather(
            self._inline(), *(ask_all(handle, "stats", timeout_s=ASK_TIMEOUT_S) for handle in self._providers.values())
        )
        families = provider_families({**dict(zip(self._providers, answers, strict=True)), **inline})
        return exposition(family for family in families if family.samples)

    async def _inline(self) -> dict[str, list[Stats]]:
        found: dict[str, list[Stats]] = {}
        doors = await ask_all(self._doors(), "inline_stats", timeout_s=ASK_TIMEOUT_S) if self._doors else ()
        for replica in doors:
            for provider, stats in replica.items():
                found.setdefault(provider, []).append(stats)
        return found


def provider_families(stats: Mapping[str, Sequence[Stats]]) -> Iterator[Metric]:
    """`stats`: what each replica says, by provider."""
    for key, (label, what) in _COUNTERS.items():
        counter = CounterMetricFamily(f"switchyard_provider_{key}", what, labels=("provider", label))
        yield _filled(counter, key, stats)
    breaker = GaugeMetricFamily("switchyard_provider_breaker_open", _BREAKER, labels=("provider", "model"))
    yield _filled(breaker, "breaker_open", stats)
    keys = GaugeMetricFamily("switchyard_provider_keys_resting", _KEYS, labels=("provider",))
    for provider, replicas in stats.items():
        if resting := [number for each in replicas for number in each.get("keys_resting", {}).values()]:
            keys.add_metric((provider,), sum(resting))
    yield keys


def _filled(family: Any, key: str, stats: Mapping[str, Sequence[Stats]]) -> Metric:
    for provider, replicas in stats.items():
        total = Counter[str]()
        for replica in replicas:
            total.update(replica.get(key, {}))
        for label, number in total.items():
            family.add_metric((provider, label), number)
    return family
