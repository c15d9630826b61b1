"""The directory and the audit log in the ledger's database."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

from models.errors import InvalidRequest
from router.accounting.audit import GENESIS, AuditRow, chained
from router.accounting.directory import Row
from router.accounting.postgres import EVERY_ORG, PostgresDatabase
from router.events import AuditEntry
from router.sqlite_file import SQLiteFile

Database = SQLiteFile | PostgresDatabase

_AUDIT_COLUMNS = ", ".join(AuditRow.__slots__)
_VERIFY_ROWS = 2_000


class DirectoryStore:
    """Synchronous: `audit_page` and `audit_rows` belong to the thread that reads, all else to the one that writes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._end: tuple[int, str] | None = None

    def rows(self) -> list[Row]:
        """Oldest first."""
        found = self._database.writer.execute("SELECT kind, id, org, version, body FROM directory ORDER BY version")
        return [Row(*row) for row in found]

    def save(self, rows: Sequence[Row], entry: AuditEntry) -> None:
        """The rows and the word of who changed them, both or neither."""
        try:
            with self._database.transaction() as writer:
                for row in rows:
                    writer.execute(
                        "INSERT INTO directory (kind, id, org, version, body) VALUES (?, ?, ?, ?, ?) "
                        "ON CONFLICT (kind, id) DO UPDATE SET version = excluded.version, body = excluded.body",
                        astuple(row),
                    )
                self.append(entry)
        except BaseException:
            self.forget_end()
            raise

    def append(self, entry: AuditEntry | dict[str, Any]) -> bool:
        """Chain an entry on, inside a transaction of the caller's. False: it is there already.

        When that transaction is taken back, `forget_end` must follow.
        """
        if self._end is None:
            newest = "SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1"
            self._end = self._database.writer.execute(newest).fetchone() or (0, GENESIS)
        row = chained(entry, self._end[0] + 1, self._end[1])
        done = self._database.writer.execute(
            f"INSERT INTO audit ({_AUDIT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (entry_id) DO NOTHING",
            astuple(row),
        )
        if not done.rowcount:
            return False
        self._end = row.sequence, row.hash
        return True

    def forget_end(self) -> None:
        """The database knows better where the chain ends."""
        self._end = None

    def audit_page(self, org: str | None, after: str, limit: int) -> list[dict[str, Any]]:
        """At most `limit` entries after the one with the id `after` ('': from the first on), oldest first; `org` None:
        of all. Each with its hash. Raises `InvalidRequest` when there is no such entry."""
        where, values = ("", ()) if org is None else ("org = ? AND ", (org,))
        with self._database.reading(EVERY_ORG if org is None else org) as reader:
            last: tuple[int] | None = (0,)
            if after and "\0" not in after:  # which PostgreSQL takes in no text
                which = f"SELECT sequence FROM audit WHERE {where}entry_id = ?"
                last = reader.execute(which, (*values, after)).fetchone()
            if last is None or "\0" in after:
                raise InvalidRequest("'after' is the 'id' of an entry, and there is none with this one.", "after")
            rows = reader.execute(
                f"SELECT body, hash FROM audit WHERE {where}sequence > ? ORDER BY sequence LIMIT ?",
                (*values, *last, limit),
            )
            return [{**json.loads(body), "hash": digest} for body, digest in rows]

    def audit_rows(self) -> Iterator[AuditRow]:
        """All of it, oldest first, a piece at a time."""
        after = 0
        while True:
            with self._database.reading(EVERY_ORG) as reader:
                rows = reader.execute(
                    f"SELECT {_AUDIT_COLUMNS} FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?",
                    (after, _VERIFY_ROWS),
                ).fetchall()
            if not rows:
                return
            yield from (AuditRow(*row) for row in rows)
            after = rows[-1][0]
