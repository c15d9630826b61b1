from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.score import main


def scores(tmp_path: Path, *lines: object) -> list[dict[str, object]]:
    asked, told = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(asked), str(told)]) == 0
    return [json.loads(line) for line in told.read_text().splitlines()]


def test_each_prompt_gets_a_score_in_order(tmp_path: Path) -> None:
    found = scores(
        tmp_path,
        {"id": "b", "prompt": "Prove that the square root of 3 is irrational."},
        {"id": "a", "prompt": "Write a poem about a cat."},
        {"id": 3, "prompt": [{"role": "user", "content": "Prove a theorem about primes."}]},
    )
    assert [row["id"] for row in found] == ["b", "a", 3]
    hard, easy, third = (float(str(row["score"])) for row in found)
    assert 0 <= easy < hard <= 1 and third > easy


def test_the_whole_conversation_counts(tmp_path: Path) -> None:
    proof = {"role": "user", "content": "Prove that there are infinitely many primes, with every lemma."}
    then = [{"role": "assistant", "content": "Suppose there are finitely many."}, {"role": "user", "content": "Go on."}]
    alone, after = scores(tmp_path, {"id": 1, "prompt": "Go on."}, {"id": 2, "prompt": [proof, *then]})
    assert float(str(after["score"])) > float(str(alone["score"]))


def test_a_line_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").write_text('{"id": 1, "prompt": "x"}\n{"id": 2}\n')
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert "in:2" in capsys.readouterr().err
    assert main([]) == 2
