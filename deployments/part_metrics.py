"""Prometheus metrics of the control plane: what its deployments count, asked for when somebody looks.

Labels are bounded: backends and cache shards come from the configuration, all else from fixed sets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from ray.serve.handle import DeploymentHandle

from deployments.hop import call, method
from deployments.metrics import exposition
from models.errors import SwitchyardError
from router.admission import BackendLoad
from router.exact_cache import ExactCacheStats
from router.pipeline import Pipeline

PART_TIMEOUT_S = 1.0
NO_NODES: Mapping[str, float] = {}

_CACHE_COUNTERS = {
    "hits_exact": ("exact_hits", "Very same questions answered"),
    "hits_semantic": ("semantic_hits", "Similar questions answered"),
    "hits_surface": ("spelling_hits", "Questions answered that were asked in another spelling"),
    "misses": ("misses", "Questions without an answer"),
    "claimed": ("coalesced_misses", "Questions that another ingress was having answered already"),
    "audits": ("audits", "Similar hits that the model was asked anyway"),
    "audit_microusd": ("audit_microusd", "What the model's answers to these cost, in millionths of a US dollar"),
    "audited": ("audited_hits", "Audits whose two answers could be compared"),
    "compared": ("compared_answers", "Answers compared with the one that could have been given instead"),
    "other_answers": ("other_answers", "Of these, those that were not the same"),
    "retreats": ("retreats", "Times a tenant's threshold was raised since too much was wrong"),
    "audits_lost": ("lost_audits", "Comparisons given up since too many waited"),
    "stores": ("stores", "Answers kept"),
    "refused": ("refused_stores", "Answers not kept: incomplete or too large"),
    "evicted": ("evictions", "Answers that had to go for others"),
    "expired": ("expirations", "Answers that outlived their time"),
    "invalidated": ("invalidations", "Answers that somebody had forgotten"),
    "disliked": ("disliked", "Answers that had to go since callers said that they were bad"),
    "restored": ("restored", "Answers read from disk or from the outside store after a start"),
    "log_dropped": ("log_drops", "Answers not written to disk or to the outside store since too many waited for it"),
    "log_torn": ("torn_logs", "Ends of logs, and answers in the outside store, that could not be read"),
    "encoded": ("encoded_texts", "Texts that went into the encoder"),
    "batches": ("encoder_batches", "Batches that the encoder ran"),
    "not_encodable": ("not_encodable_texts", "Texts without an embedding: too long or not valid"),
}
_CACHE_GAUGES = {
    "entries": ("entries", "Answers held"),
    "tenants": ("tenants", "Tenants with answers"),
    "used_bytes": ("bytes", "Memory of the answers and their indexes"),
    "index_bytes": ("index_bytes", "Of these, the vectors and what they are found by"),
    "vectors": ("vectors", "Answers that are found by meaning"),
    "log_bytes": ("log_bytes", "Answers on disk, with those that are out of date"),
    "wrong_at_most": ("wrong_per_request_at_most", "Largest of the bounds that hold with 95 %; 1: there is none yet"),
    "unbounded": (
        "tenants_without_bound",
        "Tenants and namespaces that the verifier saw, without a bound yet",
    ),
}
_LEDGER_COUNTERS = {
    "records": ("records", "Records taken in"),
    "torn": ("torn_lines", "Journal lines that a crash cut short"),
    "rejected": ("rejected_records", "Records set aside since they are none"),
    "abandoned": ("abandoned_requests", "Requests closed for processes that died"),
    "waits_refused": ("refused_waits", "Receipts not waited for since too many others were"),
    "reads_refused": ("refused_reads", "Receipts and sums refused since too many others waited"),
    "alerts_sent": ("alerts_sent", "Alerts that a channel took"),
    "alerts_failed": ("alerts_failed", "Alerts that no attempt could deliver to their channel"),
}
_ARCHIVE_COUNTERS = {
    "responses_evicted": ("evicted_responses", "Stored responses that had to go for others"),
    "lines_answered": ("batch_lines_answered", "Lines of batches that have an answer"),
    "lines_failed": ("batch_lines_failed", "Lines of batches that ended with an error"),
}
_BATCHER_GAUGES = {
    "replicas": "Replicas that run",
    "capacity": "Requests that may run now",
    "running": "Requests with a place",
    "queued": "Requests that wait for a place",
}


class PartMetrics:
    """Asks each part once; one that does not answer in time is left out, and its `switchyard_part_up` is 0."""

    def __init__(
        self,
        batcher: DeploymentHandle,
        ledger: DeploymentHandle,
        caches: Sequence[DeploymentHandle],
        archive: DeploymentHandle | None = None,
    ) -> None:
        self._methods = {
            "Batcher": method(batcher, "snapshot"),
            "Ledger": method(ledger, "counts"),
        }
        if archive is not None:
            self._methods["Archive"] = method(archive, "counts")
        self._shards = {shard.deployment_name: method(shard, "stats") for shard in caches}

    async def text(
        self, node_microusd_per_hour: Mapping[str, float] = NO_NODES, node_factors: Mapping[str, float] = NO_NODES
    ) -> str:
        """In Prometheus' text format, after `PART_TIMEOUT_S` at most. node_microusd_per_hour: of a replica of each
        backend. node_factors: on the price of its tokens, by model."""
        methods = {**self._methods, **self._shards}
        answers = dict(zip(methods, await asyncio.gather(*map(_asked, methods.values())), strict=True))
        shards = {name: answers[name] for name in self._shards if answers[name] is not None}
        families = [
            *_up({name: answer is not None for name, answer in answers.items()}),
            *batcher_families(answers["Batcher"] or {}),
            _gauge("node_microusd_per_hour", "What a replica's node costs", "backend", node_microusd_per_hour),
            _gauge("node_cost_factor", "Measured over listed cost of a local token", "model", node_factors),
            *ledger_families(answers["Ledger"] or {}),
            *archive_families(answers.get("Archive") or {}),
            *cache_families(shards),
        ]
        return exposition(family for family in families if family.samples)


def batcher_families(loads: Mapping[str, BackendLoad]) -> Iterator[Metric]:
    for name, what in _BATCHER_GAUGES.items():
        yield _gauge(f"batcher_{name}", what, "backend", {b: getattr(load, name) for b, load in loads.items()})
    waits = {backend: load.oldest_wait_s for backend, load in loads.items()}
    yield _gauge("batcher_oldest_wait_seconds", "How long the first in the queue has waited", "backend", waits)
    grants = {backend: load.grants for backend, load in loads.items()}
    yield _counter("batcher_grants", "Places given", "backend", grants)
    up = {backend: load.replica_s for backend, load in loads.items()}
    yield _counter("batcher_replica_seconds", "Replicas times seconds", "backend", up)
    busy = {backend: load.busy_s for backend, load in loads.items()}
    yield _counter("batcher_busy_replica_seconds", "Of these, with a request to work on", "backend", busy)
    expired = {backend: load.expired_leases for backend, load in loads.items()}
    yield _counter("batcher_expired_leases", "Places taken back from holders that are gone", "backend", expired)
    refusals = CounterMetricFamily(
        "switchyard_batcher_refusals", "Requests that got no place", labels=("backend", "reason")
    )
    for backend, load in loads.items():
        for reason, count in load.refusals.items():
            refusals.add_metric((backend, reason), count)
    yield refusals


def ledger_families(counts: Mapping[str, int]) -> Iterator[Metric]:
    for key, (name, what) in _LEDGER_COUNTERS.items():
        if key in counts:
            yield CounterMetricFamily(f"switchyard_ledger_{name}", what, value=counts[key])


def archive_families(counts: Mapping[str, int]) -> Iterator[Metric]:
    for key, (name, what) in _ARCHIVE_COUNTERS.items():
        if key in counts:
            yield CounterMetricFamily(f"switchyard_archive_{name}", what, value=counts[key])


def cache_families(shards: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
    """`shards`: what `SemanticCache.stats` says, by shard."""
    for key, (name, what) in _CACHE_COUNTERS.items():
        yield _counter(f"semantic_cache_{name}", what, "shard", {shard: stats[key] for shard, stats in shards.items()})
    for key, (name, what) in _CACHE_GAUGES.items():
        yield _gauge(f"semantic_cache_{name}", what, "shard", {shard: stats[key] for shard, stats in shards.items()})
    vetoes = CounterMetricFamily(
        "switchyard_semantic_cache_vetoes", "Similar questions that a veto kept apart", labels=("shard", "veto")
    )
    for shard, stats in shards.items():
        for key, count in stats.items():
            if key.startswith("veto_"):
                vetoes.add_metric((shard, key.removeprefix("veto_")), count)
    yield vetoes


def ingress_families(
    open_requests: int, exact: ExactCacheStats, unshipped_bytes: int, dropped: int, failed: int, settings_rejected: int
) -> Iterator[Metric]:
    """What one ingress holds, and what it counts of its answers on their way to the shared cache."""
    yield GaugeMetricFamily("switchyard_open_requests", "Requests under way", value=open_requests)
    yield GaugeMetricFamily("switchyard_exact_cache_bytes", "Size of the exact cache", value=exact.used_bytes)
    what = "Records the ledger has not taken yet"
    yield GaugeMetricFamily("switchyard_journal_unshipped_bytes", what, value=unshipped_bytes)
    what = "Answers that had to go from the exact cache"
    yield CounterMetricFamily("switchyard_exact_cache_evicted", what, value=exact.evicted)
    what = "Answers that outlived their time in the exact cache"
    yield CounterMetricFamily("switchyard_exact_cache_expired", what, value=exact.expired)
    what = "Answers that the exact cache did not keep: incomplete, too large, or it is off"
    yield CounterMetricFamily("switchyard_exact_cache_refused", what, value=exact.refused)
    what = "New settings that were wrong, so that the old ones stayed in force"
    yield CounterMetricFamily("switchyard_settings_rejected", what, value=settings_rejected)
    what = "Answers not sent to the shared cache since too many were on their way"
    yield CounterMetricFamily("switchyard_semantic_cache_stores_dropped", what, value=dropped)
    what = "Answers that did not reach the shared cache"
    yield CounterMetricFamily("switchyard_semantic_cache_stores_failed", what, value=failed)


def router_families(pipeline: Pipeline) -> Iterator[Metric]:
    """What the choice of models remembers in one ingress, and had to forget; and its shadow traffic."""
    held, evicted = pipeline.remembered()
    yield _gauge("remembered", "What the choice of models goes by: entries held", "what", held)
    yield _counter("remembered_evicted", "Entries that had to go, the longest unused first", "what", evicted)
    shadows = {"asked": pipeline.shadows.asked, "left_out": pipeline.shadows.left_out}
    yield _counter("shadows", "Copies of requests to shadows: asked, or left out for want of room", "outcome", shadows)


def lost_responses(lost: int) -> Metric:
    """What one ingress could not store."""
    return CounterMetricFamily("switchyard_responses_lost", "Responses that could not be stored", value=lost)


def _up(parts: Mapping[str, bool]) -> Iterator[Metric]:
    yield _gauge("part_up", "Whether a part of the control plane answered just now", "part", parts)


def _gauge(name: str, what: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"switchyard_{name}", what, labels=(label,))
    for value, number in values.items():
        family.add_metric((value,), float(number))
    return family


def _counter(name: str, what: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"switchyard_{name}", what, labels=(label,))
    for value, number in values.items():
        family.add_metric((value,), float(number))
    return family


async def _asked(method: DeploymentHandle) -> Any:
    """What a part says, None when it says nothing."""
    try:
        async with asyncio.timeout(PART_TIMEOUT_S):
            return await call(method)
    except (SwitchyardError, TimeoutError):
        return None
