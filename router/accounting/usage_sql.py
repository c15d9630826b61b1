"""The SQL of usage: over `requests`, and over their sums by hour or day, which answer for whole ones in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
GROUPS = {
    "team": "team",
    "key": "key_id",
    "user": "end_user",
    "model": "model",
    "provider": "provider",
    "task": "task",
    "strategy": "strategy",
    "status": "status",
    "cache_verdict": "cache_verdict",
    "hour": f"at_unix_ms / {HOUR_MS} * {HOUR_MS}",
    "day": f"at_unix_ms / {DAY_MS} * {DAY_MS}",
}
"""What usage can be grouped by -> its SQL."""

TOKENS = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
)
SUMS = ("requests", "errors", "hits", *TOKENS, "cost_microusd", "saved_microusd")
"""The columns of `usage` besides the groups. A hit's tokens were not generated again, so they do not count."""

_HIT = "cache_verdict IN ('hit-exact', 'hit-semantic', 'coalesced')"
_ONE = {
    "requests": "1",
    "errors": "CASE WHEN status IN ('error', 'abandoned') THEN 1 ELSE 0 END",
    "hits": f"CASE WHEN {_HIT} THEN 1 ELSE 0 END",
    **{column: f"CASE WHEN {_HIT} THEN 0 ELSE {column} END" for column in TOKENS},
    "cost_microusd": "cost_microusd",
    "saved_microusd": "saved_microusd",
}
"""What one request adds to each sum."""
_UNKNOWN = ("model", "provider", "task", "strategy")  # NULL in `requests`, '' in the sums, whose key they are in
_PLACES = ("team", *_UNKNOWN, "status", "cache_verdict")


@dataclass(frozen=True, slots=True)
class _Sums:
    """A table of sums: `column` is when each of them begins."""

    table: str
    column: str
    step_ms: int
    places: tuple[str, ...]

    def add_up(self, sign: str) -> str:
        """Add the request of an org and id, or take it off."""
        at = f"opened_at_unix_ms / {self.step_ms} * {self.step_ms}"
        places = ", ".join(f"COALESCE({column}, '')" if column in _UNKNOWN else column for column in self.places)
        sums = ", ".join(f"{sign}({value})" for value in _ONE.values())
        more = ", ".join(f"{column} = {self.table}.{column} + excluded.{column}" for column in SUMS)
        return (
            f"INSERT INTO {self.table} (org, {self.column}, {', '.join((*self.places, *SUMS))}) "
            f"SELECT org, {at}, {places}, {sums} FROM requests WHERE org = ? AND request_id = ? "
            f"ON CONFLICT (org, {self.column}, {', '.join(self.places)}) DO UPDATE SET {more}"
        )

    def select(self) -> str:
        shown = (f"NULLIF({column}, '') AS {column}" if column in _UNKNOWN else column for column in self.places)
        return (
            f"SELECT {self.column} AS at_unix_ms, {', '.join(shown)}, {', '.join(SUMS)} FROM {self.table} "
            f"WHERE org = ? AND {self.column} >= ? AND {self.column} < ? AND requests <> 0"
        )


_HOURS = _Sums("usage_hours", "hour_unix_ms", HOUR_MS, _PLACES)
_DAYS = _Sums("usage_plain_days", "day_unix_ms", DAY_MS, _PLACES)
_KEY_DAYS = _Sums("usage_days", "day_unix_ms", DAY_MS, ("key_id", *_PLACES))
ADD = tuple(sums.add_up("") for sums in (_HOURS, _DAYS, _KEY_DAYS))
TAKE_OFF = tuple(sums.add_up("-") for sums in (_HOURS, _DAYS, _KEY_DAYS))


def usage_sql(
    org: str, since_unix_ms: int, until_unix_ms: int, group_by: Sequence[str], limit: int
) -> tuple[str, list[Any]]:
    """The query and its values. What is grouped by end user, or by key and hour, is in no sums and reads requests."""
    levels: tuple[_Sums, ...] = (_KEY_DAYS,) if "key" in group_by else (_DAYS, _HOURS)
    if "hour" in group_by:
        levels = () if "key" in group_by else (_HOURS,)
    if "user" in group_by:
        levels = ()
    places = levels[0].places if levels else ("end_user", "key_id", *_PLACES)
    spans = _cover(levels, since_unix_ms, until_unix_ms) or [(None, since_unix_ms, until_unix_ms)]
    sources = [sums.select() if sums else _requests(places) for sums, _, _ in spans]
    given: list[Any] = [value for _, start, end in spans for value in (org, start, end)]
    groups = [f"{GROUPS[name]} AS by_{name}" for name in group_by]
    numbers = ", ".join(str(number + 1) for number in range(len(groups)))
    grouped = f" GROUP BY {numbers}" if groups else ""
    # As an integer: PostgreSQL's sum of BIGINT is a decimal number.
    totals = [f"CAST(COALESCE(SUM({column}), 0) AS BIGINT) AS {column}" for column in SUMS]
    # Each source by itself first, so that what comes together are groups, not rows.
    parts = (f"SELECT {', '.join([*groups, *totals])} FROM ({source}) AS one{grouped}" for source in sources)
    shown = ", ".join([*(f"by_{name}" for name in group_by), *totals])
    order = f"{grouped} ORDER BY {numbers}" if groups else ""
    return f"SELECT {shown} FROM ({' UNION ALL '.join(parts)}) AS used{order} LIMIT ?", [*given, limit]


def _cover(levels: Sequence[_Sums], since_ms: int, until_ms: int) -> list[tuple[_Sums | None, int, int]]:
    """The spans that make up [since, until): of the first of `levels` as far as whole ones go, of the next ones at the
    edges, and of requests (None) at theirs."""
    if since_ms >= until_ms:
        return []
    if not levels:
        return [(None, since_ms, until_ms)]
    sums, *narrower = levels
    first, last = -(-since_ms // sums.step_ms) * sums.step_ms, until_ms // sums.step_ms * sums.step_ms
    if first >= last:
        return _cover(narrower, since_ms, until_ms)
    return [*_cover(narrower, since_ms, first), (sums, first, last), *_cover(narrower, last, until_ms)]


def _requests(places: Sequence[str]) -> str:
    columns = ["opened_at_unix_ms AS at_unix_ms", *places, *(f"{value} AS {name}" for name, value in _ONE.items())]
    between = "opened_at_unix_ms >= ? AND opened_at_unix_ms < ?"
    return f"SELECT {', '.join(columns)} FROM requests WHERE org = ? AND {between}"
