from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from router.accounting.keys import hash_key, kept_secret, new_key
from router.settings import KeySettings


def test_a_new_key_is_random_and_only_its_digest_is_needed() -> None:
    key = new_key()
    assert key.startswith("sy-") and len(key) >= 3 + 43 and key != new_key()
    assert KeySettings(sha256=hash_key(key), org="acme").sha256 == hash_key(key)


def test_a_secret_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "api_key"
    first = kept_secret(path, new_key)
    assert kept_secret(path, new_key) == first == path.read_text().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [left.name for left in tmp_path.iterdir()] == ["api_key"]


def test_of_several_that_make_it_at_once_all_get_the_same(tmp_path: Path) -> None:
    together = Barrier(8)

    def make() -> str:
        together.wait(10)  # all have seen that there is no file
        return new_key()

    with ThreadPoolExecutor(8) as threads:
        secrets = set(threads.map(lambda _: kept_secret(tmp_path / "api_key", make), range(8)))
    assert len(secrets) == 1


def test_an_empty_file_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "api_key").write_text("\n")
    with pytest.raises(ValueError, match="is empty: remove it"):
        kept_secret(tmp_path / "api_key", new_key)
