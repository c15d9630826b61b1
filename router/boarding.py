"""How one request comes by its answer once the caches of its process have none: from the shared cache, along with a
request that asks the same now, or by a model that it asks itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.errors import DeadlineExceeded, SwitchyardError
from router.coalescing import Asker, Flight
from router.ports import Origin

if TYPE_CHECKING:
    from router.run import Run

MAX_LOST = 2
"""So many processes that were said to answer a question, and do not, are believed. So many answers that others began
may come to nothing before a model is asked. Then this request asks a model itself."""


class Boarding:
    """`board`, then `leave` once the request is done with the answer.

    flight: the answer that it reads, None: a stored one. leads: whether it has that one made itself, and pays for it.
    origin: whose answer it is, once that has begun.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._flights = run.pipeline.flights
        self.flight: Flight | None = None
        self.leads = False
        self.origin: Origin | None = None
        self._forgave = False
        self._lost = self._refused = 0

    async def board(self, stream: bool) -> None:
        """Returns when the answer has begun, or a stored one is found. Raises `SwitchyardError`."""
        run, recall = self._run, self._run.recall
        asks_cache, gone = True, ""
        while True:
            flight = self._under_way()
            if flight is None:
                if asks_cache:
                    run.assess_early()
                    if await recall.shared(gone):
                        return
                    asks_cache = False
                recall.must_not_ask()
                if recall.joins and recall.own():
                    return  # somebody had it made meanwhile
                flight = self._under_way() or self._take_off(stream)
            if not self.leads:
                recall.passes_on()
            self.flight = flight
            flight.readers += 1
            try:
                origin = await flight.begun()
            except SwitchyardError as error:
                if not self._tries_again(flight, error):
                    raise
            else:
                if self.leads or recall.may_read(origin):
                    self.origin = origin
                    return
                self._lost += 1  # a stored answer that is too old for this one
            if flight.leader:
                asks_cache, gone = True, flight.leader
            self.leave()
            self.flight = None

    def leave(self) -> bool:
        """Read no more of it. Returns whether others do, of an answer that this request began and that is not whole."""
        if self.flight is None:
            return False
        self._flights.leave(self.flight)
        return self.leads and self.flight.readers > 0 and not self.flight.ended

    @property
    def follows(self) -> Origin | None:
        """Whose answer it read, where another request had it made."""
        return None if self.leads else self.origin

    async def over(self) -> None:
        """Returns when nothing works any more on an answer that this request began."""
        if self.leads and self.flight is not None:
            await self.flight.over()

    def close(self) -> None:
        """The answer that this request began is to be found in the cache by now, or not at all."""
        if self.leads and self.flight is not None:
            self._flights.drop(self.flight)
        self._run.recall.let_go()

    def _under_way(self) -> Flight | None:
        """The answer to this very question, if another request has it on its way in this process."""
        run, recall = self._run, self._run.recall
        if not recall.joins or self._refused >= MAX_LOST:
            return None
        run.watch.enter("coalesce")
        flight = self._flights.find(recall.flight_key)
        if flight is None or not flight.carries(self._asker):
            return None
        return None if flight.leader and self._lost >= MAX_LOST else flight

    def _take_off(self, stream: bool) -> Flight:
        """A new flight: with the answer that another process has on its way, or with one that a model is asked for."""
        run, recall = self._run, self._run.recall
        peers, leader = run.pipeline.stages.peers, recall.leader
        if peers is not None and leader and leader != peers.name and self._lost < MAX_LOST and recall.claims:
            patience_s = run.settings.cache_timeout_s
            return self._flights.mirror(peers, leader, recall.flight_key, self._asker, patience_s)
        flight = Flight(recall.flight_key if recall.claims else "", self._asker)
        self._flights.put(flight)
        self.leads = True
        flight.start(self._fly(flight, stream))
        return flight

    @property
    def _asker(self) -> Asker:
        run = self._run
        return Asker(run.recall.tenant, run.principal, run.deadline, run.options.priority)

    def _tries_again(self, flight: Flight, error: SwitchyardError) -> bool:
        """Whether what kept another request's answer from beginning is no reason to give up: once for each request, and
        when it was no word of a model, unless it holds for this one as well. The first of those that try again asks,
        and the others read along with it."""
        if self.leads:
            return False
        late = isinstance(error, DeadlineExceeded)
        if flight.asked and not late:
            if self._forgave or not error.retryable:
                return False
            self._forgave = True
            return True
        if flight.leader:
            self._lost += 1
            return True
        self._refused += 1
        return late or flight.first.principal != self._run.principal

    async def _fly(self, flight: Flight, stream: bool) -> None:
        """Ask a model, for this request and all that read along. What is owed to others is done before the readers are
        told of the end, however slowly they read."""
        run = self._run
        try:
            live = await run.generate(stream)
            flight.begin(Origin(run.request_id, live.model), live.events)
            while await live.more() is not None:
                flight.move()
            await run.land(None)
            self._flights.drop(flight)
            flight.end()
        except Exception as error:
            flight.asked = run.asked
            self._flights.drop(flight)  # who tries again must not find it
            await run.land(error)
            flight.end(error)
        finally:
            await run.stop()
