"""Three tiers, each gate with a threshold of its own, learned from what callers said."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import yaml

from cluster.cli import main
from cluster.usage_export import export
from models.base import Capabilities
from models.messages import ChatRequest, Message, TextPart
from models.simulated import SimulatedModel
from router.accounting.feedback import Feedback
from router.accounting.store import LEDGER_FILE, SQLiteStore
from router.accounting.tenants import Tenants
from router.accounting.usage import UsageQuery
from router.events import Record, RequestClosed, as_json
from router.gates import auroc, threshold
from router.pipeline import Backend, Options, Pipeline, Stages
from router.settings import GateSettings, IngressSettings, RoutingSettings
from tests.unit.test_pipeline import ME, Classifier, Local, Places, Purse, entry

OPEN = GateSettings(tokens=4, min_mean_logprob=-100.0)
SURE = {"small": -0.02, "medium": -0.2, "large": -0.2}
UNSURE = {"small": -0.3, "medium": -2.0, "large": -2.0}
"""Another model's log probabilities mean something else: the medium model is never as sure as the small one is."""


def test_the_lowest_threshold_that_keeps_to_the_target() -> None:
    outcomes = [(-0.1, 1.0), (-0.2, 1.0), (-0.3, 0.0), (-0.4, 1.0)]
    assert (threshold(outcomes, 1.0), threshold(outcomes, 0.75), threshold(outcomes, 0.9)) == (-0.2, -0.4, -0.2)
    assert threshold([(-0.1, 0.0)], 0.5) is None and threshold([], 0.5) is None
    assert threshold([(-0.1, 1.0), (-0.1, 0.0)], 0.9) is None, "a threshold cannot tell two equals apart"
    assert auroc(outcomes) == pytest.approx(2 / 3)
    assert auroc([(-0.1, 1.0), (-0.1, 0.0)]) == 0.5 and math.isnan(auroc([(-0.1, 1.0)]))


class Tiers:
    """A cascade of three simulated models, of which every other answer of the weaker two is an unsure one."""

    def __init__(self, gates: dict[str, GateSettings]) -> None:
        can = Capabilities(logprobs=True)
        entries = [entry(tier, tier, capabilities=can) for tier in SURE]
        self.models = [
            Local(
                SimulatedModel(
                    each,
                    output_tokens=8,
                    unsure_rate=0.5,
                    sure_logprob=SURE[each.name],
                    unsure_logprob=UNSURE[each.name],
                )
            )
            for each in entries
        ]
        backends = {
            each.name: Backend(each.name, model, (each,)) for each, model in zip(entries, self.models, strict=True)
        }
        self.records: list[Record] = []
        settings = IngressSettings(routing=RoutingSettings(strategy="cascade", gate=OPEN, gates=gates))
        stages = Stages(backends, Classifier(), Places(), Purse(), sinks=[self.records.append])
        self.pipeline = Pipeline(stages, settings, Tenants((), settings, auth=False))

    async def ask(self, count: int) -> list[RequestClosed]:
        for number in range(count):
            request = ChatRequest("auto", (Message("user", (TextPart(f"What is {number} times {number}?"),)),))
            async with self.pipeline.run(request, ME, Options(cache="off"), "test") as run:
                await run.begin(stream=bool(number % 2))
                await run.completion()
        return [record for record in self.records if isinstance(record, RequestClosed)][-count:]


def good(close: RequestClosed) -> bool:
    """What callers say: a model that is sure is right, an unsure one is not, and the large one knows everything."""
    gate = close.attempts[-1].gate
    return gate is None or gate["mean_logprob"] == pytest.approx(SURE[close.model or ""])


def learned(folder: Path, closes: list[RequestClosed], capsys: pytest.CaptureFixture[str]) -> dict[str, GateSettings]:
    """By the command, from the books with what callers said."""
    folder.mkdir()
    store = SQLiteStore(folder / LEDGER_FILE)
    store.ingest("h", [as_json(close) for close in closes])
    for close in closes:
        store.feedback.save(
            Feedback(close.org, close.request_id, "k", 1, close.model or "", "chat", "", float(good(close)))
        )
    store.close()
    export(folder, folder / "log.parquet", "parquet", UsageQuery(None, 0, 2**60))
    capsys.readouterr()
    assert main(["gates", str(folder / "log.parquet"), "--target", "0.95"]) == 0
    told = yaml.safe_load(capsys.readouterr().out.splitlines()[-1])
    return {name: GateSettings(**fields) for name, fields in told["routing"]["gates"].items()}


def way(closes: list[RequestClosed]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(attempt.model for attempt in close.attempts) for close in closes)


async def test_each_step_learns_its_own_threshold_and_goes_on_by_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = await Tiers({}).ask(160)
    assert way(first) == {("small",): 160}, "an open gate only looks"
    small = learned(tmp_path / "first", first, capsys)
    assert small == {"small": GateSettings(min_mean_logprob=SURE["small"])}

    second = await Tiers(small).ask(160)
    assert set(way(second)) == {("small",), ("small", "medium")}
    both = learned(tmp_path / "second", second, capsys)
    assert both == {**small, "medium": GateSettings(min_mean_logprob=SURE["medium"])}, "from what the small one left"

    third = await Tiers(both).ask(160)
    ways = way(third)
    assert set(ways) == {("small",), ("small", "medium"), ("small", "medium", "large")}
    assert all(20 < count < 120 for count in ways.values()), ways
    assert all(map(good, third)) and not all(map(good, second))
    for close in third:
        *dropped, given = close.attempts
        assert [attempt.outcome for attempt in dropped] == ["escalated"] * len(dropped)
        assert all(attempt.gate is not None and attempt.gate["reason"] == "unsure" for attempt in dropped)
        assert (given.gate is None) == (given.model == "large")
    by_one = await Tiers({**both, "medium": small["small"]}).ask(160)
    assert ("small", "medium") not in way(by_one), "by the small one's threshold the medium one is never sure"


def test_what_there_is_too_little_of_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow
    from pyarrow import parquet

    def told(*rows: tuple[float, float | None]) -> tuple[int, str]:
        table = [
            {
                "attempts": json.dumps([{"model": "m", "gate": {"mean_logprob": sureness}}]),
                "model": "m",
                "feedback": feedback,
                "status": "ok",
                "cache_verdict": "miss",
                "org": "acme",
            }
            for sureness, feedback in rows
        ]
        parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "log.parquet")
        status = main(["gates", str(tmp_path / "log.parquet"), "--org", "acme"])
        said = capsys.readouterr()
        return status, said.out + said.err

    status, said = told((-0.1, 1.0), (-0.2, 0.0))
    assert status == 0 and "too few: 50 are needed" in said and "routing:" not in said
    status, said = told(*[(-0.1, 0.0)] * 60)
    assert status == 0 and "none is good enough" in said
    status, said = told((-0.1, None))
    assert status == 1 and "no rated answer that a gate judged" in said
    status, said = told(*[(-0.1, 1.0)] * 60, *[(-0.1234567, 0.0)] * 3)
    assert 'routing: {gates: {"m": {"min_mean_logprob": -0.1235}}}' in said, "rounded so that they stay in"
