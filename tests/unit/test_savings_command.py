from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from cluster.cli import main
from cluster.savings_command import savings
from models.errors import InvalidRequest

COSTS = {"cheap": 10.0, "strong": 100.0}
GOOD = {"cheap": 0.6, "strong": 0.9}


def export(path: Path, exploration: float, requests: int = 4_000, rated: float = 0.5) -> Path:
    draw = np.random.default_rng(1)
    rows = []
    for _ in range(requests):
        hard = draw.random() < 0.3
        best = "strong" if hard else "cheap"
        chance = exploration / 2 + (1 - exploration)
        model = best if draw.random() < chance else ("cheap" if hard else "strong")
        propensity = chance if model == best else exploration / 2
        rows.append(
            {
                "org": "acme",
                "model": model,
                "opened_at": datetime.fromtimestamp(1_780_000_000, UTC),
                "decision": json.dumps({"model": model, "eligible": ["cheap", "strong"], "propensity": propensity}),
                "propensity": propensity,
                "cost_microusd": int(COSTS[model] + draw.integers(0, 5)),
                "feedback": float(draw.random() < GOOD[model]) if draw.random() < rated else None,
                "strategy": "hybrid",
                "status": "ok",
                "cache_verdict": "miss",
            }
        )
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_baselines_are_valued_at_what_they_would_have_cost(tmp_path: Path) -> None:
    report = savings(export(tmp_path / "log.parquet", 0.2))
    found = {line.policy: line for line in report.costs}
    assert report.requests == 4_000
    for policy, cost in (("always-strong", 102.0), ("always-cheap", 12.0), ("random", 57.0)):
        estimates = found[policy].estimates
        assert estimates is not None
        assert all(each.low <= cost <= each.high for each in estimates[:2]), policy
        assert estimates[2].value == pytest.approx(cost, abs=1.0)


def test_feedback_is_the_quality_of_those_who_gave_it(tmp_path: Path) -> None:
    report = savings(export(tmp_path / "log.parquet", 0.2))
    found = {line.policy: line for line in report.qualities}
    assert 1_800 < report.rated < 2_200 and f"over the {report.rated} requests that were rated" in report.text()
    for policy, good in (("always-strong", 0.9), ("always-cheap", 0.6), ("random", 0.75)):
        estimates = found[policy].estimates
        assert estimates is not None
        assert all(each.low <= good <= each.high for each in estimates), policy
    unrated = savings(export(tmp_path / "unrated.parquet", 0.2, 200, rated=0.0))
    assert unrated.qualities == [] and "Quality is not known" in unrated.text()


def test_an_export_of_an_older_version_is_to_be_made_anew(tmp_path: Path) -> None:
    table = parquet.read_table(export(tmp_path / "log.parquet", 0.2, 10)).drop_columns(["decision"])
    parquet.write_table(table, tmp_path / "old.parquet")
    with pytest.raises(InvalidRequest, match="no column decision"):
        savings(tmp_path / "old.parquet")


def test_what_was_never_chosen_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = export(tmp_path / "log.parquet", 0.0)
    assert main(["savings", str(path)]) == 0
    told = capsys.readouterr().out
    assert "not known from this log" in told and "routing.exploration" in told


def test_a_file_that_is_no_export_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.parquet").write_bytes(b"nothing")
    with pytest.raises(InvalidRequest, match="usage export"):
        savings(tmp_path / "no.parquet")
    assert main(["savings", str(tmp_path / "missing.parquet")]) == 1
    with pytest.raises(InvalidRequest, match="fewer than two"):
        savings(export(tmp_path / "log.parquet", 0.1, 1))
