from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import pytest

from deployments import part_metrics
from deployments.metrics import exposition, summed
from deployments.part_metrics import PartMetrics, ingress_families, router_families
from models.errors import Overloaded, RateLimited
from router.accounting.books import Counts
from router.admission import Admission
from router.exact_cache import ExactCacheStats
from router.experience import Experience
from router.fingerprint import partition
from router.ports import CacheKey, Ticket
from router.semantic_cache import SemanticStore
from router.settings import BatcherSettings, CacheSettings
from router.verifier import Judgement
from tests.unit.test_cache import answer, unit
from tests.unit.test_metrics import samples
from tests.unit.test_pipeline import make_world


class Part:
    """Stands in for a handle: Serve is the border. `said` is what the part answers, or raises."""

    def __init__(self, name: str, said: Any) -> None:
        self.deployment_name, self._said = name, said
        self.asked = 0

    def options(self, **_: Any) -> Part:
        return self

    def remote(self) -> Part:
        self.asked += 1
        return self

    def cancel(self) -> None: ...

    def __await__(self):
        return self._answer().__await__()

    async def _answer(self) -> Any:
        if self._said is None:
            await asyncio.Event().wait()
        if isinstance(self._said, Exception):
            raise self._said
        return self._said


async def loads() -> Any:
    core = Admission({"m": 2}, BatcherSettings(max_queue=8, max_queue_per_tenant=1))
    for lease in "ab":
        await core.admit(Ticket("r", "m", "t"), lease)
    waiting = asyncio.create_task(core.admit(Ticket("r", "m", "t"), "c"))
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await core.admit(Ticket("r", "m", "t"), "d")
    snapshot = core.snapshot()
    waiting.cancel()
    return snapshot


TENANT = partition("t", "")


NOT_ENCODED = {"encoded": 0, "batches": 0, "not_encodable": 0}


def cache_stats() -> dict[str, float]:
    store = SemanticStore(CacheSettings(audit=0), lambda: 1_000_000.0)
    vector = unit(1).tobytes()
    store.store(CacheKey(TENANT, "1", "s", "Add 2 and 3"), answer(), vector)
    store.lookup(CacheKey(TENANT, "1"))
    store.lookup(CacheKey(TENANT, "2", "s", "Add 2 and 4"), vector)
    return store.stats() | NOT_ENCODED


async def test_each_part_is_asked_once_and_its_counts_are_shown() -> None:
    stats = cache_stats()
    parts = [Part("Batcher", await loads()), Part("Ledger", asdict(Counts(records=5, torn=1, rejected=2)))]
    shards = [Part("SemanticCache:0", stats), Part("SemanticCache:1", stats)]
    found = samples(await PartMetrics(*parts, shards).text({"m": 500_000.0}, {"model": 1.25}))
    assert [part.asked for part in (*parts, *shards)] == [1, 1, 1, 1]
    backend, shard = "[('backend', 'm')]", "[('shard', 'SemanticCache:1')]"
    assert {
        f"switchyard_batcher_running{backend}": 2,
        f"switchyard_batcher_queued{backend}": 1,
        f"switchyard_batcher_capacity{backend}": 2,
        f"switchyard_batcher_grants_total{backend}": 2,
        f"switchyard_batcher_replica_seconds_total{backend}": 0,
        f"switchyard_batcher_busy_replica_seconds_total{backend}": 0,
        f"switchyard_node_microusd_per_hour{backend}": 500_000,
        "switchyard_node_cost_factor[('model', 'model')]": 1.25,
        "switchyard_batcher_refusals_total[('backend', 'm'), ('reason', 'tenant_share')]": 1,
        "switchyard_ledger_records_total[]": 5,
        "switchyard_ledger_torn_lines_total[]": 1,
        "switchyard_ledger_rejected_records_total[]": 2,
        f"switchyard_semantic_cache_exact_hits_total{shard}": 1,
        f"switchyard_semantic_cache_misses_total{shard}": 1,
        f"switchyard_semantic_cache_evictions_total{shard}": 0,
        f"switchyard_semantic_cache_entries{shard}": 1,
        f"switchyard_semantic_cache_bytes{shard}": stats["used_bytes"],
        "switchyard_semantic_cache_vetoes_total[('shard', 'SemanticCache:1'), ('veto', 'number')]": 1,
        "switchyard_part_up[('part', 'Ledger')]": 1,
        "switchyard_part_up[('part', 'SemanticCache:0')]": 1,
    }.items() <= found.items()
    assert found[f"switchyard_batcher_oldest_wait_seconds{backend}"] >= 0


