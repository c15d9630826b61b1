"""The logged decisions in an export of the books, for what other policies would have cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import InvalidRequest
from router.replay import Line, Logged

_COLUMNS = (
    "decision",
    "model",
    "propensity",
    "cost_microusd",
    "feedback",
    "opened_at",
    "strategy",
    "status",
    "cache_verdict",
)


def logged(path: Path, strategy: str | None = None, org: str | None = None) -> list[Logged]:
    """The requests that `auto` decided and a model answered, of this strategy and this organisation where they are
    named. Raises `InvalidRequest` for a file that is no Parquet export of the books, or has fewer than two of them."""
    columns = (*_COLUMNS, *(["org"] if org is not None else []))
    rows = [_logged(row) for row in rows_of(path, columns) if _counts(row, strategy, org)]
    if len(rows) < 2:
        raise InvalidRequest(
            f"{path} has fewer than two answered requests that 'auto' decided; there is nothing to compare."
        )
    return rows


def rows_of(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """All rows of a Parquet export of the books. Raises `InvalidRequest` for a file that is none, or lacks a column."""
    import pyarrow
    from pyarrow import parquet

    try:
        missing = set(columns) - set(parquet.read_schema(path).names)
        table = parquet.read_table(path, columns=[] if missing else list(columns))
    except (OSError, pyarrow.ArrowException) as error:
        raise InvalidRequest(
            f"{path} is no Parquet export of the books ({error}); make one with `switchyard usage export`."
        ) from error
    if missing:
        names = ", ".join(sorted(missing))
        raise InvalidRequest(f"{path} has no column {names}: make it anew with `switchyard usage export`.")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _counts(row: dict[str, Any], strategy: str | None, org: str | None) -> bool:
    return (
        row["status"] == "ok"
        and not row["cache_verdict"].startswith("hit")
        and bool(row["propensity"])
        and row["decision"] is not None
        and row["strategy"] not in (None, "pinned")
        and strategy in (None, row["strategy"])
        and org in (None, row.get("org"))
    )


def _logged(row: dict[str, Any]) -> Logged:
    opened_at_unix_ms = int(row["opened_at"].timestamp() * 1000)
    return Logged(
        json.loads(row["decision"]), float(row["cost_microusd"]), row["feedback"], opened_at_unix_ms, row["model"] or ""
    )


@dataclass(frozen=True, slots=True)
class Report:
    """Policies compared over `requests`, of which `rated` were rated by somebody."""

    requests: int
    rated: int
    costs: list[Line]
    qualities: list[Line]

    def text(self) -> str:
        head = f"{self.requests} requests; mean cost of one in micro-USD, with 95 % intervals"
        lines = [head, *_table(self.costs, 1)]
        if self.qualities:
            lines += ["", f"quality: mean feedback, over the {self.rated} requests that were rated"]
            lines += _table(self.qualities, 3)
            lines.append(
                "Who rates is not everybody: this is of those requests, and of others only where they are alike."
            )
        else:
            lines.append("Quality is not known: nobody rated two of these requests (POST /v1/feedback).")
        if any(line.estimates is None for line in (*self.costs, *self.qualities)):
            lines.append("Set `routing.exploration` above 0 to learn about other choices.")
        return "\n".join(lines)


def _table(lines: list[Line], digits: int) -> list[str]:
    rows = [f"{'policy':22} {'IPS':>26} {'SNIPS':>26} {'doubly robust':>26} {'effective':>10} {'agrees':>7}"]
    for line in lines:
        if line.estimates is None:
            told = f"{'not known from this log: too few of its choices were made':80}"
        else:
            cells = (f"{e.value:.{digits}f} ({e.low:.{digits}f} to {e.high:.{digits}f})" for e in line.estimates)
            told = " ".join(f"{cell:>26}" for cell in cells)
        rows.append(f"{line.policy:22} {told} {line.effective:10.0f} {line.agrees:7.2f}")
    return rows
