"""The shared cache as an ingress sees it: which shard has what, and answers on their way there."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.hop import call, method
from models.errors import DeadlineExceeded, InvalidRequest, SwitchyardError
from router.cache_transfer import TakenIn
from router.invalidation import Forgotten, Selection
from router.ports import ANY_TERMS, CachedAnswer, CacheKey, Embedded, Lookup, Terms

MAX_UNSENT = 128
"""Answers per caller and shard. One that would wait behind more of them is not kept: a later miss, not a slower
request."""

STORE_TIMEOUT_S = 20.0
"""For one hop with up to `MAX_UNSENT` answers, of which each may have to be encoded."""

SHOWN_AT_ONCE = 32
"""Answers that a hop brings of those that are taken elsewhere."""

Storable = tuple[CacheKey, CachedAnswer, bytes | None]
"""An answer, where it belongs and the embedding of its question, if there is one already."""


class CacheHandle:
    """Fills `router.ports.CachePort` over a hop: which shard has a tenant is decided here."""

    def __init__(self, shards: Sequence[DeploymentHandle]) -> None:
        self._lookups = {shard.deployment_name: method(shard, "lookup") for shard in shards}
        self._releases = {shard.deployment_name: method(shard, "release") for shard in shards}
        self._audits = {shard.deployment_name: method(shard, "audit") for shard in shards}
        self._judges = [method(shard, "judge") for shard in shards]
        self._invalidations = [method(shard, "invalidate") for shard in shards]
        self._listings = [(method(shard, "listed"), method(shard, "shown")) for shard in shards]
        self._takers = {shard.deployment_name: method(shard, "take_in") for shard in shards}
        self._outboxes = {shard.deployment_name: _Outbox(method(shard, "store")) for shard in shards}
        self._embedders = itertools.cycle([method(shard, "embed") for shard in shards])

    async def lookup(self, key: CacheKey, terms: Terms = ANY_TERMS) -> Lookup:
        """Raises `SwitchyardError` when the shard is down or overloaded, which its caller takes for a miss."""
        found: Lookup = await call(self._lookups[self._shard(key.tenant)], key, terms)
        return found

    async def store(self, key: CacheKey, answer: CachedAnswer, embedding: bytes | None) -> bool:
        """Returns when the shard has the answer (True) or never will, and never fails; what came of it is counted.

        Leaving earlier does not stop it: what is on its way arrives.
        """
        return await self._outboxes[self._shard(key.tenant)].put((key, answer, embedding))

    async def release(self, key: CacheKey, claimant: str) -> None:
        """One that does not arrive costs whoever asks this next a look at a process that has nothing."""
        await self._asked(self._releases[self._shard(key.tenant)], key, claimant)

    async def _asked(self, method: DeploymentHandle, *args: Any) -> Any:
        """None where nothing comes."""
        with suppress(SwitchyardError, TimeoutError):
            async with asyncio.timeout(STORE_TIMEOUT_S):
                return await call(method, *args)

    async def embed(self, texts: Sequence[str], dimensions: int | None) -> Embedded:
        """See `SemanticCache.embed`. Every shard has the same encoder, so they take turns."""
        found: Embedded = await call(next(self._embedders), texts, dimensions)
        return found

    async def audit(self, tenant: str) -> dict[str, float | int]:
        """See `SemanticStore.audit`. Raises `SwitchyardError` when the shard is down or overloaded."""
        found: dict[str, float | int] = await call(self._audits[self._shard(tenant)], tenant)
        return found

    async def judge(self, org: str, answer_id: str, voice: str, score: float) -> str | None:
        """Asks all shards, since an answer's id does not say which has it; one that is down has lost it anyway."""
        asked = (self._asked(shard, org, answer_id, voice, score) for shard in self._judges)
        return next((told for told in await asyncio.gather(*asked) if told is not None), None)

    async def invalidate(self, selection: Selection, dry_run: bool) -> Forgotten:
        """Of all shards, since namespaces of an organisation lie on several. One that does not answer is among the
        `lost`. Raises `InvalidRequest` for a question that cannot be compared."""
        asked = (self._answered(shard, selection, dry_run) for shard in self._invalidations)
        told = await asyncio.gather(*asked, return_exceptions=True)
        lost = [each for each in told if isinstance(each, BaseException)]
        for error in lost:
            if not isinstance(error, SwitchyardError) or isinstance(error, InvalidRequest):
                raise error
        parts = [each for each in told if isinstance(each, Forgotten)]
        return replace(Forgotten.together(parts), lost=tuple(e for e in lost if isinstance(e, SwitchyardError)))

    async def answers(self, selection: Selection) -> AsyncIterator[list[tuple[CacheKey, CachedAnswer]]]:
        """Those that are meant, some at a time, as they are needed. Raises `SwitchyardError` where a shard is down."""
        for listed, shown in self._listings:
            numbers: bytes = await self._answered(listed, selection)
            for start in range(0, len(numbers), SHOWN_AT_ONCE * 8):
                yield await self._answered(shown, selection, numbers[start : start + SHOWN_AT_ONCE * 8])

    async def take_in(self, answers: Sequence[tuple[CacheKey, CachedAnswer]], dry_run: bool) -> list[TakenIn]:
        """What came of each, in whatever order. Raises `SwitchyardError` where a shard is down: others may have taken
        theirs."""
        of_shard: dict[str, list[tuple[CacheKey, CachedAnswer]]] = defaultdict(list)
        for each in answers:
            of_shard[self._shard(each[0].tenant)].append(each)
        told = await asyncio.gather(
            *(self._answered(self._takers[name], some, dry_run) for name, some in of_shard.items())
        )
        return [each for some in told for each in some]

    async def _answered(self, shard: DeploymentHandle, *args: Any) -> Any:
        """Raises `DeadlineExceeded` where a shard hangs."""
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                return await call(shard, *args)
        except TimeoutError:
            raise DeadlineExceeded(f"{shard.deployment_name} did not answer in {STORE_TIMEOUT_S:.0f} s.") from None

    @property
    def stores_dropped(self) -> int:
        return sum(outbox.dropped for outbox in self._outboxes.values())

    @property
    def stores_failed(self) -> int:
        return sum(outbox.failed for outbox in self._outboxes.values())

    def _shard(self, tenant: str) -> str:
        return rendezvous(tenant, self._outboxes)


