"""Sums of usage by one dimension at a time, by hour or day, with histograms of how long requests took.

What is grouped by one thing, or by nothing, is answered by a few rows however many requests there were. What several
requests of a batch add to the same cell is added up in memory first, and written once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from router.accounting.latencies import bucket_of, packed, unpacked
from router.accounting.usage_sql import DIMENSIONS, ONE, SUMS, WEEK_MS, steps_of

_COLUMNS = tuple(column for column in DIMENSIONS.values() if column)
_KEY = "dimension = ? AND step = ? AND org = ? AND at_unix_ms = ? AND value = ?"
_NAMES = ("dimension", "step", "org", "at_unix_ms", "value", *SUMS, "ttft", "total")
_MORE = ", ".join(
    [
        *(f"{name} = usage_by.{name} + excluded.{name}" for name in SUMS),
        "ttft = excluded.ttft",
        "total = excluded.total",
    ]
)
_SAVE = (
    f"INSERT INTO usage_by ({', '.join(_NAMES)}) VALUES ({', '.join('?' * len(_NAMES))}) "
    f"ON CONFLICT (dimension, step, org, at_unix_ms, value) DO UPDATE SET {_MORE}"
)
_WEEK = ("org", "week_unix_ms", "end_user", *SUMS)
_SAVE_WEEK = (
    f"INSERT INTO usage_user_weeks ({', '.join(_WEEK)}) VALUES ({', '.join('?' * len(_WEEK))}) "
    f"ON CONFLICT (org, week_unix_ms, end_user) DO UPDATE SET "
    + ", ".join(f"{name} = usage_user_weeks.{name} + excluded.{name}" for name in SUMS)
)
ROW = (
    f"org, opened_at_unix_ms, {', '.join(_COLUMNS)}, {', '.join(ONE.values())}, "
    "CASE WHEN status <> 'abandoned' THEN ttft_ms END, CASE WHEN status <> 'abandoned' THEN total_ms END"
)
"""What `Cells.add` takes, of `requests`."""

MAX_USERS = 10_000
"""That an organisation's day tells apart. The rest count as nobody's: callers name users as they like."""
_MAX_KEPT, _MAX_DAYS = 2_000, 16
_USERS = (
    "SELECT value FROM usage_by WHERE dimension = 'user' AND step = ? AND org = ? AND at_unix_ms = ? AND value <> '' "
    "LIMIT ?"
)

Execute = Callable[..., Any]
_Counts = dict[int, int]
Key = tuple[str, str, str, int, str]


class Cells:
    """What is to be added to the table `usage_by`, and to `usage_user_weeks`, which always is the sum of its users'
    days, by one writer. Nothing is written before `flush`."""

    def __init__(self) -> None:
        self._sums: dict[Key, list[int]] = {}
        self._times: dict[Key, tuple[_Counts, _Counts]] = {}
        self._kept: dict[Key, tuple[_Counts, _Counts]] = {}  # as they are in the database: this writer is the only one
        self._users: dict[tuple[str, str, int], set[int]] = {}  # of a day of an org, as hashes

    def add(self, row: Sequence[Any], sign: int = 1) -> None:
        """A request, as `ROW` selects it, or with -1 what was added of it before."""
        org, at = row[0], row[1]
        values = (*row[2 : 2 + len(_COLUMNS)],)
        sums = row[2 + len(_COLUMNS) : -2]
        buckets = [None if ms is None else bucket_of(ms) for ms in row[-2:]]
        by_dimension = dict(zip(_COLUMNS, values, strict=True))
        for dimension, column in DIMENSIONS.items():
            value = (by_dimension[column] or "") if column else ""
            for step, step_ms in steps_of(dimension):
                self._add((dimension, step, org, at // step_ms * step_ms, value), sums, buckets, sign)

    def _add(self, key: Key, sums: Sequence[int], buckets: Sequence[int | None], sign: int) -> None:
        cell = self._sums.get(key)
        if cell is None:
            cell = self._sums[key] = [0] * len(SUMS)
            self._times[key] = ({}, {})
        for number, value in enumerate(sums):
            if value:
                cell[number] += sign * int(value)
        for counts, bucket in zip(self._times[key], buckets, strict=True):
            if bucket is not None:
                counts[bucket] = counts.get(bucket, 0) + sign

    def add_cell(self, key: Key, sums: Sequence[int], times: Sequence[bytes]) -> None:
        """What is in one cell, to that of another key."""
        self._add(key, sums, (None, None), 1)
        for counts, data in zip(self._times[key], times, strict=True):
            for bucket, count in unpacked(bytes(data)).items():
                counts[bucket] = counts.get(bucket, 0) + count

    def flush(self, execute: Execute) -> None:
        """Write all that was added. Call it inside the transaction of what was added."""
        if len(self._kept) > _MAX_KEPT:
            self._kept.clear()
        for key in [key for key in self._sums if key[0] == "user" and key[4]]:
            if not self._has_place(execute, key):
                self._fold(key, (*key[:4], ""))
        for key, sums in self._sums.items():
            whole = self._kept.get(key)
            if whole is None:
                found = execute(f"SELECT ttft, total FROM usage_by WHERE {_KEY}", key).fetchone() or (b"", b"")
                whole = self._kept[key] = (unpacked(bytes(found[0])), unpacked(bytes(found[1])))
            for counts, new in zip(whole, self._times[key], strict=True):
                for bucket, count in new.items():
                    counts[bucket] = counts.get(bucket, 0) + count
            execute(_SAVE, (*key, *sums, *map(packed, whole)))
        self._save_weeks(execute)
        self._sums.clear()
        self._times.clear()

    def _save_weeks(self, execute: Execute) -> None:
        weeks: dict[tuple[str, int, str], list[int]] = {}
        for (dimension, _, org, at, value), sums in self._sums.items():
            if dimension == "user":
                week = weeks.setdefault((org, at // WEEK_MS * WEEK_MS, value), [0] * len(SUMS))
                week[:] = map(sum, zip(week, sums, strict=True))
        for key, sums in weeks.items():
            execute(_SAVE_WEEK, (*key, *sums))

    def _has_place(self, execute: Execute, key: Key) -> bool:
        """Whether a user has a cell of their own, or may get one. Who has none has nothing to be taken off it."""
        _, step, org, at, value = key
        if (users := self._users.get((step, org, at))) is None:
            if len(self._users) >= _MAX_DAYS:
                self._users.clear()
            found = execute(_USERS, (step, org, at, MAX_USERS)).fetchall()
            users = self._users[step, org, at] = {hash(user) for (user,) in found}
        known = hash(value) in users
        if not known and len(users) < MAX_USERS and self._sums[key][0] > 0:
            users.add(hash(value))
            return True
        return known

    def _fold(self, key: Key, into: Key) -> None:
        times = self._times.pop(key)
        self._add(into, self._sums.pop(key), (None, None), 1)
        for counts, more in zip(self._times[into], times, strict=True):
            for bucket, count in more.items():
                counts[bucket] = counts.get(bucket, 0) + count

    def forget(self) -> None:
        """What was added and not written: its transaction was taken back."""
        self._users.clear()
        self._sums.clear()
        self._times.clear()
        self._kept.clear()
