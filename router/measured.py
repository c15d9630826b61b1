"""What a replica has seen of its models and conversations, and what decisions need of it. Bounded; lost with the
process."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from models.errors import ModelUnavailable, SwitchyardError, is_refusal
from models.messages import ChatRequest
from router.events import Attempt, Principal, Record, RequestClosed

KEPT = 128
RECENT_S = 600.0
"""Who was too slow for everybody is asked no more, and so is not measured either: until then only."""
LEAST = 8
MOST_CONVERSATIONS = 20_000
RESTS_AFTER = 3
RESTS_S = 10.0
FORGOTTEN_S = 60.0


class Latencies:
    """How long the last `KEPT` answers of each model took, those of the last `RECENT_S` where these are `LEAST`: a sink
    of records. The models are those of the configuration, so this is bounded. A time is None before there are `LEAST`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, deque[_Answer]] = {}

    def __call__(self, record: Record) -> None:
        if not isinstance(record, RequestClosed):
            return
        for attempt in record.attempts:
            if attempt.outcome == "ok" and attempt.ttft_ms is not None:
                begun_ms = 0.0 if attempt.whole else attempt.ttft_ms
                took = (attempt.ttft_ms, begun_ms, attempt.total_ms, attempt.output_tokens)
                self._seen.setdefault(attempt.model, deque(maxlen=KEPT)).append(_Answer(self._clock(), *took))

    def first_token_ms(self, model: str) -> float | None:
        """The 95th percentile, of those that came in pieces where enough did."""
        seen = self._recent(model) or self._seen.get(model, ())
        pieces = [answer.first_ms for answer in seen if answer.begun_ms]
        return _p95(pieces if len(pieces) >= LEAST else [answer.first_ms for answer in seen])

    def total_ms(self, model: str, most_tokens: int) -> float | None:
        """The 95th percentile of the time to the end, as if longer answers had ended after `most_tokens`; None where
        it was not measured of late."""
        return _p95([answer.total_ms_of(most_tokens) for answer in self._recent(model)])

    def stale(self, model: str) -> bool:
        """Whether it was not measured of late."""
        return not self._recent(model)

    def _recent(self, model: str) -> Sequence[_Answer]:
        """Where there are enough."""
        oldest_s = self._clock() - RECENT_S
        found = [answer for answer in self._seen.get(model, ()) if answer.at_s >= oldest_s]
        return found if len(found) >= LEAST else ()


class _Answer(NamedTuple):
    """begun_ms: from when on its tokens came; 0 where all came in one piece, which has no such moment."""

    at_s: float
    first_ms: float
    begun_ms: float
    end_ms: float
    tokens: int

    def total_ms_of(self, most_tokens: int) -> float:
        share = min(1.0, most_tokens / self.tokens) if self.tokens else 1.0
        return self.begun_ms + (self.end_ms - self.begun_ms) * share


def _p95(values: list[float]) -> float | None:
    return sorted(values)[int(0.95 * (len(values) - 1))] if len(values) >= LEAST else None


class Rests:
    """Which models cannot be reached. After `RESTS_AFTER` attempts in a row that found a model unavailable, less than
    `FORGOTTEN_S` apart, it rests for `RESTS_S`, and after each further one again; whatever it answers ends that."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[str, tuple[int, float]] = {}
        self._until_s: dict[str, float] = {}

    def attempted(self, attempt: Attempt, error: SwitchyardError | None = None) -> None:
        """To be told at the end of each attempt, not of its request: that may go on elsewhere for minutes."""
        now_s = self._clock()
        if attempt.outcome == ModelUnavailable.code and not is_refusal(error):
            count, last_s = self._failures.get(attempt.model, (0, now_s))
            count = count + 1 if now_s - last_s < FORGOTTEN_S else 1
            self._failures[attempt.model] = count, now_s
            if count >= RESTS_AFTER:
                self._until_s[attempt.model] = now_s + RESTS_S
        elif attempt.ttft_ms is not None:
            self._failures.pop(attempt.model, None)
            self._until_s.pop(attempt.model, None)

    def rests(self, model: str) -> bool:
        return self._until_s.get(model, 0.0) > self._clock()


def conversation_of(request: ChatRequest, principal: Principal) -> str | None:
    """The same for each turn of a conversation: who asks, and how it began. None where no user speaks."""
    first = next((message for message in request.messages if message.role == "user"), None)
    if first is None:
        return None
    system = "".join(message.text for message in request.messages if message.role in ("system", "developer"))
    text = "\x00".join((principal.org, principal.key_id, request.user or principal.user, system, first.text))
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:24]


class Conversations:
    """Which model had a conversation's last turn, and for which kind of work if `auto` chose it. The longest unused are
    forgotten first."""

    def __init__(self, most: int = MOST_CONVERSATIONS) -> None:
        self._last: OrderedDict[str, tuple[str, str | None]] = OrderedDict()
        self._most = most
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._last)

    def last_model(self, conversation: str | None) -> str | None:
        found = self._last.get(conversation) if conversation else None
        return found[0] if found else None

    def last_choice(self, conversation: str | None) -> tuple[str, str] | None:
        """The model and the kind of work, if `auto` chose it."""
        found = self._last.get(conversation) if conversation else None
        return (found[0], found[1]) if found and found[1] is not None else None

    def answered(self, conversation: str | None, model: str, work: str | None) -> None:
        """`work` None: the caller had named the model."""
        if conversation is None:
            return
        self._last[conversation] = (model, work)
        self._last.move_to_end(conversation)
        if len(self._last) > self._most:
            self._last.popitem(last=False)
            self.evicted += 1
