"""Promotes winners of experiments that are to be promoted automatically, some time after they have won."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from models.errors import InvalidRequest, SwitchyardError
from router.accounting.directory import Promotion
from router.accounting.experiment_store import ArmTally
from router.experiment_report import report, winner
from router.settings import RoutingSettings
from router.trials import version_of

logger = logging.getLogger(__name__)

EVERY_S = 60.0


class Tallies(Protocol):
    async def experiment(self, name: str, version: str) -> list[ArmTally]: ...


class Promoter:
    """Every ingress runs one: whichever comes first has it done, for the others it is done then."""

    def __init__(
        self,
        tallies: Tallies,
        routing: Callable[[], RoutingSettings],
        decided: Callable[[str, str], Promotion | None],
        promote: Callable[[str, str, str], Awaitable[object]],
    ) -> None:
        """decided: what was decided on an experiment of a version, see `Directory.promotion`. promote: gives everybody
        an arm of an experiment of a version."""
        self._tallies, self._routing, self._decided, self._promote = tallies, routing, decided, promote

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.look()
            except SwitchyardError as error:
                logger.warning("winners of experiments were not looked for (%s); that is tried again", error.code)

    async def look(self) -> None:
        """Promote what has won by now. What was withdrawn stays withdrawn: a person wanted that."""
        for name, experiment in self._routing().experiments.items():
            version = version_of(experiment)
            if experiment.promote != "automatic" or self._decided(name, version) is not None:
                continue
            arms = report(experiment, await self._tallies.experiment(name, version))
            if (won := winner(experiment, arms)) is None:
                continue
            try:
                await self._promote(name, won, version)
            except InvalidRequest:
                continue  # another ingress or an operator was quicker
            logger.info("experiment %s: arm %s has won and is promoted", name, won)
