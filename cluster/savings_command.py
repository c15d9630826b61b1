"""`switchyard savings`: what a recorded time would have cost, and been worth, under the named baselines."""

from __future__ import annotations

from pathlib import Path

from cluster.logged import Report, logged
from router.replay import costs, qualities


def savings(path: Path, strategy: str | None = None) -> Report:
    """Of the requests that `auto` decided, that were answered, and that no cache answered.

    Raises `InvalidRequest` for a file that is no such export or has too little in it.
    """
    log = logged(path, strategy)
    return Report(len(log), sum(row.quality is not None for row in log), costs(log), qualities(log))
