"""How long usage queries take over many requests.

    python -m cluster.bench.usage --rows 1000000

Fills a SQLite ledger with requests of one busy organisation (a tenth is others'), one after the other over 30 days,
and then asks what `GET /v1/usage` can be asked, for random times, in this process. Apart: percentiles, what is grouped
by key and something else, of which there are most sums, and what is grouped by end user, of whom there are sums by
whole weeks and days only, so that the requests of what is left of a day are read.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from router.accounting.store import LEDGER_FILE, MIGRATIONS, SQLiteStore
from router.accounting.usage_sql import GROUPS, TOKENS, UsageQuery

DAYS = 30
END_UNIX_MS = 1_780_000_000_000
BEGIN_UNIX_MS = END_UNIX_MS - DAYS * 86_400_000
_MODELS = ("phi-2", "tinyllama-1.1b-chat", "gpt-5-mini", "claude-haiku-4-5", "gemini-2.5-flash")
_TASKS = ("chat", "code", "extract", "summarise")


Kind = Literal["sums", "keys", "latency", "users"]


def _one_of(values: Sequence[str]) -> str:
    cases = " ".join(f"WHEN {number} THEN '{value}'" for number, value in enumerate(values))
    return f"CASE abs(random()) % {len(values)} {cases} END"


def fill(store: SQLiteStore, rows: int) -> None:
    """By SQL, and the sums as a migration makes them for requests that are there already."""
    values = {
        "org": f"CASE WHEN abs(random()) % 10 THEN 'acme' ELSE {_one_of([f'org{n}' for n in range(20)])} END",
        "request_id": "printf('req_%012x', i)",
        "holder": "'bench'",
        "opened_at_unix_ms": f"{BEGIN_UNIX_MS} + i * {END_UNIX_MS - BEGIN_UNIX_MS} / {rows + 1}",  # as they come
        "closed_at_unix_ms": str(END_UNIX_MS),
        "team": "'team' || (i % 5)",
        "key_id": "'key' || (i % 40)",  # 40 keys, each of one of 5 teams
        "end_user": "'user' || (abs(random()) % 5000)",
        "door": "'openai'",
        "status": "CASE WHEN abs(random()) % 100 THEN 'ok' ELSE 'error' END",
        "requested_model": "'auto'",
        "model": _one_of(_MODELS),
        "provider": "'openai_compatible'",
        "cache_verdict": "CASE WHEN abs(random()) % 10 < 3 THEN 'hit-exact' ELSE 'miss' END",
        "finish_reason": "'stop'",
        **dict.fromkeys(TOKENS, "abs(random()) % 300"),
        **dict.fromkeys(("estimated", "saved_microusd"), "0"),
        "cost_microusd": "abs(random()) % 2000",
        "price_version": "'v1'",
        "strategy": "'complexity'",
        "task": _one_of(_TASKS),
        "ttft_ms": "20.0 + abs(random()) % 2000",
        "total_ms": "200.0 + abs(random()) % 20000",
        "overhead_ms": "2.0",
    }
    files = sorted(MIGRATIONS.glob("000[45]_usage*.sql"))
    sums = [statement for file in files for statement in file.read_text().split(";")]
    with store._file.transaction() as writer:
        writer.execute(
            f"WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < {rows}) "
            f"INSERT INTO requests ({', '.join(values)}) SELECT {', '.join(values.values())} FROM numbers"
        )
        for statement in sums:
            if "INSERT INTO" in statement:
                writer.execute(statement)
    store._usage._add_earlier()


def ask(store: SQLiteStore, queries: int, kind: Kind) -> list[tuple[float, float]]:
    """Milliseconds of each of so many random queries: by the clock, and of the processor (without what other processes
    took of the machine meanwhile)."""
    chance, times_ms = random.Random(2), []
    names = [name for name in GROUPS if name not in ("user", "org")]
    for _ in range(queries):
        match kind:
            case "users":
                groups = ["user"]
            case "keys":
                groups = ["key", chance.choice([name for name in names if name not in ("key", "hour")])]
            case "latency":
                groups = [chance.choice([name for name in names if name != "hour"]), *chance.choice(([], ["hour"]))]
            case _:
                groups = chance.sample(names, chance.randrange(3))
        if kind == "latency" and {"key", "hour"} <= {*groups}:
            groups = ["key"]  # more rows than an answer takes
        since = BEGIN_UNIX_MS + chance.randrange((DAYS - 1) * 86_400_000)
        until = chance.choice((END_UNIX_MS, since + chance.randrange(60_000, END_UNIX_MS - since)))
        since = chance.choice((BEGIN_UNIX_MS, since))
        began, began_cpu = time.perf_counter(), time.thread_time()
        store.usage(UsageQuery("acme", since, until, tuple(groups), kind == "latency"))
        times_ms.append(((time.perf_counter() - began) * 1000, (time.thread_time() - began_cpu) * 1000))
    return times_ms


def summary(times_ms: Sequence[tuple[float, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, times in zip(("", "cpu_"), zip(*times_ms, strict=True), strict=True):
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        found |= {f"{name}p50_ms": round(cuts[49], 1), f"{name}p95_ms": round(cuts[94], 1)}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument(
        "--folder", type=Path, help="where the books are kept, and used again (default: a temporary one)"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        filled = (folder / LEDGER_FILE).exists()
        store, began = SQLiteStore(folder / LEDGER_FILE), time.perf_counter()
        if not filled:
            fill(store, arguments.rows)
        filling_s = round(time.perf_counter() - began, 1)
        found = {
            "rows": store._file.reader.execute("SELECT COUNT(*) FROM requests").fetchone()[0],
            "sums_by_hour": store._file.reader.execute("SELECT COUNT(*) FROM usage_hours").fetchone()[0],
            "sums_by_day": store._file.reader.execute("SELECT COUNT(*) FROM usage_plain_days").fetchone()[0],
            "filling_s": filling_s,
            "sums_by_dimension": store._file.reader.execute("SELECT COUNT(*) FROM usage_by").fetchone()[0],
            "usage": summary(ask(store, arguments.queries, "sums")),
            "usage_by_key_and_another": summary(ask(store, max(4, arguments.queries // 4), "keys")),
            "percentiles": summary(ask(store, max(4, arguments.queries // 2), "latency")),
            "usage_by_user": summary(ask(store, max(4, arguments.queries // 10), "users")),
        }
        store.close()
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
