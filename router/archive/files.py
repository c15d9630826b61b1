"""Files of callers, such as the input and the output of a batch: bytes on disk, what they are in the database.

A file is written under a name that ends in `.part` and gets its own when it is whole. Those that a crash left are
removed at the next start.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.errors import BodyTooLarge, InvalidRequest, NotFound
from router.settings import ArchiveSettings
from router.sqlite_file import SQLiteFile

MAX_UPLOADS = 64
"""That are under way at once."""

UPLOAD_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class StoredFile:
    file_id: str
    created_at_unix_s: int
    filename: str
    purpose: str
    size_bytes: int


@dataclass(slots=True)
class _Upload:
    org: str
    descriptor: int
    began_s: float
    size_bytes: int = 0


_COLUMNS = "file_id, created_at_unix_s, filename, purpose, size_bytes"


class FileStore:
    """Synchronous. Everything that writes comes from one thread at a time, the rest from another. All of it raises
    `NotFound` for a file that is another's, as for one that is nobody's."""

    def __init__(self, file: SQLiteFile, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._file, self._folder, self._clock = file, folder, clock
        self._uploads: dict[str, _Upload] = {}
        folder.mkdir(exist_ok=True, mode=0o700)
        known = {name for (name,) in file.writer.execute("SELECT file_id FROM files")}
        for path in folder.glob("file-*"):
            if path.name not in known:
                path.unlink()

    # ---- coming in -------------------------------------------------------------------------------------------------

    def begin(self, org: str) -> str:
        """The id of a file that is to come. Raises `InvalidRequest` when too many are on their way."""
        for file_id, upload in list(self._uploads.items()):
            if self._clock() - upload.began_s > UPLOAD_TIMEOUT_S:
                self.abort(file_id)
        if len(self._uploads) >= MAX_UPLOADS:
            raise InvalidRequest("Too many files are being uploaded; try again when one of them is done.")
        file_id = f"file-{secrets.token_hex(12)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(self._part(file_id), flags, 0o600)
        self._uploads[file_id] = _Upload(org, descriptor, self._clock())
        return file_id

    def append(self, file_id: str, chunk: bytes, settings: ArchiveSettings) -> None:
        """Raises `BodyTooLarge` for a file that passes its own bound or its organisation's, which ends it."""
        upload = self._uploads.get(file_id)
        if upload is None:
            raise _no_file()
        if upload.size_bytes + len(chunk) > settings.max_file_bytes:
            self.abort(file_id)
            raise BodyTooLarge(f"A file may have {settings.max_file_bytes} bytes; split it.", "file")
        others = sum(other.size_bytes for other in self._uploads.values() if other.org == upload.org)
        if self._held(upload.org) + others + len(chunk) > settings.max_file_bytes_per_org:
            self.abort(file_id)
            raise BodyTooLarge("Your organisation's files would take more room than it has; delete some first.")
        view = memoryview(chunk)
        while view:
            view = view[os.write(upload.descriptor, view) :]
        upload.size_bytes += len(chunk)

    def finish(self, file_id: str, filename: str, purpose: str) -> StoredFile:
        upload = self._uploads.pop(file_id, None)
        if upload is None:
            raise _no_file()
        os.close(upload.descriptor)
        stored = StoredFile(file_id, int(self._clock()), filename, purpose, upload.size_bytes)
        self._part(file_id).rename(self._folder / file_id)
        self._insert(upload.org, stored)
        return stored

    def abort(self, file_id: str) -> None:
        """Forget a file that is not whole. One that is not known is forgotten already."""
        if upload := self._uploads.pop(file_id, None):
            os.close(upload.descriptor)
            self._part(file_id).unlink(missing_ok=True)

    def adopt(self, org: str, path: Path, file_id: str, filename: str, purpose: str) -> bool:
        """Make a file of ours that lies at `path` one of the caller's, once. False: there is none and there was none.

        The row comes first: of a crash in between the row is left, and the second time the file follows.
        """
        if path.exists():
            self._insert(org, StoredFile(file_id, int(self._clock()), filename, purpose, path.stat().st_size))
            path.rename(self._folder / file_id)
            return True
        return (self._folder / file_id).exists()

    def _insert(self, org: str, stored: StoredFile) -> None:
        row = (stored.file_id, stored.created_at_unix_s, stored.filename, stored.purpose, stored.size_bytes)
        with self._file.transaction() as writer:
            writer.execute(
                f"INSERT INTO files (org, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", (org, *row)
            )

    def _held(self, org: str) -> int:
        sql = "SELECT COALESCE(SUM(size_bytes), 0) FROM files WHERE org = ?"
        held: int = self._file.writer.execute(sql, (org,)).fetchone()[0]
        return held

    def _part(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.part"

    # ---- what there is ---------------------------------------------------------------------------------------------

    def get(self, org: str, file_id: str) -> StoredFile:
        row = self._file.reader.execute(
            f"SELECT {_COLUMNS} FROM files WHERE org = ? AND file_id = ?", (org, file_id)
        ).fetchone()
        if row is None:
            raise _no_file()
        return StoredFile(*row)

    def list(self, org: str, purpose: str | None) -> list[StoredFile]:
        """The newest first; 10,000 of them at most."""
        rows = self._file.reader.execute(
            f"SELECT {_COLUMNS} FROM files WHERE org = ? AND purpose = COALESCE(?, purpose) "
            "ORDER BY created_at_unix_s DESC, rowid DESC LIMIT 10000",
            (org, purpose),
        )
        return [StoredFile(*row) for row in rows]

    def path(self, org: str, file_id: str) -> Path:
        """Where its bytes are."""
        return self._folder / self.get(org, file_id).file_id

    def read(self, org: str, file_id: str, offset: int, limit: int) -> bytes:
        with self.path(org, file_id).open("rb") as file:
            file.seek(offset)
            return file.read(limit)

    def delete(self, org: str, file_id: str) -> None:
        path = self._folder / file_id
        with self._file.transaction() as writer:
            if not writer.execute("DELETE FROM files WHERE org = ? AND file_id = ?", (org, file_id)).rowcount:
                raise _no_file()
        path.unlink(missing_ok=True)

    def sweep(self, settings: ArchiveSettings) -> int:
        """Remove what has had its time. Returns how many."""
        before = self._clock() - settings.file_ttl_s
        sql = "SELECT org, file_id FROM files WHERE created_at_unix_s <= ?"
        old = self._file.writer.execute(sql, (before,)).fetchall()
        for org, file_id in old:
            self.delete(org, file_id)
        return len(old)

    def close(self) -> None:
        for file_id in list(self._uploads):
            self.abort(file_id)


def _no_file() -> NotFound:
    return NotFound("No file with this id: GET /v1/files lists yours.", "file_id")
