"""What every benchmark command does around its measurement: a cluster of its own, figures as JSON, an exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.bench.connection import RequestFailed
from cluster.checks import StartError
from cluster.runtime import Config, running
from cluster.state import Cluster


@contextmanager
def own_cluster(config: Config | Path) -> Iterator[Cluster]:
    """With `config` on it, on free ports and with a data folder that goes with it. Raises StartError."""
    with (
        tempfile.TemporaryDirectory(prefix="switchyard-bench-") as folder,
        running(config, data_dir=Path(folder), port=0, report=tell) as cluster,
    ):
        yield cluster


@contextmanager
def first_in_line() -> Iterator[None]:
    """This process runs as soon as it can, before all others of the machine: it stands for clients on another one.

    Without this, on a machine that the servers keep busy, a client with next to nothing to do was left waiting for a
    core for up to a second (Linux shares cores out by session first), which would count as the servers' time. Where
    the system does not allow it, it stays as it is: look at what is said of the client's waiting.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def waited_s() -> float:
    """How long this process's main thread has been ready to run without a core to run on: proc(5), schedstat."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except OSError:  # a kernel that does not count it
        return 0.0


def tell(line: str) -> None:
    """Progress, beside the figures on standard output."""
    print(line, file=sys.stderr, flush=True)


def exit_code(measure: Callable[[], None]) -> int:
    """0, or 1 after one line about what went wrong, or 130 when it was interrupted: everything is stopped by then."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measure()
    except (StartError, RequestFailed) as error:
        tell(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Also makes the folder. None: nowhere."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
