"""Each migration has a number of its own, without gaps, for both databases."""

from __future__ import annotations

from pathlib import Path

import pytest

import router
from router.sqlite_file import migration_scripts

FOLDERS = sorted(Path(router.__file__).parent.rglob("migrations"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_they_are_numbered_one_by_one(folder: Path, database: str) -> None:
    numbers = [*migration_scripts(folder, database)]
    assert numbers == list(range(1, len(numbers) + 1)) and numbers
