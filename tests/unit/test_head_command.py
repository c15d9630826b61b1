from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from cluster.cli import main
from cluster.labels import labelled
from router.assessor import Assessor
from router.settings import ClassifierSettings
from tests.unit.learned.test_fitting import outcomes, user


def lines(path: Path, entries: list[dict[str, object]]) -> str:
    path.write_text("\n".join(map(json.dumps, entries)))
    return str(path)


def test_labels_make_a_head_and_the_command_says_where_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [{"prompt": each.messages[0].text, "good": each.good} for each in outcomes()]
    entries[0]["prompt"] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": entries[0]["prompt"]},
    ]
    out = tmp_path / "heads" / "mine.safetensors"
    assert main(["head", "mine", "--labels", lines(tmp_path / "labels.jsonl", entries), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "600 outcomes" in told and "AUROC 0.9" in told and f'heads: {{"mine": "{out}"}}' in told
    outlook = Assessor(ClassifierSettings(heads={"mine": str(out)})).assess(user("Please add 4 and 8.")).outlook
    assert outlook is not None and outlook.heads["mine"] > 0.8


def test_what_callers_said_of_a_models_answers_makes_one_with_the_prompts_that_the_books_lack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rated = outcomes(400)
    rows = [
        {
            "request_id": f"req_{n}",
            "model": "mine" if n < 390 else "other",
            "status": "ok",
            "cache_verdict": "miss",
            "feedback": each.good,
        }
        for n, each in enumerate(rated)
    ]
    rows[0]["feedback"], rows[1]["cache_verdict"], rows[2]["status"] = None, "hit-exact", "error"
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "log.parquet")
    known = [{"id": f"req_{n}", "prompt": each.messages[0].text} for n, each in enumerate(rated) if n != 3]
    asked = ["head", "mine", "--log", str(tmp_path / "log.parquet"), "--out", str(tmp_path / "mine.safetensors")]
    assert main([*asked, "--prompts", lines(tmp_path / "prompts.jsonl", known)]) == 0
    assert "386 outcomes" in capsys.readouterr().out, "rated, answered by that model, and with a prompt"
    assert main(asked) == 1
    assert "The books have no prompts" in capsys.readouterr().err
    assert main([*asked, "--prompts", lines(tmp_path / "none.jsonl", [{"id": "req_1"}])]) == 1
    assert "Line 1" in capsys.readouterr().err


def test_what_is_too_little_or_cannot_be_read_or_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = lines(tmp_path / "few.jsonl", [{"prompt": "Add 1 and 2.", "good": 1}] * 30)
    assert main(["head", "mine", "--labels", few, "--out", str(tmp_path / "x")]) == 1
    assert "30 outcomes" in capsys.readouterr().err and not (tmp_path / "x").exists()
    for entry in ({"prompt": [], "good": 1}, {"prompt": [{"role": "user"}], "good": 1}, {"prompt": "a", "good": 2}):
        assert (
            main(["head", "mine", "--labels", lines(tmp_path / "no.jsonl", [entry]), "--out", str(tmp_path / "x")]) == 1
        )
        assert "Line 1" in capsys.readouterr().err
    whole = lines(tmp_path / "all.jsonl", [{"prompt": o.messages[0].text, "good": o.good} for o in outcomes()])
    assert main(["head", "mine", "--labels", whole, "--out", str(tmp_path / "few.jsonl" / "x")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_line_ends_where_json_lines_end(tmp_path: Path) -> None:
    prompts = ["one\u2028two\x85three", "four"]
    entries = [json.dumps({"prompt": prompt, "good": 1}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "labels.jsonl").write_text("\r\n".join(entries), encoding="utf-8-sig", newline="")
    assert [messages[0].text for messages, _ in labelled(tmp_path / "labels.jsonl")] == prompts
