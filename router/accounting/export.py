"""The requests of the books in batches, for a file: read beside the ledger that writes them, as of one moment."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from router.accounting.postgres import EVERY_ORG
from router.accounting.store import REQUEST_COLUMNS

Batches = Iterator[list[tuple[Any, ...]]]

_OF_RECEIPT = ("decision", "attempts")
COLUMNS = (*REQUEST_COLUMNS, *_OF_RECEIPT, "feedback")
"""`decision` and `attempts` are the receipt's, as JSON; `feedback` the mean score of its callers, in [0, 1]."""

BY_ORG = "r.org, r.opened_at_unix_ms"  # as the index is, so nothing is sorted in memory
BY_TIME = "r.opened_at_unix_ms, r.org"
_RECEIPT = len(REQUEST_COLUMNS)


def closed_requests(
    path: Path, since_unix_ms: int, until_unix_ms: int, batch_rows: int, order: str = BY_ORG
) -> Batches:
    """`COLUMNS` of the requests of all orgs that were opened in [since, until) and are over, out of SQLite.

    Raises sqlite3.Error.
    """
    sql = _select(", ".join(f"json_extract(b.body, '$.{name}')" for name in _OF_RECEIPT), "?", order)
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute(sql, (since_unix_ms, until_unix_ms))
        while batch := rows.fetchmany(batch_rows):
            yield batch


def closed_requests_of_postgres(
    url: str, since_unix_ms: int, until_unix_ms: int, batch_rows: int, order: str = BY_ORG
) -> Batches:
    """The same out of PostgreSQL, which keeps the rows until they are fetched. Raises psycopg.Error."""
    import psycopg

    with closing(psycopg.connect(url, connect_timeout=10, application_name="switchyard-export")) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute(f"SET switchyard.org = '{EVERY_ORG}'")
        with connection.cursor(name="export") as rows:
            rows.itersize = batch_rows
            rows.execute(_select("b.body", "%s", order), (since_unix_ms, until_unix_ms))
            while batch := rows.fetchmany(batch_rows):
                yield [(*row[:_RECEIPT], *_of_receipt(row[_RECEIPT]), *row[_RECEIPT + 1 :]) for row in batch]


def _select(receipt: str, place: str, order: str) -> str:
    return (
        f"SELECT {', '.join(f'r.{column}' for column in REQUEST_COLUMNS)}, {receipt}, "
        "(SELECT AVG(f.score) FROM feedback f WHERE f.org = r.org AND f.request_id = r.request_id) "
        "FROM requests r LEFT JOIN receipts b ON b.org = r.org AND b.request_id = r.request_id "
        f"WHERE r.opened_at_unix_ms >= {place} AND r.opened_at_unix_ms < {place} ORDER BY {order}"
    )


def _of_receipt(body: str | None) -> list[str | None]:
    """Here, since PostgreSQL's own JSON refuses halves of characters, which callers may send."""
    told = json.loads(body) if body else {}
    return [None if told.get(name) is None else json.dumps(told[name]) for name in _OF_RECEIPT]
