"""What all ingresses have learned of models, in the ledger's database: so it outlives them, and each knows it."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from router.accounting.directory_store import Database
from router.experience import MOST, Learned, Lessons, decayed

PAGE = 5_000
"""Rows that an ingress is told at a time: half a megabyte."""
_COLUMNS = ("org", "work", "model", "good", "bad", "at_unix_ms")


class ExperienceStore:
    """The table `experience`, and all of it in memory. Bounded: what was not learned of for longest goes first.

    For the thread that writes.
    """

    def __init__(self, database: Database, most: int = MOST) -> None:
        self._database, self._most = database, most
        self._incarnation = secrets.token_hex(8)
        self._version = 0
        self._rows: OrderedDict[tuple[str, str, str], tuple[int, Learned]] | None = None

    def share(self, lessons: Lessons, now_unix_ms: int) -> Lessons:
        """Take in what an ingress has learned, and tell what is new since it last asked: at most `PAGE` rows, the rest
        at its next asking."""
        rows = self._loaded()
        told = self._merged(lessons.rows, now_unix_ms)
        if told:
            self._save(told)
        since = lessons.version if lessons.incarnation == self._incarnation else 0
        new: list[tuple[int, Learned]] = []
        for version, row in reversed(rows.values()):
            if version <= since:
                break
            new.append((version, row))
        page = new[::-1][:PAGE]
        return Lessons(tuple(row for _, row in page), self._incarnation, page[-1][0] if page else since)

    def _loaded(self) -> OrderedDict[tuple[str, str, str], tuple[int, Learned]]:
        if self._rows is None:
            self._rows = OrderedDict()
            names = ", ".join(_COLUMNS)
            newest = f"SELECT {names} FROM experience ORDER BY at_unix_ms DESC LIMIT {self._most}"
            for row in reversed(self._database.writer.execute(newest).fetchall()):
                self._put(Learned(*row))
        return self._rows

    def _merged(self, rows: Sequence[Learned], now_unix_ms: int) -> list[Learned]:
        found = []
        for row in rows:
            _, known = self._loaded().get(row.key, (0, Learned(*row.key, 0.0, 0.0, now_unix_ms)))
            good, bad = decayed(known, now_unix_ms)
            found.append(replace(row, good=good + row.good, bad=bad + row.bad, at_unix_ms=now_unix_ms))
            self._put(found[-1])
        return found

    def _put(self, row: Learned) -> None:
        assert self._rows is not None
        self._version += 1
        self._rows[row.key] = (self._version, row)
        self._rows.move_to_end(row.key)

    def _save(self, rows: Sequence[Learned]) -> None:
        assert self._rows is not None
        gone = [self._rows.popitem(last=False)[0] for _ in range(len(self._rows) - self._most)]
        try:
            with self._database.transaction() as writer:
                for row in rows:
                    writer.execute(
                        f"INSERT INTO experience ({', '.join(_COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?) "
                        "ON CONFLICT (org, work, model) DO UPDATE SET "
                        "good = excluded.good, bad = excluded.bad, at_unix_ms = excluded.at_unix_ms",
                        (*row.key, row.good, row.bad, row.at_unix_ms),
                    )
                for key in gone:
                    writer.execute("DELETE FROM experience WHERE org = ? AND work = ? AND model = ?", key)
        except BaseException:
            self._rows, self._incarnation = None, secrets.token_hex(8)  # the database knows better
            raise
