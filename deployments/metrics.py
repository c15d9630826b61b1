"""Prometheus metrics of an ingress replica, fed by the pipeline's records, and their sum over replicas.

Labels are bounded: models come from the configuration, all else from fixed sets. No tenant is a label.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from router.events import Record, RequestClosed

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


Family = TypeVar("Family", Counter, Histogram)


class _Children(dict[Any, Family]):
    """The children of a family by their label values, looked up without the family's lock once they are there."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def __missing__(self, values: str | tuple[str, ...]) -> Family:
        child = self[values] = self._family.labels(*([values] if isinstance(values, str) else values))
        return child


class Metrics:
    """A sink of the pipeline. Names follow Prometheus' conventions (base units, `_total`)."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> _Children[Counter]:
            return _Children(Counter(f"switchyard_{name}", what, labels, registry=registry))

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"switchyard_{name}", what, registry=registry)

        def histogram(name: str, what: str, *labels: str) -> _Children[Histogram]:
            family = Histogram(f"switchyard_{name}_seconds", what, labels, buckets=_SECONDS, registry=registry)
            return _Children(family)

        self.requests = counter("requests", "Requests by how they ended", "door", "model", "cache", "status")
        self.errors = counter("errors", "Failed requests by error code", "code")
        self.attempts = counter("attempts", "Tries at backends", "model", "outcome")
        self.degraded = counter("degraded", "Stages done without after a failure", "stage")
        self.tokens = counter("tokens", "Tokens of answers, replayed ones apart", "model", "kind")
        self.cost = counter("cost_microusd", "What answers cost", "model")
        self.saved = counter("saved_microusd", "What replayed answers once cost", "model")
        self.stage = histogram("stage", "Time by stage; the stages sum to the whole", "stage")
        self.total = histogram("request", "Whole time", "cache")
        self.ttft = histogram("ttft", "Time to first token", "cache")
        self.overhead = histogram("overhead", "Whole time less the model's", "cache")
        self.open = gauge("open_requests", "Requests under way")
        self.exact_bytes = gauge("exact_cache_bytes", "Size of the exact cache")
        self.evictions = gauge("exact_cache_evicted", "Answers that had to go since the start")
        self.unshipped = gauge("journal_unshipped_bytes", "Records the ledger has not taken yet")

    def __call__(self, record: Record) -> None:
        if not isinstance(record, RequestClosed):
            return
        verdict, model = record.cache_verdict, record.model or "none"
        self.requests[record.door, model, verdict, record.status].inc()
        if record.error_code:
            self.errors[record.error_code].inc()
        for stage, ms in record.stage_ms.items():
            self.stage[stage].observe(ms / 1000)
        self.total[verdict].observe(record.total_ms / 1000)
        self.overhead[verdict].observe(record.overhead_ms / 1000)
        if record.ttft_ms is not None:
            self.ttft[verdict].observe(record.ttft_ms / 1000)
        for attempt in record.attempts:
            self.attempts[attempt.model, attempt.outcome].inc()
        for stage in record.degraded:
            self.degraded[stage].inc()
        kind = "replayed" if record.cached_from else "output"
        self.tokens[model, kind].inc(record.usage.output_tokens)
        if not record.cached_from:
            self.tokens[model, "input"].inc(record.usage.input_tokens)
        self.cost[model].inc(record.cost_microusd)
        self.saved[model].inc(record.saved_microusd)

    def text(self) -> str:
        return generate_latest(self.registry).decode()


def summed(texts: Iterable[str]) -> str:
    """One exposition text with every sample summed over `texts`, in Prometheus' text format 0.0.4."""
    kinds: dict[str, tuple[str, str]] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = defaultdict(lambda: defaultdict(float))
    for text in texts:
        for family in text_string_to_metric_families(text):
            kinds[family.name] = (family.type, family.documentation)
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    sums[family.name][sample.name, tuple(sample.labels.items())] += sample.value
    lines: list[str] = []
    for name, (kind, documentation) in kinds.items():
        shown = f"{name}_total" if kind == "counter" else name
        lines += [f"# HELP {shown} {documentation}", f"# TYPE {shown} {kind}"]
        for (sample_name, labels), value in sums[name].items():
            pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
            lines.append(f"{sample_name}{{{pairs}}} {value}" if pairs else f"{sample_name} {value}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
