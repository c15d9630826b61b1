"""Stored answers in PostgreSQL, in a table of their own, with their vectors as pgvector's where that is installed.

The vectors serve to find what is to be forgotten by its question, without reading all of a partition. They are in
clear, so where answers are sealed there are none, and all are read. The table and the extension are made at the first
connection; where the role may not make the extension, an administrator's `CREATE EXTENSION vector` before that does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from models.errors import ModelUnavailable
from router.outside import CHUNK, Row

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 10_000
PURGE_EVERY_S = 60.0
PURGE_AT_ONCE = 1000
SLACK = 0.005
"""By which a cosine may be off for the 16 bits of its numbers."""

TABLE = "switchyard_cached_answers"
_LOCK_ID = 0x5377697463686361
_MAKE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    tenant bytea NOT NULL,
    exact text COLLATE "C" NOT NULL,
    expires_unix_s double precision NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (tenant, exact)
);
CREATE INDEX IF NOT EXISTS {TABLE}_expire ON {TABLE} (expires_unix_s);
"""
_TENANTS = f"""
WITH RECURSIVE named AS (
    (SELECT tenant FROM {TABLE} ORDER BY tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT tenant FROM {TABLE} WHERE tenant > named.tenant ORDER BY tenant LIMIT 1)
    FROM named WHERE named.tenant IS NOT NULL
) SELECT tenant FROM named WHERE tenant IS NOT NULL
"""  # an index is jumped through, however many answers each has


class PostgresAnswers:
    """Fills `router.outside.OutsideStore`. url: as libpq takes it, `postgresql://user:password@host/database`."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        import psycopg

        self._psycopg, self._url, self._clock = psycopg, url, clock
        self._connection: Any = None
        self._compares = False
        self._purged_s = -PURGE_EVERY_S

    def put(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        with self._reached() as connection, connection.transaction(), connection.cursor() as cursor:
            columns = "tenant, exact, expires_unix_s, body" + (", embedding" if self._compares else "")
            places = "%s, %s, %s, %s" + (", %s::halfvec" if self._compares else "")
            changed = ", ".join(f"{name} = excluded.{name}" for name in columns.split(", ")[2:])
            cursor.executemany(
                f"INSERT INTO {TABLE} ({columns}) VALUES ({places}) "
                f"ON CONFLICT (tenant, exact) DO UPDATE SET {changed}",
                [self._values(row) for row in sorted(rows, key=lambda row: (row.tenant, row.exact))],
            )
        self._purge()

    def remove(self, tenant: str, exacts: Sequence[str]) -> None:
        with self._reached() as connection:
            connection.execute(
                f"DELETE FROM {TABLE} WHERE tenant = %s AND exact = ANY(%s)", (_bytes(tenant), list(exacts))
            )

    def clear(self, tenant: str) -> None:
        with self._reached() as connection:
            connection.execute(f"DELETE FROM {TABLE} WHERE tenant = %s", (_bytes(tenant),))

    def tenants(self) -> list[str]:
        with self._reached() as connection:
            found = connection.execute(_TENANTS).fetchall()
        return [bytes(name).decode("utf-8", "surrogatepass") for (name,) in found]

    def read(self, tenant: str, at_once: int = CHUNK) -> Iterator[list[Row]]:
        return self._pages(tenant, at_once, "TRUE", ())

    def near(self, tenant: str, vector: bytes, similarity: float) -> Iterator[list[Row]]:
        with self._reached():
            compares = self._compares
        if not compares:
            return self.read(tenant)
        numbers = _vector(vector)
        width = len(vector) // 4
        # Those without a vector, or with one of another encoder, are for the caller to look at.
        where = (
            "CASE WHEN embedding IS NULL OR vector_dims(embedding) <> %s THEN TRUE "
            "ELSE 1 - (embedding <=> %s::halfvec) >= %s END"
        )
        return self._pages(tenant, CHUNK, where, (width, numbers, similarity - SLACK))

    def close(self) -> None:
        if self._connection is not None:
            with suppress(self._psycopg.Error, OSError):
                self._connection.close()
            self._connection = None

    def _pages(self, tenant: str, at_once: int, where: str, values: tuple[Any, ...]) -> Iterator[list[Row]]:
        after, name = "", _bytes(tenant)
        while True:
            with self._reached() as connection:
                found = connection.execute(
                    f"SELECT exact, expires_unix_s, body FROM {TABLE} WHERE tenant = %s AND exact > %s "
                    f"AND expires_unix_s > %s AND {where} ORDER BY exact LIMIT %s",
                    (name, after, self._clock(), *values, at_once),
                    binary=True,
                ).fetchall()
            if found:
                yield [Row(tenant, exact, expires, bytes(body)) for exact, expires, body in found]
                after = found[-1][0]
            if len(found) < at_once:
                return

    def _values(self, row: Row) -> tuple[Any, ...]:
        plain = (_bytes(row.tenant), row.exact, row.expires_unix_s, row.body)
        return (*plain, None if row.vector is None else _vector(row.vector)) if self._compares else plain

    def _purge(self) -> None:
        now_s = time.monotonic()
        if now_s - self._purged_s < PURGE_EVERY_S:
            return
        self._purged_s = now_s
        old = f"SELECT ctid FROM {TABLE} WHERE expires_unix_s <= %s LIMIT %s"
        with self._reached() as connection:
            while connection.execute(
                f"DELETE FROM {TABLE} WHERE ctid IN ({old})", (self._clock(), PURGE_AT_ONCE)
            ).rowcount:
                pass

    @contextmanager
    def _reached(self) -> Iterator[Any]:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._connected()
            yield self._connection
        except (self._psycopg.Error, OSError) as error:
            self.close()
            raise ModelUnavailable(
                "The PostgreSQL that keeps stored answers did not do its part "
                f"({type(error).__name__}); see 'cache_store'."
            ) from None

    def _connected(self) -> Any:
        connection = self._psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="switchyard-cache",
            options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c client_min_messages=warning",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=CONNECT_TIMEOUT_S * 1000,
        )
        try:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK_ID,))  # shards start at once
                connection.execute(_MAKE)
                self._compares = self._with_vectors(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _with_vectors(self, connection: Any) -> bool:
        """Whether there is pgvector from 0.7 on, which has vectors of 16-bit numbers."""
        with suppress(self._psycopg.Error), connection.transaction():
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        if connection.execute("SELECT to_regtype('halfvec')").fetchone()[0] is None:
            return False
        connection.execute(f"ALTER TABLE {TABLE} ADD COLUMN IF NOT EXISTS embedding halfvec")
        return True


def _bytes(tenant: str) -> bytes:
    """No text: a namespace may have characters that PostgreSQL's texts do not take."""
    return tenant.encode("utf-8", "surrogatepass")


def _vector(vector: bytes) -> str:
    return "[" + ",".join(f"{number:.6g}" for number in np.frombuffer(vector, dtype="<f4").tolist()) + "]"