class _Outbox:
    """The answers on their way to one shard: one hop for all that came while the last one was under way."""

    def __init__(self, store: DeploymentHandle) -> None:
        self._store = store
        self._unsent: list[Storable] = []
        self._next: asyncio.Task[bool] | None = None
        self._sending: set[asyncio.Task[bool]] = set()
        self._order = asyncio.Lock()
        self.dropped = self.failed = 0

    async def put(self, item: Storable) -> bool:
        """Whether it arrived."""
        if len(self._unsent) >= MAX_UNSENT:
            self.dropped += 1
            return False
        self._unsent.append(item)
        if self._next is None:
            self._next = asyncio.create_task(self._send())
            self._sending.add(self._next)
            self._next.add_done_callback(self._sending.discard)
        return await asyncio.shield(self._next)

    async def _send(self) -> bool:
        """Whether they arrived. One that the shard could not keep had its claim ended there."""
        async with self._order:
            items, self._unsent, self._next = self._unsent, [], None
            try:
                async with asyncio.timeout(STORE_TIMEOUT_S):
                    self.failed += await call(self._store, items)
            except (SwitchyardError, TimeoutError):
                self.failed += len(items)
                return False
            return True


def rendezvous(tenant: str, shards: Sequence[str] | dict[str, Any]) -> str:
    """The shard that has `tenant`: the highest random weight (Thaler and Ravishankar 1998), so that of n shards a new
    one takes over 1/n of the tenants and the others stay where they are."""
    return max(
        shards, key=lambda shard: blake2b(f"{shard}\0{tenant}".encode(errors="surrogatepass"), digest_size=8).digest()
    )
