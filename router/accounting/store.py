"""The database of requests, receipts and leases: what any store does, and SQLite doing it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from router.accounting.alerts import AlertStore
from router.accounting.balances import Lease, Spent
from router.accounting.directory_store import Database, DirectoryStore
from router.accounting.experience_store import ExperienceStore
from router.accounting.experiment_store import ExperimentStore
from router.accounting.feedback import FeedbackStore
from router.accounting.limits import Account
from router.accounting.node_time import NodeTimeStore
from router.accounting.postgres import PostgresDatabase
from router.accounting.retention import RetentionStore
from router.accounting.usage_sql import TOKENS, UsageQuery
from router.accounting.usage_store import UsageStore
from router.sqlite_file import SQLiteFile

LEDGER_FILE = "ledger.sqlite3"
"""In the data folder."""

MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A record that was new. `microusd` is by how much it changed what the org has spent, `by_model` what each model of
    that (a request may have tried several)."""

    org: str
    request_id: str
    kind: Literal["open", "close"]
    holder: str
    opened_at_unix_ms: int
    microusd: int
    team: str = ""
    key_id: str = ""
    by_model: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A request that has an open record and no close."""

    org: str
    request_id: str
    holder: str
    opened_at_unix_ms: int
    team: str
    key_id: str
    end_user: str
    model: str
    reserved_microusd: int


class Store(Protocol):
    """Synchronous. Writes come from one thread at a time; `receipt` and `usage` from another one.

    `rejected`: how many records since it was opened were none and were set aside. `directory`: who there is, and the
    audit log, in the same database. `feedback`: what callers said about answers. `alerts`: what operators were told.
    And `experiments`. `node_time`: what nodes cost. `retention`: what goes again.
    """

    rejected: int
    directory: DirectoryStore
    feedback: FeedbackStore
    experiments: ExperimentStore
    experience: ExperienceStore
    alerts: AlertStore
    node_time: NodeTimeStore
    retention: RetentionStore

    def ingest(self, holder: str, records: Sequence[dict[str, Any]]) -> list[Accepted]:
        """Take in records (as `events.as_json` makes them) in one transaction; those already known change nothing.

        The first close of a request holds. Only a close that the ledger made up for a process believed dead
        (`abandoned`) gives way to a real one.
        """

    def receipt(self, org: str, request_id: str) -> dict[str, Any] | None: ...

    def usage(self, query: UsageQuery) -> list[dict[str, Any]]:
        """A row per group: its groups, `usage_sql.SUMS`, and percentiles where they were asked for."""

    def open_requests(self, holder: str | None = None, before_unix_ms: int | None = None) -> list[OpenRequest]: ...

    def spent(self, account: Account, since_unix_ms: int, until_unix_ms: int | None) -> list[Spent]:
        """What `account` counts of the money of requests opened in [since, until), by holder."""

    def leases(self, account: Account, period: str) -> list[Lease]: ...

    def lease_holders(self) -> list[str]: ...

    def save_lease(self, lease: Lease) -> None: ...

    def drop_leases(self, holder: str) -> None:
        """But those of minutes: what was used of them stays used."""

    def drop_minutes(self, before_period: str) -> None: ...

    def close(self) -> None: ...


_OPEN_COLUMNS = tuple(OpenRequest.__slots__)
REQUEST_COLUMNS = (
    *("org", "request_id", "holder", "opened_at_unix_ms", "closed_at_unix_ms", "team", "key_id", "end_user", "door"),
    *("status", "error_code", "requested_model", "model", "provider", "cache_verdict", "cached_from"),
    *("cache_similarity", "finish_reason", *TOKENS, "estimated", "cost_microusd", "saved_microusd", "price_version"),
    *("strategy", "strategy_version", "task", "eligible", "propensity", "ttft_ms", "total_ms", "overhead_ms"),
)
_SAME_NAME = ("org", "request_id", "opened_at_unix_ms", "team", "key_id")
_ATTEMPT_COLUMNS = ("model", "backend", "outcome", "queued_ms", "ttft_ms", "total_ms", "cost_microusd")


def _insert(table: str, columns: Iterable[str]) -> str:
    names = tuple(columns)
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"


_INSERT_OPEN = (
    _insert("open_requests", _OPEN_COLUMNS) + " ON CONFLICT (org, request_id) DO UPDATE"
    " SET model = excluded.model, reserved_microusd = excluded.reserved_microusd"
    " WHERE open_requests.model <> excluded.model OR open_requests.reserved_microusd <> excluded.reserved_microusd"
)
"""A request that goes on to another model says so anew."""
_INSERT_REQUEST = _insert("requests", REQUEST_COLUMNS)
_INSERT_ATTEMPT = _insert("attempts", ("org", "request_id", "number", *_ATTEMPT_COLUMNS))
_INSERT_RECEIPT = _insert("receipts", ("org", "request_id", "body"))
_LEASE_KEY = (*Account.__slots__, "period", "holder")
_SAVE_LEASE = _insert("leases", (*_LEASE_KEY, "sequence", "base", "authority")) + (
    f" ON CONFLICT ({', '.join(_LEASE_KEY)}) DO UPDATE SET "
    "sequence = excluded.sequence, base = excluded.base, authority = excluded.authority"
)
_KEY = "WHERE org = ? AND request_id = ?"
_BETWEEN = ("r.opened_at_unix_ms >= ?", "r.opened_at_unix_ms < ?")
_NEVER = 2**62
# What a record can be wrong with, besides a value that a column refuses: a field that is missing or of another kind.
_BAD_RECORD = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


class SQLStore:
    """A store in a database that takes the SQL of this file."""

    def __init__(self, database: Database) -> None:
        self._file, self._writer = database, database.writer
        self._bad_record: tuple[type[Exception], ...] = (*_BAD_RECORD, *database.bad_record)
        self.directory = DirectoryStore(self._file)
        self.feedback = FeedbackStore(self._file)
        self.experiments = ExperimentStore(self._file)
        self.experience = ExperienceStore(self._file)
        self.alerts = AlertStore(self._file)
        self.node_time = NodeTimeStore(self._file)
        self.rejected = 0
        self._usage = UsageStore(self._file)
        self.retention = RetentionStore(self._file, self._usage)

    def ingest(self, holder: str, records: Sequence[dict[str, Any]]) -> list[Accepted]:
        try:
            with self._transaction():
                entries = [entry for record in records if (entry := self._take(holder, record))]
                self._usage.flush()
                return entries
        except self._bad_record as error:
            if len(records) != 1:  # find the bad one, and let the others pass
                return [entry for record in records for entry in self.ingest(holder, [record])]
            with self._file.transaction():
                row = (holder, _storable(f"{type(error).__name__}: {error}"), json.dumps(records[0]))
                self._writer.execute(_insert("rejected_records", ("holder", "reason", "body")), row)
            self.rejected += 1
            return []

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._file.transaction():
                yield
        except BaseException:
            self.directory.forget_end()
            self._usage.forget()
            raise

    def receipt(self, org: str, request_id: str) -> dict[str, Any] | None:
        with self._file.reading(org) as reader:
            row = reader.execute(f"SELECT body FROM receipts {_KEY}", (org, request_id)).fetchone()
        return json.loads(row[0]) if row else None

    def usage(self, query: UsageQuery) -> list[dict[str, Any]]:
        return self._usage.read(query)

    def open_requests(self, holder: str | None = None, before_unix_ms: int | None = None) -> list[OpenRequest]:
        asked = {"holder = ?": holder, "opened_at_unix_ms < ?": before_unix_ms}
        given = {condition: value for condition, value in asked.items() if value is not None}
        where = f" WHERE {' AND '.join(given)}" if given else ""
        rows = self._writer.execute(
            f"SELECT {', '.join(_OPEN_COLUMNS)} FROM open_requests{where}", tuple(given.values())
        )
        return [OpenRequest(*row) for row in rows]

    def spent(self, account: Account, since_unix_ms: int, until_unix_ms: int | None) -> list[Spent]:
        given = {"r.org": account.org, "r.team": account.team, "r.key_id": account.key_id}
        which = {column: value for column, value in given.items() if value}
        where = " AND ".join([*(f"{column} = ?" for column in which), *_BETWEEN])
        values = [*which.values(), since_unix_ms, _NEVER if until_unix_ms is None else until_unix_ms]
        source = f"SELECT r.holder AS holder, r.cost_microusd AS cost FROM requests r WHERE {where}"
        if account.model:  # of each try; who was believed dead has none written down, and counts for what was reserved
            tried = "FROM requests r JOIN attempts a ON a.org = r.org AND a.request_id = r.request_id"
            source = (
                f"SELECT r.holder AS holder, a.cost_microusd AS cost {tried} WHERE {where} AND a.model = ? "
                f"UNION ALL {source} AND r.model = ? AND r.status = 'abandoned'"
            )
            values = [*values, account.model] * 2
        rows = self._writer.execute(
            f"SELECT holder, CAST(SUM(cost) AS BIGINT) FROM ({source}) AS costs GROUP BY holder HAVING SUM(cost) > 0",
            values,
        )
        spent = [Spent(*row) for row in rows]
        return spent + [Spent(*row) for row in self.retention.spent_before(account)] if since_unix_ms == 0 else spent

    def leases(self, account: Account, period: str) -> list[Lease]:
        where = " AND ".join(f"{column} = ?" for column in (*Account.__slots__, "period"))
        rows = self._writer.execute(
            f"SELECT holder, sequence, base, authority FROM leases WHERE {where}", (*astuple(account), period)
        )
        return [Lease(account, period, *row) for row in rows]

    def lease_holders(self) -> list[str]:
        return [holder for (holder,) in self._writer.execute("SELECT DISTINCT holder FROM leases")]

    def save_lease(self, lease: Lease) -> None:
        row = (*astuple(lease.account), lease.period, lease.holder, lease.sequence, lease.base, lease.authority)
        with self._file.transaction():
            self._writer.execute(_SAVE_LEASE, row)

    def drop_leases(self, holder: str) -> None:
        with self._file.transaction():
            self._writer.execute("DELETE FROM leases WHERE holder = ? AND span <> 'minute'", (holder,))

    def drop_minutes(self, before_period: str) -> None:
        with self._file.transaction():
            self._writer.execute("DELETE FROM leases WHERE span = 'minute' AND period < ?", (before_period,))

    def close(self) -> None:
        self._file.close()

    def _take(self, holder: str, record: dict[str, Any]) -> Accepted | None:
        if record["kind"] == "audit":
            self.directory.append(record)
            return None
        key = (record["org"], record["request_id"])
        row = self._writer.execute(f"SELECT status, cost_microusd, model FROM requests {_KEY}", key).fetchone()
        if record["kind"] == "open":
            if row or not self._writer.execute(_INSERT_OPEN, _open_row(holder, record)).rowcount:
                return None
            return Accepted(*key, "open", holder, record["opened_at_unix_ms"], 0)
        if record["kind"] != "close":
            raise ValueError(f"a record of kind {record['kind']!r}")
        if row and (row[0] != "abandoned" or record["status"] == "abandoned"):
            return None
        if row:
            self._usage.take_off(*key)
            self._writer.execute(f"DELETE FROM requests {_KEY}", key)
        self._writer.execute(_INSERT_REQUEST, _request_row(holder, record))
        self._usage.add(*key)
        for number, attempt in enumerate(record["attempts"]):
            self._writer.execute(_INSERT_ATTEMPT, (*key, number, *(attempt[name] for name in _ATTEMPT_COLUMNS)))
        self.experiments.add(record)
        self._writer.execute(_INSERT_RECEIPT, (*key, json.dumps(record, separators=(",", ":"))))
        self._writer.execute(f"DELETE FROM open_requests {_KEY}", key)
        by_model = costs_by_model(record)
        if row:  # an abandoned one: what was guessed of it goes
            by_model[row[2] or ""] = by_model.get(row[2] or "", 0) - row[1]
        return Accepted(
            *(*key, "close", holder, record["opened_at_unix_ms"], sum(by_model.values())),
            *(record["team"], record["key_id"], by_model),
        )


class SQLiteStore(SQLStore):
    """A `SQLiteFile`. A commit survives the process, not a power cut (`synchronous=NORMAL`)."""

    def __init__(self, path: Path, lock_wait_s: float = 0.0) -> None:
        """Raises what `SQLiteFile` raises."""
        super().__init__(SQLiteFile(path, MIGRATIONS, lock_wait_s))


class PostgresStore(SQLStore):
    """A `PostgresDatabase`."""

    def __init__(self, url: str, lock_wait_s: float = 0.0) -> None:
        """Raises what `PostgresDatabase` raises."""
        super().__init__(PostgresDatabase(url, MIGRATIONS, lock_wait_s))


def costs_by_model(record: dict[str, Any]) -> dict[str, int]:
    """Micro-USD of a close by the model that took them; they sum to its cost."""
    costs: dict[str, int] = {}
    for attempt in record["attempts"]:
        costs[attempt["model"]] = costs.get(attempt["model"], 0) + attempt["cost_microusd"]
    if rest := record["cost_microusd"] - sum(costs.values()):
        costs[record["model"] or ""] = costs.get(record["model"] or "", 0) + rest
    return costs


def _open_row(holder: str, record: dict[str, Any]) -> tuple[Any, ...]:
    same = {name: record[name] for name in _SAME_NAME}
    row = {**same, "holder": holder, "end_user": record["user"], "model": record["model"]}
    row["reserved_microusd"] = record["reserved_microusd"]
    return tuple(_storable(row[column]) for column in _OPEN_COLUMNS)


def _request_row(holder: str, record: dict[str, Any]) -> tuple[Any, ...]:
    decision = record["decision"] or {}
    eligible = decision.get("eligible")
    row = {
        **record,
        **record["usage"],
        "holder": holder,
        "end_user": record["user"],
        "strategy": decision.get("strategy"),
        "strategy_version": decision.get("strategy_version"),
        "task": decision.get("task"),
        "eligible": None if eligible is None else json.dumps(eligible),
        "propensity": decision.get("propensity"),
    }
    return tuple(_storable(row[column]) for column in REQUEST_COLUMNS)


def _storable(value: Any) -> Any:
    """Callers choose some texts (`user`, the model they ask for), and JSON may hold halves of characters, and zeros."""
    if isinstance(value, str) and (not value.isascii() or "\0" in value):
        return value.encode("utf-8", "replace").decode().replace("\0", "?")
    if isinstance(value, list | dict):  # which PostgreSQL's driver would write as some text
        raise TypeError(f"a column cannot hold a {type(value).__name__}")
    return value
