"""What became of answers, by tenant, kind of work and model, as evidence for the strategies `hybrid` and `learning`.

An outcome counts by how much it says: a user's feedback whole, a gate's verdict or a named model after `auto` in part.
Evidence decays by half in `HALF_LIFE_S`, so that a model that changed is judged anew. Bounded. What a replica learns it
knows at once; `Sharing` brings it to the ledger, which keeps it, and brings along what other replicas have learned.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from models.errors import SwitchyardError
from router.events import Record, RequestClosed

logger = logging.getLogger(__name__)

HALF_LIFE_S = 7 * 86_400.0
MOST = 50_000
FEEDBACK, OVERRIDE, ESCALATED, RELEASED = 1.0, 0.5, 0.5, 0.1
SHARE_EVERY_S = 5.0

Key = tuple[str, str, str]
"""Org, kind of work, model."""


@dataclass(frozen=True, slots=True)
class Learned:
    """Good and bad outcomes, as they counted at `at_unix_ms`."""

    org: str
    work: str
    model: str
    good: float
    bad: float
    at_unix_ms: int

    @property
    def key(self) -> Key:
        return self.org, self.work, self.model


@dataclass(frozen=True, slots=True)
class Lessons:
    """On their way to the ledger: what is new here. On their way back: how these and all that is new there since
    `version` of its process `incarnation` stand now."""

    rows: tuple[Learned, ...]
    incarnation: str = ""
    version: int = 0


def decayed(known: Learned, now_unix_ms: int, half_life_s: float = HALF_LIFE_S) -> tuple[float, float]:
    """Good and bad, as far as they still count."""
    kept = 0.5 ** (max(0, now_unix_ms - known.at_unix_ms) / 1000 / half_life_s)
    return known.good * kept, known.bad * kept


class Experience:
    """A sink of records too: gates' verdicts are taken from receipts."""

    def __init__(
        self, clock: Callable[[], float] = time.time, half_life_s: float = HALF_LIFE_S, most: int = MOST
    ) -> None:
        self._clock, self._half_life_s, self._most = clock, half_life_s, most
        self._seen: OrderedDict[Key, Learned] = OrderedDict()
        self._unshared: dict[Key, tuple[float, float]] = {}
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._seen)

    def __call__(self, record: Record) -> None:
        if not isinstance(record, RequestClosed) or not record.decision:
            return
        work = str(record.decision.get("work") or "")
        for attempt in record.attempts:
            if attempt.outcome == "escalated":
                self.learn(record.org, work, attempt.model, False, ESCALATED)
            elif attempt.outcome == "ok" and attempt.gate is not None:
                self.learn(record.org, work, attempt.model, True, RELEASED)

    def learn(self, org: str, work: str, model: str, good: float, weight: float = FEEDBACK) -> None:
        """`good` in [0, 1]: how good the answer was."""
        self.hear(org, work, model, good, weight)
        self.note(org, work, model, good, weight)

    def hear(self, org: str, work: str, model: str, good: float, weight: float = FEEDBACK) -> None:
        """Of another replica, which shares it."""
        self._add((org, work, model), weight * good, weight * (1 - good))

    def note(self, org: str, work: str, model: str, good: float, weight: float = FEEDBACK) -> None:
        """Share it, which this replica hears of otherwise."""
        key = (org, work, model)
        if key in self._unshared or len(self._unshared) < self._most:
            right, wrong = self._unshared.get(key, (0.0, 0.0))
            self._unshared[key] = right + weight * good, wrong + weight * (1 - good)

    def of(self, org: str, work: str, models: Iterable[str]) -> dict[str, tuple[float, float]]:
        """Good and bad outcomes of each model that has any, as far as they still count."""
        now, keys = self._now_unix_ms(), ((org, work, model) for model in models)
        return {key[2]: decayed(self._seen[key], now, self._half_life_s) for key in keys if key in self._seen}

    def unshared(self) -> tuple[Learned, ...]:
        """What was learned here since this was last asked."""
        found, now = self._unshared, self._now_unix_ms()
        self._unshared = {}
        return tuple(Learned(*key, right, wrong, now) for key, (right, wrong) in found.items())

    def keep(self, rows: Iterable[Learned]) -> None:
        """`rows`, from `unshared`, could not be shared; they go with the next ones."""
        for row in rows:
            right, wrong = self._unshared.get(row.key, (0.0, 0.0))
            self._unshared[row.key] = right + row.good, wrong + row.bad

    def told(self, rows: Iterable[Learned]) -> None:
        """How things stand for all replicas; what was not shared yet comes on top."""
        for row in rows:
            self._put(row)
            if row.key in self._unshared:
                self._add(row.key, *self._unshared[row.key])

    def _add(self, key: Key, good: float, bad: float) -> None:
        now = self._now_unix_ms()
        right, wrong = decayed(self._seen[key], now, self._half_life_s) if key in self._seen else (0.0, 0.0)
        self._put(Learned(*key, right + good, wrong + bad, now))

    def _put(self, row: Learned) -> None:
        self._seen[row.key] = row
        self._seen.move_to_end(row.key)
        if len(self._seen) > self._most:
            self._seen.popitem(last=False)
            self.evicted += 1

    def _now_unix_ms(self) -> int:
        return int(self._clock() * 1000)


class Shared(Protocol):
    """Where replicas meet."""

    async def share(self, lessons: Lessons) -> Lessons: ...


class Sharing:
    """Of one replica. A ledger that is down only delays it. Where its answer was lost, that evidence counts twice."""

    def __init__(self, experience: Callable[[], Experience], ledger: Shared) -> None:
        self._experience, self._ledger = experience, ledger
        self._incarnation, self._version = "", 0

    async def run(self) -> None:
        """For ever."""
        failing = False
        while True:
            try:
                await self.once()
                failing = False
            except SwitchyardError as error:
                if not failing:
                    logger.warning("what was learned of models is not shared (%s); that is tried again", error.code)
                failing = True
            await asyncio.sleep(SHARE_EVERY_S)

    async def once(self) -> None:
        """Tell and be told, until there is nothing new. Raises what the ledger raises."""
        experience = self._experience()
        rows = experience.unshared()
        while True:
            try:
                answer = await self._ledger.share(Lessons(rows, self._incarnation, self._version))
            except SwitchyardError:
                experience.keep(rows)
                raise
            experience.told(answer.rows)
            self._incarnation, self._version, rows = answer.incarnation, answer.version, ()
            if not answer.rows:
                return
