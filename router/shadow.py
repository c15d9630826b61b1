"""Shadow traffic: some requests are asked of another model too, once they are answered, and its answer is dropped.

It never delays the answer and is no cost of the caller's: a shadow is a request of its own, with its own receipt, of an
organisation of the operator's whose budget bounds it. What an answer must keep to (the caller's models, a region), its
shadow keeps to: only models that could have answered are asked.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from models.errors import SwitchyardError
from router.constraints import NO_LIMITS
from router.events import Principal
from router.policy import AUTO
from router.trials import Trial, version_of

if TYPE_CHECKING:
    from router.pipeline import Pipeline
    from router.run import Run

MOST = 4
"""Shadows under way in a replica; a further one is left out."""
LAST = 1_000
"""Their priority: behind everybody's."""
DOOR = "shadow"


class Shadows:
    """Of one pipeline. asked, left_out: since this process began; left out were those for which there was no room, no
    money, or no model."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.running = self.asked = self.left_out = 0

    def follow(self, run: Run) -> None:
        """Begin those that a request that was answered is drawn for. Returns at once."""
        decision = run.decision
        if decision is None or run.request.model != AUTO or run.options.trial is not None:
            return
        for name, arm, experiment, settings in self._pipeline.courses.shadows(run.principal):
            if settings.model not in decision.eligible or _lot() >= settings.share:
                continue
            if self.running >= MOST:
                self.left_out += 1
                continue
            unit = decision.experiment["unit"] if decision.experiment else run.request_id
            who = Principal(experiment.shadow_org, name, "shadow", arm)
            self.running += 1
            self._pipeline.see_through(
                self._ask(run, settings.model, who, Trial(name, version_of(experiment), arm, unit))
            )

    async def _ask(self, run: Run, model: str, who: Principal, trial: Trial) -> None:
        left_alone = replace(run.options, cache="off", limits=NO_LIMITS, deadline_s=None, strategy=None)
        options = replace(left_alone, priority=LAST, fallbacks=(), trial=trial)
        request = replace(run.question, model=model, user=None)
        try:
            async with self._pipeline.run(request, who, options, DOOR) as shadow:
                await shadow.begin(stream=False)
                await shadow.completion()
            self.asked += 1
        except SwitchyardError:
            self.left_out += 1
        finally:
            self.running -= 1


def _lot() -> float:
    return int.from_bytes(os.urandom(6), "big") / 2**48
