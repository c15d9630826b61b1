"""The ledger's database in PostgreSQL: the same tables, behind a second wall of row-level security.

Two connections: the writer, which sees all rows, and the reader, which sees those of the one org that it is set to,
whatever a query says. One ledger at a time: an advisory lock of the writer's session keeps others out. A connection
that broke is made anew at the next use.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from models.errors import InternalError
from router.sqlite_file import migration_scripts

logger = logging.getLogger(__name__)

EVERY_ORG = "*"
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 60_000
_LOCK_ID = 0x5377697463687964  # "Switchyd"
_WALLED = (
    "open_requests",
    "requests",
    "attempts",
    "receipts",
    "feedback",
    "experiment_outcomes",
    "experience",
    "leases",
    "directory",
    "audit",
    "usage_hours",
    "usage_days",
    "usage_user_weeks",
    "usage_plain_days",
    "usage_by",
    "alerts",
    "dropped_costs",
)
_POLICY = (
    "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; ALTER TABLE {table} FORCE ROW LEVEL SECURITY; "
    "DROP POLICY IF EXISTS of_one_org ON {table}; CREATE POLICY of_one_org ON {table} "
    "USING (current_setting('switchyard.org', true) IN (org, '*'))"
)


class Session:
    """A connection with SQLite's way of writing parameters (`?`)."""

    def __init__(self, database: PostgresDatabase, name: str) -> None:
        self._database, self._name = database, name
        self._connection: Any = None
        self.pinned = False  # in a transaction: what follows must not go to another connection

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """A cursor over the rows. Raises psycopg.Error."""
        return self.connection().execute(sql.replace("%", "%%").replace("?", "%s"), values)

    def connection(self) -> Any:
        gone = self._connection is None or self._connection.closed or self._connection.broken
        if gone and not self.pinned:
            self._connection = self._database.connect(self._name)
        return self._connection

    def live(self) -> Any:
        """A connection that answers: one that died unnoticed is replaced. Raises psycopg.Error when none can be had."""
        try:
            self.connection().execute("SELECT 1")
        except self._database.lost:
            self.close()
        return self.connection()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class PostgresDatabase:
    """Takes the place of `SQLiteFile`. url: as libpq takes it, `postgresql://user:password@host/database`."""

    def __init__(self, url: str, migrations: Path, lock_wait_s: float = 0.0) -> None:
        """Waits `lock_wait_s` for another ledger to go. Raises `InternalError` when it stays, when a newer version
        wrote the database, or when that cannot be reached."""
        import psycopg

        self._psycopg, self._url, self._lock_wait_s = psycopg, url, lock_wait_s
        self.writer, self.reader = Session(self, "writer"), Session(self, "reader")
        try:
            self._migrate(migrations)
            self.reader.connection()
        except psycopg.OperationalError as error:
            self.close()
            what = str(error).strip().splitlines()[0] if "password" not in str(error) else "it refused the password"
            raise InternalError(
                f"The ledger's PostgreSQL cannot be used ({what}); see SWITCHYARD_LEDGER_URL."
            ) from None
        except BaseException:
            self.close()
            raise

    @property
    def bad_record(self) -> tuple[type[Exception], ...]:
        """What a record that no table takes raises."""
        return self._psycopg.DataError, self._psycopg.IntegrityError, self._psycopg.ProgrammingError

    @property
    def lost(self) -> type[Exception]:
        """What a connection that is gone raises."""
        error: type[Exception] = self._psycopg.OperationalError
        return error

    def connect(self, name: str) -> Any:
        """A new connection, in autocommit; the writer's with the lock."""
        connection = self._psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=f"switchyard-ledger-{name}",
            options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c client_min_messages=warning",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
        try:
            if name == "writer":
                self._lock(connection)
                connection.execute(f"SET switchyard.org = '{EVERY_ORG}'")
            else:
                connection.execute("SET default_transaction_read_only = on")
        except BaseException:
            connection.close()
            raise
        return connection

    def _lock(self, connection: Any) -> None:
        until_s = time.monotonic() + self._lock_wait_s
        while not connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK_ID,)).fetchone()[0]:
            if time.monotonic() >= until_s:
                raise InternalError(
                    "Another process has the ledger's PostgreSQL database open; stop it, or give this one another."
                )
            time.sleep(0.1)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """The writer, in a transaction that an exception takes back."""
        with self.writer.live().transaction():
            self.writer.pinned = True
            try:
                yield self.writer
            finally:
                self.writer.pinned = False

    @contextmanager
    def reading(self, org: str) -> Iterator[Session]:
        """The reader, for rows of `org` only."""
        self.reader.live()
        self.reader.execute("SELECT set_config('switchyard.org', ?, false)", (org,))
        try:
            yield self.reader
        finally:
            with suppress(self._psycopg.Error):
                self.reader.execute("SELECT set_config('switchyard.org', '', false)")

    def scrub(self) -> None:
        """What was deleted leaves PostgreSQL's files when it vacuums, and its log when that is recycled."""

    def close(self) -> None:
        self.reader.close()
        self.writer.close()

    def _migrate(self, folder: Path) -> None:
        """Bring the schema up to date, each migration in a transaction of its own, and put up the wall."""
        self.writer.execute("CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER PRIMARY KEY)")
        (version,) = self.writer.execute("SELECT COALESCE(MAX(version), 0) FROM schema_migrations").fetchone()
        scripts = migration_scripts(folder, "postgresql")
        newest = max(scripts)
        if version > newest:
            raise InternalError(
                f"The ledger's PostgreSQL database was written by a newer Switchyard (schema {version}, this one knows "
                f"up to {newest}); run that version, or restore the copy from before its upgrade."
            )
        connection = self.writer.connection()
        for number in range(version + 1, newest + 1):
            with connection.transaction():
                connection.execute(scripts[number])
                connection.execute("INSERT INTO schema_migrations VALUES (%s)", (number,))
        with connection.transaction():
            for table in _WALLED:
                connection.execute(_POLICY.format(table=table))
        free = "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"
        if connection.execute(free).fetchone()[0]:
            logger.warning("the ledger's PostgreSQL role bypasses row-level security: give it a role of its own")
