"""A SQLite database with one owner: locked, in WAL mode, its schema brought up to date."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from models.errors import InternalError
from router.accounting.lock import lock


class SQLiteFile:
    """One file, locked against other processes before it is opened (`<file>.lock`), readable by its owner only.

    writer, reader: connections, each for one thread at a time. migrations: a folder of `0001_name.sql` and so on,
    see `migration_scripts`.
    """

    def __init__(self, path: Path, migrations: Path, lock_wait_s: float = 0.0) -> None:
        """Waits `lock_wait_s` for an earlier owner to go. Raises `InternalError` when it stays, or when a newer
        version wrote the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        guard = path.with_name(path.name + ".lock")
        guard.touch(mode=0o600)
        held = lock(guard, lock_wait_s)
        if held is None:
            raise InternalError(f"Another process has {path} open; stop it, or give this one a data folder of its own.")
        with ExitStack() as opened:
            opened.callback(os.close, held)
            self.writer = opened.enter_context(closing(_connect(path)))
            path.chmod(0o600)
            _migrate(self.writer, path, migrations)
            self.reader = opened.enter_context(closing(_connect(path)))
            self.reader.execute("PRAGMA query_only = ON")
            self._opened = opened.pop_all()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The writer, in a transaction that an exception takes back."""
        self.writer.execute("BEGIN IMMEDIATE")
        try:
            yield self.writer
        except BaseException:
            self.writer.execute("ROLLBACK")
            raise
        self.writer.execute("COMMIT")

    @contextmanager
    def reading(self, org: str) -> Iterator[sqlite3.Connection]:
        """The reader. That rows are of `org` is for the query to say: SQLite has no wall of its own."""
        yield self.reader

    def scrub(self) -> None:
        """Leave nothing in the log of what was deleted or replaced, as far as no reader still needs it."""
        self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    bad_record = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
    """What a record that no table takes raises."""

    def close(self) -> None:
        self._opened.close()


def migration_scripts(folder: Path, dialect: str) -> dict[int, str]:
    """By number: the text of `0001_name.sql`, and of `0001_name.<dialect>.sql` after it where there is one.

    Raises ValueError when two migrations have one number.
    """
    scripts: dict[int, str] = {}
    for file in sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql")):
        number, own = int(file.name[:4]), file.with_suffix(f".{dialect}.sql")
        if file.name.count(".") > 1:
            continue
        if number in scripts:
            raise ValueError(f"two migrations in {folder} have the number {number}; give one of them the next")
        scripts[number] = file.read_text() + (own.read_text() if own.exists() else "")
    return scripts


def _connect(path: Path) -> sqlite3.Connection:
    # Autocommit, so that transactions are only where they are written; the caller keeps to one thread at a time.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA busy_timeout = 5000")
    connection.execute("PRAGMA secure_delete = ON")  # what is deleted is not left in free pages
    return connection


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Path) -> None:
    """Bring the schema up to date, each migration in a transaction of its own."""
    connection.execute("CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER PRIMARY KEY)")
    (version,) = connection.execute("SELECT COALESCE(MAX(version), 0) FROM schema_migrations").fetchone()
    steps = migration_scripts(migrations, "sqlite")
    newest = max(steps)
    if version > newest:
        raise InternalError(
            f"{path} was written by a newer Switchyard (schema {version}, this one knows up to {newest}); "
            "run that version, or restore the copy from before its upgrade."
        )
    for number in range(version + 1, newest + 1):
        done = f"INSERT INTO schema_migrations VALUES ({number});"
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{steps[number]}\n{done}\nCOMMIT;")
        except sqlite3.Error:
            connection.rollback()
            raise
