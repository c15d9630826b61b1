"""Usage in a database: the sums that are kept up with each request, and what is read from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from router.accounting.directory_store import Database
from router.accounting.latencies import percentiles
from router.accounting.postgres import EVERY_ORG
from router.accounting.usage_cells import ROW, Cells
from router.accounting.usage_sql import ADD, DAY_MS, SUMS, TAKE_OFF, LatencyPart, UsageQuery, latency_sql, usage_sql

_ONE = f"SELECT {ROW} FROM requests WHERE org = ? AND request_id = ?"
_NEXT = (
    f"SELECT request_id, {ROW} FROM requests WHERE (org, opened_at_unix_ms, request_id) > (?, ?, ?) "
    "ORDER BY requests.org, requests.opened_at_unix_ms, request_id LIMIT ?"
)
"""In the order of time, so that a page's requests share their sums."""
_BATCH_ROWS = 20_000
_NEXT_HOURS = (
    f"SELECT dimension, org, at_unix_ms, value, {', '.join(SUMS)}, ttft, total FROM usage_by "
    "WHERE step = 'hour' AND dimension <> 'key' AND (dimension, org, at_unix_ms, value) > (?, ?, ?, ?) "
    "ORDER BY dimension, org, at_unix_ms, value LIMIT ?"
)


class UsageStore:
    """`read` belongs to the thread that reads, all else to the one that writes, in its transaction."""

    def __init__(self, database: Database) -> None:
        self._database, self._cells = database, Cells()
        self._add_earlier()
        self._add_days()

    def add(self, org: str, request_id: str) -> None:
        """Count a request that is in `requests`. `flush` must follow, or `forget`."""
        self._count(org, request_id, ADD, 1)

    def take_off(self, org: str, request_id: str) -> None:
        """The opposite, before it is removed from there."""
        self._count(org, request_id, TAKE_OFF, -1)

    def flush(self) -> None:
        self._cells.flush(self._database.writer.execute)

    def forget(self) -> None:
        """The transaction was taken back."""
        self._cells.forget()

    def read(self, query: UsageQuery) -> list[dict[str, Any]]:
        """See `Store.usage`."""
        with self._database.reading(EVERY_ORG if query.org is None else query.org) as reader:
            rows = [dict(zip((*query.group_by, *SUMS), row, strict=True)) for row in reader.execute(*usage_sql(query))]
            if "user" in query.group_by:
                rows = _without_debts(rows, query.group_by)
            if query.latency:
                _add_latencies(reader.execute, rows, latency_sql(query), query.group_by)
        return rows

    def _count(self, org: str, request_id: str, statements: Sequence[str], sign: int) -> None:
        execute, key = self._database.writer.execute, (org, request_id)
        self._cells.add(execute(_ONE, key).fetchone(), sign)
        for sql in statements:
            execute(sql, key)

    def _add_days(self) -> None:
        """To the sums by hour of an older version, which had none by day but of keys and users."""
        execute, last = self._database.writer.execute, ("", "", 0, "")
        whole = "SELECT 1 FROM usage_by WHERE dimension = '' AND step = '{}' LIMIT 1"
        if execute(whole.format("day")).fetchone() or not execute(whole.format("hour")).fetchone():
            return
        with self._database.transaction() as writer:
            while rows := writer.execute(_NEXT_HOURS, (*last, _BATCH_ROWS)).fetchall():
                for dimension, org, at, value, *sums, ttft, total in rows:
                    key = (dimension, "day", org, at // DAY_MS * DAY_MS, value)
                    self._cells.add_cell(key, sums, (ttft, total))
                self._cells.flush(writer.execute)
                last = tuple(rows[-1][:4])

    def _add_earlier(self) -> None:
        """To the sums that a newer schema brought: the requests that were there before."""
        execute = self._database.writer.execute
        known, there = (execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in ("usage_by", "requests"))
        if known or not there:
            return
        with self._database.transaction() as writer:
            writer.execute("DELETE FROM usage_user_weeks")
            last: tuple[str, int, str] = ("", 0, "")
            # Page by page: PostgreSQL would send all of them at once, and not for longer than its time-out.
            while rows := writer.execute(_NEXT, (*last, _BATCH_ROWS)).fetchall():
                for _, *row in rows:
                    self._cells.add(row)
                self._cells.flush(writer.execute)
                last = rows[-1][1], rows[-1][2], rows[-1][0]


def _without_debts(rows: list[dict[str, Any]], group_by: Sequence[str]) -> list[dict[str, Any]]:
    """Of a user whose day was one too many to be told apart, requests were taken off that were counted as nobody's."""
    debts = [row for row in rows if row["requests"] < 0]
    if not debts:
        return rows
    nobodys = {tuple(row[name] for name in group_by): row for row in rows if row["user"] == ""}
    for debt in debts:
        creditor = nobodys.get(tuple("" if name == "user" else debt[name] for name in group_by))
        if creditor is not None:
            creditor.update({name: creditor[name] + debt[name] for name in SUMS})
    return [row for row in rows if row["requests"] > 0]


def _add_latencies(
    execute: Callable[..., Any],
    rows: list[dict[str, Any]],
    parts: Iterable[LatencyPart],
    group_by: Sequence[str],
) -> None:
    """Percentiles to each of `rows`."""
    numbers = {tuple(row[name] for name in group_by): number for number, row in enumerate(rows)}
    names = ("ttft_ms", "total_ms")
    kept: dict[str, list[tuple[int, bytes, int]]] = {name: [] for name in names}
    single: dict[str, list[tuple[int, float, int]]] = {name: [] for name in names}
    for part in parts:
        found = [(numbers.get(row[:-2]), row) for row in execute(part.sql, part.values).fetchall()]
        for column, name in ((-2, "ttft_ms"), (-1, "total_ms")):
            known = ((number, row[column]) for number, row in found if number is not None and row[column] is not None)
            if part.summed:
                kept[name] += [(number, bytes(value), part.sign) for number, value in known]
            else:
                single[name] += [(number, value, part.sign) for number, value in known]
    for name in names:
        for shown, times in zip(rows, percentiles(len(rows), kept[name], single[name]), strict=True):
            shown[name] = times
