"""What a limit counts (an `Account`) and over which time (a period of it), for money, requests, tokens and concurrency.

A minute is counted in slices of 10 s: no seven slices in a row, and so no 60 s, hold more than the limit. The price is
that after a burst up to 10 s more than a minute pass until the whole limit is free again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from router.accounting.directory import Span, Unit
from router.events import Principal

SLICE_MS = 10_000
SLICES = 7  # the most that any 60 s touch
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Account:
    """Everything of `org`; where they are given, of that team, key or model only."""

    org: str
    unit: Unit
    span: Span
    team: str = ""
    key_id: str = ""
    model: str = ""

    def covers(self, principal: Principal) -> bool:
        """Whether what the principal does counts here, for some model."""
        return self.org == principal.org and self.team in ("", principal.team) and self.key_id in ("", principal.key_id)

    def subject(self) -> str:
        """In words."""
        parts = [f"key '{self.key_id}'"] if self.key_id else []
        parts += [f"team '{self.team}'"] if self.team else []
        parts += [f"organisation '{self.org}'"]
        return " of ".join(parts) + (f" for model '{self.model}'" if self.model else "")


@dataclass(frozen=True, slots=True)
class Limit:
    """So much of it in each of its periods."""

    account: Account
    amount: int
    hard: bool = True


@dataclass(frozen=True, slots=True)
class Claim:
    """What a try at a model may take at the most."""

    principal: Principal
    model: str
    microusd: int
    tokens: int

    def of(self, account: Account) -> int:
        return {"microusd": self.microusd, "tokens": self.tokens}.get(account.unit, 1)


def month_of(unix_ms: int) -> str:
    """The calendar month (UTC), as `2026-05`."""
    return _at(unix_ms).strftime("%Y-%m")


def period_of(span: Span, unix_ms: int) -> str:
    """The period that a moment is in: a slice of ten seconds (UTC), a day, a month, or the only one there is."""
    if span == "month":
        return month_of(unix_ms)
    if span == "day":
        return _at(unix_ms).strftime("%Y-%m-%d")
    return slice_name(unix_ms // SLICE_MS) if span == "minute" else span


def period_span_unix_ms(span: Span, period: str) -> tuple[int, int | None]:
    """[start, end) of a period; it ends never where the end is None."""
    if span == "minute":
        start_ms = int(period) * SLICE_MS
        return start_ms, start_ms + SLICE_MS
    if span not in ("day", "month"):
        return 0, None
    start = datetime.strptime(period, "%Y-%m-%d" if span == "day" else "%Y-%m").replace(tzinfo=UTC)
    if span == "day":
        end = start + timedelta(days=1)
    else:
        end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return int(start.timestamp() * 1000), int(end.timestamp() * 1000)


def is_over(span: Span, period: str, now_unix_ms: int) -> bool:
    """Whether nothing of this period counts any more: a day after its end, a minute after that of a slice."""
    _, end_ms = period_span_unix_ms(span, period)
    return end_ms is not None and now_unix_ms >= end_ms + (_DAY_MS if span != "minute" else SLICES * SLICE_MS)


def slice_name(number: int) -> str:
    """Of the slice with this number since 1970, sortable as text."""
    return f"{number:012d}"


def neighbours(period: str) -> list[str]:
    """The slices that share some 60 s with this one, and it. Later ones too: of whoever's clock is ahead."""
    number = int(period)
    return [slice_name(other) for other in range(number - SLICES + 1, number + SLICES)]


def iso(unix_ms: int) -> str:
    return _at(unix_ms).strftime("%Y-%m-%dT%H:%M:%SZ")


def _at(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1000, UTC)
