"""Which stored answers are meant when somebody has them forgotten."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from heapq import nlargest
from typing import TYPE_CHECKING, Any

from models.catalog import ModelEntry
from models.errors import DeadlineExceeded, ModelUnavailable, SwitchyardError
from router.fingerprint import partition, parts_of
from router.ports import CachedAnswer, CacheKey

if TYPE_CHECKING:
    from router.packed_answer import PackedAnswer  # which needs numpy, and the door does not

MAX_SHOWN = 100
MAX_BARS = 512


@dataclass(frozen=True, slots=True)
class Selection:
    """Answers of one organisation to which all holds that is not None.

    answer_id: the request that it was made for. current: models and their versions; made by another version of one than
    these, where it is known by which. question: those to questions with a cosine similarity of at least
    `similarity` to this text, in whatever context they were asked.
    """

    org: str
    namespace: str | None = None
    answer_id: str | None = None
    model: str | None = None
    tag: str | None = None
    question: str | None = None
    similarity: float = 0.9
    version: str | None = None
    current: frozenset[tuple[str, str]] | None = None

    @property
    def whole(self) -> bool:
        """Whether all answers of the organisation, or of one of its namespaces, are meant."""
        given = (self.answer_id, self.model, self.tag, self.question, self.version, self.current)
        return all(each is None for each in given)

    def covers(self, tenant: str) -> bool:
        """Whether answers of this partition of the cache may be meant."""
        if self.namespace is not None:
            return tenant == partition(self.org, self.namespace)
        return tenant.startswith(partition(self.org, ""))

    def means(self, tenant: str, answer: CachedAnswer | PackedAnswer) -> bool:
        """Without looking at the question."""
        return (
            self.covers(tenant)
            and self.answer_id in (None, answer.answer_id)
            and self.model in (None, answer.model)
            and (self.tag is None or self.tag in answer.tags)
            and self.version in (None, answer.version)
            and (self.current is None or _is_old(answer, self.current))
        )


def version_of(entry: ModelEntry) -> str:
    """Of what gives a model's answers, as far as its entry in the catalogue says it; not of what it costs."""
    given = (entry.engine, entry.provider, entry.source, entry.dtype, entry.chat_template, entry.tool_parser)
    return hashlib.sha256(repr(given).encode()).hexdigest()[:12]


def _is_old(answer: CachedAnswer | PackedAnswer, current: frozenset[tuple[str, str]]) -> bool:
    return bool(answer.version) and (answer.model, answer.version) not in current


@dataclass(frozen=True, slots=True)
class Bar:
    """Nothing that `selection` means, and was asked for until `at_unix_s`, is stored any more. None: nothing at all."""

    selection: Selection | None
    at_unix_s: float

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        if self.selection is None:
            return {"at": self.at_unix_s}
        current = self.selection.current
        told = {field.name: getattr(self.selection, field.name) for field in fields(self.selection)}
        return {"at": self.at_unix_s, "of": told | {"current": current and sorted(current)}}

    @classmethod
    def back(cls, told: dict[str, Any]) -> Bar:
        """Raises KeyError or TypeError for what another version of this wrote."""
        of = told.get("of")
        if of and of["current"] is not None:
            of["current"] = frozenset((model, version) for model, version in of["current"])
        return cls(Selection(**of) if of else None, told["at"])


class Bars:
    """What was forgotten lately, so that an answer that was on its way by then is not stored afterwards.

    An answer counts as on its way when its request began before. Which question was near another one is not asked: an
    answer that is meant but for its question is not stored either. Of more than `MAX_BARS` acts the oldest is dropped,
    and then no answer to a request that began before it is stored, whoever's it is: a later miss, and never an answer
    that should have gone. So nothing needs to be known of how long a request may take.
    """

    def __init__(self) -> None:
        self._bars: deque[tuple[Selection, float]] = deque()
        self._least_opened_unix_s = 0.0

    def add(self, selection: Selection, now_unix_s: float) -> Bar:
        """Returns what is to be written down of it."""
        bar = Bar(replace(selection, question=None), now_unix_s)
        self.put(bar)
        return bar

    def put(self, bar: Bar) -> None:
        if bar.selection is None:
            self._least_opened_unix_s = max(self._least_opened_unix_s, bar.at_unix_s)
            return
        self._bars.append((bar.selection, bar.at_unix_s))
        if len(self._bars) > MAX_BARS:
            _, dropped_unix_s = self._bars.popleft()
            self._least_opened_unix_s = max(self._least_opened_unix_s, dropped_unix_s)

    def all(self) -> list[Bar]:
        """For `put`."""
        oldest = [Bar(None, self._least_opened_unix_s)] if self._least_opened_unix_s else []
        return [*oldest, *(Bar(selection, at) for selection, at in self._bars)]

    def against(self, tenant: str, answer: CachedAnswer | PackedAnswer, since_unix_s: float = 0.0) -> bool:
        """Whether `answer` must not be stored any more, by the acts after `since_unix_s`."""
        opened_unix_s, least_unix_s = answer.opened_at_unix_s, self._least_opened_unix_s
        if max(opened_unix_s, since_unix_s) < least_unix_s:
            return True
        return any(
            opened_unix_s <= at and since_unix_s < at and selection.means(tenant, answer)
            for selection, at in self._bars
        )


@dataclass(frozen=True, slots=True)
class Match:
    """A stored answer that was meant."""

    tenant: str
    exact: str
    answer_id: str
    model: str
    created_at_unix_s: float
    similarity: float | None = None
    version: str = ""

    @classmethod
    def of(cls, key: CacheKey, answer: CachedAnswer | PackedAnswer, similarity: float | None) -> Match:
        made = answer.created_at_unix_s
        return cls(key.tenant, key.exact, answer.answer_id, answer.model, made, similarity, answer.version)

    @property
    def namespace(self) -> str:
        return parts_of(self.tenant)[1]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What came of a selection: `shown` are the first of `count`, newest first; `exacts` the keys of all that went.

    lost: what kept shards from doing so. replicas_missed: ingress replicas that did not say that they have.
    """

    count: int = 0
    shown: tuple[Match, ...] = ()
    exacts: tuple[str, ...] = ()
    lost: tuple[SwitchyardError, ...] = ()
    replicas_missed: int = 0

    @classmethod
    def of(cls, matches: Sequence[Match], dry_run: bool = False) -> Forgotten:
        newest = nlargest(MAX_SHOWN, matches, key=lambda match: match.created_at_unix_s)
        return cls(len(matches), tuple(newest), () if dry_run else tuple(match.exact for match in matches))

    def check(self) -> None:
        """Raises where a part of the shared cache did not answer. What the others had is gone all the same."""
        if not self.lost:
            return
        kind = DeadlineExceeded if all(isinstance(each, DeadlineExceeded) for each in self.lost) else ModelUnavailable
        raise kind(
            f"{len(self.lost)} of the cache's shards did not answer and may still hold what was meant; the others have "
            "done what was asked. Ask again."
        )

    @classmethod
    def together(cls, parts: Sequence[Forgotten]) -> Forgotten:
        shown = sorted((match for part in parts for match in part.shown), key=lambda match: -match.created_at_unix_s)
        exacts = tuple(exact for part in parts for exact in part.exacts)
        return cls(sum(part.count for part in parts), tuple(shown[:MAX_SHOWN]), exacts)
