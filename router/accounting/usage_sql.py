"""The SQL of usage: over `requests`, and over their sums by hour or day, which answer for whole ones in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HOUR_MS, DAY_MS, WEEK_MS = 3_600_000, 86_400_000, 604_800_000
MAX_ROWS = 10_000
"""Of an answer."""
GROUPS = {
    "org": "org",
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


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Requests of `org` (None: of all) opened in [since, until), summed by `group_by`: a row for each group.

    group_by: of `GROUPS`; `hour` and `day` (UTC) come as the Unix milliseconds of their start. latency: with
    percentiles of `ttft_ms` and `total_ms`, where `has_latencies`. only: of groups, with the value that alone is looked
    at; without latency. limit: of rows, which are in the order of their groups.
    """

    org: str | None
    since_unix_ms: int
    until_unix_ms: int
    group_by: tuple[str, ...] = ()
    latency: bool = False
    only: tuple[tuple[str, str], ...] = ()
    limit: int = MAX_ROWS + 1


DIMENSIONS = {"": ""} | {name: column for name, column in GROUPS.items() if name not in ("org", "hour", "day")}
"""By each of which there are sums in `usage_by` -> its column in `requests`; '' is for the sum of all."""

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


def steps_of(dimension: str) -> tuple[tuple[str, int], ...]:
    """By which its sums are kept, the widest first: there are too many users for hours."""
    return (("day", DAY_MS),) if dimension == "user" else (("day", DAY_MS), ("hour", HOUR_MS))


