"""What the pipeline needs of the world. Each port has an in-process filling and one behind a Serve handle,
with the same class inside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, Protocol

from models.base import Call
from models.errors import SwitchyardError
from models.messages import ChatRequest, Completion, Event, Message, Usage, fold
from router.accounting.limits import Claim
from router.work import Work

# ---- cache ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Where an answer to a request may be found. Made by `router.fingerprint.Fingerprint`.

    tenant: the partition (org and namespace); nothing is ever read across it.
    exact: hex digest of the whole question, the tenant's partition included.
    scope: hex digest of everything but the last user turn; None when a similar question must not be answered.
    text: the last user turn, only used with `scope`.
    surface: hex digest of the whole question with the last turn in one spelling (case, spaces, greetings); None when
    that would change what is asked.
    circle: of the models that the asker may use; empty: all. An answer that is being made is for one circle.
    """

    tenant: str
    exact: str
    scope: str | None = None
    text: str = ""
    surface: str | None = None
    circle: str = ""

    def exact_only(self) -> CacheKey:
        """The same place, closed to merely similar questions."""
        return CacheKey(self.tenant, self.exact, circle=self.circle)

    @property
    def flight(self) -> str:
        """Under which an answer to this is found while it is made."""
        return f"{self.exact}:{self.circle}"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request asks of a stored answer to a similar question.

    delta: wrong answers per request that it puts up with; None: as configured. audited: whether it may be sent to the
    model although there is an answer, to compare the two, which is kept then. claimant: the process that asks a model
    if there is no answer, and has others read along. gone: a process that was said to do so, and does not.
    """

    delta: float | None = None
    audited: bool = True
    claimant: str = ""
    gone: str = ""


ANY_TERMS = Terms()


@dataclass(frozen=True)
class CachedAnswer:
    """A complete answer, as the events it came in, so that a replay is the same stream. `tags` are its caller's.

    opened_at_unix_s: when the request that it was made for came; 0: not known. version: of the model, as `version_of`
    says it; empty: not known.
    """

    answer_id: str
    model: str
    events: tuple[Event, ...]
    usage: Usage
    cost_microusd: int
    created_at_unix_s: float
    ttl_s: float
    tags: tuple[str, ...] = ()
    opened_at_unix_s: float = 0.0
    version: str = ""

    @cached_property
    def completion(self) -> Completion:
        """The events folded, once for all replays."""
        return fold(self.events)


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of texts (float32, little-endian), in their order, and the tokens of all. `encoder` says who made them:
    only vectors of one encoder can be compared."""

    vectors: list[bytes]
    tokens: int
    encoder: str


@dataclass(frozen=True, slots=True)
class Lookup:
    """`answer` is None on a miss. `embedding` (float32, little-endian, unit length) saves a second encoding.

    score: the verifier's, of the question that answers or, on a miss, came nearest to it; that one's answer is `near`.
    leader: on a miss, the process that asks a model this very question now; None: nobody has claimed to.
    """

    kind: Literal["hit-exact", "hit-semantic", "miss"]
    answer: CachedAnswer | None = None
    similarity: float | None = None
    embedding: bytes | None = None
    encoder_ms: float = 0.0
    score: float | None = None
    near: str | None = None
    leader: str | None = None


class CachePort(Protocol):
    async def lookup(self, key: CacheKey, terms: Terms) -> Lookup: ...

    async def store(self, key: CacheKey, answer: CachedAnswer, embedding: bytes | None) -> bool:
        """Whether it arrived; where it did, nobody has the question claimed any more. Never fails."""

    async def release(self, key: CacheKey, claimant: str) -> None:
        """Nobody answers this question any more, and there is nothing to store. Never fails."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an answer that several requests read comes from: the request that asked the model, and the model.

    created_at_unix_s: of a stored answer; None: it is being made.
    """

    request_id: str
    model: str
    created_at_unix_s: float | None = None


Followed = Origin | Sequence[Event] | SwitchyardError
"""What comes from another process: an empty batch at first, then the origin, then batches of events, and at the end the
error that the answer ended with, if it did. What the stream itself raises is no word on the answer."""


class PeersPort(Protocol):
    """The other processes that answer requests. `name` is this one's."""

    name: str

    def follow(self, leader: str, key: str, time_left_s: float, priority: int) -> AsyncIterator[Followed]:
        """The answer that `leader` has on its way under `key`, where it is made with as much time and urgency. Raises
        `NotFound` or `ModelUnavailable` where there is none. Closing it tells the leader that nobody reads here any
        more."""


