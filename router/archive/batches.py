"""Batches in the database: what was asked, how far it is, who pays.

Source of the states and fields: https://platform.openai.com/docs/api-reference/batch/object.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from models.errors import InvalidRequest, NotFound, RateLimited
from router.events import Principal
from router.settings import ArchiveSettings
from router.sqlite_file import SQLiteFile

WINDOW_S = 24 * 3600
OPEN = ("validating", "in_progress", "finalizing", "cancelling")
_OPEN_SQL = "('" + "', '".join(OPEN) + "')"


@dataclass(slots=True)
class Batch:
    """`body` is OpenAI's batch object; whoever changes it saves it."""

    org: str
    batch_id: str
    body: dict[str, Any]
    principal: Principal

    @property
    def status(self) -> str:
        status: str = self.body["status"]
        return status

    def enter(self, status: str) -> None:
        self.body["status"] = status
        self.body[f"{status}_at"] = int(time.time())


def new_batch(principal: Principal, input_file_id: str, endpoint: str, metadata: dict[str, str] | None) -> Batch:
    now = int(time.time())
    batch_id = f"batch_{secrets.token_hex(12)}"
    moments = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    body: dict[str, Any] = {
        "id": batch_id,
        "object": "batch",
        "endpoint": endpoint,
        "errors": None,
        "input_file_id": input_file_id,
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "expires_at": now + WINDOW_S,
        **{f"{moment}_at": None for moment in moments},
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": metadata,
    }
    return Batch(principal.org, batch_id, body, principal)


class BatchStore:
    """Synchronous. `create`, `save`, `cancel` and `open` come from one thread at a time, the rest from another."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    def create(self, batch: Batch, settings: ArchiveSettings) -> None:
        """Raises `RateLimited` for an organisation that has too many which are not over."""
        sql = f"SELECT COUNT(*) FROM batches WHERE org = ? AND status IN {_OPEN_SQL}"
        (under_way,) = self._file.writer.execute(sql, (batch.org,)).fetchone()
        if under_way >= settings.max_open_batches_per_org:
            raise RateLimited(f"{under_way} batches of yours are under way; wait for one of them.", None, 60.0)
        who = json.dumps(asdict(batch.principal) | {"scopes": sorted(batch.principal.scopes)})
        row = (batch.org, batch.batch_id, batch.body["created_at"], batch.status, json.dumps(batch.body), who)
        with self._file.transaction() as writer:
            writer.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", row)

    def save(self, batch: Batch) -> None:
        with self._file.transaction() as writer:
            writer.execute(
                "UPDATE batches SET status = ?, body = ? WHERE org = ? AND batch_id = ?",
                (batch.status, json.dumps(batch.body), batch.org, batch.batch_id),
            )

    def open(self) -> list[Batch]:
        """Those that are not over, the oldest first."""
        rows = self._file.writer.execute(
            f"SELECT org, batch_id, body, principal FROM batches WHERE status IN {_OPEN_SQL} ORDER BY created_at_unix_s"
        )
        return [_batch(*row) for row in rows]

    def get(self, org: str, batch_id: str) -> dict[str, Any]:
        row = self._file.reader.execute(
            "SELECT body FROM batches WHERE org = ? AND batch_id = ?", (org, batch_id)
        ).fetchone()
        if row is None:
            raise NotFound("No batch with this id: GET /v1/batches lists yours.", "batch_id")
        body: dict[str, Any] = json.loads(row[0])
        return body

    def of(self, org: str, user: str | None) -> list[Batch]:
        """All of an org, or of one of its users. For the thread that writes."""
        rows = self._file.writer.execute("SELECT org, batch_id, body, principal FROM batches WHERE org = ?", (org,))
        return [batch for batch in (_batch(*row) for row in rows) if user is None or batch.principal.user == user]

    def delete(self, batches: Sequence[Batch]) -> None:
        with self._file.transaction() as writer:
            for batch in batches:
                writer.execute("DELETE FROM batches WHERE org = ? AND batch_id = ?", (batch.org, batch.batch_id))

    def list(self, org: str, limit: int, after: str | None) -> list[dict[str, Any]]:
        """The newest first, those after the batch `after`."""
        rows = self._file.reader.execute(
            "SELECT batch_id, body FROM batches WHERE org = ? ORDER BY created_at_unix_s DESC, rowid DESC", (org,)
        )
        found: list[dict[str, Any]] = []
        passed = after is None
        for batch_id, body in rows:
            if passed:
                found.append(json.loads(body))
                if len(found) == limit:
                    break
            passed = passed or batch_id == after
        if not passed:
            raise InvalidRequest("'after' is the id of a batch of yours.", "after")
        return found

    def sweep(self, settings: ArchiveSettings) -> int:
        """Remove those that are over and as old as files get. Returns how many."""
        removed, now = 0, time.time()
        with self._file.transaction() as writer:
            for (org,) in writer.execute("SELECT DISTINCT org FROM batches").fetchall():
                removed += writer.execute(
                    f"DELETE FROM batches WHERE org = ? AND created_at_unix_s <= ? AND status NOT IN {_OPEN_SQL}",
                    (org, now - settings.ttl_s_by_org.get(org, settings.file_ttl_s)),
                ).rowcount
        return removed


def _batch(org: str, batch_id: str, body: str, principal: str) -> Batch:
    fields = json.loads(principal)
    return Batch(org, batch_id, json.loads(body), Principal(**fields | {"scopes": frozenset(fields["scopes"])}))
