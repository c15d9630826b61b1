"""Money under fire: three processes that take requests and one that keeps the books, each killed again and again.

    python -m cluster.bench.chaos --seconds 600 --kills 30
    python -m cluster.bench.chaos --seconds 600 --kills 30 --database postgresql

What is killed (SIGKILL, at random moments) are real processes over a real database: doors, which reserve, write
journals and settle as an ingress does, the ledger with its SQLite, and with `--database postgresql` a PostgreSQL with
all its processes, which starts again after up to three seconds. In the end every request that a door had
finished must be in the books once, at its cost, no request may be left open, and no budget may be passed. Models, HTTP
and Ray are not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import InternalError, ModelUnavailable, SwitchyardError
from models.messages import Usage
from router.accounting.books import Books
from router.accounting.budget import Budgets
from router.accounting.journal import Journal
from router.accounting.limits import Account, Claim
from router.accounting.shipper import Shipper
from router.accounting.store import LEDGER_FILE, PostgresStore, SQLiteStore
from router.accounting.tenants import Tenants
from router.accounting.usage_sql import UsageQuery
from router.events import Attempt, Principal, RequestClosed, RequestOpened
from router.settings import IngressSettings, TenantSettings

if TYPE_CHECKING:
    from cluster.bench.postgres_server import Server

DOORS = 3
WORST_MICROUSD = 100
TIGHT_MICROUSD = 20_000
WIDE_MICROUSD = 10**12
TASKS = 8
START_S = 120.0
LOCK_WAIT_S = 30.0
AWAY_S = 3.0
"""For which the database stays away at most."""
_BUDGETS = IngressSettings(
    tenants={
        "tight": TenantSettings(monthly_budget_microusd=TIGHT_MICROUSD),
        "wide": TenantSettings(monthly_budget_microusd=WIDE_MICROUSD),
    }
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """lost: finished, but not in the books; wrong: there, but not at its cost. These, what is left open, what was spent
    above a budget and what two ways of adding up differ by must all be 0."""

    seconds: float
    killed: dict[str, int]
    finished: int
    in_books: int
    abandoned: int
    spent_microusd: int
    lost: int
    wrong: int
    open_left: int
    over_budget_microusd: int
    differ_microusd: int

    @property
    def holds(self) -> bool:
        return not (self.lost or self.wrong or self.open_left or self.over_budget_microusd or self.differ_microusd)


# ---- the ledger's process ------------------------------------------------------------------------------------------


def store(folder: Path, url: str) -> SQLiteStore | PostgresStore:
    return PostgresStore(url, LOCK_WAIT_S) if url else SQLiteStore(folder / LEDGER_FILE, LOCK_WAIT_S)


async def ledger(folder: Path, url: str) -> None:
    """Answers at a Unix socket until it is ended. It starts when its database does, as Serve would see to."""
    books = await _opened(folder, url)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                name, arguments = pickle.loads(await _read(reader))
                try:
                    answer: Any = await getattr(books, name)(*arguments)
                except SwitchyardError as error:
                    answer = error
                except Exception as error:  # of the database: what a Serve hop makes of it
                    answer = InternalError(type(error).__name__)
                _write(writer, answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    socket = folder / "ledger.sock"
    socket.unlink(missing_ok=True)
    await asyncio.start_unix_server(serve, socket)
    await books.run()


async def _opened(folder: Path, url: str) -> Books:
    give_up_s = time.monotonic() + START_S
    while True:
        try:
            return await Books.open(lambda: store(folder, url), folder / "journal")
        except Exception:
            if not url or time.monotonic() > give_up_s:
                raise
        await asyncio.sleep(0.2)


class LedgerLine:
    """The ledger as the other processes reach it; a connection for each call. Raises `models.errors` only."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "ledger.sock"

    async def ingest(self, holder: str, chunk: bytes) -> int:
        count: int = await self._call("ingest", holder, chunk)
        return count

    async def retire(self, holder: str) -> None:
        await self._call("retire", holder)

    async def lease(self, ask: Any) -> Any:
        return await self._call("lease", ask)

    async def _call(self, name: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    _write(writer, (name, arguments))
                    answer = pickle.loads(await _read(reader))
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            raise ModelUnavailable("the ledger is away", None, 1.0) from None
        if isinstance(answer, SwitchyardError):
            raise answer
        return answer


async def _read(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4)))


