"""What the pipeline tells the world. Frozen records; exporters (journal, metrics, audit, traces) subscribe.

`RequestOpened` goes out before the first paid byte, exactly one `RequestClosed` on every exit: end, error, disconnect,
time-out. A cache hit pays nothing and so has only the close. The close is the receipt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from models.messages import Usage

Verdict = Literal["hit-exact", "hit-semantic", "coalesced", "miss", "bypass"]
"""`coalesced`: read along with the answer to another request, `cached_from`, that asked the same at the same time."""
Status = Literal["ok", "error", "cancelled", "abandoned"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `org` is the tenant: the hard partition of everything stored, counted or shared."""

    org: str
    team: str = ""
    key_id: str = ""
    user: str = ""
    scopes: frozenset[str] = frozenset({"infer"})


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one backend. `outcome` is `ok`, `cancelled`, an error code, `escalated` (the gate of a cascade did not
    let the answer through) or `content_filter` (the prompt was refused, or it had no text and another was asked).

    input_tokens, output_tokens: what it took, `estimated` where the engine had not counted yet. gate: the judgement of
    the first tokens (`cascade.Judgement` as plain JSON values), where there was one. whole: the answer came in one
    piece, so `ttft_ms` is when all of it was there.
    """

    model: str
    backend: str
    outcome: str
    queued_ms: float
    ttft_ms: float | None
    total_ms: float
    cost_microusd: int
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
    gate: dict[str, Any] | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class RequestOpened:
    """Before each try at a model, once its worst case has been set aside. reserved_microusd: that, and what the tries
    before it have cost; the newest record of a request holds."""

    request_id: str
    opened_at_unix_ms: int
    org: str
    team: str
    key_id: str
    user: str
    model: str
    reserved_microusd: int
    kind: Literal["open"] = "open"


@dataclass(frozen=True, slots=True)
class RequestClosed:
    """The receipt. `stage_ms` sums to `total_ms`; `overhead_ms` is what of it was not the model's.

    `usage` is that of the answer; what was generated and not given out is in the `attempts` before the last, and in the
    cost. `usage` of a cache hit is what the replayed answer once took; it cost nothing now and saved `saved_microusd`.
    So with a coalesced one: the request that asked the model pays for it.
    `changes` is what was done to the prompt (`router.prompting`), none of its words.
    `decision` is `policy.Decision` as plain JSON values. `degraded` names stages that failed and were done without.
    """

    request_id: str
    opened_at_unix_ms: int
    closed_at_unix_ms: int
    org: str
    team: str
    key_id: str
    user: str
    door: str
    status: Status
    error_code: str | None
    requested_model: str
    model: str | None
    provider: str | None
    cache_verdict: Verdict
    cached_from: str | None
    cache_similarity: float | None
    finish_reason: str | None
    usage: Usage
    estimated: bool
    cost_microusd: int
    saved_microusd: int
    price_version: str
    price: dict[str, str]
    attempts: tuple[Attempt, ...]
    decision: dict[str, Any] | None
    stage_ms: dict[str, float]
    ttft_ms: float | None
    total_ms: float
    overhead_ms: float
    degraded: tuple[str, ...] = ()
    changes: tuple[dict[str, Any], ...] = ()
    kind: Literal["close"] = "close"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did something, and from where. `forwarded_for` is what the nearest proxy said (nobody vouches for it)."""

    org: str = ""
    team: str = ""
    key_id: str = ""
    user: str = ""
    address: str = ""
    forwarded_for: str = ""

    @classmethod
    def of(cls, who: Principal, address: str = "", forwarded_for: str = "") -> Actor:
        return cls(who.org, who.team, who.key_id, who.user, address, forwarded_for)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An act of an administrator, or a request that was denied.

    org: whose affair it is, empty where nobody knows. target: what was acted on. detail: plain JSON values, without a
    key, a prompt or an answer. count: how many of the same it stands for (of a flood, one entry a second is kept).
    """

    entry_id: str
    at_unix_ms: int
    org: str
    act: str
    target: str
    actor: Actor
    outcome: Literal["done", "denied"]
    detail: dict[str, Any]
    count: int = 1
    kind: Literal["audit"] = "audit"


Record = RequestOpened | RequestClosed
Sink = Callable[[Record], None]


def as_json(record: Record) -> dict[str, Any]:
    """Plain JSON values of a record, for the journal, the ledger and `GET /v1/receipts/{id}`."""
    return asdict(record)


@dataclass(slots=True)
class Stopwatch:
    """The one timing record of a request: every moment belongs to the stage last entered."""

    clock: Callable[[], float]
    stage: str = "parse"
    started_s: float = field(init=False)
    entered_s: float = field(init=False)
    stage_ms: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started_s = self.entered_s = self.clock()

    def enter(self, stage: str) -> None:
        now_s = self.clock()
        self.stage_ms[self.stage] = self.stage_ms.get(self.stage, 0.0) + (now_s - self.entered_s) * 1000
        self.stage, self.entered_s = stage, now_s

    def split(self, stage: str, part: str, part_ms: float) -> None:
        """Show `part_ms` of a stage that is over or under way apart from the rest of it."""
        self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) - part_ms
        self.stage_ms[part] = self.stage_ms.get(part, 0.0) + part_ms

    @property
    def entered_ms(self) -> float:
        """When the stage that is under way began, since the start."""
        return (self.entered_s - self.started_s) * 1000

    @property
    def current_ms(self) -> float:
        """Time in the stage that is under way, since it was last entered."""
        return (self.clock() - self.entered_s) * 1000

    @property
    def elapsed_ms(self) -> float:
        return (self.clock() - self.started_s) * 1000
