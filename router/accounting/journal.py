"""The local log that a process writes its records to, before and apart from any database.

`<folder>/<name>/` holds numbered segments of lines, each a CRC-32 and a JSON object. One `os.write` a record: what is
appended is the kernel's and survives the process (not the machine: there is no fsync). The owner keeps the folder
locked; a journal whose lock can be had belongs to nobody any more, see `orphans`.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from models.errors import InternalError, Overloaded
from router.accounting.lock import lock, try_lock
from router.events import AuditEntry, Record

CHUNK_BYTES = 256 * 1024
_CRC_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines that nobody has acknowledged yet, up to `end` (segment number, offset in it)."""

    data: bytes
    end: tuple[int, int]


@dataclass(slots=True)
class _Segment:
    number: int
    path: Path
    size: int = 0


class Journal:
    """One process's journal; `name` must be new. Not for several threads.

    segment_bytes: acknowledged segments of about this size are removed. max_bytes: with so much unacknowledged, no
    further request may be opened (those that are open can still be closed, so the disk's use stays bounded).
    """

    def __init__(self, folder: Path, name: str, segment_bytes: int = 4 * 1024**2, max_bytes: int = 1024**3) -> None:
        self.name = name
        self._folder = folder / name
        self._segment_bytes, self._max_bytes = segment_bytes, max_bytes
        self._lock = _claim(self._folder)
        self._segments: deque[_Segment] = deque()
        self._shipped = 0  # offset in the oldest segment
        self._file = -1
        self._begin_segment(1)

    def append(self, record: Record | AuditEntry) -> None:
        """Keep `record`. Raises `Overloaded` when the disk cannot or, for an open, should not take more, or when the
        journal is closed."""
        if self._file < 0:
            raise Overloaded("This process is shutting down and keeps no more records; try again.", None, 1.0)
        if record.kind == "open" and self.unshipped_bytes > self._max_bytes:
            raise Overloaded("The books are not being written and their journal is full; try again later.", None, 5.0)
        segment = self._segments[-1]
        line = encode(record)
        try:
            if segment.size >= self._segment_bytes:
                segment = self._begin_segment(segment.number + 1)
            written = os.write(self._file, line)
            if written != len(line):  # no half line may stand before the next one
                os.ftruncate(self._file, segment.size)
        except OSError as error:
            raise Overloaded(f"The journal cannot be written ({error.strerror}); see to the data folder.") from None
        if written != len(line):
            raise Overloaded("The disk of the data folder is full; make room and try again.", None, 5.0)
        segment.size += len(line)

    @property
    def unshipped_bytes(self) -> int:
        return sum(segment.size for segment in self._segments) - self._shipped

    def unshipped(self, limit_bytes: int = CHUNK_BYTES) -> Chunk | None:
        """The oldest records not acknowledged: about `limit_bytes` of them, at least one. None when there are none.
        Raises OSError when they cannot be read."""
        self._drop_delivered()
        segment = self._segments[0]
        if self._shipped >= segment.size:
            return None
        with segment.path.open("rb") as file:
            file.seek(self._shipped)
            data = file.read(limit_bytes)
            if not data.endswith(b"\n"):
                data += file.readline()
        return Chunk(data, (segment.number, self._shipped + len(data)))

    def acknowledge(self, end: tuple[int, int]) -> None:
        """The records up to `end` are in the books. Doing so twice, or for what was passed long ago, does nothing."""
        number, offset = end
        if number == self._segments[0].number:
            self._shipped = max(self._shipped, offset)
        self._drop_delivered()

    def close(self) -> None:
        """Let go of it. The ledger sees that its owner is gone, takes in what is left and removes it."""
        os.close(self._file)
        self._file = -1  # the number may soon be another file's
        os.close(self._lock)

    def _drop_delivered(self) -> None:
        """The oldest segment, when it is full and the books have all of it. Where the disk has no room for the next one
        it stays for now."""
        segment = self._segments[0]
        if self._file < 0 or not self._shipped >= segment.size >= self._segment_bytes:
            return
        if len(self._segments) == 1:
            try:
                self._begin_segment(segment.number + 1)
            except OSError:
                return
        self._segments.popleft()
        self._shipped = 0
        with suppress(OSError):  # it is delivered once more when its owner is gone, which does nothing
            segment.path.unlink()

    def _begin_segment(self, number: int) -> _Segment:
        segment = _Segment(number, self._folder / f"{number:08d}.log")
        file = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._segments:
            os.close(self._file)
        self._file = file
        self._segments.append(segment)
        return segment


def encode(record: Record | AuditEntry) -> bytes:
    """The line of a record: the JSON of `events.as_json`, written without the deep copy."""
    try:
        text = to_json(record)
    except ValueError:  # a lone surrogate in a name, say, which only the slower encoder can write
        text = json.dumps(record, default=_plain, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The records in `data`, and how many lines are not whole (torn by a crash) and were skipped."""
    records, torn = [], 0
    for line in data.splitlines():
        digest, text = line[:_CRC_DIGITS], line[_CRC_DIGITS + 1 :]
        if digest == b"%08x" % zlib.crc32(text):
            records.append(json.loads(text))
        else:
            torn += 1
    return records, torn


class Orphan:
    """A journal without an owner, locked until it is removed or let go."""

    def __init__(self, folder: Path, held: int) -> None:
        self.name = folder.name
        self._folder, self._lock = folder, held

    def chunks(self, limit_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """All its lines, whole ones, besides a torn one where a crash left it."""
        for path in sorted(self._folder.glob("*.log")):
            with path.open("rb") as file:
                while data := file.read(limit_bytes):
                    yield data + file.readline()

    def remove(self) -> None:
        shutil.rmtree(self._folder)

    def release(self) -> None:
        os.close(self._lock)


def orphans(folder: Path) -> Iterator[Orphan]:
    """The journals in `folder` whose owners are gone, each locked while the caller looks at it."""
    for path in _journals(folder):
        held = try_lock(path)
        if held is None:
            continue
        orphan = Orphan(path, held)
        try:
            yield orphan
        finally:
            orphan.release()


def names(folder: Path) -> set[str]:
    """Of all journals in `folder`, with or without an owner."""
    return {path.name for path in _journals(folder)}


def _claim(folder: Path) -> int:
    for _ in range(50):
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder, wait_s=0.1)  # who looks for orphans may hold it for a moment, and even remove it
        if held is not None and not any(folder.iterdir()):
            return held
        if held is not None:
            os.close(held)
            break
    raise InternalError(f"The journal {folder} is another process's; choose a name that is new.")


def _journals(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return sorted(path for path in folder.iterdir() if path.is_dir())
    return []


def _plain(value: object) -> dict[str, Any]:
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    raise TypeError(f"{type(value).__name__} has no JSON form")
