"""`GET /v1/usage`: what may be asked of the books, and how the answer looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from models.errors import InvalidRequest
from router.accounting.usage_sql import GROUPS, SUMS

MAX_ROWS = 10_000
_DEFAULT_DAYS = 30
_MAX_GROUPS = 4
_DAY_MS = 86_400_000
_BUCKETS = ("hour", "day")
_LATEST_UNIX_MS = 253_402_300_800_000  # the year 10000


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Requests opened in [since, until), summed by `group_by`."""

    since_unix_ms: int
    until_unix_ms: int
    group_by: tuple[str, ...] = ()


def parse_usage_query(params: Mapping[str, str], now_unix_ms: int) -> UsageQuery:
    """From `since`, `until` (ISO 8601, UTC unless it says otherwise, or Unix seconds; by default the last 30 days) and
    `group_by` (names of `GROUPS`, separated by commas). Raises `InvalidRequest`."""
    unknown = set(params) - {"since", "until", "group_by"}
    if unknown:
        raise InvalidRequest(
            f"Unknown parameter '{min(unknown)}'; there are 'since', 'until' and 'group_by'.", min(unknown)
        )
    until = _moment(params["until"], "until") if params.get("until") else now_unix_ms + 1
    since = _moment(params["since"], "since") if params.get("since") else until - _DEFAULT_DAYS * _DAY_MS
    if since >= until:
        raise InvalidRequest("'since' must be before 'until'.", "since")
    return UsageQuery(since, until, _groups(params.get("group_by", "")))


def usage_answer(query: UsageQuery, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The body: a row per group and the total. Hours and days are the ISO 8601 time of their start.

    Raises `InvalidRequest` when there are more than `MAX_ROWS` rows (so ask the store for one more).
    """
    if len(rows) > MAX_ROWS:
        raise InvalidRequest(
            f"This has more than {MAX_ROWS} rows; ask for a shorter time or for fewer groups.", "group_by"
        )
    total = {name: sum(row[name] for row in rows) for name in SUMS}
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
