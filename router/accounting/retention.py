"""What goes: requests that have had their time, and what tells of a user or an organisation that is to be forgotten.
Sums stay, without users, and so does what every budget counts."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from typing import Any

from router.accounting.directory_store import Database
from router.accounting.limits import Account
from router.accounting.usage_cells import Cells
from router.accounting.usage_sql import DAY_MS, SUMS, WEEK_MS
from router.accounting.usage_store import UsageStore

_TABLES = ("requests", "receipts", "attempts", "feedback", "open_requests", "usage_by", "audit", "alerts", "directory")
_DROPPED = (
    "INSERT INTO dropped_costs (org, holder, team, key_id, model, microusd) {0} "
    "ON CONFLICT (org, holder, team, key_id, model) DO UPDATE SET microusd = dropped_costs.microusd + excluded.microusd"
)


class RetentionStore:
    """Synchronous; it belongs to the thread that writes. usage: it keeps in memory what is changed here."""

    def __init__(self, database: Database, usage: UsageStore) -> None:
        self._database, self._usage = database, usage
        self._salt = secrets.token_bytes(16)  # nowhere else, so that nobody can make these units again

    def drop_requests(self, org: str, before_unix_ms: int, limit: int) -> int:
        """Up to `limit` requests of an org that were opened before then, the oldest first, with their tries, receipts
        and feedback. Returns how many there were; call it until there are none."""
        with self._database.transaction() as writer:
            found = writer.execute(
                "SELECT request_id FROM requests WHERE org = ? AND opened_at_unix_ms < ? "
                "ORDER BY opened_at_unix_ms LIMIT ?",
                (org, before_unix_ms, limit),
            ).fetchall()
            ids = [request_id for (request_id,) in found]
            if not ids:
                return 0
            which = f"r.org = ? AND r.request_id IN ({', '.join('?' * len(ids))})"
            groups = "GROUP BY r.org, r.holder, r.team, r.key_id"
            same = "r.org, r.holder, r.team, r.key_id"
            whole = f"SELECT {same}, '', CAST(SUM(r.cost_microusd) AS BIGINT) FROM requests r WHERE {which} {groups}"
            tries = (
                f"SELECT {same}, a.model, CAST(SUM(a.cost_microusd) AS BIGINT) FROM requests r "
                f"JOIN attempts a ON a.org = r.org AND a.request_id = r.request_id WHERE {which} {groups}, a.model"
            )
            guessed = (
                f"SELECT {same}, r.model, CAST(SUM(r.cost_microusd) AS BIGINT) FROM requests r "
                f"WHERE {which} AND r.status = 'abandoned' AND r.model IS NOT NULL {groups}, r.model"
            )
            for select in (whole, tries, guessed):
                writer.execute(_DROPPED.format(select), (org, *ids))
            self._delete(writer, "feedback", org, ids)
            self._delete(writer, "requests", org, ids)  # its other rows go with it
        return len(ids)

    def orgs(self) -> list[str]:
        """That have requests."""
        found = self._database.writer.execute("SELECT DISTINCT org FROM usage_by WHERE dimension = ''")
        return [org for (org,) in found]

    def spent_before(self, account: Account) -> list[tuple[str, int]]:
        """What `account` counts of the requests that were dropped, by holder."""
        given = {"org": account.org, "team": account.team, "key_id": account.key_id}
        which = {column: value for column, value in given.items() if value}
        where = " AND ".join([*(f"{column} = ?" for column in which), "model = ?"])
        rows = self._database.writer.execute(
            f"SELECT holder, CAST(SUM(microusd) AS BIGINT) FROM dropped_costs WHERE {where} GROUP BY holder",
            (*which.values(), account.model),
        )
        return [(holder, microusd) for holder, microusd in rows if microusd]

    def requests_of(self, org: str, user: str, limit: int) -> list[str]:
        """Ids of requests that still name a user."""
        rows = self._database.writer.execute(
            "SELECT request_id FROM requests WHERE org = ? AND end_user = ? LIMIT ?", (org, user, limit)
        )
        return [request_id for (request_id,) in rows]

    def forget_user(self, org: str, user: str, ids: Sequence[str]) -> None:
        """Of these requests: their receipts, what was said about them, and whose they were. They stay, as nobody's.
        With the last of them, or with none, all else that names the user goes too."""
        with self._database.transaction() as writer:
            self._blank(writer, org, ids)
            writer.execute("UPDATE open_requests SET end_user = '' WHERE org = ? AND end_user = ?", (org, user))
            left = "SELECT 1 FROM requests WHERE org = ? AND end_user = ? LIMIT 1"
            last = writer.execute(left, (org, user)).fetchone() is None
            if last:
                self._merge_users(writer, org, user)
                self._drop_rejected(writer, org, user)
        if last:
            self._usage.forget()

    def forget_requests(self, org: str, limit: int) -> int:
        """Up to `limit` requests of an org: what they say besides when, which key, which model and how much. Returns
        how many there were; call it until there are none. The bare rows have to stay until nothing counts them any
        more, and until no journal brings them again."""
        with self._database.transaction() as writer:
            # Each request has a receipt, until it is forgotten.
            found = writer.execute("SELECT request_id FROM receipts WHERE org = ? LIMIT ?", (org, limit)).fetchall()
            self._blank(writer, org, [request_id for (request_id,) in found])
        return len(found)

    def forget_users(self, org: str) -> None:
        """Whose requests the sums are of, of all users of an org."""
        with self._database.transaction() as writer:
            self._merge_users(writer, org, None)
            writer.execute("DELETE FROM open_requests WHERE org = ?", (org,))
            writer.execute("DELETE FROM feedback WHERE org = ?", (org,))
            writer.execute("DELETE FROM alerts WHERE org = ?", (org,))
            self._drop_rejected(writer, org, None)
        self._usage.forget()

    def merge_users(self, org: str, before_unix_ms: int) -> int:
        """Of one day that ended before then: whose requests its sums are of. Returns how many users those were; call it
        until there are none."""
        days = "FROM usage_by WHERE dimension = 'user' AND org = ? AND value <> ''"
        with self._database.transaction() as writer:
            (day,) = writer.execute(f"SELECT MIN(at_unix_ms) {days}", (org,)).fetchone()
            if day is None or day + DAY_MS > before_unix_ms:
                return 0
            (users,) = writer.execute(f"SELECT COUNT(*) {days} AND at_unix_ms = ?", (org, day)).fetchone()
            self._merge_users(writer, org, None, day)
        self._usage.forget()
        return int(users)

    def _blank(self, writer: Any, org: str, ids: Sequence[str]) -> None:
        """Leave of these requests what sums and budgets need."""
        self._delete(writer, "feedback", org, ids)
        self._delete(writer, "receipts", org, ids)
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            which = f"org = ? AND request_id IN ({', '.join('?' * len(part))})"
            writer.execute(
                f"UPDATE requests SET end_user = '', cached_from = NULL, eligible = NULL WHERE {which}", (org, *part)
            )
            units = f"SELECT DISTINCT unit FROM experiment_outcomes WHERE {which}"
            for (unit,) in writer.execute(units, (org, *part)).fetchall():
                # Another that cannot be traced to them: their requests go on to count as one unit's.
                other = hashlib.sha256(self._salt + unit.encode()).hexdigest()[:16]
                sql = f"UPDATE experiment_outcomes SET unit = ? WHERE unit = ? AND {which}"
                writer.execute(sql, (other, unit, org, *part))

    @staticmethod
    def _drop_rejected(writer: Any, org: str, user: str | None) -> None:
        for (body,) in writer.execute("SELECT body FROM rejected_records").fetchall():
            record = json.loads(body)
            if isinstance(record, dict) and record.get("org") == org and user in (None, record.get("user")):
                writer.execute("DELETE FROM rejected_records WHERE body = ?", (body,))

    def _merge_users(self, writer: Any, org: str, user: str | None, day: int | None = None) -> None:
        """To the sums of requests of nobody known: those of a user or of all, of a day or of all."""
        which, values = ("value = ?", (user,)) if user is not None else ("value <> ''", ())
        if day is not None:
            which, values = f"{which} AND at_unix_ms = ?", (*values, day)
        where = f"FROM usage_by WHERE dimension = 'user' AND org = ? AND {which}"
        cells = Cells()
        columns = f"step, at_unix_ms, {', '.join(SUMS)}, ttft, total"
        for step, at, *row in writer.execute(f"SELECT {columns} {where}", (org, *values)).fetchall():
            cells.add_cell(("user", step, org, at, ""), row[:-2], row[-2:])
        writer.execute(f"DELETE {where}", (org, *values))
        cells.flush(writer.execute)
        if day is not None:  # of all users: what is left of the week
            self._sum_up_week(writer, org, day // WEEK_MS * WEEK_MS)
        else:  # the week's sums of nobody known have theirs since `flush`
            whose, users = ("= ?", (user,)) if user is not None else ("<> ''", ())
            writer.execute(f"DELETE FROM usage_user_weeks WHERE org = ? AND end_user {whose}", (org, *users))

    @staticmethod
    def _sum_up_week(writer: Any, org: str, week: int) -> None:
        writer.execute("DELETE FROM usage_user_weeks WHERE org = ? AND week_unix_ms = ?", (org, week))
        writer.execute(
            f"INSERT INTO usage_user_weeks (org, week_unix_ms, end_user, {', '.join(SUMS)}) "
            f"SELECT org, {week}, value, {', '.join(f'SUM({name})' for name in SUMS)} FROM usage_by "
            "WHERE dimension = 'user' AND step = 'day' AND org = ? AND at_unix_ms >= ? AND at_unix_ms < ? "
            "GROUP BY org, value",
            (org, week, week + WEEK_MS),
        )

    def facts(self) -> dict[str, Any]:
        """How many rows there are of what, and when the oldest request was opened."""
        execute = self._database.writer.execute
        rows = {table: execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in _TABLES}
        (oldest,) = execute("SELECT MIN(opened_at_unix_ms) FROM requests").fetchone()
        return {"rows": rows, "oldest_unix_ms": oldest}

    def scrub(self) -> None:
        """After something was erased: leave no copy of it in the database's own log, where that can be said."""
        self._database.scrub()

    @staticmethod
    def _delete(writer: Any, table: str, org: str, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            which = f"org = ? AND request_id IN ({', '.join('?' * len(part))})"
            writer.execute(f"DELETE FROM {table} WHERE {which}", (org, *part))
