"""What is kept on disk, unreadable to whoever has the disk alone: AES-256-GCM, with keys that can be changed.

A sealed text is a head (which key, a random salt) and pieces of up to 64 KiB, each with its number and whether it is
the last one bound into its nonce: pieces cannot be changed, left out, swapped or cut off unseen, and any of them can be
read alone (the construction STREAM, Hoang et al., "Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance", 2015). The salt gives each text a key of its own (HKDF-SHA256, RFC 5869), so that no nonce comes
twice however much one key seals. `context` says whose it is and what: a text put in another's place does not open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from models.errors import InternalError

KEY_VARIABLE = "SWITCHYARD_ENCRYPTION_KEY"
KEY_BYTES = 32
PIECE_BYTES = 64 * 1024
MAGIC = b"\x93sy1"  # no text, JSON or UTF-8 begins with this byte
_ID_BYTES, _SALT_BYTES, _TAG_BYTES = 4, 16, 16
HEAD_BYTES = len(MAGIC) + _ID_BYTES + _SALT_BYTES
_BROKEN = (
    "What was stored does not open: it was changed on disk or cut off, or it is not what it is filed as. "
    "Restore it from a copy, or delete it."
)


def is_sealed(data: bytes) -> bool:
    return data.startswith(MAGIC)


def key_id(data: bytes) -> str | None:
    """Which key sealed it (the first bytes of the key's SHA-256, in hex); None: it is not sealed."""
    return data[len(MAGIC) : len(MAGIC) + _ID_BYTES].hex() if is_sealed(data) else None


class Sealer:
    """keys: 32 bytes each; the first one seals, all of them open. Without any, everything stays as it is."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        """Raises ValueError for a key of another length."""
        if any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"a key for encryption has {KEY_BYTES} bytes")
        self._keys = {_id_of(key): key for key in keys}
        self._first = _id_of(keys[0]) if keys else None

    @classmethod
    def of(cls, text: str) -> Sealer:
        """From what the environment says: keys in base64 or hex, separated by commas, the newest first.

        Raises ValueError, which does not have the key in it.
        """
        return cls([_parsed(part) for part in text.replace("\n", ",").split(",") if part.strip()])

    @property
    def on(self) -> bool:
        return self._first is not None

    @property
    def first(self) -> str | None:
        """The id of the key that seals, as `key_id` says it."""
        return self._first.hex() if self._first is not None else None

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all keys, that which seals first."""
        return tuple(each.hex() for each in self._keys)

    def is_current(self, data: bytes) -> bool:
        """Whether it is as `seal` would make it now, by its first bytes."""
        return key_id(data) == self.first

    def seal(self, plain: bytes, context: str) -> bytes:
        """context: whose it is and what, such as `response/acme/resp_1`. It has to be the same when it is opened."""
        if self._first is None:
            return plain
        writer = self.writer(context)
        return writer.head + b"".join(writer.feed(plain)) + writer.end()

    def open(self, data: bytes, context: str, sealed: bool = False) -> bytes:
        """What was sealed; what is not sealed as it is, unless it is known to have been `sealed`. Raises
        `InternalError` for a key that is not there, and for what was changed or belongs elsewhere."""
        if not is_sealed(data):
            if sealed:
                raise InternalError(_BROKEN)
            return data
        cipher, body = self._cipher(data[:HEAD_BYTES]), memoryview(data)[HEAD_BYTES:]
        step = PIECE_BYTES + _TAG_BYTES
        starts = range(0, max(1, len(body)), step)
        return b"".join(
            _open(cipher, number, start + step >= len(body), bytes(body[start : start + step]), context)
            for number, start in enumerate(starts)
        )

    def writer(self, context: str) -> SealingWriter:
        """For a text that comes in parts. Only where `on`."""
        assert self._first is not None
        head = MAGIC + self._first + os.urandom(_SALT_BYTES)
        return SealingWriter(head, self._cipher(head), context)

    def prefix(self) -> bytes:
        """What everything that `seal` makes now begins with."""
        return MAGIC + self._first if self._first is not None else b""

    def open_file(self, path: Path, context: str) -> BinaryIO:
        """What the file holds, to be read from its beginning on. Raises OSError; reading raises as `open` does."""
        raw = path.open("rb")
        if not is_sealed(raw.read(len(MAGIC))):
            raw.seek(0)
            return raw
        return io.BufferedReader(SealedFile(self, raw, context), PIECE_BYTES)

    def read(self, file: BinaryIO, offset: int, limit: int, context: str) -> bytes:
        """Up to `limit` bytes from `offset` of what a file holds, sealed or not. Raises as `open` does."""
        head = file.read(HEAD_BYTES)
        if not is_sealed(head):
            file.seek(offset)
            return file.read(limit)
        cipher, step = self._cipher(head), PIECE_BYTES + _TAG_BYTES
        size = file.seek(0, os.SEEK_END) - HEAD_BYTES
        last = max(0, -(-size // step) - 1)
        number, skipped = divmod(max(0, offset), PIECE_BYTES)
        if number > last:
            return b""
        file.seek(HEAD_BYTES + number * step)
        found = bytearray()
        while number <= last and len(found) < skipped + limit:
            found += _open(cipher, number, number == last, file.read(step), context)
            number += 1
        return bytes(found[skipped : skipped + limit])

    def check_file(self, file: BinaryIO, size_bytes: int, sealed: bool) -> None:
        """That a file may hold what is written down of it: a text of `size_bytes`, `sealed` or not known to be. Raises
        `InternalError`. Leaves the file at its beginning."""
        file.seek(0)
        is_so, size = is_sealed(file.read(len(MAGIC))), os.fstat(file.fileno()).st_size
        file.seek(0)
        if is_so:
            size -= HEAD_BYTES + _TAG_BYTES * max(1, -(-size_bytes // PIECE_BYTES))
        if size != size_bytes or (sealed and not is_so):
            raise InternalError(_BROKEN)

    def _cipher(self, head: bytes) -> AESGCM:
        which = head[len(MAGIC) : len(MAGIC) + _ID_BYTES]
        key = self._keys.get(which)
        if key is None:
            raise InternalError(
                f"This is encrypted with a key ({which.hex()}) that is not in {KEY_VARIABLE}: add that key to it again."
            )
        salt = head[len(MAGIC) + _ID_BYTES : HEAD_BYTES]
        return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, b"switchyard sealing 1").derive(key))


NO_SEALER = Sealer()
"""Leaves everything as it is."""


class SealedFile(io.RawIOBase):
    """What a file holds, sealed or not, to be read from its beginning on. Put an `io.BufferedReader` around it."""

    def __init__(self, sealer: Sealer, file: BinaryIO, context: str) -> None:
        super().__init__()
        self._sealer, self._file, self._context, self._position = sealer, file, context, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._file.seek(0)
        # Up to the end of a piece, so that none is opened twice by a reader whose buffer is a piece.
        size = min(len(buffer), PIECE_BYTES - self._position % PIECE_BYTES)
        found = self._sealer.read(self._file, self._position, size, self._context)
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()


class SealingWriter:
    """Seals a text part by part: `head` comes first, then what `feed` gives, `end` last."""

    def __init__(self, head: bytes, cipher: AESGCM, context: str) -> None:
        self.head = head
        self._cipher, self._context = cipher, context
        self._number, self._rest = 0, b""

    def feed(self, part: bytes) -> Iterator[bytes]:
        """The pieces that are whole by now; to be consumed. The last one waits for `end`, since it may be the last."""
        self._rest += part
        start = 0
        while len(self._rest) - start > PIECE_BYTES:
            yield self._piece(self._rest[start : start + PIECE_BYTES], last=False)
            start += PIECE_BYTES
        self._rest = self._rest[start:]

    def end(self) -> bytes:
        return self._piece(self._rest, last=True)

    def _piece(self, plain: bytes, last: bool) -> bytes:
        sealed = self._cipher.encrypt(_nonce(self._number, last), plain, self._context.encode("utf-8", "replace"))
        self._number += 1
        return sealed


def _open(cipher: AESGCM, number: int, last: bool, piece: bytes, context: str) -> bytes:
    try:
        return cipher.decrypt(_nonce(number, last), piece, context.encode("utf-8", "replace"))
    except (InvalidTag, ValueError):
        raise InternalError(_BROKEN) from None


def _nonce(number: int, last: bool) -> bytes:
    return struct.pack(">3xQ?", number, last)


def _id_of(key: bytes) -> bytes:
    return hashlib.sha256(b"switchyard key id\0" + key).digest()[:_ID_BYTES]


def _parsed(text: str) -> bytes:
    text = text.strip()
    try:
        if len(text) == 2 * KEY_BYTES:
            return bytes.fromhex(text)
        key = base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(
            f"{KEY_VARIABLE} has to have keys of {KEY_BYTES} bytes in base64 or hex, separated by commas; "
            "make one with: openssl rand -base64 32"
        )
    return key
