"""Whether a full shard of the shared cache stays as large as it is, whatever comes and goes.

    python -m cluster.bench.cache_soak --seconds 90

New questions of many tenants in scopes small and large, look-ups, replacements, audits, words of callers, acts of
forgetting and answers that outlive their time, all by the product's own classes. The shard is filled first; after a
third of the time neither the process nor any table of the shard may grow. Ends with status 1 where one does.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.messages import Event, Finish, TextDelta, Usage
from router.audits import MAX_PENDING, MAX_TENANTS
from router.coalescing import MAX_CLAIMS
from router.fingerprint import partition
from router.invalidation import MAX_BARS, Selection
from router.ports import CachedAnswer, CacheKey, Terms
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings
from router.verifier import Judgement
from router.wariness import MAX_MARKS, MAX_SCOPES

DIMENSIONS = 64
TENANTS, SCOPES = 200, 50
"""In use at a time; every thousandth step one makes room for a new one."""

SLACK_SHARE, SLACK = 0.15, 300
"""By how much a table may be longer at the end than it ever was before: what it holds at a time is chance."""

RESIDENT_SHARE = 0.03

BOUNDS = {
    "SemanticStore._audits._pending": MAX_PENDING,
    "SemanticStore._audits._bounds": MAX_TENANTS,
    "SemanticStore._audits._drawn": MAX_TENANTS,
    "SemanticStore.bars._bars": MAX_BARS,
    "SemanticStore._wariness._marks": MAX_SCOPES,
    "SemanticStore._wariness._marks[]": MAX_SCOPES * MAX_MARKS,
    "SemanticStore._claims._claims": MAX_CLAIMS,
    "SemanticStore._claims._claims[]": 2 * MAX_CLAIMS,
}


class Soak:
    """One store, whose clock goes by steps: a second each hundred."""

    def __init__(self, max_bytes: int, seed: int = 0) -> None:
        self._rng, self._numbers = random.Random(seed), np.random.default_rng(seed)
        self.steps = 0
        settings = CacheSettings(max_bytes=max_bytes, ttl_s=600, audit=0.2)
        self.store = SemanticStore(settings, lambda: 1e9 + self.steps / 100, judge=self._judge)
        self._kept: list[tuple[CacheKey, CachedAnswer, bytes]] = []

    def step(self) -> None:
        """One insert and two look-ups, and now and then something else."""
        self.steps += 1
        key, answer, embedding = self._question()
        self.store.lookup(key, embedding, Terms(claimant=f"ingress {self.steps % 3}"))
        if self._rng.random() < 0.05:  # whoever asked a model died, or left
            self.store.lookup(key, embedding, Terms(claimant="another ingress"))
            if self._rng.random() < 0.5:
                self.store.release(key)
        else:
            self.store.store(key, answer, embedding)
        self._kept = [*self._kept[-500:], (key, answer, embedding)]
        old_key, old_answer, old_embedding = self._rng.choice(self._kept)
        near = replace(old_key, exact=f"near {self.steps}", surface=None)
        if self.store.lookup(near, old_embedding).answer is None and self._rng.random() < 0.3:
            self.store.store(near, replace(answer, answer_id=f"near {self.steps}"), old_embedding)
        chance = self._rng.random()
        org = old_key.tenant.split(":")[1].rstrip("/")
        if chance < 0.06:
            self.store.judge(org, old_answer.answer_id, f"voice {self.steps}", self._rng.choice((0.0, 1.0)))
        elif chance < 0.075:
            self.store.invalidate(Selection(org, answer_id=old_answer.answer_id), dry_run=False)
        elif chance < 0.077:
            self.store.invalidate(Selection(org, question="q", similarity=0.6), old_embedding, dry_run=False)
        elif chance < 0.15:
            newer = replace(answer, answer_id=f"again {self.steps}")
            self.store.store(old_key, newer, old_embedding)

    def _question(self) -> tuple[CacheKey, CachedAnswer, bytes]:
        turn = self.steps // 1000
        tenant = partition(f"org{turn + self._rng.randrange(TENANTS)}", "")
        scope = f"{turn + min(self._rng.randrange(SCOPES), self._rng.randrange(SCOPES)) // 10:064x}"
        if self._rng.random() < 0.5:
            tenant, scope = partition("large", ""), "s" * 64
        vector = self._numbers.standard_normal(DIMENSIONS).astype(np.float32)
        vector /= np.linalg.norm(vector)
        text = f"what is the number {self.steps} good for?"
        key = CacheKey(tenant, f"{self.steps:064x}", scope, text, f"{self.steps + 2**64:064x}")
        words = tuple(TextDelta(f"word {n}", 1) for n in range(self._rng.randrange(1, 60)))
        ttl_s = self._rng.choice((2.0, 600.0, 600.0))
        made_s = 1e9 + self.steps / 100
        events: tuple[Event, ...] = (*words, Finish("stop"))
        cost = self._rng.randrange(1000)
        answer = CachedAnswer(f"req {self.steps}", "m", events, Usage(5, 9), cost, made_s, ttl_s, (), made_s)
        return key, answer, vector.tobytes()

    def _judge(self, text: str, candidates: Sequence[tuple[float, str]]) -> list[Judgement]:
        return [Judgement(self._rng.random()) for _ in candidates]


def tables(value: Any) -> Counter[str]:
    """How long all is that `value` is made of: by the names of attributes, with what containers hold added up."""
    found: Counter[str] = Counter()
    _count(value, type(value).__name__, found, set())
    return found


def _count(value: Any, path: str, found: Counter[str], seen: set[int]) -> None:
    if value is None or isinstance(value, str | bytes | int | float | type) or callable(value) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping | Sequence | AbstractSet) or type(value).__name__ == "deque":
        found[path] += len(value)
        for each in list(value.values() if isinstance(value, Mapping) else value):
            _count(each, path + "[]", found, seen)
    elif type(value).__module__.split(".")[0] in ("router", "models"):
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        for name in sorted({*slots, *getattr(value, "__dict__", ())}):
            _count(getattr(value, name, None), f"{path}.{name}", found, seen)
    elif hasattr(value, "__len__") and not isinstance(value, np.ndarray):
        found[path] += len(value)  # a usearch index


def longer(before: Counter[str], after: Counter[str]) -> dict[str, tuple[int, int]]:
    """The tables that grew, with their lengths; but not those that have a bound of their own and keep it."""
    lengths = ((path, before[path], length) for path, length in after.items() if length > BOUNDS.get(path, 0))
    return {path: (was, is_) for path, was, is_ in lengths if is_ > was * (1 + SLACK_SHARE) + SLACK}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--max-bytes", type=int, default=32 * 1024**2)
    arguments = parser.parse_args(argv)
    soak = Soak(arguments.max_bytes)
    while not soak.store.stats()["evicted"]:
        for _ in range(100):
            soak.step()
    print(f"full after {soak.steps} steps", flush=True)
    began_s = time.monotonic()
    most: Counter[str] = Counter()
    sizes: list[int] = []
    for part in range(1, 10):
        while time.monotonic() - began_s < arguments.seconds * part / 9:
            for _ in range(100):
                soak.step()
        gc.collect()
        now = tables(soak.store)
        if part <= 5:
            most |= now  # the longest that each was
        if part >= 4:
            sizes.append(resident_bytes())
        stats = soak.store.stats()
        print(
            f"{soak.steps} steps, {stats['entries']} answers, {stats['evicted']} evicted, {stats['expired']} expired, "
            f"{stats['used_bytes'] / 1e6:.1f} MB counted, {resident_bytes() / 1e6:.1f} MB resident",
            flush=True,
        )
    grown = longer(most, now)
    for path, (before, after) in grown.items():
        print(f"{path} grew from {before} to {after}")
    share = sizes[-1] / max(sizes[:3]) - 1
    print(f"resident memory over the last {len(sizes) - 3} ninths of the time, beside the three before: {share:+.1%}")
    return 1 if grown or share > RESIDENT_SHARE else 0


if __name__ == "__main__":
    sys.exit(main())
