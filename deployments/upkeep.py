"""What an ingress does beside the requests: winners of experiments, what other replicas have learned, and what nodes
cost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

from deployments.batcher import Meter
from deployments.batcher_handle import BatcherHandle
from deployments.ledger import LedgerHandle
from models.catalog import LOCAL_ENGINES
from models.errors import SwitchyardError
from router.accounting.node_time import Reading
from router.accounting.registrar import Follower, Promote
from router.events import Actor
from router.experience import Sharing
from router.pipeline import Pipeline
from router.promotion import Promoter

READ_EVERY_S = 30.0

logger = logging.getLogger(__name__)


def readings_of(pipeline: Pipeline, meter: Meter) -> list[Reading]:
    """Of the local models. Also of those whose nodes have no price yet: once they have one, only what comes after that
    counts."""
    readings = []
    for backend, model in pipeline.models_alone.items():
        price = pipeline.prices.replica_microusd_per_hour(model)
        if backend in meter.seconds and pipeline.entries[model].engine in LOCAL_ENGINES:
            rounded = None if price is None else round(price)
            readings.append(Reading(meter.name, model, *meter.seconds[backend], rounded))
    return readings


class Upkeep:
    """Of one replica. `jobs` are to be run as long as it lives."""

    def __init__(
        self, ledger: LedgerHandle, follower: Follower, pipeline: Callable[[], Pipeline], batcher: BatcherHandle
    ) -> None:
        self._ledger, self._follower, self._pipeline, self._batcher = ledger, follower, pipeline, batcher

    def jobs(self) -> tuple[Coroutine[None, None, None], ...]:
        promoter = Promoter(
            self._ledger, lambda: self._pipeline().settings.routing, self._follower.directory.promotion, self._promote
        )
        return promoter.run(), Sharing(lambda: self._pipeline().experience, self._ledger).run(), self._read_meters()

    async def _read_meters(self) -> None:
        """For ever. What is not told in time is told the next time, by whichever replica comes first."""
        while True:
            await asyncio.sleep(READ_EVERY_S)
            try:
                meter = await self._batcher.node_time()
                if readings := readings_of(self._pipeline(), meter):
                    await self._ledger.take_node_time(readings)
            except (SwitchyardError, TimeoutError) as error:
                logger.info("what nodes cost was not read off (%s); that is tried again", type(error).__name__)

    async def _promote(self, experiment: str, arm: str, version: str) -> None:
        who = Actor(user="automatic promotion")
        await self._ledger.administer(Promote(experiment, arm, version, once=True), who, {"arm": arm})
