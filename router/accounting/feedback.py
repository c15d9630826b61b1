"""What callers say about answers, kept with the books, and how far it can be believed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from router.accounting.directory_store import Database

LABELS = {"good": 1.0, "bad": 0.0}
Z_95 = 1.959964
MOST_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Feedback:
    """score in [0, 1]. task: the kind of work that the question was taken for. cached_from: the answer that was
    replayed, if one was."""

    org: str
    request_id: str
    key_id: str
    given_at_unix_ms: int
    model: str
    task: str
    cached_from: str
    score: float
    label: str = ""
    tags: tuple[str, ...] = ()
    comment: str = ""


def wilson(good: float, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): of few it is wide, unlike the share itself."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = good / count, Z_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


class FeedbackStore:
    """The table `feedback` of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, given: Feedback) -> None:
        """The newest word of a key on a request stands in place of its older one."""
        names = Feedback.__slots__
        values = [getattr(given, name) for name in names]
        values[names.index("tags")] = json.dumps(given.tags)
        changed = ", ".join(f"{name} = excluded.{name}" for name in names[3:])
        with self._database.transaction() as writer:
            writer.execute(
                f"INSERT INTO feedback ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) "
                f"ON CONFLICT (org, request_id, key_id) DO UPDATE SET {changed}",
                values,
            )

    def by_work(self, org: str) -> list[tuple[str, str, int, float]]:
        """Model, task, how many spoke, and the share of good; of answers that were no replay."""
        with self._database.reading(org) as reader:
            rows = reader.execute(
                "SELECT model, task, COUNT(*), SUM(score) FROM feedback "
                "WHERE org = ? AND cached_from = '' AND model <> '' "
                f"GROUP BY model, task ORDER BY COUNT(*) DESC, model, task LIMIT {MOST_ROWS}",
                (org,),
            ).fetchall()
        return [(model, task, int(count), float(good) / int(count)) for model, task, count, good in rows]

    def summary(self, org: str, by: str) -> list[dict[str, Any]]:
        """By `model` or `cached_from` (the replayed answer): how many spoke, and the share of good with its interval;
        the most spoken of first. Raises ValueError for another column."""
        if by not in ("model", "cached_from"):
            raise ValueError(by)
        with self._database.reading(org) as reader:
            rows = reader.execute(
                f"SELECT {by}, COUNT(*), SUM(score) FROM feedback WHERE org = ? AND {by} <> '' GROUP BY {by} "
                f"ORDER BY COUNT(*) DESC, {by} LIMIT {MOST_ROWS}",
                (org,),
            ).fetchall()
        found = []
        for name, count, good in rows:
            low, high = wilson(float(good), int(count))
            share = round(float(good) / int(count), 4)
            found.append({by: name, "count": int(count), "good": share, "low": round(low, 4), "high": round(high, 4)})
        return found
