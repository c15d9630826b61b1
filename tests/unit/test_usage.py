from __future__ import annotations

import pytest

from models.errors import InvalidRequest
from router.accounting.usage import parse_usage_query, usage_answer, usage_csv
from router.accounting.usage_sql import MAX_ROWS, SUMS, UsageQuery

NOW = 1_780_000_000_123
DAY_MS = 86_400_000


def test_the_last_thirty_days_by_default() -> None:
    """Of which today is one: whole days, which sums answer."""
    tomorrow = (NOW // DAY_MS + 1) * DAY_MS
    assert parse_usage_query({}, NOW) == UsageQuery(None, tomorrow - 30 * DAY_MS, tomorrow, ())
    assert parse_usage_query({"until": "1780000000"}, NOW).until_unix_ms == 1_780_000_000_000


@pytest.mark.parametrize(
    ("text", "unix_ms"),
    [
        ("1780000000", 1_780_000_000_000),
        ("2026-05-28T20:26:40Z", 1_780_000_000_000),
        ("2026-05-28T22:26:40+02:00", 1_780_000_000_000),
        ("2026-05-28T22:26:40 02:00", 1_780_000_000_000),
        ("2026-05-28T20:26:40", 1_780_000_000_000),
        ("2026-05-28", 1_779_926_400_000),
    ],
)
def test_times(text: str, unix_ms: int) -> None:
    assert parse_usage_query({"since": text, "until": "2027-01-01"}, NOW).since_unix_ms == unix_ms


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"since": "yesterday"}, "since"),
        ({"until": "-5"}, "until"),
        ({"until": "9" * 30}, "until"),
        ({"since": "0001-01-01"}, "since"),
        ({"since": "2026-05-02", "until": "2026-05-02"}, "since"),
        ({"group_by": "model,colour"}, "group_by"),
        ({"group_by": "model,model"}, "group_by"),
        ({"group_by": "model,team,user,key,hour"}, "group_by"),
        ({"org": "other"}, "org"),
        ({"latency": "yes"}, "latency"),
        ({"format": "xls"}, "format"),
        ({"latency": "true", "group_by": "model,team"}, "group_by"),
    ],
)
def test_what_is_wrong_is_named(params: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_usage_query(params, NOW)
    assert refused.value.param == param


def test_the_answer_has_rows_and_their_total() -> None:
    query = parse_usage_query({"since": "2026-05-01", "until": "2026-05-03", "group_by": "day, model"}, NOW)
    rows = [
        {"day": 1_777_593_600_000, "model": "a", **{name: 2 for name in SUMS}},
        {"day": 1_777_680_000_000, "model": None, **{name: 3 for name in SUMS}},
    ]
    answer = usage_answer(query, rows)
    assert answer["since"] == "2026-05-01T00:00:00Z" and answer["group_by"] == ["day", "model"]
    assert [row["day"] for row in answer["data"]] == ["2026-05-01T00:00:00Z", "2026-05-02T00:00:00Z"]
    assert answer["total"] == {name: 5 for name in SUMS}


def test_too_many_rows_are_refused() -> None:
    rows = [{"model": "a", **dict.fromkeys(SUMS, 0)}] * (MAX_ROWS + 1)
    with pytest.raises(InvalidRequest, match="shorter"):
        usage_answer(UsageQuery(None, 0, 1, ("model",)), rows)


def test_a_csv_has_the_rows_and_no_formula() -> None:
    query = parse_usage_query(
        {"since": "2026-05-01", "until": "2026-05-03", "group_by": "user", "latency": "true"}, NOW
    )
    times = {"ttft_ms": {"p50": 1.5, "p95": 2.0, "p99": 3.0}, "total_ms": None}
    rows = [{"user": name, **dict.fromkeys(SUMS, 1), **times} for name in ("=1+1", 'ann, "x"', None)]
    head, first, second, third = usage_csv(query, rows).splitlines()
    assert head.startswith("user,requests,errors,") and head.endswith(
        "ttft_p50_ms,ttft_p95_ms,ttft_p99_ms,total_p50_ms,total_p95_ms,total_p99_ms"
    )
    assert first.startswith("'=1+1,1,") and first.endswith(",1.5,2.0,3.0,,,")
    assert second.startswith('"ann, ""x""",1,') and third.startswith(",1,")
