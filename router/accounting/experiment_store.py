"""What became of the requests that took part in experiments, in the ledger's database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from router.accounting.directory_store import Database
from router.accounting.postgres import EVERY_ORG

MEASURES = ("cost", "latency", "quality", "escalation", "failure")
_COLUMNS = ("experiment", "version", "arm", "unit", "cost_microusd", "latency_ms", "escalated", "failed")
_ANSWERED = "CASE WHEN o.failed = 0 THEN {} END"
_OF_A_UNIT = {
    # what failed was paid for too, but is no cheap answer
    "cost": "CAST(SUM(o.cost_microusd) AS DOUBLE PRECISION) / NULLIF(SUM(1 - o.failed), 0)",
    "latency": f"AVG({_ANSWERED.format('o.latency_ms')})",
    "quality": f"AVG({_ANSWERED.format('f.score')})",
    "escalation": f"AVG({_ANSWERED.format('1.0 * o.escalated')})",
    "failure": "AVG(1.0 * o.failed)",
}
"""Of its requests. A failure is no quick, cheap answer without an escalation: it counts as `failure` alone."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Of one measure in one arm: the units that have it, and the sums of their values and of these squared."""

    units: int
    total: float
    squares: float


@dataclass(frozen=True, slots=True)
class ArmTally:
    arm: str
    units: int
    requests: int
    failed: int
    microusd: int
    measures: dict[str, Tally]


class ExperimentStore:
    """The table `experiment_outcomes` of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: dict[str, Any]) -> None:
        """Of a close record, inside a transaction of the caller's; nothing for a request without a part in one. Who
        left before the first word got no answer either: else an arm that hangs would not fail."""
        part = (record["decision"] or {}).get("experiment")
        if not part:
            return
        names = ("org", "request_id", *_COLUMNS)
        first = record["ttft_ms"]
        values = (
            *(record["org"], record["request_id"], part["experiment"], part["version"], part["arm"], part["unit"]),
            *(record["cost_microusd"], record["total_ms"] if first is None else first),
            int(any(attempt["outcome"] == "escalated" for attempt in record["attempts"])),
            int(record["status"] == "error" or (record["status"] == "cancelled" and first is None)),
        )
        self._database.writer.execute(
            f"INSERT INTO experiment_outcomes ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", values
        )

    def tallies(self, experiment: str, version: str) -> list[ArmTally]:
        """By arm. A unit counts once, with all its requests: those of one user are no independent samples."""
        means = ", ".join(f"CAST({value} AS DOUBLE PRECISION) AS {name}" for name, value in _OF_A_UNIT.items())
        sums = ", ".join(f"COUNT({name}), SUM({name}), SUM({name} * {name})" for name in MEASURES)
        with self._database.reading(EVERY_ORG) as reader:
            rows = reader.execute(
                f"SELECT arm, COUNT(*), SUM(requests), SUM(failures), SUM(microusd), {sums} FROM ("
                f"SELECT o.arm AS arm, COUNT(*) AS requests, SUM(o.failed) AS failures, "
                f"SUM(o.cost_microusd) AS microusd, {means} FROM experiment_outcomes o LEFT JOIN ("
                "SELECT org, request_id, AVG(score) AS score FROM feedback GROUP BY org, request_id"
                ") f ON f.org = o.org AND f.request_id = o.request_id "
                "WHERE o.experiment = ? AND o.version = ? GROUP BY o.arm, o.unit) AS units GROUP BY arm ORDER BY arm",
                (experiment, version),
            ).fetchall()
        return [_tally(row) for row in rows]


def _tally(row: tuple[Any, ...]) -> ArmTally:
    arm, units, requests, failed, microusd, *sums = row
    triples = zip(sums[::3], sums[1::3], sums[2::3], strict=True)
    measures = {
        name: Tally(int(count), float(total or 0.0), float(squares or 0.0))
        for name, (count, total, squares) in zip(MEASURES, triples, strict=True)
    }
    return ArmTally(arm, int(units), int(requests), int(failed), int(microusd), measures)
