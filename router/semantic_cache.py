"""The shared cache of one shard: exact answers and, per tenant, a search by meaning.

It lives in memory; what a log of it has on disk (`router.cache_log`) is there again after a restart. A lost shard is a
miss, not an error.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from router.agreement import agree
from router.audits import Audits, Pending
from router.cache_entries import COUNTED, PARTITION_BYTES, Entry, Partition, entry_bytes, held_key, number_of
from router.cache_lines import Gone, Kept
from router.cache_log import AnswerLog, CacheLog, NoLog
from router.cache_records import UNREADABLE, Stored
from router.cache_transfer import TakenIn
from router.coalescing import Claims
from router.exact_cache import is_complete
from router.fingerprint import parts_of
from router.invalidation import Bars, Match, Selection
from router.keeping import GreedyDual
from router.packed_answer import PackedAnswer
from router.ports import ANY_TERMS, CachedAnswer, CacheKey, Lookup, Terms
from router.restoring import restored
from router.scope_index import Vector, codes_of, unit
from router.settings import CacheSettings
from router.vector_index import Placed, SavedIndex, VectorIndex
from router.verifier import Judgement, packaged
from router.wariness import NEIGHBOURHOOD, WARY_SCORE, Voices, Wariness

Agree = Callable[[CachedAnswer, CachedAnswer], bool | None]
Judge = Callable[[str, Sequence[tuple[float, str]]], list[Judgement]]


class SemanticStore:
    """The answers that are worth least (`router.keeping`) leave first, over all tenants, when `max_bytes` are full. Not
    for several threads.

    An embedding is float32, little-endian, of unit length. `clock` gives Unix seconds. `judge` compares a text with
    stored ones; None: the packaged verifier. `agree` compares an answer with that which could have been given instead.
    """

    def __init__(
        self,
        settings: CacheSettings,
        clock: Callable[[], float] = time.time,
        judge: Judge | None = None,
        agree: Agree = agree,
    ) -> None:
        self._settings, self._clock = settings, clock
        self._judge, self._agree = judge or packaged().judge, agree
        self._audits, self._claims = Audits(settings), Claims()
        self.bars = Bars()
        self.log: AnswerLog = NoLog()  # of what is kept and forgotten from now on
        self._wariness = Wariness()
        self._entries: dict[int, Entry] = {}
        self._keeping = GreedyDual()
        self._by_answer: dict[tuple[str, str], int] = {}  # and organisation: an id that was brought may be anybody's
        self._partitions: dict[str, Partition] = {}
        self.vectors = VectorIndex()
        self._used_bytes = 0  # besides the vectors
        self._counts: Counter[str] = Counter()
        self._vetoes: Counter[str] = Counter()

    def lookup(self, key: CacheKey, embedding: bytes | None = None, terms: Terms = ANY_TERMS) -> Lookup:
        """The very question, or else one near `embedding` that nothing speaks against."""
        found = self.exact(key, terms)
        if found is None:
            found = self.similar(key, embedding, terms) if embedding is not None else Lookup("miss")
            self._counts["misses"] += found.answer is None
            if found.answer is None and terms.claimant:
                found = replace(found, leader=self._claims.claim(key.flight, terms.claimant, terms.gone))
        return found

    def exact(self, key: CacheKey, terms: Terms = ANY_TERMS) -> Lookup | None:
        """The answer to the very question, or in another spelling, or else who has it made; it needs no embedding."""
        found = self._verbatim(key)
        if found is None and terms.claimant:
            leader = self._claims.holder(key.flight, terms.gone)
            if leader and leader != terms.claimant:  # its own word says nothing against a similar answer
                self._counts["claimed"] += 1
                return Lookup("miss", leader=leader)
        return found

    def release(self, key: CacheKey, claimant: str = "") -> None:
        """`claimant`, or whoever it was, has the answer to this question made no more."""
        self._claims.release(key.flight, claimant)

    def _verbatim(self, key: CacheKey) -> Lookup | None:
        partition = self._partitions.get(key.tenant)
        if partition is None:
            return None
        if (answer := self._given(partition.by_exact.get(key.exact))) is not None:
            self._counts["hits_exact"] += 1
            return Lookup("hit-exact", answer)
        if (answer := self._given(partition.by_surface.get(key.surface or ""))) is not None:
            self._counts["hits_surface"] += 1
            return Lookup("hit-semantic", answer, 1.0, score=1.0)
        return None

    def similar(self, key: CacheKey, embedding: bytes, terms: Terms) -> Lookup:
        """The answer to the question of the same tenant and scope that the verifier finds the same, if any."""
        candidates = self._candidates(key, np.frombuffer(embedding, dtype="<f4"))
        judged = self._judge(key.text, [(similarity, entry.key.text) for similarity, _, entry in candidates])
        self._vetoes.update(each.objection for each in judged if each.objection)
        best = max(range(len(judged)), key=lambda at: judged[at].score, default=None)
        if best is None or judged[best].objection is not None:
            if terms.audited:
                self._audits.served(key.tenant, None)
            return Lookup("miss", embedding=embedding)
        (similarity, entry_id, entry), score = candidates[best], judged[best].score
        hit = score >= max(self._audits.threshold(key.tenant, terms.delta), entry.least_score)
        drawn = hit and terms.audited and self._audits.draws(key.tenant, score)
        if hit and not drawn:
            if (answer := self._given(entry_id)) is None:
                return Lookup("miss", embedding=embedding)
            if terms.audited:
                self._audits.served(key.tenant, score)
            self._counts["hits_semantic"] += 1
            return Lookup("hit-semantic", answer, min(similarity, 1.0), embedding, score=score)
        if terms.audited:
            self._audits.wait(key.exact, Pending(key.tenant, entry_id, score, drawn))
        return Lookup("miss", embedding=embedding, score=score, near=entry.answer.answer_id)

    def compared(self, key: CacheKey, same: bool | None) -> None:
        """What came of asking the model although there was a candidate: whether that one's answer was the same."""
        if (pending := self._audits.take(key.exact)) is None:
            return
        self._audits.compared(pending, same)
        entry = self._entries.get(pending.entry_id)
        if same is False and entry is not None:
            entry.least_score = max(entry.least_score, pending.least_score)

    def audit(self, tenant: str) -> dict[str, float | int]:
        """How often this tenant is answered wrongly, at most, and what it costs to know."""
        return self._audits.stats(tenant)

    def _candidates(self, key: CacheKey, vector: Vector) -> list[tuple[float, int, Entry]]:
        near = self.vectors.nearest(key.tenant, key.scope, vector, self._settings.threshold) if key.scope else []
        fresh = ((cosine, number, self._entry(number)) for cosine, number in near if number in self._entries)
        return [(similarity, entry_id, entry) for similarity, entry_id, entry in fresh if entry is not None]

    def store(self, key: CacheKey, answer: CachedAnswer, embedding: bytes | None = None) -> None:
        """Keep a complete `answer`; without scope or embedding only for the very question. One that was forgotten while
        it was on its way is not kept."""
        self._claims.release(key.flight)
        self._compare(key, answer)
        kept = not self.bars.against(key.tenant, answer) and self._keep(key, answer, embedding)
        self._counts["stores" if kept else "refused"] += 1

    def take_in(self, key: CacheKey, answer: CachedAnswer, embedding: bytes | None, dry_run: bool = False) -> TakenIn:
        """Keep an answer that was made earlier, or elsewhere, under the rules for those that are made now."""
        held = self._held(key.tenant, key.exact)
        if self._is_over(answer):
            return "expired"
        if held is not None and self._entries[held].answer.created_at_unix_s >= answer.created_at_unix_s:
            return "held"
        if self.bars.against(key.tenant, answer):
            return "forgotten"
        kept = is_complete(answer) if dry_run else self._keep(key, answer, embedding)
        return "kept" if kept else "refused"

    def _is_over(self, answer: CachedAnswer | PackedAnswer) -> bool:
        return self._clock() >= answer.created_at_unix_s + min(answer.ttl_s, self._settings.ttl_s)

    def _keep(self, key: CacheKey, answer: CachedAnswer, embedding: bytes | None) -> bool:
        if not is_complete(answer):
            return False
        packed, codes = PackedAnswer.of(answer), codes_of(embedding) if embedding and key.scope else None
        if (placed := self._put(key, packed, codes)) is None:
            return False
        self.vectors.add(placed)
        self.log.kept(key, packed, codes)
        self._shrink()
        return True

    def _put(self, key: CacheKey, answer: PackedAnswer, codes: bytes | None) -> list[Placed] | None:
        """Returns the vector to be put in its place, if there is one; None where there is no room for the answer."""
        size = entry_bytes(key, answer)
        if size + len(codes or b"") > self._settings.max_bytes:
            return None
        number = number_of(key)
        if number in self._entries:
            self._remove(number)
        key, partition = held_key(key), self._partition(key.tenant)
        indexed = codes is not None and key.scope is not None
        entry = self._entries[number] = Entry(key, answer, size, indexed)
        self._keeping.add(number, answer.cost_microusd, size + len(codes or b""))
        self._by_answer[parts_of(key.tenant)[0], answer.answer_id] = number
        partition.keep(key, number)
        self._used_bytes += size
        if codes is None or key.scope is None:
            return []
        if self._wariness.knows(key.tenant, key.scope):
            entry.least_score = self._wariness.least_score(key.tenant, key.scope, unit(np.frombuffer(codes, np.int8)))
        return [Placed(key.tenant, key.scope, number, codes)]

    def _compare(self, key: CacheKey, answer: CachedAnswer) -> None:
        if (pending := self._audits.waiting(key.exact)) is not None:
            self._audits.paid(pending, answer.cost_microusd)
            other = self._opened(pending.entry_id)
            self.compared(key, self._agree(other, answer) if other is not None else None)

    def judge(self, org: str, answer_id: str, voice: str, score: float) -> str | None:
        """What somebody of `org` says of a stored answer, from 0 for bad to 1. None: it is not held here. Returns its
        exact key when it had to go: then those to questions near it are given only to what is surely the same.
        Otherwise an empty text."""
        entry_id = self._by_answer.get((org, answer_id))
        if entry_id is None:
            return None
        entry = self._entries[entry_id]
        entry.voices = entry.voices or Voices()
        if not entry.voices.hear(voice, score):
            return ""
        key = entry.key
        if key.scope and (codes := self.vectors.codes(key.tenant, key.scope, entry_id)) is not None:
            vector = unit(np.frombuffer(codes, np.int8))
            self._wariness.mark(key.tenant, key.scope, vector)
            for _, near in self.vectors.within_scope(key.tenant, key.scope, vector, NEIGHBOURHOOD):
                self._entries[near].least_score = max(self._entries[near].least_score, WARY_SCORE)
        self._forget(entry_id)
        self._counts["disliked"] += 1
        return key.exact

    def invalidate(self, selection: Selection, embedding: bytes | None = None, dry_run: bool = True) -> list[Match]:
        """The answers that `selection` means, which are dropped unless `dry_run`. `embedding`: of its question."""
        return list(self.invalidating(selection, embedding, dry_run))

    def invalidating(self, selection: Selection, embedding: bytes | None, dry_run: bool) -> Iterator[Match]:
        """`invalidate`, one answer after the other, between which there may be other calls."""
        if not dry_run:
            self.log.barred(self.bars.add(selection, self._clock()))
        for similarity, entry_id, entry in self._selected(selection, embedding):
            if not dry_run:
                self._forget(entry_id)
                self._counts["invalidated"] += 1
            yield Match.of(entry.key, entry.answer, similarity)

    def meant(self, selection: Selection) -> Iterator[int]:
        """The numbers of the answers that are meant, for `records`; between two of them there may be other calls."""
        return (entry_id for _, entry_id, _ in self._selected(selection, None))

    def _selected(self, selection: Selection, embedding: bytes | None) -> Iterator[tuple[float | None, int, Entry]]:
        if selection.answer_id is not None:
            named = self._by_answer.get((selection.org, selection.answer_id))
            ids: Iterable[tuple[float | None, int]] = [] if named is None else [(None, named)]
        elif selection.question is None:
            mine = [part for name, part in self._partitions.items() if selection.covers(name)]
            ids = [(None, entry_id) for part in mine for entry_id in part.by_exact.values()]
        else:
            near = np.frombuffer(embedding or b"", dtype="<f4")
            ids = list(self.vectors.within(selection.covers, near, selection.similarity)) if len(near) else []
        for similarity, entry_id in ids:
            entry = self._entries.get(entry_id)  # it may have gone meanwhile
            if entry is not None and selection.means(entry.key.tenant, entry.answer):
                yield similarity, entry_id, entry

    def recheck(self, since_unix_s: float) -> None:
        """Drop what was made since then, and was stored before it was known here that it had been forgotten."""
        made = [each for each in self._entries.items() if each[1].answer.created_at_unix_s >= since_unix_s]
        for number, entry in made:
            if self.bars.against(entry.key.tenant, entry.answer):
                self._forget(number)

    def reconfigure(self, settings: CacheSettings) -> None:
        self._settings = settings
        self._audits.reconfigure(settings)
        self._shrink()

    def stats(self) -> dict[str, float]:
        """Counts since the start (`veto_<name>`: candidates that a veto ruled out); what is held now."""
        return {
            **{name: self._counts[name] for name in COUNTED},
            **{f"veto_{name}": count for name, count in self._vetoes.items()},
            **self._audits.totals(),
            "log_dropped": self.log.dropped,
            "log_torn": self.log.torn,
            "log_bytes": self.log.size_bytes,
            "entries": len(self._entries),
            "tenants": len(self._partitions),
            "used_bytes": self.used_bytes,
            "vectors": self.vectors.count,
            "index_bytes": self.vectors.used_bytes,
        }

    @property
    def count(self) -> int:
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        return self._used_bytes + self.vectors.used_bytes

    def restore(self, log: CacheLog, saved: list[SavedIndex] | None = None) -> Iterator[None]:
        """Take over what a log has, a little with each step, and write down there what comes from now on, which stands
        before what is older. Nothing is to be forgotten before the last step: it could come back. saved: indexes of
        what is in the log, taken from there with the first steps."""
        self.log = log
        return restored(self, log, saved if saved is not None else [], self._clock())

    def replay(self, records: Sequence[Stored | Gone], began_unix_s: float) -> None:
        """Take over what was written down before `began_unix_s`; an answer that came since stands before it."""
        placed: dict[int, Placed | None] = {}  # the newest of each
        for record in records:
            held = self._held(record.tenant, record.exact)
            if held is not None and self._entries[held].answer.created_at_unix_s > began_unix_s:
                continue
            if isinstance(record, Gone):
                if held is not None:
                    self._remove(held)
            elif self._is_over(record.answer) or (found := self._put(record.key, record.answer, record.codes)) is None:
                self.log.evicted(record.key)  # `ttl_s` and `max_bytes` may be larger one day
            else:
                self._counts["restored"] += 1
                placed[found[0].entry_id if found else number_of(record.key)] = found[0] if found else None
        self.vectors.add([each for each in placed.values() if each and each.entry_id in self._entries], older=True)
        self._shrink()

    def _held(self, tenant: str, exact: str) -> int | None:
        partition = self._partitions.get(tenant)
        return partition.by_exact.get(exact) if partition is not None else None

    def entry_ids(self) -> list[int]:
        return list(self._entries)

    def records(self, entry_ids: Sequence[int]) -> list[Kept]:
        """These answers, opened; those that have gone meanwhile are left out."""
        opened = ((each, self._opened(number_of(each.key))) for each in self.stored(entry_ids))
        return [Kept(each.key, answer, each.embedding) for each, answer in opened if answer is not None]

    def stored(self, entry_ids: Sequence[int]) -> list[Stored]:
        """The same, as a log has them."""
        held = [(number, self._entries[number]) for number in entry_ids if number in self._entries]
        return [Stored(e.key, e.answer, self.vectors.codes(e.key.tenant, e.key.scope, number)) for number, e in held]

    def _forget(self, entry_id: int) -> None:
        """Remove what must not come back."""
        self.log.gone(self._entries[entry_id].key)
        self._remove(entry_id)

    def _entry(self, entry_id: int) -> Entry | None:
        """The entry; an outlived one is removed."""
        entry = self._entries[entry_id]
        if self._is_over(entry.answer):
            self._let_go(entry_id)
            self._counts["expired"] += 1
            return None
        return entry

    def _opened(self, entry_id: int) -> CachedAnswer | None:
        """The answer, if it is here; what another version wrote, and does not open, is removed."""
        try:
            return self._entries[entry_id].answer.opened() if entry_id in self._entries else None
        except UNREADABLE:
            self._let_go(entry_id)
            return None

    def _given(self, entry_id: int | None) -> CachedAnswer | None:
        """The answer of an entry that is here, for whoever asked; None where its time is over."""
        if entry_id is None or self._entry(entry_id) is None or (answer := self._opened(entry_id)) is None:
            return None
        self._keeping.use(entry_id)
        return answer

    def _let_go(self, entry_id: int) -> None:
        """It is in memory no more."""
        self.log.evicted(self._entries[entry_id].key)
        self._remove(entry_id)

    def _partition(self, tenant: str) -> Partition:
        if tenant not in self._partitions:
            self._partitions[tenant] = Partition()
            self._used_bytes += PARTITION_BYTES
        return self._partitions[tenant]

    def _shrink(self) -> None:
        while self.used_bytes > self._settings.max_bytes and self._entries:
            self._let_go(self._keeping.least())
            self._counts["evicted"] += 1

    def _remove(self, entry_id: int) -> None:
        entry = self._entries.pop(entry_id)
        self._keeping.drop(entry_id)
        self._used_bytes -= entry.size_bytes
        named = parts_of(entry.key.tenant)[0], entry.answer.answer_id
        if self._by_answer.get(named) == entry_id:
            del self._by_answer[named]
        partition = self._partitions[entry.key.tenant]
        partition.drop(entry.key, entry_id)
        if entry.indexed and entry.key.scope:
            self.vectors.remove(entry.key.tenant, entry.key.scope, entry_id)
        if not partition.by_exact:
            del self._partitions[entry.key.tenant]
            self._used_bytes -= PARTITION_BYTES
