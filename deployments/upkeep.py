"""What keeps an ingress' choice of models up to date beside the requests: winners of experiments, and what other
replicas have learned."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from deployments.ledger import LedgerHandle
from router.accounting.registrar import Follower, Promote
from router.events import Actor
from router.experience import Sharing
from router.pipeline import Pipeline
from router.promotion import Promoter


class Upkeep:
    """Of one replica. `jobs` are to be run as long as it lives."""

    def __init__(self, ledger: LedgerHandle, follower: Follower, pipeline: Callable[[], Pipeline]) -> None:
        self._ledger, self._follower, self._pipeline = ledger, follower, pipeline

    def jobs(self) -> tuple[Coroutine[None, None, None], ...]:
        promoter = Promoter(
            self._ledger, lambda: self._pipeline().settings.routing, self._follower.directory.promotion, self._promote
        )
        return promoter.run(), Sharing(lambda: self._pipeline().experience, self._ledger).run()

    async def _promote(self, experiment: str, arm: str, version: str) -> None:
        who = Actor(user="automatic promotion")
        await self._ledger.administer(Promote(experiment, arm, version, once=True), who, {"arm": arm})
