from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from cluster.cli import main
from models.catalog import ModelEntry
from router.constraints import Candidate
from router.objective import chance_of, chances
from router.placing import place
from router.ports import Assessment, Outlook
from router.settings import RoutingSettings
from tests.unit.test_replay import CANDIDATES, decided, export, logged


def outcomes(draw: random.Random, quality: float, count: int) -> list[tuple[Outlook, float]]:
    found = []
    for _ in range(count):
        small = draw.uniform(0.2, 0.8)
        outlook = Outlook(small, min(0.97, small + draw.uniform(0.1, 0.4)), "math")
        found.append((outlook, float(draw.random() < chance_of(outlook, quality))))
    return found


@pytest.mark.parametrize("quality", [0.0, 0.6, 1.2])
def test_a_few_dozen_outcomes_place_a_model(quality: float) -> None:
    draw = random.Random(7)
    found = [place(outcomes(draw, quality, 60), 0.5) for _ in range(40)]
    assert sum(each.low <= quality <= each.high for each in found) >= 35
    assert sum(each.quality for each in found) / 40 == pytest.approx(quality, abs=0.2)
    assert all(each.high - each.low < 1.7 for each in found)


def test_the_prior_decides_where_labels_say_nothing_and_yields_to_many() -> None:
    same = [(Outlook(0.7, 0.7, "open"), 1.0)] * 30
    assert place(same, 1.0).quality == 1.0
    many = place(outcomes(random.Random(1), 0.1, 4_000), 1.0)
    assert many.quality == pytest.approx(0.1, abs=0.15) and abs(many.good - many.expected) < 0.02
    with pytest.raises(ValueError, match="no outcome"):
        place([], 0.5)


def test_the_settings_quality_stands_before_the_catalogues() -> None:
    entry = ModelEntry(name="new", engine="simulated", tier="small", quality=0.1, context_tokens=10)
    assessment = Assessment(0.5, "math", outlook=Outlook(0.2, 0.9, "math"))
    candidate = Candidate(entry, "b")
    placed = RoutingSettings(quality={"new": 1.0})
    assert chances("learned", assessment, [candidate], {}, placed)["new"] == pytest.approx(0.9)
    assert chances("learned", assessment, [candidate], {}, RoutingSettings())["new"] < 0.4


def test_the_command_takes_labels_and_what_callers_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.jsonl"
    prompts = [f"Ann has {n} apples and gives {n // 2} to Ben. How many has she left?" for n in range(30)]
    labels.write_text("\n".join(json.dumps({"prompt": each, "good": n % 4 > 0}) for n, each in enumerate(prompts)))
    assert main(["place", "new", "--labels", str(labels)]) == 0
    told = capsys.readouterr().out
    assert "of 30 outcomes" in told and 'routing: {quality: {"new": ' in told
    assessment = Assessment(0.5, "math", outlook=Outlook(0.3, 0.9, "math"))
    rows = [logged(decided(assessment, RoutingSettings(strategy="cheapest")), 1.0, float(n % 3 > 0)) for n in range(30)]
    log = export(tmp_path / "log.parquet", rows)
    assert main(["place", CANDIDATES[0].entry.name, "--log", str(log), "--tier", "small"]) == 0
    assert "30 of 30 outcomes tell" in (told := capsys.readouterr().out) and "67% are good" in told
    assert main(["place", "strong", "--log", str(log)]) == 1
    assert "too few" in capsys.readouterr().err
    easy = Assessment(0.5, "chat", outlook=Outlook(0.92, 0.94, "chat"))  # where a large model adds nothing
    rows = [logged(decided(easy, RoutingSettings(strategy="cheapest")), 1.0, 0.0) for _ in range(30)]
    assert main(["place", "cheap", "--log", str(export(tmp_path / "easy.parquet", rows))]) == 1
    assert "0 of 30 outcomes tell" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["no JSON", "{}", '{"prompt": "a", "good": 2}', '{"prompt": 1, "good": 1}', "[]"])
def test_labels_that_are_none_are_refused(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.jsonl"
    labels.write_text(line)
    assert main(["place", "new", "--labels", str(labels)]) == 1
    assert "Line 1" in capsys.readouterr().err
    assert main(["place", "new", "--labels", str(tmp_path / "missing")]) == 1
