"""How one request comes by its answer once the caches of its process have none: from the shared cache, along with a
request that asks the same now, or by a model that it asks itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.errors import SwitchyardError
from router.coalescing import Flight
from router.policy import AUTO
from router.ports import Origin

if TYPE_CHECKING:
    from router.run import Run

MAX_LOST = 2
"""So many processes that were said to answer a question, and do not, are believed; then a model is asked."""


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
        self._alone = self._forgave = False
        self._lost = 0

    async def board(self, stream: bool) -> None:
        """Returns when the answer has begun, or a stored one is found. Raises `SwitchyardError`."""
        run, recall = self._run, self._run.recall
        gone = ""
        while True:
            flight = self._under_way()
            if flight is None:
                run.assess_early()
                if await recall.shared(gone):
                    return
                recall.must_not_ask()
                if recall.joins and not self._alone and recall.own():
                    return  # somebody had it made meanwhile
                flight = self._under_way() or self._take_off(stream)
            self.flight = flight
            flight.readers += 1
            try:
                origin = await flight.begun()
            except SwitchyardError as error:
                if not self._tries_again(flight, error):
                    raise
                gone, self._alone = flight.leader, self._lost >= MAX_LOST
            else:
                if self.leads or self._may_read(origin):
                    self.origin = origin
                    return
                self._alone = True
            self.leave()
            self.flight = None

    def leave(self) -> bool:
        """Read no more of it. Returns whether others do, of an answer that this request began and that is not whole."""
        if self.flight is None:
            return False
        self._flights.leave(self.flight)
        return self.leads and self.flight.readers > 0 and not self.flight.ended

    @property
    def whole(self) -> bool:
        """Whether the answer that this request had made came to its end."""
        return self.leads and self.flight is not None and self.flight.whole

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

    def _under_way(self) -> Flight | None:
        """The answer to this very question, if another request has it on its way in this process."""
        recall = self._run.recall
        if self._alone or not recall.joins:
            return None
        self._run.watch.enter("coalesce")
        return self._flights.find(recall.exact)

    def _take_off(self, stream: bool) -> Flight:
        """A new flight: with the answer that another process has on its way, or with one that a model is asked for."""
        run, recall = self._run, self._run.recall
        peers, leader = run.pipeline.stages.peers, recall.leader
        if peers is not None and leader and leader != peers.name and not self._alone:
            return self._flights.mirror(peers, leader, recall.exact, run.settings.cache_timeout_s)
        flight = Flight(recall.exact if recall.claims and not self._alone else "")
        self._flights.put(flight)
        self.leads = True
        flight.start(self._fly(flight, stream))
        return flight

    def _may_read(self, origin: Origin) -> bool:
        """As with a stored answer: the model is allowed, and no fallback of somebody else's."""
        run = self._run
        return run.pipeline.may_use(run.principal, origin.model) and run.request.model in (AUTO, origin.model)

    def _tries_again(self, flight: Flight, error: SwitchyardError) -> bool:
        """Whether what kept another request's answer from beginning is no reason to give up: once for each request, and
        always when no model was asked. The first of those that try again asks, and the others read along with it."""
        if self.leads:
            return False
        if not flight.asked:
            self._lost += bool(flight.leader)
            return True
        if self._forgave or not error.retryable:
            return False
        self._forgave = True
        return True

    async def _fly(self, flight: Flight, stream: bool) -> None:
        """Ask a model, for this request and all that read along."""
        run = self._run
        try:
            live = await run.generate(stream)
            flight.begin(Origin(run.request_id, live.model), live.events)
            while await live.more() is not None:
                flight.move()
            flight.end()
        except Exception as error:
            flight.asked = flight.asked or bool(run.attempts)
            self._flights.drop(flight)  # who tries again must not find it
            flight.end(error)
        finally:
            await run.stop()