# ---- classifier ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outlook:
    """The chances, in [0, 1], that a small and that a large model answer well, for which kind of work.

    abstains: the prompt is too unlike what the classifier was trained on; its word counts little then.
    heads: the same chance of models whose own answers are known (`learned.heads`), for prompts like those.
    """

    small: float
    large: float
    work: str
    abstains: bool = False
    version: str = ""
    heads: dict[str, float] = field(default_factory=dict)

    def __setstate__(self, state: Sequence[Any]) -> None:
        """While a new version is rolled out, a classifier of the one before sends no `heads`."""
        for each, value in zip(fields(self), (*state, {}), strict=False):
            object.__setattr__(self, each.name, value)

    @property
    def score(self) -> float:
        """In [0, 1], higher: a large model adds more; 0.5: it adds nothing. Who abstains is for the strong side."""
        return (1 + (max(self.large - self.small, ABSTAINED_GAIN) if self.abstains else self.large - self.small)) / 2


ABSTAINED_GAIN = 0.3


@dataclass(frozen=True, slots=True)
class Assessment:
    """How hard a question is: `score` in [0, 1], the `factors` that made it, the task it looks like.

    outlook: what the learned classifier says; None: it was not asked, or could not be (then `warning` says why).
    """

    score: float
    task: str
    factors: dict[str, float] = field(default_factory=dict)
    strategy: str = "complexity"
    strategy_version: str = "1"
    outlook: Outlook | None = None
    warning: str = ""


class ClassifierPort(Protocol):
    async def assess(self, messages: tuple[Message, ...], domain: str | None = None) -> Assessment: ...


# ---- admission -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ticket:
    """A wish to run one request on a backend. Lower `priority` goes first; `timeout_s` bounds the wait."""

    request_id: str
    backend: str
    tenant: str
    priority: int = 0
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease on one of a backend's places. It ends by release, or by itself when its holder is gone.

    reusable_s: for how long from now its holder may let further requests of this backend run on leases that it has,
    one after the other.
    """

    lease_id: str
    backend: str
    queued_ms: float
    reusable_s: float = 0.0


NO_USAGE = Usage()


class BatcherPort(Protocol):
    async def admit(self, ticket: Ticket) -> Grant:
        """Wait for a place. Raises `RateLimited`, `Overloaded` (queue full, too long a wait) or `DeadlineExceeded`."""

    def release(self, grant: Grant, usage: Usage = NO_USAGE) -> None:
        """Give the place back; `usage` is what was done there. Returns at once and never fails."""

    def asleep(self) -> Set[str]:
        """The backends of which no replica ran when last heard of."""

    def wake(self, backend: str) -> None:
        """Have one replica of it started. Returns at once and never fails."""

    def recent_work(self) -> Mapping[str, Work]:
        """What the replicas of each backend did of late, for all who ask them; another object when that has changed."""


# ---- models --------------------------------------------------------------------------------------------------------


class ModelPort(Protocol):
    """A backend that runs one model, wherever it is."""

    def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Sequence[Event]]:
        """Batches of events. Closing the iterator cancels down to the engine."""

    async def complete(self, request: ChatRequest, call: Call) -> Sequence[Event]:
        """The same events in one piece. Cancelling the task cancels down to the engine."""


# ---- money ---------------------------------------------------------------------------------------------------------


class BudgetPort(Protocol):
    async def reserve(self, reservation_id: str, claim: Claim) -> None:
        """Set the worst case aside. Raises `BudgetExceeded` or `RateLimited`."""

    def settle(self, reservation_id: str, microusd: int, tokens: int) -> None:
        """Turn the reservation into what it really took. Returns at once; a second call does nothing."""


# ---- ledger --------------------------------------------------------------------------------------------------------


class LedgerPort(Protocol):
    """Reads of the books. Writes go through the journal: nothing on the request path waits for a database."""

    async def receipt(self, org: str, request_id: str, wait_s: float) -> dict[str, Any] | None: ...

    async def usage(
        self, org: str | None, since_unix_ms: int, until_unix_ms: int, group_by: tuple[str, ...], latency: bool = False
    ) -> list[dict[str, Any]]: ...
