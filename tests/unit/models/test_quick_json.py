from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.quick_json import decoded

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON, st.booleans())
def test_it_is_read_as_pythons_own_parser_does(value: Any, ascii: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii).encode("utf-8", "replace")
    assert decoded(data) == json.loads(data)


@pytest.mark.parametrize("data", [b"", b"{", b'{"a": 1} 2', b"\xff", b'{"a": \xff"}', b"[1, ]"])
def test_what_is_not_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        decoded(data)
