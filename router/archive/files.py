"""Files of callers, such as the input and the output of a batch: bytes on disk, what they are in the database.

A file is written under a name that ends in `.part` and gets its own when it is whole. Those that a crash left are
removed at the next start.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from models.errors import BodyTooLarge, InternalError, InvalidRequest, NotFound
from router.sealing import HEAD_BYTES, NO_SEALER, PIECE_BYTES, Sealer, SealingWriter, key_id
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
    sealing: SealingWriter | None
    size_bytes: int = 0


_COLUMNS = "file_id, created_at_unix_s, filename, purpose, size_bytes"


class FileStore:
    """Synchronous. Everything that writes comes from one thread at a time, the rest from another. All of it raises
    `NotFound` for a file that is another's, as for one that is nobody's."""

    def __init__(
        self,
        file: SQLiteFile,
        folder: Path,
        clock: Callable[[], float] = time.time,
        sealer: Sealer = NO_SEALER,
    ) -> None:
        self._file, self._folder, self._clock, self._sealer = file, folder, clock, sealer
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
        sealing = self._sealer.writer(_context(org, file_id)) if self._sealer.on else None
        self._uploads[file_id] = _Upload(org, descriptor, self._clock(), sealing)
        if sealing:
            _write(descriptor, sealing.head)
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
        _write(upload.descriptor, b"".join(upload.sealing.feed(chunk)) if upload.sealing else chunk)
        upload.size_bytes += len(chunk)

    def finish(self, file_id: str, filename: str, purpose: str) -> StoredFile:
        upload = self._uploads.pop(file_id, None)
        if upload is None:
            raise _no_file()
        if upload.sealing:
            _write(upload.descriptor, upload.sealing.end())
        os.fsync(upload.descriptor)
        os.close(upload.descriptor)
        stored = StoredFile(file_id, int(self._clock()), filename, purpose, upload.size_bytes)
        self._part(file_id).rename(self._folder / file_id)
        self._insert(upload.org, stored, upload.sealing is not None)
        return stored

    def abort(self, file_id: str) -> None:
        """Forget a file that is not whole. One that is not known is forgotten already."""
        if upload := self._uploads.pop(file_id, None):
            os.close(upload.descriptor)
            self._part(file_id).unlink(missing_ok=True)

    def adopt(self, org: str, path: Path, parts: Iterable[bytes], file_id: str, filename: str, purpose: str) -> bool:
        """Make `parts`, which are what lies at `path`, a file of the caller's, once. False: there is none and was none.

        `path` goes last: of a crash before, all of it is done again.
        """
        if not path.exists():
            return (self._folder / file_id).exists()
        size_bytes = self._write_whole(org, file_id, parts)
        self._insert(org, StoredFile(file_id, int(self._clock()), filename, purpose, size_bytes), self._sealer.on)
        self._part(file_id).rename(self._folder / file_id)
        path.unlink()
        return True

    def _write_whole(self, org: str, file_id: str, parts: Iterable[bytes]) -> int:
        """Under the name of a file that is to come. Returns how large it is to its reader."""
        sealing, size_bytes = self._sealer.writer(_context(org, file_id)) if self._sealer.on else None, 0
        descriptor = os.open(self._part(file_id), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(descriptor, sealing.head if sealing else b"")
            for part in parts:
                size_bytes += len(part)
                _write(descriptor, b"".join(sealing.feed(part)) if sealing else part)
            _write(descriptor, sealing.end() if sealing else b"")
            os.fsync(descriptor)  # before it takes another's place
        finally:
            os.close(descriptor)
        return size_bytes

    def reseal(self, after: int, limit: int) -> tuple[int, list[str], int | None]:
        """Seal those of up to `limit` files that are not sealed by the key that seals now. after: where the last call
        ended, 0 to begin. Returns how many were sealed, which do not open, and where it ended (None: there are no
        more)."""
        if not self._sealer.on:
            return 0, [], None
        sql = "SELECT rowid, org, file_id, size_bytes, sealed FROM files WHERE rowid > ? ORDER BY rowid LIMIT ?"
        rows = self._file.writer.execute(sql, (after, limit)).fetchall()
        done, wrong = 0, list[str]()
        for _, org, file_id, size_bytes, sealed in rows:
            try:
                done += self._resealed(org, file_id, size_bytes, bool(sealed))
            except InternalError:
                wrong.append(file_id)
        return done, wrong, rows[-1][0] if rows else None

    def _resealed(self, org: str, file_id: str, size_bytes: int, sealed: bool) -> bool:
        path = self._folder / file_id
        if not path.exists():
            return False
        with path.open("rb") as file:
            self._sealer.check_file(file, size_bytes, sealed)
            current = self._sealer.is_current(file.read(HEAD_BYTES))
        if not current:
            with self._sealer.open_file(path, _context(org, file_id)) as plain:
                self._write_whole(org, file_id, iter(partial(plain.read, PIECE_BYTES), b""))
            self._part(file_id).rename(path)
        if not sealed:
            with self._file.transaction() as writer:
                writer.execute("UPDATE files SET sealed = 1 WHERE org = ? AND file_id = ?", (org, file_id))
        return not current

    def _insert(self, org: str, stored: StoredFile, sealed: bool) -> None:
        row = (stored.file_id, stored.created_at_unix_s, stored.filename, stored.purpose, stored.size_bytes)
        with self._file.transaction() as writer:
            writer.execute(
                f"INSERT INTO files (org, sealed, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (org, file_id) "
                "DO UPDATE SET size_bytes = excluded.size_bytes, sealed = excluded.sealed",
                (org, int(sealed), *row),
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

    def opener(self, org: str, file_id: str) -> Callable[[], BinaryIO]:
        """What opens it, for its bytes to be read from the first on, in any thread."""
        path, known = self._folder / file_id, self._known(org, file_id)

        def opened() -> BinaryIO:
            with path.open("rb") as file:
                self._sealer.check_file(file, *known)
            return self._sealer.open_file(path, _context(org, file_id))

        return opened

    def read(self, org: str, file_id: str, offset: int, limit: int) -> bytes:
        """Raises `InternalError` for what was changed on disk."""
        known = self._known(org, file_id)
        with (self._folder / file_id).open("rb") as file:
            self._sealer.check_file(file, *known)
            return self._sealer.read(file, offset, limit, _context(org, file_id))

    def _known(self, org: str, file_id: str) -> tuple[int, bool]:
        """How large it is to its reader, and whether it is sealed for sure."""
        sql = "SELECT size_bytes, sealed FROM files WHERE org = ? AND file_id = ?"
        row = self._file.reader.execute(sql, (org, file_id)).fetchone()
        if row is None:
            raise _no_file()
        return row[0], bool(row[1])

    def delete(self, org: str, file_id: str) -> None:
        path = self._folder / file_id
        with self._file.transaction() as writer:
            if not writer.execute("DELETE FROM files WHERE org = ? AND file_id = ?", (org, file_id)).rowcount:
                raise _no_file()
        path.unlink(missing_ok=True)

    def sweep(self, settings: ArchiveSettings) -> int:
        """Remove what has had its time. Returns how many."""
        now = self._clock()
        found = self._file.writer.execute("SELECT org, file_id, created_at_unix_s FROM files").fetchall()
        old = [(o, f) for o, f, at in found if at <= now - settings.ttl_s_by_org.get(o, settings.file_ttl_s)]
        for org, file_id in old:
            self.delete(org, file_id)
        return len(old)

    def erase(self, org: str, ids: Sequence[str] | None) -> int:
        """Those of an org, or of these ids of them; and what it is just sending. Returns how many there were."""
        found = self._file.writer.execute("SELECT file_id FROM files WHERE org = ?", (org,)).fetchall()
        chosen = [file_id for (file_id,) in found if ids is None or file_id in ids]
        for file_id in chosen:
            self.delete(org, file_id)
        if ids is None:
            for file_id in [file_id for file_id, upload in self._uploads.items() if upload.org == org]:
                self.abort(file_id)
        return len(chosen)

    def facts(self) -> dict[str, Any]:
        """How many there are, how many bytes (of their contents), and by which key they are sealed."""
        by_key: Counter[str] = Counter()
        size_bytes = 0
        for file_id, size in self._file.writer.execute("SELECT file_id, size_bytes FROM files").fetchall():
            with suppress(FileNotFoundError), (self._folder / file_id).open("rb") as file:
                by_key[key_id(file.read(HEAD_BYTES)) or "none"] += 1
                size_bytes += size
        return {"count": by_key.total(), "bytes": size_bytes, "sealed_by": dict(by_key)}

    def close(self) -> None:
        for file_id in list(self._uploads):
            self.abort(file_id)


def _context(org: str, file_id: str) -> str:
    return f"file/{org}/{file_id}"


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _no_file() -> NotFound:
    return NotFound("No file with this id: GET /v1/files lists yours.", "file_id")
