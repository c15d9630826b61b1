"""Prometheus metrics of an ingress replica, fed by the pipeline's records, and their sum over replicas.

Labels are bounded: models come from the configuration, all else from fixed sets. No tenant is a label.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from router.events import Record, RequestClosed

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_BOUNDS = (*map(str, map(float, _SECONDS)), "+Inf")


class _Counter(defaultdict[tuple[str, ...], float]):
    """A counter family: numbers by their label values."""

    def __init__(self, name: str, what: str, *labels: str) -> None:
        super().__init__(float)
        self._family = (f"switchyard_{name}", what), labels

    def family(self) -> Metric:
        family = CounterMetricFamily(*self._family[0], labels=self._family[1])
        for values, number in self.items():
            family.add_metric(values, number)
        return family


class _Histogram(defaultdict[str, list[float]]):
    """A histogram family of seconds with one label: by its value the count of each bucket, and the sum at the end.

    The client library's own takes 5 us for an observation, of which a request has ten; this takes a tenth.
    """

    def __init__(self, name: str, what: str, label: str) -> None:
        super().__init__(lambda: [0.0] * (len(_BOUNDS) + 1))
        self._family, self._label = (f"switchyard_{name}_seconds", what), label

    def observe_ms(self, value: str, ms: float) -> None:
        cells, seconds = self[value], ms / 1000
        cells[bisect_left(_SECONDS, seconds)] += 1
        cells[-1] += seconds

    def family(self) -> Metric:
        family = HistogramMetricFamily(*self._family, labels=(self._label,))
        for value, (*counts, total) in self.items():
            family.add_metric((value,), list(zip(_BOUNDS, accumulate(counts), strict=True)), total)
        return family


class Metrics:
    """A sink of the pipeline. Names follow Prometheus' conventions (base units, `_total`)."""

    def __init__(self) -> None:
        self.requests = _Counter("requests", "Requests by how they ended", "door", "model", "cache", "status")
        self.errors = _Counter("errors", "Failed requests by error code", "code")
        self.attempts = _Counter("attempts", "Tries at backends", "model", "outcome")
        self.degraded = _Counter("degraded", "Stages done without after a failure", "stage")
        self.tokens = _Counter("tokens", "Tokens of answers, replayed ones apart", "model", "kind")
        self.cost = _Counter("cost_microusd", "What models cost, discarded tokens too", "model")
        self.saved = _Counter("saved_microusd", "What replayed answers once cost", "model")
        self.discarded_tokens = _Counter("discarded_tokens", "Tokens made and given to nobody", "model", "kind")
        self.discarded_cost = _Counter("discarded_cost_microusd", "What they cost, a part of the cost", "model")
        self.gate = _Counter("gate", "Answers judged before they were given out", "model", "verdict", "reason")
        self.experiments = _Counter("experiment_requests", "Requests that had a part in one", "experiment", "arm")
        self.stage = _Histogram("stage", "Time by stage; the stages sum to the whole", "stage")
        self.total = _Histogram("request", "Whole time", "cache")
        self.ttft = _Histogram("ttft", "Time to first token", "cache")
        self.overhead = _Histogram("overhead", "Whole time less the model's", "cache")

    def __call__(self, record: Record) -> None:
        if not isinstance(record, RequestClosed):
            return
        verdict, model = record.cache_verdict, record.model or "none"
        self.requests[record.door, model, verdict, record.status] += 1
        if record.error_code:
            self.errors[record.error_code,] += 1
        for stage, ms in record.stage_ms.items():
            self.stage.observe_ms(stage, ms)
        self.total.observe_ms(verdict, record.total_ms)
        self.overhead.observe_ms(verdict, record.overhead_ms)
        if record.ttft_ms is not None:
            self.ttft.observe_ms(verdict, record.ttft_ms)
        for attempt in record.attempts:
            self.attempts[attempt.model, attempt.outcome] += 1
            self.cost[attempt.model,] += attempt.cost_microusd
            if attempt.gate is not None:
                self.gate[attempt.model, attempt.gate["verdict"], attempt.gate["reason"]] += 1
        for attempt in record.attempts[:-1]:  # the last one's answer, or its beginning, was the client's
            self.discarded_tokens[attempt.model, "input"] += attempt.input_tokens
            self.discarded_tokens[attempt.model, "output"] += attempt.output_tokens
            self.discarded_cost[attempt.model,] += attempt.cost_microusd
        if part := (record.decision or {}).get("experiment"):
            self.experiments[part["experiment"], part["arm"]] += 1
        for stage in record.degraded:
            self.degraded[stage,] += 1
        kind = "replayed" if record.cached_from else "output"
        self.tokens[model, kind] += record.usage.output_tokens
        if not record.cached_from:
            self.tokens[model, "input"] += record.usage.input_tokens
        self.saved[model,] += record.saved_microusd

    def families(self) -> list[Metric]:
        return [family.family() for family in vars(self).values()]


def exposition(families: Iterable[Metric]) -> str:
    """The families in Prometheus' text format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Collected(families))
    return generate_latest(registry).decode()


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


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
