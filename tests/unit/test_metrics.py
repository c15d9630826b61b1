from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from deployments.metrics import Metrics, exposition, summed
from tests.unit.test_attempts import UNSURE, three
from tests.unit.test_pipeline import ask, make_world, unary


async def a_receipt():
    world = make_world()
    await unary(world, ask())
    return world.closes()[0]


def samples(text: str) -> dict[str, float]:
    return {
        sample.name + str(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_request_is_counted_once_in_each_family():
    metrics, receipt = Metrics(), await a_receipt()
    metrics(receipt)
    found = samples(exposition(metrics.families()))
    labels = "[('cache', 'miss'), ('door', 'test'), ('model', 'small-1'), ('status', 'ok')]"
    assert found["switchyard_requests_total" + labels] == 1
    assert found["switchyard_cost_microusd_total[('model', 'small-1')]"] == receipt.cost_microusd
    assert found["switchyard_request_seconds_count[('cache', 'miss')]"] == 1
    stages = sum(v for k, v in found.items() if k.startswith("switchyard_stage_seconds_sum"))
    whole = found["switchyard_request_seconds_sum[('cache', 'miss')]"]
    assert abs(stages - whole) < 0.001


async def test_what_a_cascade_discards_is_counted_where_it_was_made():
    it = three()
    it.small.logprob = UNSURE
    await unary(it.world, ask())
    metrics, receipt = Metrics(), it.close
    metrics(receipt)
    found = samples(exposition(metrics.families()))
    dropped, given = receipt.attempts
    assert found["switchyard_discarded_cost_microusd_total[('model', 'small-1')]"] == dropped.cost_microusd > 0
    for kind, tokens in (("input", dropped.input_tokens), ("output", dropped.output_tokens)):
        assert found[f"switchyard_discarded_tokens_total[('kind', '{kind}'), ('model', 'small-1')]"] == tokens > 0
    labels = "[('model', 'small-1'), ('reason', 'unsure'), ('verdict', 'escalate')]"
    assert found["switchyard_gate_total" + labels] == 1
    assert found["switchyard_cost_microusd_total[('model', 'small-1')]"] == dropped.cost_microusd
    assert found["switchyard_cost_microusd_total[('model', 'medium-1')]"] == given.cost_microusd
    assert not any("discarded" in name and "medium-1" in name for name in found)


async def test_the_sum_over_replicas_is_the_sum_of_every_sample():
    receipt = await a_receipt()
    first, second = Metrics(), Metrics()
    first(receipt)
    second(receipt)
    second(replace(receipt, status="error", error_code='odd "code"\n'))
    one, two = samples(exposition(first.families())), samples(exposition(second.families()))
    both = samples(summed([exposition(first.families()), exposition(second.families())]))
    expected = {k: one.get(k, 0) + two.get(k, 0) for k in one.keys() | two.keys() if "_created" not in k}
    assert both == expected


async def test_labels_stay_few_whatever_is_asked():
    metrics, receipt = Metrics(), await a_receipt()
    for number in range(1000):
        metrics(replace(receipt, request_id=str(number), org=f"org-{number}", user=str(number), team=str(number)))
    assert len(samples(exposition(metrics.families()))) < 400
