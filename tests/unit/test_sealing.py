from __future__ import annotations

import base64
import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InternalError
from router.sealing import HEAD_BYTES, PIECE_BYTES, Sealer, is_sealed, key_id

OLD, NEW = os.urandom(32), os.urandom(32)


def sealed(plain: bytes, context: str = "c") -> bytes:
    return Sealer([NEW]).seal(plain, context)


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_what_is_sealed_opens_and_does_not_show(size: int) -> None:
    plain = os.urandom(32).hex().encode() * (size // 64 + 1)
    plain = plain[:size]
    data = sealed(plain)
    assert Sealer([NEW]).open(data, "c") == plain
    assert size < 16 or plain[:16] not in data
    assert data != sealed(plain)


@settings(max_examples=40)
@given(st.integers(0, 3 * PIECE_BYTES), st.integers(0, 3 * PIECE_BYTES + 9), st.integers(1, 2 * PIECE_BYTES))
def test_any_part_of_a_file_can_be_read(size: int, offset: int, limit: int) -> None:
    plain = bytes(range(256)) * (size // 256 + 1)
    plain = plain[:size]
    for data in (plain, sealed(plain)):
        assert Sealer([NEW]).read(io.BytesIO(data), offset, limit, "c") == plain[offset : offset + limit]


def test_however_it_comes_it_is_one_text() -> None:
    writer, parts = Sealer([NEW]).writer("c"), [os.urandom(size) for size in (0, 5, PIECE_BYTES, 100_000, 1)]
    data = writer.head + b"".join(piece for part in parts for piece in writer.feed(part)) + writer.end()
    assert Sealer([NEW]).open(data, "c") == b"".join(parts)


def test_a_new_key_seals_and_the_old_one_still_opens() -> None:
    before = Sealer([OLD]).seal(b"text", "c")
    both = Sealer([NEW, OLD])
    after = both.seal(both.open(before, "c"), "c")
    assert not both.is_current(before) and both.is_current(after) and key_id(after) == both.first
    assert Sealer([NEW]).open(after, "c") == b"text"
    with pytest.raises(InternalError, match="add that key"):
        Sealer([NEW]).open(before, "c")
    with pytest.raises(InternalError, match="add that key"):
        Sealer().open(before, "c")


@pytest.mark.parametrize("plain", [b"", b"short", os.urandom(2 * PIECE_BYTES + 5)])
def test_whatever_is_changed_does_not_open(plain: bytes) -> None:
    data, step = sealed(plain), PIECE_BYTES + 16
    broken = [data[:-1], data + b"x", data[:HEAD_BYTES], bytes([*data[:-1], data[-1] ^ 1]), sealed(plain, "other")]
    if len(plain) > PIECE_BYTES:
        pieces = [data[start : start + step] for start in range(HEAD_BYTES, len(data), step)]
        head = data[:HEAD_BYTES]
        broken += [head + pieces[1] + pieces[0] + pieces[2], head + pieces[0] + pieces[1], head + pieces[2]]
    for wrong in broken:
        with pytest.raises(InternalError, match="does not open"):
            Sealer([NEW]).open(wrong, "c")
        with pytest.raises(InternalError, match="does not open"):
            for offset in range(0, len(plain) + 1, PIECE_BYTES):
                Sealer([NEW]).read(io.BytesIO(wrong), offset, PIECE_BYTES, "c")


def test_without_a_key_everything_stays_as_it_is() -> None:
    none = Sealer.of("")
    assert not none.on and none.seal(b"text", "c") == b"text" and not is_sealed(b"text")
    assert none.is_current(b"text") and not Sealer([NEW]).is_current(b"text")
    assert Sealer([NEW]).open(b"text", "c") == b"text"


def test_keys_of_the_environment() -> None:
    forms = [base64.b64encode(NEW), base64.urlsafe_b64encode(OLD).rstrip(b"=")]
    both = Sealer.of(",\n ".join(form.decode() for form in forms))
    assert both.ids == (*Sealer([NEW]).ids, *Sealer([OLD]).ids)
    assert Sealer.of(NEW.hex()).first == both.first
    for wrong in ("short", "A" * 43 + "!", OLD.hex()[:-2], base64.b64encode(b"x" * 31).decode()):
        with pytest.raises(ValueError, match="openssl rand") as refused:
            Sealer.of(f"{NEW.hex()},{wrong}")
        assert wrong not in str(refused.value) and NEW.hex() not in str(refused.value)
    with pytest.raises(ValueError):
        Sealer([b"short"])
