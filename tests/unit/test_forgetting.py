"""Answers forgotten in the whole cluster, also when a part of it does not answer. Fakes stand in for handles."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deployments import cache_handle
from deployments.cache_handle import CacheHandle
from deployments.forgetting import Forgetting
from models.errors import DeadlineExceeded, InvalidRequest, ModelUnavailable
from router.accounting.feedback import Feedback
from router.exact_cache import ExactCache
from router.invalidation import Forgotten, Match, Selection
from router.settings import ExactCacheSettings
from tests.unit.test_invalidation import KEPT, NOW_S, Door, key, store_of

ACME = Selection("acme", tag="news")
FOUND = Forgotten.of([Match(key("a").tenant, "exact", "1", "small", NOW_S)])


class Shard:
    """Says the same to every call; None: nothing, ever."""

    def __init__(self, name: str, says: Any) -> None:
        self.deployment_name, self.says = name, says

    def options(self, **_: Any) -> Shard:
        return self

    def remote(self, *_: Any) -> Shard:
        return self

    def cancel(self) -> None: ...

    def __await__(self) -> Any:
        return self._said().__await__()

    async def _said(self) -> Any:
        if self.says is None:
            await asyncio.sleep(60)
        if isinstance(self.says, Exception):
            await asyncio.sleep(0.005)
            raise self.says
        return self.says


class Replicas:
    """Two ingress replicas, of which `missed` say nothing."""

    def __init__(self, missed: int = 0) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.missed = missed

    async def ask(self, method: str, *args: Any) -> tuple[list[Any], int]:
        self.told.append((method, *args))
        return [None] * (2 - self.missed), self.missed


def forgetting(replicas: Replicas, *says: Any) -> Forgetting:
    shards = [Shard(f"shard {number}", each) for number, each in enumerate(says)]
    return Forgetting(CacheHandle(shards) if shards else None, replicas.ask)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("down", "within_s", "error"),
    [(ModelUnavailable("gone"), 60.0, ModelUnavailable), (None, 0.5, DeadlineExceeded)],
)
async def test_where_a_shard_is_down_the_others_and_the_replicas_forget_and_the_caller_is_told(
    down: Exception | None, within_s: float, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_handle, "STORE_TIMEOUT_S", within_s)
    replicas = Replicas()
    found = await forgetting(replicas, down, FOUND).everywhere(ACME, False)
    assert replicas.told == [("invalidate", ACME, ("exact",))] and found.count == 1
    with pytest.raises(error, match="1 of the cache's shards"):
        found.check()


async def test_a_question_that_cannot_be_compared_is_the_callers_mistake() -> None:
    replicas = Replicas()
    with pytest.raises(InvalidRequest):
        await forgetting(replicas, InvalidRequest("too long"), InvalidRequest("too long")).everywhere(ACME, False)
    assert not replicas.told


async def test_replicas_that_say_nothing_are_counted_and_a_question_of_what_would_go_tells_nobody() -> None:
    replicas = Replicas(missed=1)
    found = await forgetting(replicas, FOUND).everywhere(ACME, False)
    assert found.replicas_missed == 1
    found.check()
    assert (await forgetting(replicas, FOUND).everywhere(ACME, True)).replicas_missed == 0
    assert len(replicas.told) == 1
    assert (await forgetting(replicas).everywhere(ACME, False)).count == 0  # no shared cache
    assert replicas.told[-1] == ("invalidate", ACME, ())


@pytest.mark.parametrize(
    ("says", "score", "told"),
    [
        (["exact"], 0.0, ("exact",)),
        ([None, "exact"], 0.0, ("exact",)),
        ([""], 0.0, None),  # held, and stays
        ([None], 1.0, None),
        ([], 1.0, None),
        ([None], 0.0, ()),
        ([], 0.0, ()),
    ],
)
async def test_a_bad_word_on_an_answer_that_no_shard_holds_drops_what_replicas_have_of_it(
    says: list[str | None], score: float, told: tuple[str, ...] | None
) -> None:
    class Held(CacheHandle):
        async def judge(self, *args: Any) -> str | None:
            return next((each for each in says if each is not None), None)

        async def invalidate(self, selection: Selection, dry_run: bool) -> Forgotten:
            return Forgotten()

    replicas = Replicas()
    given = Feedback("acme", "r", "k", 1, "m", "", "1", score)
    await Forgetting(Held([]) if says else None, replicas.ask).judged(given)
    meant = Selection("acme", answer_id="1")
    assert replicas.told == ([] if told is None else [("invalidate", meant, told)])


def test_a_question_drops_the_own_copies_of_answers_that_the_store_has_lost() -> None:
    exact = ExactCache(ExactCacheSettings(), lambda: NOW_S)
    for each in KEPT:
        exact.put(*each)
    exact.invalidate(Selection("acme", tag="news", question="near"), ())
    left = {kept.answer_id for asked, kept in KEPT if exact.get(asked.exact) is not None}
    assert left == {"3", "4", "5"}


def test_what_goes_meanwhile_is_passed_over_and_no_keys_are_sent_of_what_would_go() -> None:
    store = store_of(*KEPT)
    steps = store.invalidating(Selection("acme"), None, dry_run=False)
    first = next(steps)
    store.invalidate(Selection("acme", answer_id="2"), dry_run=False)
    assert {first.answer_id, *(each.answer_id for each in steps)} == {"1", "3"}
    matches = store.invalidate(Selection("other"))
    assert (Forgotten.of(matches, dry_run=True).exacts, len(Forgotten.of(matches).exacts)) == ((), 1)


async def test_a_half_done_act_is_in_the_audit_log_and_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def half(door: Door, selection: Selection, dry_run: bool) -> Forgotten:
        return Forgotten(1, (), (), (ModelUnavailable("gone"),), 2)

    monkeypatch.setattr(Door, "invalidate", half)
    door = Door()
    told = await door.ask(tag="news", dry_run=False)
    assert told.status_code == 503 and "Ask again" in told.text
    (entry,) = door.log
    assert (entry.detail["count"], entry.detail["shards_missed"], entry.detail["replicas_missed"]) == (1, 1, 2)
