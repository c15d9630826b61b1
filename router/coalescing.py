"""Identical questions asked while the answer to one of them is on its way: one asks the model, the others read along.

A `Flight` is such an answer. Its work is a task of its own, so it goes on when the request that began it leaves while
others read; when the last reader has left, it is stopped. Whoever comes later reads it from its first event. `Flights`
are those of one process. Which process has the flight of a question, if another one has it, is known to the shared
cache, which keeps `Claims`; a follower there reads from that process (`router.ports.PeersPort`), with one stream for
all of its own readers.

Who reads along has asked the very same with the same wishes (the exact fingerprint, of which the tenant is a part), may
use the same models, and loses nothing against asking itself, in time or urgency (`Flight.carries`). All others ask
themselves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from models.errors import ModelUnavailable, NotFound, StreamInterrupted, SwitchyardError
from models.messages import Event
from router.events import Principal
from router.invalidation import Selection
from router.ports import Followed, Origin, PeersPort

logger = logging.getLogger(__name__)
MAX_CLAIMS = 65_536
CLAIM_S = 900.0
"""After which a claim whose holder never said what came of it counts no more. One that ends earlier than its request
costs a second upstream call at the most."""


TIME_SHARE = 0.9
"""An answer has to have this share of a request's own time left for it to read along: it ends with the first one's."""


@dataclass(frozen=True, slots=True)
class Asker:
    """A request that begins an answer or reads it along. tenant: its partition of the caches. principal: None for one
    in another process. deadline: of the event loop's clock. priority: lower goes first."""

    tenant: str = ""
    principal: Principal | None = None
    deadline: float = float("inf")
    priority: int = 0

    @property
    def time_left_s(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()


ANYBODY = Asker()


class Flight:
    """An answer on its way. `events` is what has come; it grows, and nothing of it changes.

    key: under which others find it; empty: they do not. first: the request that began it, which waits for a place at
    its own priority, until its own deadline. leader: the process that has it, where that is another one. asked: whether
    what ended it came from a model, or the queue before it. Any other error concerns only the request that began it:
    its budget, its limits, its rights.
    """

    def __init__(self, key: str = "", first: Asker = ANYBODY, leader: str = "") -> None:
        self.key, self.first, self.leader = key, first, leader
        self.origin: Origin | None = None
        self.events: Sequence[Event] = ()
        self.ended = False
        self.asked = False
        self.readers = 0
        self._error: BaseException | None = None
        self._work: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """`work` calls `begin`, `move` and `end`."""
        self._work = asyncio.get_running_loop().create_task(work)
        self._work.add_done_callback(self._done)

    def _done(self, work: asyncio.Task[None]) -> None:
        if not work.cancelled() and (error := work.exception()) is not None:  # from stopping the engine: it is over
            logger.error("an answer's work ended with %s", type(error).__name__)
        self.end(ModelUnavailable("The answer was given up; ask again."))

    @property
    def whole(self) -> bool:
        return self.ended and self._error is None and self.origin is not None

    def carries(self, asker: Asker) -> bool:
        """Whether `asker` gets its answer from this as soon, and with as much time, as if it asked itself."""
        if self.whole:
            return True
        if self.origin is None and self.first.priority > asker.priority:
            return False
        return self.first.time_left_s >= TIME_SHARE * asker.time_left_s

    # ---- who makes it ----------------------------------------------------------------------------------------------

    def begin(self, origin: Origin, events: Sequence[Event]) -> None:
        self.origin, self.events = origin, events
        self.move()

    def move(self) -> None:
        """There is more in `events`."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def end(self, error: BaseException | None = None) -> None:
        """Does nothing at a second call."""
        if not self.ended:
            self.ended, self._error = True, error
            self.move()

    # ---- who reads it ----------------------------------------------------------------------------------------------

    async def begun(self) -> Origin:
        """Returns when the answer begins. Raises what kept it from that."""
        while self.origin is None and not self.ended:
            await self._moved.wait()
        if self.origin is None:
            self._raise()
            raise ModelUnavailable("The answer ended before it began; ask again.")
        return self.origin

    async def more(self, seen: int) -> Sequence[Event] | None:
        """What comes after the first `seen` events; None at the end. Raises what ended it early."""
        while len(self.events) <= seen and not self.ended:
            await self._moved.wait()
        if len(self.events) > seen:
            return self.events[seen:]
        self._raise()
        return None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)

    # ---- its end ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        if self._work is not None:
            self._work.cancel()

    async def over(self) -> None:
        """Returns when nothing works on it any more."""
        if self._work is not None:
            await asyncio.wait({self._work})


class Flights:
    """The answers that are on their way in this process, the newest of each key. There are never more than requests,
    which are bounded."""

    def __init__(self) -> None:
        self._by_key: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, key: str) -> Flight | None:
        return self._by_key.get(key)

    def put(self, flight: Flight) -> None:
        if flight.key:
            self._by_key[flight.key] = flight

    def drop(self, flight: Flight) -> None:
        """Nobody joins it from now on."""
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]

    def forget(self, selection: Selection) -> None:
        """Nobody joins an answer of these partitions from now on: it may be one that `selection` means."""
        for flight in list(self._by_key.values()):
            if selection.covers(flight.first.tenant):
                self.drop(flight)

    def leave(self, flight: Flight) -> None:
        """A reader goes; with the last one the work ends."""
        flight.readers -= 1
        if not flight.readers and not flight.ended:
            self.drop(flight)
            flight.stop()

    def mirror(self, peers: PeersPort, leader: str, key: str, asker: Asker, patience_s: float) -> Flight:
        """The flight of another process, read from there. It ends as lost, without having `asked`, when that has not
        said within `patience_s` that it has it, or breaks off before the answer begins."""
        flight = Flight(key, asker, leader)
        self.put(flight)
        flight.start(self._mirrored(flight, peers.follow(leader, key, asker.time_left_s, asker.priority), patience_s))
        return flight

    async def _mirrored(self, flight: Flight, source: AsyncIterator[Followed], patience_s: float) -> None:
        try:
            async with aclosing(source):  # type: ignore[type-var]
                async with asyncio.timeout(patience_s):
                    await anext(source)  # the word that it is there
                await self._copy(flight, source)
        except (SwitchyardError, TimeoutError, StopAsyncIteration):
            if flight.origin is not None:
                lost: SwitchyardError = StreamInterrupted(
                    "The answer broke off; what came is incomplete. Send the request again."
                )
            else:
                lost = ModelUnavailable("The process that has the answer does not answer; ask again.")
            flight.end(lost)
        finally:
            self.drop(flight)

    @staticmethod
    async def _copy(flight: Flight, source: AsyncIterator[Followed]) -> None:
        events: list[Event] = []
        async for item in source:
            if isinstance(item, SwitchyardError):
                flight.asked = True
                flight.end(item)
                return
            if isinstance(item, Origin):
                flight.begin(item, events)
            else:
                events.extend(item)
                flight.move()
        flight.end()

    async def followed(self, flight: Flight) -> AsyncIterator[Followed]:
        """A flight for another process: an empty batch at once, as a word that it is there, then where it comes from,
        then its batches, and what it ended with. Raises `NotFound` when that is no concern of others."""
        flight.readers += 1
        try:
            yield []
            try:
                yield await flight.begun()
                seen = 0
                while (batch := await flight.more(seen)) is not None:
                    seen += len(batch)
                    yield list(batch)
            except SwitchyardError as error:
                if flight.origin is None and not flight.asked:
                    raise NotFound("This is not answered here any more; ask again.") from None
                yield error
        finally:
            self.leave(flight)


class Claims:
    """Which process has the flight of a question, by its key. Not for several threads. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._claims: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._claims)

    def holder(self, key: str, gone: str = "") -> str | None:
        """`gone`: a process that was found not to have it."""
        found = self._claims.get(key)
        if found is None or found[0] == gone or self._clock() >= found[1]:
            return None
        return found[0]

    def claim(self, key: str, process: str, gone: str = "") -> str:
        """Who has it: whoever had claimed it, or now `process`."""
        holder = self.holder(key, gone)
        if holder is None:
            self._claims[key] = process, self._clock() + CLAIM_S
            self._claims.move_to_end(key)
            if len(self._claims) > MAX_CLAIMS:
                self._claims.popitem(last=False)
        return holder or process

    def release(self, key: str, process: str = "") -> None:
        """The flight is over; `process`: only if it had the claim."""
        found = self._claims.get(key)
        if found is not None and process in ("", found[0]):
            del self._claims[key]
