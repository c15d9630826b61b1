"""Indexes of large scopes on disk, beside the log of their shard (`router.cache_log`), so that a restarted shard need
not build them again: that takes half a millisecond a vector.

They are only ever a short cut. What is in the log and not here is put in its place, what is here and not in the log is
dropped, and a file that was cut short, changed or does not open is deleted, which costs time and no answer. A file is
frames like the log's: first whose it is and how large, then the index, sealed where there is a key, since a vector says
much of its text.
"""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Collection, Iterator
from hashlib import blake2b
from pathlib import Path

from models.errors import InternalError
from router.cache_records import framed, read_frame
from router.sealing import Sealer
from router.vector_index import SavedIndex

PIECE_BYTES = 4 * 1024**2
_VERSION = 1
_SUFFIX = ".index"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, struct.error, InternalError)
logger = logging.getLogger(__name__)


class IndexFiles:
    """In a folder of their own, of one process. Calls may come from any thread, one at a time."""

    def __init__(self, folder: Path, sealer: Sealer, encoder: str = "") -> None:
        """encoder: what makes the vectors. An index of another one's is deleted; "" believes all."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._sealer, self._encoder = folder, sealer, encoder
        self.torn = 0

    def write(self, saved: SavedIndex) -> None:
        """Raises OSError; what was there before is there still then."""
        path = self._path(saved.tenant, saved.scope)
        new = path.with_suffix(".new")
        place = {"tenant": saved.tenant, "scope": saved.scope}
        head = {"version": _VERSION, **place, "bytes": len(saved.data), "encoder": self._encoder}
        data = memoryview(saved.data)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(framed(self._sealer.seal(json.dumps(head).encode(), _context(0))))
            for number, start in enumerate(range(0, len(data), PIECE_BYTES), 1):
                file.write(framed(self._sealer.seal(bytes(data[start : start + PIECE_BYTES]), _context(number))))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)

    def read(self) -> Iterator[SavedIndex]:
        """All that are whole; the others are deleted."""
        for path in sorted(self._folder.iterdir()):
            if path.suffix == ".new":
                path.unlink()
            if path.suffix != _SUFFIX:
                continue
            try:
                saved = self._read(path)
            except _UNREADABLE as error:
                self.torn += 1
                logger.warning("the index in %s cannot be read (%s) and is built anew", path, type(error).__name__)
                path.unlink()
                continue
            yield saved

    def keep_only(self, places: Collection[tuple[str, str]]) -> None:
        """Delete the indexes of other tenants and scopes than these."""
        names = {self._path(*place).name for place in places}
        for path in self._folder.iterdir():
            if path.suffix == _SUFFIX and path.name not in names:
                path.unlink()

    def _read(self, path: Path) -> SavedIndex:
        """Raises one of `_UNREADABLE`."""
        with path.open("rb") as file:
            head = json.loads(self._sealer.open(read_frame(file) or b"", _context(0), self._sealer.on))
            if head["version"] != _VERSION or self._path(head["tenant"], head["scope"]) != path:
                raise ValueError("another version, or in the place of another")
            if self._encoder and head.get("encoder", self._encoder) != self._encoder:
                raise ValueError("another encoder's vectors")
            data, number = bytearray(), 0
            while len(data) < head["bytes"]:
                number += 1
                if (body := read_frame(file)) is None:
                    raise ValueError("cut short")
                data += self._sealer.open(body, _context(number), self._sealer.on)
        return SavedIndex(head["tenant"], head["scope"], data)

    def _path(self, tenant: str, scope: str) -> Path:
        name = json.dumps([tenant, scope]).encode()
        return self._folder / (blake2b(name, digest_size=16).hexdigest() + _SUFFIX)


def _context(piece: int) -> str:
    return f"cache index, piece {piece}"