_HIT = "cache_verdict IN ('hit-exact', 'hit-semantic', 'coalesced')"
ONE = {
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
        sums = ", ".join(f"{sign}({value})" for value in ONE.values())
        more = ", ".join(f"{column} = {self.table}.{column} + excluded.{column}" for column in SUMS)
        return (
            f"INSERT INTO {self.table} (org, {self.column}, {', '.join((*self.places, *SUMS))}) "
            f"SELECT org, {at}, {places}, {sums} FROM requests WHERE org = ? AND request_id = ? "
            f"ON CONFLICT (org, {self.column}, {', '.join(self.places)}) DO UPDATE SET {more}"
        )

    def select(self, where: str) -> str:
        shown = (_known(column) for column in self.places)
        return (
            f"SELECT org, {self.column} AS at_unix_ms, {', '.join(shown)}, {', '.join(SUMS)} FROM {self.table} "
            f"WHERE {where}{self.column} >= ? AND {self.column} < ? AND requests <> 0"
        )


@dataclass(frozen=True, slots=True)
class _Cells:
    """The sums by one dimension, see `router.accounting.usage_cells`."""

    dimension: str
    step: str
    step_ms: int

    @property
    def places(self) -> tuple[str, ...]:
        return (DIMENSIONS[self.dimension],) if self.dimension else ()

    def select(self, where: str, shown: Sequence[str] = SUMS) -> str:
        place = "".join(f"{_known(column, 'value')}, " for column in self.places)
        return (
            f"SELECT org, at_unix_ms, {place}{', '.join(shown)} FROM usage_by "
            f"WHERE dimension = '{self.dimension}' AND step = '{self.step}' "
            f"AND {where}at_unix_ms >= ? AND at_unix_ms < ? AND requests <> 0"
        )


def _known(column: str, source: str = "") -> str:
    """What is not known is '' in the sums and NULL everywhere else."""
    if column in _UNKNOWN:
        return f"NULLIF({source or column}, '') AS {column}"
    return f"{source} AS {column}" if source else column


_HOURS = _Sums("usage_hours", "hour_unix_ms", HOUR_MS, _PLACES)
_DAYS = _Sums("usage_plain_days", "day_unix_ms", DAY_MS, _PLACES)
_KEY_DAYS = _Sums("usage_days", "day_unix_ms", DAY_MS, ("key_id", *_PLACES))
_USER_WEEKS = _Sums("usage_user_weeks", "week_unix_ms", WEEK_MS, ("end_user",))
ADD = tuple(sums.add_up("") for sums in (_HOURS, _DAYS, _KEY_DAYS))
TAKE_OFF = tuple(sums.add_up("-") for sums in (_HOURS, _DAYS, _KEY_DAYS))


def usage_sql(query: UsageQuery) -> tuple[str, list[Any]]:
    """The SQL and its values. What is grouped by end user and something else, or by key, hour and something else, is in
    no sums and reads requests."""
    since, until = query.since_unix_ms, query.until_unix_ms
    levels, places = _levels(query.group_by)
    spans = _cover(levels, since, until) or [_Span(None, since, until)]
    where = "" if query.org is None else "org = ? AND "
    sources = [(each.sign, each.sums.select(where) if each.sums else _requests(where, places)) for each in spans]
    given = _values(query.org, spans, tuple(value for _, value in query.only))
    which = " AND ".join(f"{GROUPS[name]} = ?" for name, _ in query.only)
    groups = [f"{GROUPS[name]} AS by_{name}" for name in query.group_by]
    numbers = ", ".join(str(number + 1) for number in range(len(groups)))
    grouped = f" GROUP BY {numbers}" if groups else ""
    # As an integer: PostgreSQL's sum of BIGINT is a decimal number.
    totals = [f"CAST(COALESCE(SUM({column}), 0) AS BIGINT) AS {column}" for column in SUMS]
    chosen = f" WHERE {which}" if which else ""
    # Each source by itself first, so that what comes together are groups, not rows; of users there are nearly as many.
    plain = "user" in query.group_by
    columns = [f"{column} AS {column}" for column in SUMS] if plain else totals
    signed = {1: columns, -1: [f"-{column}" for column in columns]}
    first = "" if plain else grouped
    parts = (
        f"SELECT {', '.join([*groups, *signed[sign]])} FROM ({source}) AS one{chosen}{first}"
        for sign, source in sources
    )
    shown = ", ".join([*(f"by_{name}" for name in query.group_by), *totals])
    order = f"{grouped} HAVING SUM(requests) <> 0 ORDER BY {numbers}" if groups else ""
    return f"SELECT {shown} FROM ({' UNION ALL '.join(parts)}) AS used{order} LIMIT ?", [*given, query.limit]


def has_latencies(group_by: Sequence[str]) -> bool:
    """Whether there are histograms for these groups: by one thing besides the org and the time."""
    return len(_named(group_by)) <= 1


@dataclass(frozen=True, slots=True)
class LatencyPart:
    """`sql` selects the groups, `ttft` and `total`, which are histograms, or where not `summed` the milliseconds of
    single requests. sign: -1 where they are to be taken off."""

    summed: bool
    sign: int
    sql: str
    values: list[Any]


def latency_sql(query: UsageQuery) -> Iterator[LatencyPart]:
    """For groups that `has_latencies` knows."""
    levels, places = _levels(query.group_by)
    levels = tuple(each for each in levels if isinstance(each, _Cells))
    where = "" if query.org is None else "org = ? AND "
    for span in _cover(levels, query.since_unix_ms, query.until_unix_ms):
        sums = span.sums
        if sums is None:
            times = {name: f"CASE WHEN status <> 'abandoned' THEN {name}_ms END" for name in ("ttft", "total")}
            source = _requests(where, places, times)
        else:
            assert isinstance(sums, _Cells)
            source = sums.select(where, ("ttft", "total"))
        groups = ", ".join([*(GROUPS[name] for name in query.group_by), "ttft", "total"])
        sql = f"SELECT {groups} FROM ({source}) AS one"
        yield LatencyPart(sums is not None, span.sign, sql, _values(query.org, [span]))


_Level = _Sums | _Cells


@dataclass(frozen=True, slots=True)
class _Span:
    """A part of the time that is asked for, and what it is read from (None: requests). sign: -1: it is taken off."""

    sums: _Level | None
    since_ms: int
    until_ms: int
    sign: int = 1


def _named(group_by: Sequence[str]) -> list[str]:
    return [name for name in group_by if name not in ("org", "hour", "day")]


def _levels(group_by: Sequence[str]) -> tuple[tuple[_Level, ...], tuple[str, ...]]:
    """The sums that can answer, from wide to narrow, and the columns of requests that are asked for."""
    named = _named(group_by)
    if len(named) <= 1:
        dimension = named[0] if named else ""
        cells = [_Cells(dimension, step, step_ms) for step, step_ms in steps_of(dimension)]
        chosen = [each for each in cells if "hour" not in group_by or each.step == "hour"]
        weeks = [_USER_WEEKS] if dimension == "user" and not {"hour", "day"} & {*group_by} else []
        return (*weeks, *chosen), tuple(DIMENSIONS[name] for name in named)
    levels: tuple[_Level, ...] = (_KEY_DAYS,) if "key" in named else (_DAYS, _HOURS)
    if "hour" in group_by:
        levels = () if "key" in named else (_HOURS,)
    if "user" in named:
        levels = ()
    return levels, levels[0].places if levels else ("end_user", "key_id", *_PLACES)


def _values(org: str | None, spans: Sequence[_Span], last: tuple[str, ...] = ()) -> list[Any]:
    first = () if org is None else (org,)
    return [value for span in spans for value in (*first, span.since_ms, span.until_ms, *last)]


def _cover(levels: Sequence[_Level], since_ms: int, until_ms: int, sign: int = 1) -> list[_Span]:
    """The spans that make up [since, until): of the first of `levels` as far as whole ones go, of the next ones at the
    edges, and of requests (None) at theirs. Where an edge is most of a whole one, that is taken, and the rest taken
    off."""
    if since_ms >= until_ms:
        return []
    if not levels:
        return [_Span(None, since_ms, until_ms, sign)]
    sums, *narrower = levels
    step_ms = sums.step_ms
    low, high = since_ms // step_ms * step_ms, -(-until_ms // step_ms) * step_ms  # the whole ones around it
    if high - low == step_ms and 2 * (until_ms - since_ms) <= step_ms:
        return _cover(narrower, since_ms, until_ms, sign)
    before, after = _cover(narrower, low, since_ms, -sign), _cover(narrower, until_ms, high, -sign)
    if high - low > step_ms and 2 * (since_ms - low) > step_ms:
        low += step_ms
        before = _cover(narrower, since_ms, low, sign)
    if high - low > step_ms and 2 * (high - until_ms) > step_ms:
        high -= step_ms
        after = _cover(narrower, high, until_ms, sign)
    return [*before, *([_Span(sums, low, high, sign)] if low < high else []), *after]


def _requests(where: str, places: Sequence[str], values: Mapping[str, str] = ONE) -> str:
    columns = [
        "org",
        "opened_at_unix_ms AS at_unix_ms",
        *places,
        *(f"{each} AS {name}" for name, each in values.items()),
    ]
    between = "opened_at_unix_ms >= ? AND opened_at_unix_ms < ?"
    return f"SELECT {', '.join(columns)} FROM requests WHERE {where}{between}"
