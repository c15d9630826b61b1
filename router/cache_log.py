"""The stored answers of a shard on disk: a log that is appended to, and written anew when most of it is out of date.

A frame is a length, a CRC-32 and a body: what was kept and forgotten in a tenth of a second or less, `CHUNK` records at
most, sealed where there is a key (`router.sealing`). A frame that was cut short, or does not open, ends the log: what
follows cannot be trusted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from models.errors import InternalError
from router.accounting.lock import lock
from router.cache_lines import Gone
from router.cache_records import (
    UNREADABLE,
    MadeBy,
    Record,
    Stored,
    framed,
    is_of_this_version,
    read_frame,
    records_of,
    records_text,
)
from router.invalidation import Bar
from router.packed_answer import PackedAnswer
from router.ports import CacheKey
from router.sealing import NO_SEALER, Sealer

FLUSH_S = 0.1
"""How long records gather. The loss of a process that is killed is what came within this, and the write before it."""

MAX_PENDING = 20_000
"""Records that wait to be written; more are not written, and counted: a slow disk makes for misses after a restart."""

MAX_WAITING = 200_000
"""Of all kinds. Where more wait, since the disk is full, say, all are let go, and the log has to be written anew from
what is in memory: before that nothing counts as forgotten for good."""

REWRITE_FROM_BYTES = 32 * 1024**2
COPY_BYTES = 1024**2
CHUNK = 256

_CONTEXT = "cache log"
logger = logging.getLogger(__name__)


class AnswerLog(Protocol):
    """What is written down of the answers, so that they outlive this process."""

    dropped: int
    torn: int

    @property
    def size_bytes(self) -> int: ...

    def kept(self, key: CacheKey, answer: PackedAnswer, codes: bytes | None) -> None: ...

    def gone(self, key: CacheKey) -> None:
        """It must not come back."""

    def evicted(self, key: CacheKey) -> None:
        """It left memory, and is not among what is forgotten from now on."""

    def barred(self, bar: Bar) -> None:
        """Answers that are meant must not be stored after a restart either."""


class NoLog:
    """Nothing is written down."""

    dropped = torn = size_bytes = 0

    def kept(self, key: CacheKey, answer: PackedAnswer, codes: bytes | None) -> None:
        pass

    def gone(self, key: CacheKey) -> None:
        pass

    def evicted(self, key: CacheKey) -> None:
        pass

    def barred(self, bar: Bar) -> None:
        pass


class CacheLog:
    """Of one shard. What is in it and not gone is in memory too, so whatever is forgotten there has its `Gone` here.

    What adds records, `take` and `give_back` belong to one thread; another one may be in `write`, `begin`, `add`,
    `finish` or `abandon` meanwhile, of which only one runs at a time."""

    def __init__(self, folder: Path, sealer: Sealer = NO_SEALER, lock_wait_s: float = 0.0, encoder: str = "") -> None:
        """encoder: what makes the vectors. Those that another one made are not read; "" believes all.
        Raises `InternalError` when another process has it and does not let go within `lock_wait_s`."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = lock(folder, lock_wait_s)
        if self._lock is None:
            raise InternalError(
                f"Another process has {folder} open; stop it, or give this one a data folder of its own."
            )
        self._path, self._next_path = folder / "answers.log", folder / "answers.log.new"
        self._set_aside = folder / "answers.log.unreadable"
        self._sealer, self._encoder = sealer, encoder
        self._pending: list[Record] = []
        self._since: list[Record] | None = None  # what came since a rewrite began
        self._file = _opened(self._path)
        self._next_file: int | None = None
        self._least_bytes = 0
        self._half_from: int | None = None  # a frame that was not written whole
        self._behind = self._behind_at_begin = self._made_up = 0
        self.dropped = self.torn = 0
        self._end = self._whole_bytes()

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._file).st_size

    # ---- what is added ---------------------------------------------------------------------------------------------

    def kept(self, key: CacheKey, answer: PackedAnswer, codes: bytes | None) -> None:
        self._append(Stored(key, answer, codes))

    def gone(self, key: CacheKey) -> None:
        self._append(Gone(key.tenant, key.exact))

    def evicted(self, key: CacheKey) -> None:
        """It would come back after a restart, also when such answers were forgotten meanwhile."""
        self.gone(key)

    def barred(self, bar: Bar) -> None:
        self._append(bar)

    def _append(self, record: Record) -> None:
        if len(self._pending) >= MAX_PENDING and isinstance(record, Stored):
            self.dropped += 1
            return
        if len(self._pending) >= MAX_WAITING:
            self._pending.clear()
            self.fall_behind()
        self._pending.append(record)

    def fall_behind(self) -> None:
        """What is here is not what is in memory, until it is written anew."""
        self._behind += 1

    @property
    def behind(self) -> bool:
        return self._behind != self._made_up

    def take(self) -> list[Record]:
        """What has gathered, to be written."""
        records, self._pending = self._pending, []
        return records

    def give_back(self, records: Sequence[Record]) -> None:
        """What could not be written, to stand before what came since. Some of it may be there: twice is no harm."""
        since, self._pending = self._pending, []
        for record in (*records, *since):
            self._append(record)

    def write(self, records: Sequence[Record], to_disk: bool = False) -> None:
        """Hand them to the kernel, where the death of this process does not touch them; `to_disk`: further, which a
        failure of power does not. Raises OSError: then they are to be given back."""
        for start in range(0, len(records), CHUNK):
            self._write_whole(self._frame(records[start : start + CHUNK]))
        if self._since is not None:
            self._since += records
        if to_disk:
            os.fdatasync(self._file)

    def _write_whole(self, frame: bytes) -> None:
        """Nothing may follow half a frame: it would never be read."""
        if self._half_from is not None:
            os.ftruncate(self._file, self._half_from)
        self._half_from = self.size_bytes
        _write(self._file, frame)
        self._half_from = None

    @property
    def is_whole(self) -> bool:
        """Whether all that was ever written here could be read; not as long as a log that could not is set aside."""
        return not self.torn and not self._set_aside.exists()

    # ---- what was there --------------------------------------------------------------------------------------------

    def read(self) -> Iterator[Record]:
        """What earlier processes wrote, in order; what this one writes is not among it."""
        with self._path.open("rb") as file:
            while file.tell() < self._end:
                try:
                    records = self._records(read_frame(file) or b"")
                except UNREADABLE as error:
                    self._note_torn(file.tell(), type(error).__name__)
                    continue
                yield from records

    def _whole_bytes(self) -> int:
        """How far the log goes. What follows a torn frame is cut off, so that it is never read. A frame that does not
        open (its key is missing, or another version wrote it) may say that what stands before it is gone: so the log
        begins behind the last such one, and as it was is set aside as `answers.log.unreadable`."""
        begin, end, size = 0, 0, self.size_bytes
        with self._path.open("rb") as file:
            while (body := read_frame(file)) is not None:
                end = file.tell()
                if not self._opens(body):
                    begin = end
        if begin:
            self._note_torn(begin, "it does not open")
        if end < size:
            self._note_torn(size - end, "it is torn")
        if begin or (size and not end):
            return self._begun_anew(begin, end)
        if end < size:
            os.ftruncate(self._file, end)
        return end

    def _opens(self, body: bytes) -> bool:
        try:
            return is_of_this_version(self._sealer.open(body, _CONTEXT))
        except UNREADABLE:
            return False

    def _begun_anew(self, begin: int, end: int) -> int:
        """Only with these bytes of what is there, which is set aside. Returns how many they are."""
        self._next_path.unlink(missing_ok=True)
        rest = _opened(self._next_path)
        with self._path.open("rb") as file:
            file.seek(begin)
            while data := file.read(min(COPY_BYTES, end - file.tell())):
                _write(rest, data)
        os.fsync(rest)
        os.replace(self._path, self._set_aside)
        os.replace(self._next_path, self._path)
        _sync_folder(self._path.parent)
        os.close(self._file)
        self._file = rest
        return end - begin

    def _note_torn(self, count: int, why: str) -> None:
        self.torn += 1
        logger.warning("%d bytes of %s cannot be read (%s)", count, self._path, why)

    def _records(self, body: bytes) -> list[Record]:
        """Raises one of `UNREADABLE`. A frame that does not say whose its vectors are is from before it was noted."""
        found = list(records_of(self._sealer.open(body, _CONTEXT)))
        records = [record for record in found if not isinstance(record, MadeBy)]
        if not self._encoder or all(mark.encoder == self._encoder for mark in found if isinstance(mark, MadeBy)):
            return records
        return [replace(each, codes=None) if isinstance(each, Stored) else each for each in records]

    # ---- written anew ----------------------------------------------------------------------------------------------

    @property
    def wants_rewrite(self) -> bool:
        if self._since is not None:
            return False
        return self.behind or self.size_bytes > max(REWRITE_FROM_BYTES, 2 * self._least_bytes)

    def begin(self, records: Sequence[Record]) -> None:
        """A new log, of what `add` brings, after `records`, which `take` gave. What is taken later comes after that.
        This, `add` and `finish` raise OSError: then `abandon` it."""
        self._behind_at_begin = self._behind
        self.write(records)
        self._next_path.unlink(missing_ok=True)
        self._next_file, self._since = _opened(self._next_path), []

    def add(self, records: Sequence[Record]) -> None:
        assert self._next_file is not None
        if records:  # a frame of none cannot be read
            _write(self._next_file, self._frame(records))

    def finish(self, records: Sequence[Record]) -> None:
        """The new log in the place of the old one, after `records`."""
        assert self._next_file is not None and self._since is not None
        self.write(records)
        for start in range(0, len(self._since), CHUNK):
            _write(self._next_file, self._frame(self._since[start : start + CHUNK]))
        os.fsync(self._next_file)
        os.replace(self._next_path, self._path)
        old, self._file, self._next_file, self._since = self._file, self._next_file, None, None
        os.close(old)
        self._half_from, self._least_bytes = None, self.size_bytes
        _sync_folder(
            self._path.parent
        )  # else the old one may be there after a failure of power, and what is gone in it
        self._made_up = self._behind_at_begin

    def abandon(self) -> None:
        """The log stays as it is. Raises OSError."""
        self._since = None
        if self._next_file is not None:
            file, self._next_file = self._next_file, None
            os.close(file)
        self._next_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Raises OSError for what could not be written; it is closed all the same."""
        try:
            self.write(self.take(), to_disk=True)
        finally:
            for file in (self._file, self._next_file, self._lock):
                if file is not None:
                    os.close(file)

    def _frame(self, records: Sequence[Record]) -> bytes:
        """Each says whose its vectors are: what stands before it may have to be given up."""
        told: list[Record | MadeBy] = [*records]
        if self._encoder and any(isinstance(record, Stored) and record.codes for record in records):
            told.append(MadeBy(self._encoder))
        return framed(self._sealer.seal(records_text(told), _CONTEXT))


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
