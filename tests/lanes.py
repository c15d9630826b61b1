"""Which tests run in one process, where the suite runs in several (pytest-xdist, `make test`).

The product's cluster, and vLLM's own server, are started once for all tests that need them, so those stay together, and
so do those of single deployments and of the command line. All others go by file. (`--dist loadgroup` would say the same
with marks, but pytest-xdist 3.8 writes them where pytest 9.2 does not look.)
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling

_LANES = {"contract": "product", "serve": "product", "deployments": "deployments", "commands": "deployments"}
_BY_THEMSELVES = ("test_fault", "test_answer_stores", "test_outside_stores", "test_stores", "test_postgres")
"""Those of the contract suite that need no vLLM."""


class Lanes(LoadScopeScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        if file.rpartition("/")[2].startswith(_BY_THEMSELVES):
            return file
        return _LANES.get(file.split("/")[1], file)


def make_scheduler(config: Any, log: Any) -> Lanes:
    return Lanes(config, log)
