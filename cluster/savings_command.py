"""`switchyard savings`: what a recorded time would have cost under other policies, from an export of the books."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import InvalidRequest
from router.offpolicy import Array, Estimate, Log, always, at_random, coin, evaluate, mean_by_model

LEAST_EFFECTIVE = 30.0
_NEEDED = ("model", "eligible", "propensity", "cost_microusd", "strategy", "status", "cache_verdict")


@dataclass(frozen=True, slots=True)
class Line:
    """One policy: the mean cost of a request in micro-USD by each estimator; None where the log cannot tell."""

    policy: str
    estimates: tuple[Estimate, Estimate, Estimate] | None
    effective: float


def savings(path: Path, strategy: str | None = None) -> tuple[list[Line], int]:
    """A line for what really happened and one for each baseline, and how many requests they are of: those that `auto`
    decided, that were answered, and that no cache answered. Models are strong or cheap by their mean cost in the log.

    Raises `InvalidRequest` for a file that is no such export or has too little in it.
    """
    rows = _rows(path, strategy)
    models = sorted({name for row in rows for name in row["eligible"]} | {row["model"] for row in rows})
    column = {name: i for i, name in enumerate(models)}
    chosen = np.array([column[row["model"]] for row in rows])
    costs = np.array([float(row["cost_microusd"]) for row in rows])
    eligible = np.zeros((len(rows), len(models)), bool)
    for i, row in enumerate(rows):
        eligible[i, [column[name] for name in {*row["eligible"], row["model"]}]] = True
    predicted = mean_by_model(chosen, costs, len(models))
    log = Log(chosen, np.array([float(row["propensity"]) for row in rows]), costs, predicted)
    mean_cost = np.array([costs[chosen == i].mean() if (chosen == i).any() else np.nan for i in range(len(models))])
    strong = always(_extreme(eligible, np.nan_to_num(mean_cost, nan=-np.inf), np.argmax), len(models))
    cheap = always(_extreme(eligible, -np.nan_to_num(mean_cost, nan=np.inf), np.argmax), len(models))
    expected = np.tile(np.nan_to_num(mean_cost), (len(rows), 1))
    policies = {
        "always-strong": strong,
        "always-cheap": cheap,
        "random": at_random(eligible),
        "random at equal cost": coin(cheap, strong, expected, float(costs.mean())),
    }
    half = 1.959964 * float(costs.std(ddof=1)) / np.sqrt(len(costs))
    was = Estimate(float(costs.mean()), float(costs.mean() - half), float(costs.mean() + half))
    return [Line("as it was", (was, was, was), float(len(rows)))] + [
        _line(name, log, policy) for name, policy in policies.items()
    ], len(rows)


def as_table(lines: list[Line], requests: int) -> str:
    head = f"{requests} requests; mean cost of one in micro-USD, with 95 % intervals\n"
    table = [f"{'policy':22} {'IPS':>26} {'SNIPS':>26} {'doubly robust':>26} {'effective':>10}"]
    for line in lines:
        if line.estimates is None:
            table.append(
                f"{line.policy:22} not known from this log: too few of its choices were made{line.effective:20.0f}"
            )
            continue
        cells = (f"{each.value:.1f} ({each.low:.1f} to {each.high:.1f})" for each in line.estimates)
        table.append(f"{line.policy:22} {' '.join(f'{cell:>26}' for cell in cells)} {line.effective:10.0f}")
    hint = any(line.estimates is None for line in lines)
    return (
        head + "\n".join(table) + ("\nSet `routing.exploration` above 0 to learn about other choices." if hint else "")
    )


def _line(name: str, log: Log, policy: Array) -> Line:
    found = evaluate(log, policy)
    known = found.effective >= LEAST_EFFECTIVE and 0.8 <= found.covered <= 1.25
    return Line(name, (found.ips, found.snips, found.doubly_robust) if known else None, found.effective)


def _extreme(eligible: Array, value: Array, pick: Any) -> Array:
    masked = np.where(eligible, value[None, :], -np.inf)
    found: Array = pick(masked, axis=1)
    return found


def _rows(path: Path, strategy: str | None) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, columns=list(_NEEDED)).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise InvalidRequest(
            f"{path} is no Parquet export of the books ({error}); make one with `switchyard usage export`."
        ) from error
    rows = [
        {**row, "eligible": json.loads(row["eligible"])}
        for row in table
        if row["status"] == "ok"
        and not row["cache_verdict"].startswith("hit")
        and row["propensity"]
        and row["eligible"]
        and row["strategy"] not in (None, "pinned")
        and strategy in (None, row["strategy"])
    ]
    if len(rows) < 2:
        raise InvalidRequest(
            f"{path} has fewer than two answered requests that 'auto' decided; there is nothing to compare."
        )
    return rows
