"""Stored answers outside the cluster, in Redis or PostgreSQL, where a shard that lost its node has them again.

Never on the path of a request: what is kept and forgotten gathers here and is written by a thread (`write`), and read
once, at the start. A store that does not answer is a cache that lives in memory only.

An answer is filed under its partition (organisation and namespace) and the digest of its question, and each read names
one partition. What is filed is compressed and, where there is a key, sealed with these two bound in: what somebody
moved to another partition's place does not open there. Without a key, who can write to the store can make answers up.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol, TypeVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from models.errors import InvalidRequest
from router.cache_lines import Gone
from router.cache_log import MAX_PENDING, MAX_WAITING
from router.cache_records import UNREADABLE, Record, Stored, records_of, records_text
from router.cache_transfer import checked
from router.exact_cache import is_complete
from router.invalidation import MAX_BARS, Bar, Selection
from router.packed_answer import PackedAnswer
from router.ports import CacheKey
from router.scope_index import LOST
from router.sealing import NO_SEALER, Sealer

CHUNK = 128
"""Answers that are written or read at once."""

ACTS = "acts"
"""The partition of what was forgotten; no organisation's has such a name."""

ACT_S = 366 * 86_400.0
"""For which an act of forgetting is kept. What was asked for before it is over by then."""

MAX_BODY_BYTES = 64 * 1024**2
"""Of an answer when it is unpacked. A larger one was not written here."""

