"""What the caches know of one request, and what they are told of its answer."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from models.errors import NotCached
from models.messages import ChatRequest, Completion, Event, Usage
from router.events import Verdict
from router.fingerprint import Fingerprint, time_sensitive
from router.invalidation import version_of
from router.policy import AUTO
from router.ports import CachedAnswer, CacheKey, Lookup, Origin
from router.settings import IngressSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.run import Run


class Recall:
    """`own`, then `shared`, until one of them has found an answer; `keep` when a model has given one.

    leader: after `shared`, the process that asks a model this very question now.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.key: CacheKey | None = None
        self.verdict: Verdict = "bypass"
        self.answer: CachedAnswer | None = None
        self.similarity: float | None = None
        self.encoder_ms = 0.0
        self.leader: str | None = None
        self._claimed = False
        self._asked: Fingerprint | None = None
        self._embedding: bytes | None = None

    @property
    def exact(self) -> str:
        """The key of this very question; empty for a request that goes past the caches."""
        return self._asked.exact.exact if self._asked is not None else ""

    @property
    def tenant(self) -> str:
        return self._asked.exact.tenant if self._asked is not None else ""

    @property
    def flight_key(self) -> str:
        """Under which an answer to this is found while it is made; empty as `exact`."""
        return self._asked.exact.flight if self._asked is not None else ""

    def own(self) -> bool:
        """Answer from this process's cache, if it has the answer to this very question."""
        run, pipeline = self._run, self._run.pipeline
        run.watch.enter("cache_exact")
        if self._asked is None:
            self._asked = pipeline.fingerprint(run.request, run.principal, run.options)
        if self._asked is None:
            return False
        self.verdict = "miss"
        if run.options.cache == "refresh":
            return False
        answer = pipeline.exact.get(self.exact)
        return answer is not None and self._replay(Lookup("hit-exact", answer))

    async def shared(self, gone: str = "") -> bool:
        """Answer from the cache of all, which also knows similar questions. `gone`: a process that was said to be
        answering this, and is not."""
        run, pipeline, asked = self._run, self._run.pipeline, self._asked
        if asked is None:
            return False
        run.watch.enter("cache_semantic")
        self.key = asked.key(run.settings)
        if run.options.cache == "refresh":
            return False
        terms = run.options.terms
        if self.claims:
            terms = replace(terms, claimant=pipeline.name, gone=gone)
            self._claimed = True  # until it is known: nobody says so when this is given up, or the word comes too late
        found = await pipeline.lookup(self.key, terms, run.degraded)
        if found.answer is not None or found.leader not in (None, pipeline.name):
            self._claimed = False
        run.watch.split("cache_semantic", "encode", found.encoder_ms)
        self._embedding, self.leader = found.embedding, found.leader
        self.encoder_ms += found.encoder_ms
        if not self._replay(found):
            return False
        if found.kind == "hit-exact" and found.answer is not None:
            pipeline.exact.put(self.key, found.answer)
        return True

    @property
    def reads_shared(self) -> bool:
        return bool(self.exact) and self._run.options.cache != "refresh"

    @property
    def joins(self) -> bool:
        """Whether it may read an answer that another request has on its way: only where it might be given a stored
        one."""
        run = self._run
        asked = bool(self.exact) and run.settings.coalesce and run.options.cache in ("on", "no-store")
        return asked and self._ttl_s > 0

    @property
    def claims(self) -> bool:
        """Whether others may read the answer that it gets."""
        return self.joins and self._run.options.cache == "on"

    def must_not_ask(self) -> None:
        if self._run.options.cache == "only-if-cached":
            raise NotCached("No stored answer may be given to this; ask without 'only-if-cached' to have one made.")

    def _replay(self, found: Lookup) -> bool:
        if found.answer is None or found.kind == "miss":
            return False
        if not self._may_give(found.answer.model, found.answer.created_at_unix_s):
            return False
        self.answer, self.verdict, self.similarity = found.answer, found.kind, found.similarity
        self._claimed = False
        return True

    def may_read(self, origin: Origin) -> bool:
        """Whether an answer of another process may be given: one that is being made, or a stored one as any other."""
        made_unix_s = origin.created_at_unix_s
        return made_unix_s is None or self._may_give(origin.model, made_unix_s)

    def _may_give(self, model: str, created_at_unix_s: float) -> bool:
        run, oldest_s = self._run, self._run.options.max_age_s
        young = oldest_s is None or time.time() - created_at_unix_s <= oldest_s
        return young and run.pipeline.may_use(run.principal, model)

    def passes_on(self) -> None:
        """Another request of this process answers it, and says so when it does no more."""
        self._claimed = False

    def let_go(self) -> None:
        """Have the shared cache know that this process answers the question no more, unless another request does."""
        if self._claimed and self.key is not None and self._run.pipeline.flights.find(self.flight_key) is None:
            self._run.pipeline.release(self.key)
        self._claimed = False

    def keep(self, model: str, events: Sequence[Event], completion: Completion, usage: Usage, now_unix_ms: int) -> bool:
        """Keep a complete answer: ended by itself or, for the identical question only, at the caller's limit. Returns
        whether the shared cache gets it."""
        run, key, reason = self._run, self.key, completion.finish_reason
        if run.options.cache == "no-store":
            return False
        if run.request.model not in (AUTO, model):
            return False  # who names a model again, without fallbacks, must not get another's answer
        at_limit = reason == "length" and run.request.sampling.max_tokens is not None
        if key is None or not (reason in ("stop", "tool_calls") or at_limit):
            return False
        ttl_s = self._ttl_s
        if not (completion.text or completion.tool_calls) or not ttl_s:
            return False
        answer = CachedAnswer(
            run.request_id,
            model,
            tuple(events),
            usage,
            run.cost_microusd,
            now_unix_ms / 1000,
            ttl_s,
            run.options.tags,
            run.opened_at_unix_ms / 1000,
            version_of(run.pipeline.entries[model]),
        )
        self._claimed = False  # it ends with the storing
        refreshes = run.options.cache == "refresh"
        run.pipeline.keep(key if not at_limit else key.exact_only(), answer, self._embedding, refreshes)
        return True

    @cached_property
    def _ttl_s(self) -> float:
        """How long an answer to this may be given again: the caches' own limits hold besides."""
        run = self._run
        return answer_ttl_s(run.settings, run.principal.org, run.request)


def answer_ttl_s(settings: IngressSettings, org: str, request: ChatRequest) -> float:
    """For how long `org` has an answer to `request` given again; 0: not at all."""
    ttl_s = kept_for_s(settings, org)
    if request.messages and time_sensitive(request.messages[-1].text):
        ttl_s = min(ttl_s, settings.exact_cache.time_sensitive_ttl_s)
    return ttl_s


def kept_for_s(settings: IngressSettings, org: str) -> float:
    """Any answer of `org`, at most."""
    mine = settings.tenants.get(org, settings.default_tenant).cache_ttl_s
    return settings.exact_cache.ttl_s if mine is None else mine
