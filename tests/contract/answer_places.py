"""Places where a shard's answers outlive it, and what is kept there, for the tests of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deployments.cache_disk import CacheDisk
from deployments.cache_outside import CacheOutside
from models.messages import Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage, UsageReport
from router.fingerprint import partition
from router.invalidation import Selection
from router.outside import OutsideLog, Row, open_store
from router.ports import CachedAnswer, CacheKey
from router.sealing import NO_SEALER, Sealer
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings
from router.verifier import Judgement

OUTSIDE = ("redis", "postgresql", "pgvector")
EVENTS = (
    ReasoningDelta("hm", "signed"),
    TextDelta("ja — “yes” \U0001f600 \ud800 \0", 3),
    ToolCallDelta(0, "id", "name", '{"a": 1}'),
    Finish("stop"),
    UsageReport(Usage(1, 2, 3), True),
)


def key(name: str, org: str = "acme", namespace: str = "") -> CacheKey:
    tenant = partition(org, namespace)
    return CacheKey(tenant, f"{name.encode().hex():0>64}", f"{tenant} scope", f"question {name}")


def answer(name: str, **changes: Any) -> CachedAnswer:
    now_s = time.time()
    return replace(CachedAnswer(name, "m", EVENTS, Usage(1, 2), 5, now_s, 3600.0, ("tag",), now_s), **changes)


def unit(seed: int, width: int = 32) -> bytes:
    vector = np.random.default_rng(seed).standard_normal(width)
    return (vector / np.linalg.norm(vector)).astype("<f4").tobytes()


class Shard:
    """A shard's memory, and what it writes down beside."""

    def __init__(self, opened: Callable[[SemanticStore], CacheDisk | CacheOutside], max_bytes: int = 10**8) -> None:
        settings = CacheSettings(audit=0, max_bytes=max_bytes, ttl_s=1e6)
        self.store = SemanticStore(settings, judge=lambda text, others: [Judgement(1.0) for _ in others])
        self.beside = opened(self.store)

    async def forget(self, selection: Selection, embedding: bytes | None = None) -> None:
        """As `SemanticCache` does."""
        await self.beside.restored()
        self.store.invalidate(selection, embedding, dry_run=False)
        await self.beside.forgotten(selection, embedding)

    def held(self) -> list[str]:
        return sorted(record.answer.answer_id for record in self.store.records(self.store.entry_ids()))


class Place:
    """Where answers are kept. `open` is a new process; at most one is open unless it says otherwise."""

    def __init__(self, kind: str, folder: Path, url: str, server: Any) -> None:
        self.kind, self.folder, self.url, self.server = kind, folder, url, server
        self.shards: list[Shard] = []
        self.encoded: list[str] = []

    async def _encode(self, text: str) -> bytes:
        self.encoded.append(text)
        return unit(len(text), 64)

    async def open(
        self,
        sealer: Sealer = NO_SEALER,
        mine: Callable[[str], bool] = lambda tenant: True,
        beside: bool = False,
        encoder: str = "mini",
        **settings: Any,
    ) -> Shard:
        if not beside:
            await self.close()

        def opened(store: SemanticStore) -> CacheDisk | CacheOutside:
            if self.kind == "folder":
                return CacheDisk(store, self.folder, sealer)
            return CacheOutside(store, OutsideLog(open_store(self.url), sealer, encoder), mine, self._encode)

        self.shards.append(Shard(opened, **settings))
        await self.shards[-1].beside.restored()
        return self.shards[-1]

    def rows(self, tenant: str) -> list[Row]:
        with closing(open_store(self.url)) as store:
            return [row for rows in store.read(tenant) for row in rows]

    async def close(self) -> None:
        for shard in self.shards:
            await shard.beside.close()
        self.shards.clear()


def keep(shard: Shard, *names: str, org: str = "acme", namespace: str = "", **changes: Any) -> None:
    for name in names:
        shard.store.store(key(name, org, namespace), answer(name, **changes), unit(ord(name[0])))
