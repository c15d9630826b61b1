"""Stored responses: kept for a while, bounded per organisation and in all, found by nobody but their organisation."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import InternalError
from router.sealing import NO_SEALER, Sealer
from router.settings import ArchiveSettings
from router.sqlite_file import SQLiteFile

MAX_TURNS, MAX_CONVERSATION_BYTES = 500, 64 * 1024**2
"""Of a conversation that is gone on with."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """`body` is the response, `input` the list of its own turn's items; both as JSON text. user: '' is not known."""

    response_id: str
    previous_response_id: str | None
    created_at_unix_s: float
    body: str
    input: str
    user: str = ""

    @property
    def size_bytes(self) -> int:
        return len(self.body.encode()) + len(self.input.encode())


_COLUMNS = "response_id, previous_response_id, created_at_unix_s, body, input"
_INSERT = (
    f"INSERT INTO responses (org, end_user, size_bytes, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT DO NOTHING"
)
_OLDEST = "SELECT org, response_id, size_bytes FROM responses {where} ORDER BY created_at_unix_s LIMIT {limit}"


class ResponseStore:
    """Synchronous. `put`, `delete` and `sweep` come from one thread at a time, `get` and `conversation` from another.

    `evicted` counts responses that had to go before their time, since there were too many.
    """

    def __init__(self, file: SQLiteFile, clock: Callable[[], float] = time.time, sealer: Sealer = NO_SEALER) -> None:
        self._file, self._clock, self._sealer = file, clock, sealer
        self._sizes: Counter[str] = Counter(
            dict(file.writer.execute("SELECT org, SUM(size_bytes) FROM responses GROUP BY org"))
        )
        self.evicted = 0

    def put(self, org: str, response: StoredResponse, settings: ArchiveSettings) -> None:
        """Keep `response`; a second time changes nothing."""
        with self._file.transaction() as writer:
            added = writer.execute(
                _INSERT,
                (
                    org,
                    response.user,
                    response.size_bytes,
                    response.response_id,
                    response.previous_response_id,
                    response.created_at_unix_s,
                    *self._sealed(org, response),
                ),
            ).rowcount
        if added:
            self._sizes[org] += response.size_bytes
        while self._sizes[org] > settings.max_response_bytes_per_org and self._evict(org):
            pass
        while self._sizes.total() > settings.max_response_bytes and self._evict(None):
            pass

    def get(self, org: str, response_id: str, settings: ArchiveSettings) -> StoredResponse | None:
        row = self._file.reader.execute(
            f"SELECT {_COLUMNS} FROM responses WHERE org = ? AND response_id = ? AND created_at_unix_s > ?",
            (org, response_id, self._clock() - settings.ttl_s_by_org.get(org, settings.response_ttl_s)),
        ).fetchone()
        return self._opened(org, row) if row else None

    def conversation(self, org: str, response_id: str, settings: ArchiveSettings) -> list[StoredResponse] | None:
        """All that led to a response and itself, oldest first. None when a part of it is not there (any more)."""
        turns: list[StoredResponse] = []
        following: str | None = response_id
        size_bytes = 0
        while following is not None:
            turn = self.get(org, following, settings)
            if turn is None or len(turns) >= MAX_TURNS or size_bytes > MAX_CONVERSATION_BYTES:
                return None
            turns.append(turn)
            size_bytes += turn.size_bytes
            following = turn.previous_response_id
        return turns[::-1]

    def delete(self, org: str, response_id: str) -> bool:
        """Whether it was there."""
        rows = self._file.writer.execute(
            "SELECT org, response_id, size_bytes FROM responses WHERE org = ? AND response_id = ?", (org, response_id)
        ).fetchall()
        self._remove(rows)
        return bool(rows)

    def sweep(self, settings: ArchiveSettings) -> int:
        """Remove what has had its time. Returns how many."""
        removed, now = 0, self._clock()
        for org in [org for (org,) in self._file.writer.execute("SELECT DISTINCT org FROM responses")]:
            before = now - settings.ttl_s_by_org.get(org, settings.response_ttl_s)
            sql = _OLDEST.format(where="WHERE org = ? AND created_at_unix_s <= ?", limit=100)
            while rows := self._file.writer.execute(sql, (org, before)).fetchall():
                removed += self._remove(rows)
        return removed

    def erase(self, org: str, user: str | None, ids: Sequence[str]) -> int:
        """Those of an org, or of one of its users and of these ids. Returns how many there were."""
        removed = 0
        where, values = ("WHERE org = ?", (org,)) if user is None else ("WHERE org = ? AND end_user = ?", (org, user))
        while rows := self._file.writer.execute(_OLDEST.format(where=where, limit=100), values).fetchall():
            removed += self._remove(rows)
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            where = f"WHERE org = ? AND response_id IN ({', '.join('?' * len(part))})"
            removed += self._remove(
                self._file.writer.execute(_OLDEST.format(where=where, limit=len(part)), (org, *part)).fetchall()
            )
        return removed

    def facts(self) -> dict[str, Any]:
        """How many there are, how many bytes (of the texts), and by which key they are sealed."""
        rows = self._file.writer.execute(
            "SELECT CASE WHEN typeof(body) = 'blob' THEN hex(substr(body, 5, 4)) ELSE '' END AS sealed_by, "
            "COUNT(*), SUM(size_bytes) FROM responses GROUP BY sealed_by"
        ).fetchall()
        by_key = {key.lower() or "none": count for key, count, _ in rows}
        return {"count": sum(by_key.values()), "bytes": sum(size for *_, size in rows), "sealed_by": by_key}

    def reseal(self, after: int, limit: int) -> tuple[int, list[str], int | None]:
        """Seal up to `limit` that are not sealed by the key that seals now. after: where the last call ended, 0 to
        begin. Returns how many were sealed, which do not open, and where it ended (None: there are no more)."""
        if not self._sealer.on:
            return 0, [], None
        rows = self._file.writer.execute(
            f"SELECT rowid, org, {_COLUMNS} FROM responses WHERE rowid > ? AND substr(CAST(body AS BLOB), 1, ?) <> ? "
            "ORDER BY rowid LIMIT ?",
            (after, len(self._sealer.prefix()), self._sealer.prefix(), limit),
        ).fetchall()
        wrong: list[str] = []
        with self._file.transaction() as writer:
            for _, org, *row in rows:
                try:
                    response = self._opened(org, row)
                except InternalError:
                    wrong.append(row[0])
                    continue
                writer.execute(
                    "UPDATE responses SET body = ?, input = ? WHERE org = ? AND response_id = ?",
                    (*self._sealed(org, response), org, response.response_id),
                )
        return len(rows) - len(wrong), wrong, rows[-1][0] if rows else None

    def _sealed(self, org: str, response: StoredResponse) -> tuple[bytes | str, bytes | str]:
        if not self._sealer.on:
            return response.body, response.input
        body, items = (
            self._sealer.seal(text.encode("utf-8", "surrogatepass"), _context(org, response.response_id, part))
            for part, text in (("body", response.body), ("input", response.input))
        )
        return body, items

    def _opened(self, org: str, row: Sequence[Any]) -> StoredResponse:
        response_id, previous, created_at, *texts = row
        body, items = (
            text
            if isinstance(text, str)
            else self._sealer.open(text, _context(org, response_id, part), sealed=True).decode("utf-8", "surrogatepass")
            for part, text in zip(("body", "input"), texts, strict=True)
        )
        return StoredResponse(response_id, previous, created_at, body, items)

    def _evict(self, org: str | None) -> int:
        """Remove the oldest, of one org or of all."""
        where, values = ("WHERE org = ?", (org,)) if org is not None else ("", ())
        rows = self._file.writer.execute(_OLDEST.format(where=where, limit=1), values).fetchall()
        self.evicted += len(rows)
        return self._remove(rows)

    def _remove(self, rows: list[Any]) -> int:
        with self._file.transaction() as writer:
            for org, response_id, size_bytes in rows:
                _delete(writer, org, response_id)
                self._sizes[org] -= size_bytes
        self._sizes += Counter()  # those with nothing left go
        return len(rows)


def _context(org: str, response_id: str, part: str) -> str:
    return f"response/{org}/{response_id}/{part}"


def _delete(writer: sqlite3.Connection, org: str, response_id: str) -> None:
    writer.execute("DELETE FROM responses WHERE org = ? AND response_id = ?", (org, response_id))
