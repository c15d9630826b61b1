"""`switchyard usage export`: the requests in the books as a file that pandas, DuckDB or a spreadsheet reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.errors import InternalError, NotFound
from router.accounting.export import BY_ORG, BY_TIME, COLUMNS, Batches, closed_requests, closed_requests_of_postgres
from router.accounting.store import LEDGER_FILE
from router.accounting.usage_sql import UsageQuery

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 10_000
"""Of a Parquet row group. About 100 MB, which is all that an export takes however long the books are."""

Form = Literal["parquet", "csv", "days"]
"""days: a folder of Parquet files `day=2026-05-31/requests.parquet`, which is how Hive, DuckDB and Spark name parts."""

_DAY_MS = 86_400_000
_AT = COLUMNS.index("opened_at_unix_ms")


def export(
    data_dir: Path, out: Path, form: Form, query: UsageQuery, batch_rows: int = BATCH_ROWS, url: str = ""
) -> int:
    """Write the requests of all orgs that `query` spans to `out`, and say how many they are. Money is whole micro-USD,
    times are in UTC. What was asked and answered is not in the books, and so not in the file.

    The books, which are at `url` or else in the data folder, may be written meanwhile. Raises `NotFound` without books,
    `InternalError` when a file or the database cannot be used.
    """
    import pyarrow

    where, batches = _books(data_dir, query, batch_rows, BY_TIME if form == "days" else BY_ORG, url)
    broken: tuple[type[Exception], ...] = (OSError, sqlite3.Error, pyarrow.ArrowException)
    if url:
        import psycopg

        broken = (*broken, psycopg.Error)
    try:
        return _write_days(out, batches) if form == "days" else _write(form, out, batches)
    except broken as error:
        what = str(error).strip().splitlines() or [type(error).__name__]
        told = what[0] if "password" not in what[0] else "it refused the password"
        raise InternalError(f"The books {where} cannot be written to {out}: {told}.") from None


def _books(data_dir: Path, query: UsageQuery, batch_rows: int, order: str, url: str) -> tuple[str, Batches]:
    span = query.since_unix_ms, query.until_unix_ms
    if url:
        return "in PostgreSQL", closed_requests_of_postgres(url, *span, batch_rows, order)
    database = data_dir / LEDGER_FILE
    if not database.exists():
        raise NotFound(f"There are no books at {database}: name the data folder of a cluster with --data-dir.")
    return f"at {database}", closed_requests(database, *span, batch_rows, order)


def _write(form: str, out: Path, batches: Batches) -> int:
    rows = 0
    with _replacing(form, out) as writer:
        for batch in batches:
            writer.write_batch(_columns(batch))
            rows += len(batch)
    return rows


def _write_days(folder: Path, batches: Batches) -> int:
    """A day that is there already is replaced, as a whole."""
    rows, day = 0, ""
    with ExitStack() as opened:
        writer: Any = None
        for batch in batches:
            for name, part in groupby(batch, key=lambda row: _day(row[_AT])):
                if name != day:
                    opened.close()
                    (folder / f"day={name}").mkdir(parents=True, exist_ok=True)
                    writer = opened.enter_context(_replacing("parquet", folder / f"day={name}" / "requests.parquet"))
                    day = name
                of_day = list(part)
                writer.write_batch(_columns(of_day))
                rows += len(of_day)
    return rows


@contextmanager
def _replacing(form: str, out: Path) -> Iterator[Any]:
    """A writer of `out`: whoever reads that reads all of it, or what was there before."""
    from pyarrow import csv, parquet

    part = out.with_name(f".{out.name}.part")
    try:
        with part.open("wb") as file:
            kind = parquet.ParquetWriter if form == "parquet" else csv.CSVWriter
            with kind(file, _schema()) as writer:
                yield writer
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def _columns(batch: Sequence[tuple[Any, ...]]) -> pyarrow.RecordBatch:
    import pyarrow

    schema = _schema()
    columns = zip(zip(*batch, strict=True), schema.types, strict=True)
    return pyarrow.RecordBatch.from_arrays(
        [pyarrow.array(values).cast(kind) for values, kind in columns], schema=schema
    )


def _day(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms // _DAY_MS * _DAY_MS / 1000, UTC).strftime("%Y-%m-%d")


def _schema() -> pyarrow.Schema:
    import pyarrow

    by_ending: Mapping[str, pyarrow.DataType] = {
        "_unix_ms": pyarrow.timestamp("ms", "UTC"),
        "_tokens": pyarrow.int64(),
        "_microusd": pyarrow.int64(),
        "_ms": pyarrow.float64(),
        "similarity": pyarrow.float64(),
        "propensity": pyarrow.float64(),
        "feedback": pyarrow.float64(),
        "estimated": pyarrow.bool_(),
        "": pyarrow.string(),
    }
    kinds = [next(kind for ending, kind in by_ending.items() if name.endswith(ending)) for name in COLUMNS]
    names = [name.removesuffix("_unix_ms") for name in COLUMNS]
    return pyarrow.schema(list(zip(names, kinds, strict=True)))
