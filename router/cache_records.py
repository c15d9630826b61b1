"""What is written down of stored answers: records, and frames of them."""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from models.errors import InternalError
from models.quick_json import decoded
from router.cache_lines import Gone, Keyed
from router.invalidation import Bar
from router.packed_answer import PackedAnswer
from router.ports import CacheKey
from router.scope_index import unit

_FRAME, _SIZE = struct.Struct(">II"), struct.Struct(">I")
_VERSION = b"\x03"
UNREADABLE = (ValueError, KeyError, TypeError, struct.error, zlib.error, InternalError)


@dataclass(frozen=True, slots=True)
class Stored(Keyed):
    """codes: the question's vector, as `router.scope_index.quantised` makes it."""

    answer: PackedAnswer
    codes: bytes | None

    @property
    def embedding(self) -> bytes | None:
        """The vector in float32, of unit length."""
        return unit(np.frombuffer(self.codes, dtype=np.int8)).tobytes() if self.codes else None


@dataclass(frozen=True, slots=True)
class MadeBy:
    """The encoder of the vectors beside it: `models.encoder.Encoder.identity`."""

    encoder: str


Record = Stored | Gone | Bar


def framed(body: bytes) -> bytes:
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def read_frame(file: BinaryIO) -> bytes | None:
    """The body of the next frame; None when there is none, or not a whole one."""
    head = file.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    size, crc = _FRAME.unpack(head)
    body = file.read(size)
    return body if len(body) == size and zlib.crc32(body) == crc else None


def records_text(records: Sequence[Record | MadeBy]) -> bytes:
    """A mark of this version, the length of what follows compressed (a line for each record, then the answers' bodies),
    that, and the vectors as they are: they hardly get smaller."""
    lines, bodies, codes = [], [], []
    for record in records:
        lines.append(_line(record))
        if isinstance(record, Stored):
            bodies.append(record.answer.body)
            codes.append(record.codes or b"")
    text = b"\n".join(lines)
    packed = zlib.compress(_SIZE.pack(len(text)) + text + b"".join(bodies), 1)
    return _VERSION + _SIZE.pack(len(packed)) + packed + b"".join(codes)


def is_of_this_version(data: bytes) -> bool:
    """Whether `records_of` may be able to read it."""
    return data[:1] == _VERSION


def records_of(data: bytes, max_bytes: int = 0) -> Iterator[Record | MadeBy]:
    """What `records_text` made. Raises one of `UNREADABLE`, also for what another version wrote, and for what has more
    than `max_bytes` when it is unpacked; 0: it may have any number."""
    if not is_of_this_version(data):
        raise ValueError("another version of the log")
    (packed_size,) = _SIZE.unpack_from(data, 1)
    at_codes = 1 + _SIZE.size + packed_size
    unpacking = zlib.decompressobj()
    packed = unpacking.decompress(data[1 + _SIZE.size : at_codes], max_bytes)
    if not unpacking.eof:
        raise ValueError("cut off, or too large")
    (text_size,) = _SIZE.unpack_from(packed)
    at_body = _SIZE.size + text_size
    for told in decoded(b"[" + packed[_SIZE.size : at_body].replace(b"\n", b",") + b"]"):
        if isinstance(told, dict):
            yield MadeBy(told["encoder"]) if "encoder" in told else Bar.back(told)
            continue
        if len(told) == 2:
            yield Gone(*told)
            continue
        tenant, exact, scope, text, surface, name, model, cost, created_s, ttl_s, tags, opened_s, version, *sizes = told
        body, codes = sizes
        key = CacheKey(sys.intern(tenant), exact, sys.intern(scope) if scope else None, text, surface)
        answer = PackedAnswer(
            *(name, sys.intern(model), cost, created_s, ttl_s, tuple(tags), opened_s),
            packed[at_body : at_body + body],
            sys.intern(version),
        )
        yield Stored(key, answer, data[at_codes : at_codes + codes] or None)
        at_body, at_codes = at_body + body, at_codes + codes


def _line(record: Record | MadeBy) -> bytes:
    if isinstance(record, MadeBy):
        return json.dumps({"encoder": record.encoder}).encode()
    if isinstance(record, Gone):
        return json.dumps([record.tenant, record.exact]).encode()
    if isinstance(record, Bar):
        return json.dumps(record.told()).encode()
    key, answer = record.key, record.answer
    told = (
        *(key.tenant, key.exact, key.scope, key.text, key.surface),
        *(answer.answer_id, answer.model, answer.cost_microusd, answer.created_at_unix_s, answer.ttl_s, answer.tags),
        *(answer.opened_at_unix_s, answer.version, len(answer.body), len(record.codes or b"")),
    )
    return json.dumps(told).encode()
