from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from models.incremental_text import IncrementalText


def utf8(tokens: Sequence[int]) -> str:
    """A token is a byte: as byte-level tokenizers decode."""
    return bytes(tokens).decode("utf-8", "replace")


def byte_fallback(tokens: Sequence[int]) -> str:
    """As sentencepiece models decode: a run of bytes (below 256) that is not valid as a whole shows a mark for each,
    and a first word (300 and above) loses its space."""
    text, run = "", bytearray()
    for token in [*tokens, None]:
        if token is not None and token < 256:
            run.append(token)
            continue
        try:
            text += run.decode()
        except UnicodeDecodeError:
            text += "\ufffd" * len(run)
        run.clear()
        if token is not None:
            text += f" w{token}"
    return text[1:] if tokens and tokens[0] >= 256 else text


def pieces(decode, tokens: Sequence[int], stop: Sequence[str] = (), step: int = 1) -> list[str]:
    text = IncrementalText(decode, stop)
    got = [text.push(tokens[at : at + step]) for at in range(0, len(tokens), step)]
    return [*got, text.flush()]


@given(st.binary(max_size=80), st.integers(1, 5))
def test_any_bytes_join_to_the_whole(data: bytes, step: int):
    assert "".join(pieces(utf8, list(data), step=step)) == utf8(data)


@given(st.text(max_size=60))
def test_half_a_character_never_shows(text: str):
    got = pieces(utf8, list(text.encode("utf-8", "ignore")))
    assert all("\ufffd" not in piece for piece in got) or "\ufffd" in text


@given(st.lists(st.one_of(st.integers(300, 310), st.text(min_size=1, max_size=4)), max_size=40))
def test_words_and_characters_spelt_in_bytes_join_to_the_whole(parts: list[int | str]):
    tokens = [t for part in parts for t in ([part] if isinstance(part, int) else part.encode("utf-8", "ignore"))]
    assert "".join(pieces(byte_fallback, tokens)) == byte_fallback(tokens)


@given(
    st.text("ab", max_size=40),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(1, 7),
)
def test_nothing_of_a_stop_string_shows(text: str, stop: list[str], step: int):
    found = [at for at in (text.find(s) for s in stop) if at >= 0]
    stream = IncrementalText(utf8, stop)
    got = ""
    for at in range(0, len(text), step):
        got += stream.push(list(text[at : at + step].encode()))
        assert text.startswith(got)
        if stream.stopped:
            break
    got += stream.flush()
    assert stream.stopped == bool(found)
    if step == 1:  # token by token the first stop string to be complete ends it
        end = min((text.find(s) + len(s) for s in stop if s in text), default=len(text))
        assert not found or got == text[: min(text[:end].find(s) for s in stop if s in text[:end])]
    if not found:
        assert got == text


def test_what_cannot_begin_a_stop_string_is_not_held():
    text = IncrementalText(utf8, ["END"])
    assert text.push(list(b"see")) == "see"
    assert text.push(list(b" E")) == " "
    assert text.push(list(b"N")) == ""
    assert text.push(list(b"O")) == "ENO"
    assert not text.stopped


def test_a_long_text_costs_a_window_per_token():
    longest = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return utf8(tokens)

    assert "".join(pieces(decode, list(b"x" * 1000))) == "x" * 1000
    assert longest < 20
