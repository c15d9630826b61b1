"""`switchyard usage show`, `forecast`, `anomalies`, `savings`, `recommend`: what the books of a running cluster say."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from cluster.checks import StartError

TIMEOUT_S = 60.0
_SHOWN = ("requests", "errors", "hits", "input_tokens", "output_tokens", "cost_microusd", "saved_microusd")
_PATHS = {
    "show": ("/v1/usage", "sums by what you name"),
    "forecast": ("/v1/usage/forecast", "what the next days will cost, with an interval"),
    "anomalies": ("/v1/usage/anomalies", "hours or days unlike those before, and why"),
    "savings": ("/v1/usage/savings", "what caches and routing saved, against named baselines"),
    "nodes": ("/v1/usage/nodes", "what the nodes of local models cost, at work and idle; for the operator"),
    "recommend": ("/v1/usage/recommendations", "what would have saved money, with the numbers"),
}


def add_commands(usage: Any, common: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    for name, (path, text) in _PATHS.items():
        parser = usage.add_parser(name, parents=[common], help=text)
        parser.set_defaults(command=run, path=path, what=name, out=None, by="", latency=False)
        if name != "nodes":
            parser.add_argument("--org", help="another organisation than the key's, or '*' for all; for the operator")
        parser.add_argument("--json", action="store_true", help="as the API says it")
        if name != "forecast":
            parser.add_argument("--since", help="such as 2026-05-31")
            parser.add_argument("--until", help="such as 2026-06-30T12:00:00Z (default: now)")
        else:
            parser.add_argument("--days", default="30")
        if name == "anomalies":
            parser.add_argument("--step", choices=("hour", "day"), default="hour")
        if name == "nodes":
            parser.add_argument("--by", default="model", help="model, hour or day; several with commas")
        if name == "show":
            parser.add_argument(
                "--by",
                default="",
                help="org, team, key, user, model, provider, task, strategy, status, cache_verdict, "
                "hour or day; several with commas",
            )
            parser.add_argument("--latency", action="store_true", help="with percentiles of times")
            parser.add_argument("--out", type=Path, help="a file .csv or .parquet to write instead")


def run(arguments: argparse.Namespace, base_url: str, key: str) -> str:
    """What to print. Raises `StartError` with what the cluster said when it refuses."""
    params = {name: getattr(arguments, name, None) for name in ("org", "since", "until", "days", "step")}
    params |= {"group_by": arguments.by, "latency": "true" if arguments.latency else None}
    given = {name: value for name, value in params.items() if value}
    try:
        with httpx.Client(base_url=base_url, timeout=TIMEOUT_S, trust_env=False) as client:
            answer = client.get(arguments.path, params=given, headers={"authorization": f"Bearer {key}"})
            told = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise StartError(f"the cluster at {base_url} did not answer ({type(error).__name__})") from None
    if answer.status_code >= 400:
        raise StartError(told["error"]["message"])
    if arguments.out:
        return _written(told, arguments.out)
    return json.dumps(told, indent=2) if arguments.json else "\n".join(_lines(arguments.what, told))


def _lines(what: str, told: dict[str, Any]) -> Iterable[str]:
    match what:
        case "show":
            yield from _table(told)
        case "nodes":
            yield from _nodes(told)
        case "forecast":
            month = told["this_month"]
            yield f"{month['month']}: {_usd(month['spent_microusd'])} so far" + _until_end(month)
            if "expected_microusd" in told:
                yield f"the {told['days']} days from tomorrow: {_range(told)} (from {told['basis_days']} days)"
            else:
                yield told["reason"]
        case "savings":
            cache, routing = told["cache"], told["routing"]
            yield f"caches: {cache['hits']} hits saved {_usd(cache['saved_microusd'])}"
            yield f"routing: {routing['requests']} requests cost {_usd(routing['cost_microusd'])}"
            for each in routing["baselines"]:
                saved = _usd(each["saved_microusd"])
                yield f"  {each['baseline']:28} {each['model']:28} {_usd(each['cost_microusd']):>14}  saved {saved}"
        case _:
            yield from (f"{each['at']}  {each['reason']}" if "at" in each else each["reason"] for each in told["data"])
            if not told["data"]:
                yield "none"


def _table(told: dict[str, Any]) -> Iterable[str]:
    groups = told["group_by"]
    times = [name for name in ("ttft_ms", "total_ms") if name in told["total"]]
    head = [*groups, *_SHOWN, *(f"{name.removesuffix('_ms')} p50/p95/p99 ms" for name in times)]
    rows = [
        [*(str(row[name] or "-") for name in (*groups, *_SHOWN)), *(_times(row[name]) for name in times)]
        for row in told["data"]
    ]
    total = ["total", *[""] * (len(groups) - 1)] if groups else []
    if groups:
        rows.append(
            [*total, *(str(told["total"][name]) for name in _SHOWN), *(_times(told["total"][n]) for n in times)]
        )
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
    for line in [head, *rows]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _nodes(told: dict[str, Any]) -> Iterable[str]:
    money = ("cost_microusd", "busy_microusd", "idle_microusd", "charged_microusd")
    head = [*told["group_by"], "replica hours", "busy", "cost", "at work", "idle", "charged"]
    lines = [head]
    for row in (*told["data"], {**dict.fromkeys(told["group_by"], ""), "model": "total", **told["total"]}):
        share = f"{row['busy_replica_s'] / row['replica_s']:.0%}" if row["replica_s"] else "-"
        shown = [f"{row['replica_s'] / 3600:.2f}", share, *(_usd(row[name]) for name in money)]
        lines.append([*(str(row[name]) for name in told["group_by"]), *shown])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _times(found: dict[str, float] | None) -> str:
    return "/".join(f"{found[name]:.0f}" for name in ("p50", "p95", "p99")) if found else "-"


def _written(told: dict[str, Any], out: Path) -> str:
    import pyarrow
    from pyarrow import csv, parquet

    rows = []
    for row in told["data"]:
        flat = {name: value for name, value in row.items() if name not in ("ttft_ms", "total_ms")}
        for name in ("ttft_ms", "total_ms"):
            if name in row:
                flat |= {
                    f"{name.removesuffix('_ms')}_{part}_ms": (row[name] or {}).get(part)
                    for part in ("p50", "p95", "p99")
                }
        rows.append(flat)
    if out.suffix not in (".csv", ".parquet"):
        raise StartError(f"{out} has to end in .csv or .parquet")
    if not rows:
        raise StartError("there is nothing to write: no request in that time")
    table = pyarrow.Table.from_pylist(rows)
    try:
        (parquet.write_table if out.suffix == ".parquet" else csv.write_csv)(table, out)
    except OSError as error:
        raise StartError(f"{out} cannot be written: {error.strerror}") from None
    return f"{len(rows)} {'row' if len(rows) == 1 else 'rows'} written to {out}"


def _until_end(month: dict[str, Any]) -> str:
    return f", {_range(month)} when it ends" if "expected_microusd" in month else ""


def _range(told: dict[str, Any]) -> str:
    low, high = _usd(told["low_microusd"]), _usd(told["high_microusd"])
    return f"{_usd(told['expected_microusd'])} ({low} to {high} in 95 of 100 cases)"


def _usd(microusd: float) -> str:
    return f"{microusd / 1e6:.2f} USD" if abs(microusd) >= 10_000 else f"{microusd / 1e6:.6f} USD"