async def test_every_count_of_the_books_and_of_the_cache_is_shown() -> None:
    counts, stats = asdict(Counts()), cache_stats()
    assert counts.keys() == part_metrics._LEDGER_COUNTERS.keys()
    shown = part_metrics._CACHE_COUNTERS.keys() | part_metrics._CACHE_GAUGES.keys()
    assert {name for name in stats if not name.startswith("veto_")} == shown


async def test_the_largest_bound_and_what_audits_cost_are_shown_of_each_shard_without_a_tenant() -> None:
    store = SemanticStore(
        CacheSettings(audit=1.0), lambda: 1.0, judge=lambda text, near: [Judgement(0.9) for _ in near]
    )
    asked = [CacheKey(TENANT, str(number), "s", f"text {number}") for number in range(3)]
    store.store(asked[0], answer(), unit(1).tobytes())
    for each in asked[1:]:
        assert store.lookup(each, unit(1).tobytes()).kind == "miss"
    store.store(asked[1], answer(), unit(1).tobytes())  # the other one's model is still at it
    for _ in range(400):
        store._audits.served("hooli", None)
    bound = store._audits.stats("hooli")["wrong_per_request_at_most"]
    text = await PartMetrics(Part("Batcher", {}), Part("Ledger", {}), [Part("S", store.stats() | NOT_ENCODED)]).text()
    found, shard = samples(text), "[('shard', 'S')]"
    assert {
        f"switchyard_semantic_cache_audits_total{shard}": 2,
        f"switchyard_semantic_cache_audited_hits_total{shard}": 1,
        f"switchyard_semantic_cache_audit_microusd_total{shard}": 7,
        f"switchyard_semantic_cache_tenants_without_bound{shard}": 1,
    }.items() <= found.items()
    assert found[f"switchyard_semantic_cache_wrong_per_request_at_most{shard}"] == bound < 0.1
    assert store.audit(TENANT).items() >= {"audits": 2, "audit_cost_microusd": 7}.items()
    assert "hooli" not in text and TENANT not in text


async def test_a_part_that_hangs_or_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_metrics, "PART_TIMEOUT_S", 0.02)
    text = await PartMetrics(
        Part("Batcher", None), Part("Ledger", Overloaded("full")), [Part("C", RuntimeError())]
    ).text()
    assert samples(text) == {f"switchyard_part_up[('part', '{part}')]": 0 for part in ("Batcher", "Ledger", "C")}


def test_what_the_choice_of_models_remembers_and_forgets() -> None:
    pipeline = make_world().pipeline
    pipeline.experience = Experience(most=1)
    for model in ("a", "b", "c"):
        pipeline.experience.learn("acme", "math", model, 1.0)
    pipeline.shadows.left_out = 4
    assert samples(exposition(router_families(pipeline))) == {
        "switchyard_remembered[('what', 'conversations')]": 0,
        "switchyard_remembered[('what', 'experience')]": 1,
        "switchyard_remembered_evicted_total[('what', 'conversations')]": 0,
        "switchyard_remembered_evicted_total[('what', 'experience')]": 2,
        "switchyard_shadows_total[('outcome', 'asked')]": 0,
        "switchyard_shadows_total[('outcome', 'left_out')]": 4,
    }


def test_what_each_ingress_holds_and_counts_is_summed_over_replicas() -> None:
    exact = ExactCacheStats(evicted=5, used_bytes=100)
    texts = [exposition(ingress_families(2, exact, 30, 1, 2, 0)), exposition(ingress_families(1, exact, 0, 3, 4, 1))]
    assert samples(summed(texts)) == {
        "switchyard_open_requests[]": 3,
        "switchyard_exact_cache_bytes[]": 200,
        "switchyard_exact_cache_evicted_total[]": 10,
        "switchyard_exact_cache_expired_total[]": 0,
        "switchyard_exact_cache_refused_total[]": 0,
        "switchyard_settings_rejected_total[]": 1,
        "switchyard_journal_unshipped_bytes[]": 30,
        "switchyard_semantic_cache_stores_dropped_total[]": 4,
        "switchyard_semantic_cache_stores_failed_total[]": 6,
    }
