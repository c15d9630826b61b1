"""A lock between processes that its holder's death releases."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the file or folder `path` locked until it is closed. None while another process holds
    it, or when `path` is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):  # the latter: who held it before has removed it
        pass
    os.close(descriptor)
    return None


def lock(path: Path, wait_s: float) -> int | None:
    """Like `try_lock`, but asks again for `wait_s` seconds. Blocks."""
    until_s = time.monotonic() + wait_s
    while (descriptor := try_lock(path)) is None and time.monotonic() < until_s:
        time.sleep(0.02)
    return descriptor
