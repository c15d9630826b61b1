"""Has stored answers forgotten in the whole cluster: by the shards of the shared cache and by every ingress replica."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from deployments.cache_handle import CacheHandle
from router.accounting.feedback import Feedback
from router.invalidation import Forgotten, Selection
from router.wariness import Voices


class Forgetting:
    """`shared` is None where there is no shared cache. `tell` calls a method of all ingress replicas, this one among
    them, and returns what they say and how many said nothing (`deployments.hop.ask_each`)."""

    def __init__(self, shared: CacheHandle | None, tell: Callable[..., Awaitable[tuple[list[Any], int]]]) -> None:
        self._shared, self._tell = shared, tell

    async def everywhere(self, selection: Selection, dry_run: bool) -> Forgotten:
        """The shared cache first: replicas fill their own from there. They are told also where a shard is down, which
        `Forgotten.check` says."""
        found = await self._shared.invalidate(selection, dry_run) if self._shared is not None else Forgotten()
        if dry_run:
            return found
        _, missed = await self._tell("invalidate", selection, found.exacts)
        return replace(found, replicas_missed=missed)

    async def older(self, exact: str, newest_id: str) -> None:
        """Than this answer. A copy that a replica which hangs still has ends with its time to live."""
        await self._tell("forget", exact, newest_id)

    async def judged(self, given: Feedback) -> None:
        """What a caller says of a stored answer. One that no shard holds any more may still be in the replicas: there
        it goes at a bad word, as if that were the only one."""
        name, voice = given.cached_from or given.request_id, f"{given.key_id}/{given.request_id}"
        meant = Selection(given.org, answer_id=name)
        exact = await self._shared.judge(given.org, name, voice, given.score) if self._shared is not None else None
        if exact:
            await self._tell("invalidate", meant, (exact,))
        elif exact is None and Voices().hear(voice, given.score):
            await self.everywhere(meant, False)
