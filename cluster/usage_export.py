"""`switchyard usage export`: the requests in the books as a file that pandas, DuckDB or a spreadsheet reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.errors import InternalError, NotFound
from router.accounting.store import EXPORT_COLUMNS, LEDGER_FILE, closed_requests
from router.accounting.usage import UsageQuery

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 10_000
"""Of a Parquet row group. About 100 MB, which is all that an export takes however long the books are."""


def export(
    data_dir: Path, out: Path, form: Literal["parquet", "csv"], query: UsageQuery, batch_rows: int = BATCH_ROWS
) -> int:
    """Write the requests of all orgs that `query` spans to `out`, and say how many they are. Money is whole micro-USD,
    times are in UTC. What was asked and answered is not in the books, and so not in the file.

    The books may be written meanwhile. Raises `NotFound` without books, `InternalError` when a file cannot be used.
    """
    import pyarrow

    database = data_dir / LEDGER_FILE
    if not database.exists():
        raise NotFound(f"There are no books at {database}: name the data folder of a cluster with --data-dir.")
    schema, rows = _schema(), 0
    part = out.with_name(f".{out.name}.part")  # whoever reads `out` reads all of it
    try:
        with part.open("wb") as file, _writer(form, file, schema) as writer:
            for batch in closed_requests(database, query.since_unix_ms, query.until_unix_ms, batch_rows):
                columns = zip(zip(*batch, strict=True), schema.types, strict=True)
                arrays = [pyarrow.array(values).cast(kind) for values, kind in columns]
                writer.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=schema))
                rows += len(batch)
        part.replace(out)
    except (OSError, sqlite3.Error, pyarrow.ArrowException) as error:
        raise InternalError(f"The books at {database} cannot be written to {out}: {error}.") from error
    finally:
        part.unlink(missing_ok=True)
    return rows


def _writer(form: str, file: Any, schema: pyarrow.Schema) -> Any:
    from pyarrow import csv, parquet

    return parquet.ParquetWriter(file, schema) if form == "parquet" else csv.CSVWriter(file, schema)


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
    kinds = [next(kind for ending, kind in by_ending.items() if name.endswith(ending)) for name in EXPORT_COLUMNS]
    names = [name.removesuffix("_unix_ms") for name in EXPORT_COLUMNS]
    return pyarrow.schema(list(zip(names, kinds, strict=True)))