def _write(writer: asyncio.StreamWriter, value: Any) -> None:
    data = pickle.dumps(value)
    writer.write(len(data).to_bytes(4) + data)


# ---- a door's process ----------------------------------------------------------------------------------------------


async def door(folder: Path, name: str) -> None:
    """Takes requests until SIGTERM; writes down each that it has finished in `<name>.finished`."""
    line = LedgerLine(folder)
    shipper = Shipper(Journal(folder / "journal", name, segment_bytes=256 * 1024), line)
    budgets = Budgets(name, Tenants([], _BUDGETS), line.lease)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    background = [asyncio.create_task(shipper.run()), asyncio.create_task(budgets.run())]
    file = os.open(folder / f"{name}.finished", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def work(task: int) -> None:
        number = 0
        while not ended.is_set():
            number += 1
            request_id = f"{name}-{task}-{number}"
            org = "tight" if number % 4 == 0 else "wide"
            try:
                cost = await _request(shipper, budgets, org, request_id)
            except SwitchyardError:
                await asyncio.sleep(0.02)
                continue
            os.write(file, f"{org} {request_id} {cost}\n".encode())

    await asyncio.gather(*(work(task) for task in range(TASKS)))
    await budgets.close()
    await shipper.close(20)
    for task in background:
        task.cancel()


async def _request(shipper: Shipper, budgets: Budgets, org: str, request_id: str) -> int:
    """Reserve, open, answer, close, settle: what a run does. Returns the cost."""
    who, now, cost = Principal(org), int(time.time() * 1000), 0
    await budgets.reserve(request_id, Claim(who, "m", WORST_MICROUSD, 100))
    try:
        shipper.sink(RequestOpened(request_id, now, org, "", "", "", "m", WORST_MICROUSD))
        await asyncio.sleep(random.uniform(0, 0.02))
        cost = random.randint(0, WORST_MICROUSD)
        shipper.sink(_closed(org, request_id, now, cost))
    finally:
        budgets.settle(request_id, cost, 10)
    return cost


def _closed(org: str, request_id: str, opened_at_unix_ms: int, cost: int) -> RequestClosed:
    attempt = Attempt("m", "b", "ok", 0.0, 1.0, 1.0, cost)
    return RequestClosed(
        request_id=request_id,
        opened_at_unix_ms=opened_at_unix_ms,
        closed_at_unix_ms=int(time.time() * 1000),
        org=org,
        team="",
        key_id="",
        user="",
        door="chaos",
        status="ok",
        error_code=None,
        requested_model="m",
        model="m",
        provider="chaos",
        cache_verdict="miss",
        cached_from=None,
        cache_similarity=None,
        finish_reason="stop",
        usage=Usage(10, 10),
        estimated=False,
        cost_microusd=cost,
        saved_microusd=0,
        price_version="v",
        price={},
        attempts=(attempt,),
        decision=None,
        stage_ms={},
        ttft_ms=1.0,
        total_ms=1.0,
        overhead_ms=0.1,
    )


# ---- what sets it going and looks at the result ----------------------------------------------------------------------


class Cast:
    """The processes. `kill` ends one and starts its successor. server: the PostgreSQL, if there is one, at `url`."""

    def __init__(self, folder: Path, server: Server | None, url: str) -> None:
        self._folder, self._server, self._url = folder, server, url
        self._serial = 0
        self.killed = Counter[str]()
        self.processes = {"ledger": self._start("ledger")}
        self.processes |= {f"door{n}": self._start("door") for n in range(DOORS)}

    def _start(self, kind: str) -> subprocess.Popen[bytes]:
        self._serial += 1
        command = [sys.executable, "-m", "cluster.bench.chaos", "--folder", str(self._folder), "--as", kind]
        return subprocess.Popen([*command, "--name", f"door-{self._serial}", "--url", self._url])

    @property
    def victims(self) -> list[str]:
        return [*self.processes, *(["database"] if self._server is not None else [])]

    def kill(self, name: str, away_s: float = 0.0) -> None:
        """away_s: after which the database starts again; the others do at once."""
        self.killed["door" if name.startswith("door") else name] += 1
        if name == "database":
            assert self._server is not None
            self._server.kill()
            time.sleep(away_s)
            self._server.restart()
            return
        self.processes[name].kill()
        self.processes[name].wait()
        self.processes[name] = self._start("ledger" if name == "ledger" else "door")

    def wait(self) -> None:
        """Until every door has finished a request."""
        give_up_s = time.monotonic() + START_S
        while sum(file.stat().st_size > 0 for file in self._folder.glob("*.finished")) < DOORS:
            if time.monotonic() > give_up_s:
                raise InternalError(f"no requests were answered within {START_S:.0f} s")
            time.sleep(0.05)

    def end_doors(self) -> None:
        doors = [process for name, process in self.processes.items() if name != "ledger"]
        for process in doors:
            process.terminate()
        for process in doors:
            if process.wait(60) not in (0, -signal.SIGTERM):  # the latter: ended before it had begun
                raise InternalError("a door did not end by itself")

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


def run(folder: Path, seconds: float, kills: int, seed: int, server: Server | None = None) -> Outcome:
    """server: of the books, to be killed too; None: they are in SQLite. Raises `InternalError` when a process ends by
    itself."""
    chance = random.Random(seed)
    moments = sorted(chance.uniform(0, 0.9 * seconds) for _ in range(kills))
    url = server.new_database() if server is not None else ""
    cast = Cast(folder, server, url)
    try:
        cast.wait()
        began = time.monotonic()
        for moment in moments:
            time.sleep(max(0.0, began + moment - time.monotonic()))
            cast.kill(chance.choice(cast.victims), chance.uniform(0, AWAY_S))
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        if gone := [name for name, process in cast.processes.items() if process.poll() is not None]:
            raise InternalError(f"{gone[0]} ended by itself")
        cast.end_doors()
        seconds = time.monotonic() - began
    finally:
        cast.close()
    finished = [line.split() for file in folder.glob("*.finished") for line in file.read_text().splitlines()]
    return asyncio.run(judged(folder, url, seconds, dict(cast.killed), finished))


async def judged(
    folder: Path, url: str, seconds: float, killed: dict[str, int], finished: Sequence[Sequence[str]]
) -> Outcome:
    """What is in the books once they have been opened again and all journals are in."""
    books = await _opened(folder, url)
    await books.sweep()
    lost = wrong = 0
    for org, request_id, cost in finished:
        receipt = await books.receipt(org, request_id, 0)
        lost += receipt is None
        wrong += receipt is not None and (receipt["status"], receipt["cost_microusd"]) != ("ok", int(cost))
    rows = [row for org in ("tight", "wide") for row in await books.usage(UsageQuery(org, 0, 2**50, ("status",)))]
    spent = {
        org: sum(row.microusd for row in books._store.spent(Account(org, "microusd", "total"), 0, None))
        for org in ("tight", "wide")
    }
    by_status = {
        status: sum(row["requests"] for row in rows if row["status"] == status) for status in ("ok", "abandoned")
    }
    over = max(0, spent["tight"] - TIGHT_MICROUSD) + max(0, spent["wide"] - WIDE_MICROUSD)
    total = sum(spent.values())
    outcome = Outcome(
        *(round(seconds, 1), killed, len(finished), sum(row["requests"] for row in rows), by_status["abandoned"]),
        *(total, lost, wrong, len(books._store.open_requests()), over),
        abs(total - sum(row["cost_microusd"] for row in rows)),
    )
    await books.close()
    return outcome


def _postgres() -> AbstractContextManager[Server]:
    from cluster.bench.postgres_server import serving  # it takes packages that the others do not

    return serving()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the books are kept (default: a temporary one)")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    parser.add_argument("--as", dest="part", choices=("ledger", "door"), help=argparse.SUPPRESS)
    parser.add_argument("--name", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.part:
        folder, is_ledger = arguments.folder, arguments.part == "ledger"
        asyncio.run(ledger(folder, arguments.url) if is_ledger else door(folder, arguments.name))
        return 0
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(_postgres()) if arguments.database == "postgresql" else None
        outcome = run(folder, arguments.seconds, arguments.kills, arguments.seed, server)
    print(json.dumps(asdict(outcome), indent=2))
    print("holds" if outcome.holds else "DOES NOT HOLD")
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
