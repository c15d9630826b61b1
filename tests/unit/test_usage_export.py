from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow
import pytest
from pyarrow import csv, parquet

from cluster.cli import main
from cluster.usage_export import export
from models.errors import InternalError
from models.messages import Usage
from router import receipts
from router.accounting.feedback import Feedback
from router.accounting.store import LEDGER_FILE, OpenRequest, SQLiteStore
from router.accounting.usage_sql import UsageQuery
from router.events import RequestClosed, as_json

ROOT = Path(__file__).parents[2]
AT = 1_780_000_000_000
ALL = UsageQuery(None, 0, 2 * AT)
DIED = receipts.abandoned(OpenRequest("acme", "died", "h", AT, "", "k", "ann", "m", 10**15), AT + 5)
DECISION = {"eligible": ("m", "n"), "propensity": 0.5, "strategy": "complexity", "strategy_version": "1"}


def answered(number: int, org: str = "acme") -> RequestClosed:
    return replace(
        DIED,
        request_id=f"r{number:04}",
        org=org,
        opened_at_unix_ms=AT + number,
        user='Änn "the\nfirst", 2nd',
        status="ok",
        error_code=None,
        usage=Usage(10, number),
        estimated=False,
        cost_microusd=number,
        decision=DECISION,
        ttft_ms=1.5,
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    """The books, open and locked by their owner, as beside a cluster that runs."""
    store = SQLiteStore(tmp_path / LEDGER_FILE)
    store.ingest("h", [as_json(record) for record in (DIED, *map(answered, range(100)), answered(7, "other"))])
    for key, score in (("k1", 0.0), ("k2", 0.5)):
        store.feedback.save(Feedback("acme", "r0003", key, AT, "m", "chat", "", score))
    yield store
    store.close()


def test_a_parquet_file_has_every_request_with_its_types(store: SQLiteStore, tmp_path: Path) -> None:
    out = tmp_path / "usage.parquet"
    assert export(tmp_path, out, "parquet", ALL, batch_rows=25) == 102
    table = parquet.read_table(out)
    kinds = {field.name: field.type for field in table.schema}
    assert kinds["opened_at"] == kinds["closed_at"] == pyarrow.timestamp("ms", "UTC")
    assert kinds["cost_microusd"] == kinds["saved_microusd"] == kinds["reasoning_tokens"] == pyarrow.int64()
    assert kinds["total_ms"] == kinds["cache_similarity"] == kinds["propensity"] == pyarrow.float64()
    assert kinds["estimated"] == pyarrow.bool_() and kinds["error_code"] == kinds["eligible"] == pyarrow.string()
    rows = {(row["org"], row["request_id"]): row for row in table.to_pylist()}
    assert len(rows) == 102
    died, one = rows["acme", "died"], rows["acme", "r0003"]
    assert (died["status"], died["estimated"], died["cost_microusd"], died["ttft_ms"]) == (
        "abandoned",
        True,
        10**15,
        None,
    )
    assert (one["estimated"], one["output_tokens"], one["end_user"]) == (False, 3, 'Änn "the\nfirst", 2nd')
    assert one["opened_at"] == datetime.fromtimestamp((AT + 3) / 1000, UTC)
    assert (json.loads(one["eligible"]), one["propensity"], one["ttft_ms"]) == (["m", "n"], 0.5, 1.5)
    assert json.loads(one["decision"]) == {**DECISION, "eligible": ["m", "n"]} and died["decision"] is None
    assert (one["feedback"], rows["acme", "r0004"]["feedback"]) == (0.25, None)
    assert json.loads(one["attempts"]) == json.loads(died["attempts"]) == []


def test_memory_is_bounded_by_the_batch(store: SQLiteStore, tmp_path: Path) -> None:
    out = tmp_path / "usage.parquet"
    export(tmp_path, out, "parquet", ALL, batch_rows=25)
    groups = parquet.ParquetFile(out).metadata
    assert [groups.row_group(group).num_rows for group in range(groups.num_row_groups)] == [25, 25, 25, 25, 2]


def test_a_csv_file_has_the_same_rows(store: SQLiteStore, tmp_path: Path) -> None:
    for form in ("parquet", "csv"):
        export(tmp_path, tmp_path / form, form, ALL, batch_rows=25)
    table = parquet.read_table(tmp_path / "parquet")
    read = csv.read_csv(
        tmp_path / "csv",
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=table.schema, strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )
    assert read.equals(table)


def test_a_folder_by_day_is_one_table(store: SQLiteStore, tmp_path: Path) -> None:
    day = 86_400_000
    later = [replace(answered(n), request_id=f"d{n}", opened_at_unix_ms=AT + n * day // 10) for n in range(30)]
    store.ingest("h", [as_json(record) for record in later])
    for _ in range(2):  # a second time replaces the days
        assert export(tmp_path, tmp_path / "days", "days", ALL, batch_rows=25) == 132
    files = sorted(path.parent.name for path in (tmp_path / "days").rglob("*.parquet"))
    assert files == ["day=2026-05-28", "day=2026-05-29", "day=2026-05-30", "day=2026-05-31"]
    assert not list((tmp_path / "days").rglob("*.part"))
    table = parquet.read_table(tmp_path / "days")
    assert table.num_rows == 132
    for row in table.select(["opened_at", "day"]).to_pylist():
        assert str(row["opened_at"].date()) == str(row["day"])


def test_only_what_was_opened_in_the_time_is_written(store: SQLiteStore, tmp_path: Path) -> None:
    assert export(tmp_path, tmp_path / "out", "parquet", UsageQuery(None, AT + 7, AT + 9)) == 3
    assert export(tmp_path, tmp_path / "out", "parquet", UsageQuery(None, 0, AT)) == 0
    assert parquet.read_table(tmp_path / "out").num_rows == 0


def test_the_books_can_be_taken_along_when_nothing_runs(store: SQLiteStore, tmp_path: Path) -> None:
    store.close()
    assert export(tmp_path, tmp_path / "out", "parquet", ALL) == 102


def test_an_export_that_fails_leaves_what_was_there(store: SQLiteStore, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("last month")
    with store._file.transaction() as writer:
        writer.execute("UPDATE requests SET cost_microusd = 'much' WHERE request_id = 'r0060'")
    with pytest.raises(InternalError, match=r"cannot be written to .*out"):
        export(tmp_path, tmp_path / "out", "parquet", ALL, batch_rows=25)
    assert (tmp_path / "out").read_text() == "last month"
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_the_file_and_says_how_much(
    store: SQLiteStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["usage", "export", str(tmp_path / "u.csv"), "--data-dir", str(tmp_path), "--format", "csv"]
    assert main([*command, "--since", "2026-01-01", "--until", "2027-01-01"]) == 0
    assert capsys.readouterr().out == f"102 requests written to {tmp_path / 'u.csv'}\n"
    assert (tmp_path / "u.csv").read_text().startswith('"org","request_id","holder","opened_at"')


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--since", "yesterday"], "'since' must be a time such as"),
        (["--data-dir", "/nowhere"], "no books at /nowhere"),
        ([], "cannot be written to /proc/u.parquet"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    store: SQLiteStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["usage", "export", "/proc/u.parquet", "--data-dir", str(tmp_path), *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_other_commands_do_not_load_what_only_this_one_needs() -> None:
    code = "import sys, cluster.cli; print(sorted({'pyarrow', 'pydantic', 'sqlite3'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ}, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
