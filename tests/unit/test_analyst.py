"""What is foreseen of one key, in books with many."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from router.accounting.analyst import Analyst
from router.accounting.store import SQLiteStore
from router.accounting.usage_sql import DAY_MS
from router.events import as_json
from tests.contract.test_stores import closed


@pytest.mark.parametrize("group", [("key", "key_2"), ("team", "team_2"), ("model", "m_2")])
def test_one_of_many_is_not_cut_off(tmp_path: Path, group: tuple[str, str]) -> None:
    store, now = SQLiteStore(tmp_path / "ledger.sqlite3"), 1_780_000_000_000
    records = [
        replace(
            closed(f"r{day}-{each}", cost=100 + each, at=now - day * DAY_MS, attempts=()),
            **{"key_id": f"key_{each}", "team": f"team_{each}", "model": f"m_{each}"},
        )
        for day in range(28)
        for each in range(4)
    ]
    store.ingest("h", [json.loads(json.dumps(as_json(record))) for record in records])
    analyst = Analyst(lambda query: store.usage(replace(query, limit=30)))  # fewer than keys by days
    whole, one = analyst.outlook("acme", now), analyst.outlook("acme", now, (group,))
    assert whole.spent_microusd == 28 * 406 and one.spent_microusd == 28 * 102  # the 28th of May, 2026
    assert one.ahead is not None and one.ahead.expected == pytest.approx(102 * 3 + 0, abs=1)
    assert analyst.outlook("acme", now, ((group[0], "nobody"),)).spent_microusd == 0
    store.close()