_REDIS, _POSTGRES = ("redis", "redis"), ("psycopg", "postgres")
_LIBRARIES = {"redis": _REDIS, "rediss": _REDIS, "postgresql": _POSTGRES, "postgres": _POSTGRES}
"""By the scheme of an address: the library and the extra of this package that brings it."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """`vector`: of the question, unit length, where it may be seen; it is in the body too."""

    tenant: str
    exact: str
    expires_unix_s: float
    body: bytes
    vector: bytes | None = None


class OutsideStore(Protocol):
    """Synchronous; one thread at a time. Raises `ModelUnavailable` when it cannot be reached, within seconds, and tries
    anew at the next call. What is over by its `expires_unix_s` is not read, and goes in time."""

    def put(self, rows: Sequence[Row]) -> None:
        """In the place of what was filed under the same names."""

    def remove(self, tenant: str, exacts: Sequence[str]) -> None: ...

    def clear(self, tenant: str) -> None:
        """All that is filed under `tenant`."""

    def tenants(self) -> list[str]: ...

    def read(self, tenant: str, at_once: int = CHUNK) -> Iterator[list[Row]]:
        """All that is there, without vectors; what comes or goes meanwhile may be among it or not."""

    def near(self, tenant: str, vector: bytes, similarity: float) -> Iterator[list[Row]]:
        """At least those to questions with this cosine to a vector of unit length."""

    def close(self) -> None: ...


def check_url(url: str) -> None:
    """Raises ValueError for what is no address of a store, or of one whose library is not installed."""
    scheme, separator, _ = url.partition("://")
    library = _LIBRARIES.get(scheme) if separator else None
    if library is None:
        raise ValueError("a store of answers is at redis://, rediss:// or postgresql://")
    if importlib.util.find_spec(library[0]) is None:
        raise ValueError(f"this store of answers needs '{library[0]}': pip install 'switchyard[{library[1]}]'")


def open_store(url: str) -> OutsideStore:
    """Opens no connection yet. Raises ValueError."""
    check_url(url)
    if _LIBRARIES[url.partition("://")[0]][0] == "redis":
        from router.outside_redis import RedisStore

        return RedisStore(url)
    from router.outside_postgres import PostgresAnswers

    return PostgresAnswers(url)


class OutsideLog:
    """What one shard writes down outside. `kept`, `gone`, `take` and `give_back` belong to one thread; another one may
    be in `write`, `read` or `forget` meanwhile, of which only one runs at a time."""

    size_bytes = 0  # of the disk here

    def __init__(self, store: OutsideStore, sealer: Sealer = NO_SEALER, encoder: str = "") -> None:
        """encoder: what makes the vectors. Those that another one made are not read."""
        self._store, self._sealer, self._encoder = store, sealer, encoder
        self._pending: dict[tuple[str, str], Record] = {}
        self._new_acts = 0
        self.dropped = self.torn = self.acts_torn = 0

    # ---- what is added ---------------------------------------------------------------------------------------------

    def kept(self, key: CacheKey, answer: PackedAnswer, codes: bytes | None) -> None:
        if len(self._pending) >= MAX_PENDING and (key.tenant, key.exact) not in self._pending:
            self.dropped += 1
            return
        self._pending[key.tenant, key.exact] = Stored(key, answer, codes)

    def gone(self, key: CacheKey) -> None:
        """Of more than `MAX_WAITING` none waits: the store is away then, and nobody was told that these are gone there.
        Who asks again has them looked for outside."""
        if len(self._pending) >= MAX_WAITING and (key.tenant, key.exact) not in self._pending:
            self.dropped += 1
            return
        self._pending[key.tenant, key.exact] = Gone(key.tenant, key.exact)

    def evicted(self, key: CacheKey) -> None:
        """It stays: what is forgotten is looked for outside too."""

    def barred(self, bar: Bar) -> None:
        """Of more than `MAX_WAITING` the oldest goes, of which nobody was told that it is there: this is waited for."""
        if len(self._pending) >= MAX_WAITING:
            del self._pending[next(iter(self._pending))]
            self.dropped += 1
        self._pending[_place(bar)] = bar

    def take(self) -> list[Record]:
        """What has gathered, to be written."""
        records, self._pending = list(self._pending.values()), {}
        return records

    def give_back(self, records: Sequence[Record]) -> None:
        """What could not be written. What came since about the same questions holds."""
        for record in records:
            if len(self._pending) < (MAX_PENDING if isinstance(record, Stored) else MAX_WAITING):
                self._pending.setdefault(_place(record), record)
            else:
                self.dropped += 1

    def write(self, records: Sequence[Record]) -> None:
        """What is gone first: it goes from a store that is full, too. Raises `ModelUnavailable`: some of them may be
        there then."""
        gone: dict[str, list[str]] = {}
        for record in records:
            if isinstance(record, Gone):
                gone.setdefault(record.tenant, []).append(record.exact)
        for tenant, exacts in gone.items():
            for start in range(0, len(exacts), CHUNK):
                self._store.remove(tenant, exacts[start : start + CHUNK])
        for start in range(0, len(records), CHUNK):
            some = records[start : start + CHUNK]
            self._store.put([self._act_row(record) for record in some if isinstance(record, Bar)])
            self._store.put([self._row(record) for record in some if isinstance(record, Stored)])
        self._new_acts += sum(isinstance(record, Bar) for record in records)
        if self._new_acts >= MAX_BARS:
            self.acts(time.time())  # there would be ever more of them

    # ---- what is there ---------------------------------------------------------------------------------------------

    def read(self, mine: Callable[[str], bool]) -> Iterator[list[Stored]]:
        """All that is filed under partitions that are `mine`. Raises `ModelUnavailable`."""
        for tenant in self._store.tenants():
            if tenant != ACTS and mine(tenant):
                for rows in self._store.read(tenant):
                    yield self._records(rows, _checked if not self._sealer.on else _as_it_is)

    def acts(self, now_unix_s: float) -> list[Bar]:
        """What was forgotten, oldest first, for `Bars`. Of more than those hold the oldest become one. Raises
        `ModelUnavailable`."""
        found, torn_before = list[Bar](), self.torn
        for rows in self._store.read(ACTS):
            found += self._opened(rows, self._act)
        self.acts_torn = self.torn - torn_before
        found = sorted((replace(bar, at_unix_s=min(bar.at_unix_s, now_unix_s)) for bar in found), key=_when)
        named = [bar for bar in found if bar.selection is not None]
        if over := named[:-MAX_BARS]:
            one = Bar(None, max([over[-1].at_unix_s, *(bar.at_unix_s for bar in found if bar.selection is None)]))
            self._store.put([self._act_row(one)])
            for start in range(0, len(over), CHUNK):
                self._store.remove(ACTS, [_place(bar)[1] for bar in over[start : start + CHUNK]])
            found = [one, *named[-MAX_BARS:]]
        self._new_acts = 0
        return found

    def forget(self, selection: Selection, embedding: bytes | None, mine: Callable[[str], bool]) -> int:
        """Remove what is meant, whoever wrote it: also what had to go from memory, or what another cluster filed.
        Returns how many were removed one by one. Raises `ModelUnavailable`."""
        count = 0
        for tenant in self._store.tenants():
            if not (mine(tenant) and selection.covers(tenant)):
                continue
            if selection.whole:
                self._store.clear(tenant)
                continue
            if selection.question is not None and embedding is not None:
                pages = self._store.near(tenant, embedding, selection.similarity - LOST)
            else:
                pages = self._store.read(tenant)
            for rows in pages:
                meant = [r.exact for r in self._records(rows, _as_it_is) if _means(selection, r, embedding)]
                if meant:
                    self._store.remove(tenant, meant)
                count += len(meant)
        return count

    def close(self) -> None:
        self._store.close()

    def _row(self, record: Stored) -> Row:
        text = json.dumps(self._encoder).encode() + b"\n" + records_text([record])
        body = self._sealer.seal(text, _context(record))
        answer = record.answer
        vector = None if self._sealer.on else record.embedding  # it says much of what was asked
        return Row(record.tenant, record.exact, answer.created_at_unix_s + answer.ttl_s, body, vector)

    def _act_row(self, bar: Bar) -> Row:
        tenant, exact = _place(bar)
        row = Row(tenant, exact, bar.at_unix_s + ACT_S, b"")
        return replace(row, body=self._sealer.seal(records_text([bar]), _context(row)))

    def _act(self, row: Row) -> Bar:
        (bar,) = records_of(self._sealer.open(row.body, _context(row), sealed=self._sealer.on), MAX_BODY_BYTES)
        if not isinstance(bar, Bar) or _place(bar)[1] != row.exact:
            raise ValueError("filed under another name")
        (checked_bar,) = _bars().validate_python((bar,))
        return checked_bar

    def _records(self, rows: Sequence[Row], check: Callable[[Stored], Stored]) -> list[Stored]:
        """Those that are what they are filed as."""
        return self._opened(rows, lambda row: check(self._record(row)))

    def _opened(self, rows: Sequence[Row], read: Callable[[Row], T]) -> list[T]:
        """Those that can be read; the others are counted."""
        found: list[T] = []
        for row in rows:
            try:
                found.append(read(row))
            except (*UNREADABLE, InvalidRequest, AttributeError, RecursionError) as error:
                if not self.torn:
                    logger.warning("answers outside do not open (%s); they are passed over", type(error).__name__)
                self.torn += 1
        return found

    def _record(self, row: Row) -> Stored:
        text = self._sealer.open(row.body, _context(row), sealed=self._sealer.on)
        encoder, _, packed = text.partition(b"\n")
        (record,) = records_of(packed, MAX_BODY_BYTES)
        if not isinstance(record, Stored) or (record.tenant, record.exact) != (row.tenant, row.exact):
            raise ValueError("filed under another name")
        return record if json.loads(encoder) == self._encoder else replace(record, codes=None)


def _place(record: Record) -> tuple[str, str]:
    """Where it is filed. The same act done again is filed in the place of the earlier one."""
    if not isinstance(record, Bar):
        return record.tenant, record.exact
    return ACTS, hashlib.sha256(json.dumps(record.told().get("of"), sort_keys=True).encode()).hexdigest()


def _when(bar: Bar) -> float:
    return bar.at_unix_s


@cache
def _bars() -> TypeAdapter[tuple[Bar]]:
    settings = ConfigDict(strict=True, revalidate_instances="always", allow_inf_nan=False)
    return TypeAdapter(tuple[Bar], config=settings)


def _as_it_is(record: Stored) -> Stored:
    return record


def _checked(record: Stored) -> Stored:
    """What anybody may have written. Raises `InvalidRequest`, or one of `UNREADABLE`."""
    answer = record.answer
    if not answer.body.startswith(b"["):
        unpacking = zlib.decompressobj()
        answer = replace(answer, body=unpacking.decompress(answer.body, MAX_BODY_BYTES))
        if not unpacking.eof:
            raise ValueError("too large")
    if not is_complete(checked(answer.opened())):
        raise ValueError("not complete")
    return record


def _context(of: Stored | Row) -> str:
    return f"cached answer/{of.tenant}/{of.exact}"


def _means(selection: Selection, record: Stored, embedding: bytes | None) -> bool:
    if not selection.means(record.tenant, record.answer):
        return False
    if selection.question is None:
        return True
    vector = record.embedding
    if embedding is None or vector is None or len(embedding) != len(vector):
        return False
    cosine = np.frombuffer(embedding, dtype="<f4") @ np.frombuffer(vector, dtype="<f4")
    return float(cosine) >= selection.similarity - LOST
