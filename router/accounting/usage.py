"""`GET /v1/usage`: what may be asked of the books, and how the answer looks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from models.errors import InvalidRequest
from router.accounting.latencies import PERCENTILES
from router.accounting.usage_sql import GROUPS, MAX_ROWS, SUMS, UsageQuery, has_latencies

_DEFAULT_DAYS = 30
_MAX_GROUPS = 4
_DAY_MS = 86_400_000
_BUCKETS = ("hour", "day")
_TIMES = ("ttft_ms", "total_ms")
_LATEST_UNIX_MS = 253_402_300_800_000  # the year 10000


_PARAMETERS = ("since", "until", "group_by", "latency", "format")


def parse_usage_query(params: Mapping[str, str], now_unix_ms: int, org: str | None = None) -> UsageQuery:
    """From `since`, `until` (ISO 8601, UTC unless it says otherwise, or Unix seconds; by default the 30 days that end
    with today), `group_by` (names of `GROUPS`, separated by commas), `latency` (`true`) and `format` (`csv`),
    which is not in it. Raises `InvalidRequest`."""
    if unknown := set(params) - {*_PARAMETERS}:
        names = ", ".join(f"'{name}'" for name in _PARAMETERS)
        raise InvalidRequest(f"Unknown parameter '{min(unknown)}'; there are {names}.", min(unknown))
    until = _moment(params["until"], "until") if params.get("until") else now_unix_ms + 1
    if until > now_unix_ms:  # of the future there is nothing, and a whole day is answered by its sums
        until = max(until, (now_unix_ms // _DAY_MS + 1) * _DAY_MS)
    since = _moment(params["since"], "since") if params.get("since") else until - _DEFAULT_DAYS * _DAY_MS
    if since >= until:
        raise InvalidRequest("'since' must be before 'until'.", "since")
    groups, latency = _groups(params.get("group_by", "")), _choice(params, "latency", ("false", "true")) == "true"
    if latency and not has_latencies(groups):
        raise InvalidRequest(
            "Percentiles are known by one thing at a time, besides 'org', 'hour' and 'day'; ask for fewer groups.",
            "group_by",
        )
    _choice(params, "format", ("json", "csv"))
    return UsageQuery(org, since, until, groups, latency)


def usage_csv(query: UsageQuery, rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `usage_answer`, for a spreadsheet. Percentiles are columns of their own."""
    names = [*query.group_by, *SUMS]
    times = [(name, f"p{percent}") for name in _TIMES for percent in PERCENTILES] if query.latency else []
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([*names, *(f"{name.removesuffix('_ms')}_{part}_ms" for name, part in times)])
    for row in usage_answer(query, rows)["data"]:
        writer.writerow([*(_cell(row[name]) for name in names), *((row[name] or {}).get(part) for name, part in times)])
    return written.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula is quoted: some of them are chosen by callers."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def _choice(params: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    value = params.get(name) or choices[0]
    if value not in choices:
        raise InvalidRequest(f"'{name}' is '{choices[0]}' or '{choices[1]}'.", name)
    return value


def usage_answer(query: UsageQuery, rows: Sequence[dict[str, Any]], sums: Sequence[str] = SUMS) -> dict[str, Any]:
    """The body: a row per group and the total of `sums`. Hours and days are the ISO 8601 time of their start.

    Raises `InvalidRequest` when there are more than `MAX_ROWS` rows (so ask the store for one more).
    """
    if len(rows) > MAX_ROWS:
        raise InvalidRequest(
            f"This has more than {MAX_ROWS} rows; ask for a shorter time or for fewer groups.", "group_by"
        )
    total = {name: sum(row[name] for row in rows) for name in sums}
    return {
        "object": "usage",
        "since": _iso(query.since_unix_ms),
        "until": _iso(query.until_unix_ms),
        "group_by": list(query.group_by),
        "data": [{**row, **{bucket: _iso(row[bucket]) for bucket in _BUCKETS if bucket in row}} for row in rows],
        "total": total,
    }


def _groups(text: str) -> tuple[str, ...]:
    groups = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in groups:
        if name not in GROUPS:
            raise InvalidRequest(f"Unknown group '{name}'; there are {', '.join(GROUPS)}.", "group_by")
    if len(set(groups)) < len(groups) or len(groups) > _MAX_GROUPS:
        raise InvalidRequest(f"'group_by' takes up to {_MAX_GROUPS} different names.", "group_by")
    return groups


def _moment(text: str, param: str) -> int:
    """Unix milliseconds."""
    try:
        if text.isdecimal():
            unix_ms = int(text) * 1000
        else:
            moment = datetime.fromisoformat(text.replace(" ", "+"))  # a '+' that the client forgot to escape
            unix_ms = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        unix_ms = -1
    if not 0 <= unix_ms < _LATEST_UNIX_MS:
        raise InvalidRequest(
            f"'{param}' must be a time such as 2026-05-31, 2026-05-31T12:00:00Z or 1780000000 (Unix seconds).", param
        )
    return unix_ms


def _iso(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
