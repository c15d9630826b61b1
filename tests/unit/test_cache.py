from __future__ import annotations

import random
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.messages import Event, Finish, TextDelta, TokenLogprob, ToolCallDelta, Usage, UsageReport
from router.exact_cache import ExactCache, answer_bytes, is_complete
from router.fingerprint import partition
from router.ports import CachedAnswer, CacheKey, Terms
from router.scope_index import PROMOTE_AT, ScopeIndex, quantised
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings, ExactCacheSettings

NOW_S = 1_000_000.0
DIMENSIONS = 32


class Clock:
    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def answer(name: str = "a", text: str = "hello", ttl_s: float = 3600.0) -> CachedAnswer:
    events = (TextDelta(text, 1), Finish("stop"), UsageReport(Usage(3, 1)))
    return CachedAnswer(name, "m", events, Usage(3, 1), 7, NOW_S, ttl_s)


def unit(seed: int | str) -> np.ndarray:
    vector = np.random.default_rng(abs(hash(seed)) if isinstance(seed, str) else seed).standard_normal(DIMENSIONS)
    return (vector / np.linalg.norm(vector)).astype("<f4")


def near(vector: np.ndarray, cosine: float) -> bytes:
    """A unit vector at this cosine."""
    other = unit(999_999)
    other = other - (other @ vector) * vector
    other /= np.linalg.norm(other)
    return (cosine * vector + np.sqrt(1 - cosine**2) * other).astype("<f4").tobytes()


def key(text: str, tenant: str = "t", scope: str | None = "s") -> CacheKey:
    return CacheKey(partition(tenant, ""), f"{tenant}|{scope}|{text}", scope, text)


# ---- exact ---------------------------------------------------------------------------------------------------------


def test_an_answer_comes_back_as_it_was_put(clock: Clock) -> None:
    cache = ExactCache(ExactCacheSettings(), clock)
    kept = answer()
    assert cache.get("k") is None
    cache.put(CacheKey("t", "k"), kept)
    assert cache.get("k") is kept
    assert cache.peek("k") and not cache.peek("other")
    assert (cache.stats().entries, cache.stats().used_bytes) == (1, answer_bytes(kept))


def test_an_answer_ends_with_its_own_ttl_or_the_settings(clock: Clock) -> None:
    cache = ExactCache(ExactCacheSettings(ttl_s=100), clock)
    cache.put(CacheKey("t", "short"), answer(ttl_s=10))
    cache.put(CacheKey("t", "long"), answer(ttl_s=1000))
    clock.now_s += 10
    assert cache.get("short") is None and cache.get("long") is not None
    clock.now_s += 90
    assert cache.get("long") is None
    assert cache.stats().expired == 2 and cache.stats().used_bytes == 0
    cache.put(CacheKey("t", "long"), answer(ttl_s=1000))
    cache.reconfigure(ExactCacheSettings(ttl_s=500))
    assert cache.get("long") is not None


def test_the_least_recently_used_leave_when_it_is_full(clock: Clock) -> None:
    size = answer_bytes(answer())
    cache = ExactCache(ExactCacheSettings(max_bytes=3 * size), clock)
    for name in "abc":
        cache.put(CacheKey("t", name), answer())
    cache.get("a")
    cache.put(CacheKey("t", "d"), answer())
    assert [cache.peek(name) for name in "abcd"] == [True, False, True, True]
    assert cache.stats().evicted == 1
    cache.reconfigure(ExactCacheSettings(max_bytes=size))
    assert [cache.peek(name) for name in "abcd"] == [False, False, False, True]
    cache.reconfigure(ExactCacheSettings(enabled=False))
    cache.put(CacheKey("t", "e"), answer())
    assert cache.stats().entries == 0 and cache.stats().used_bytes == 0


def test_what_is_larger_than_the_cache_is_refused(clock: Clock) -> None:
    cache = ExactCache(ExactCacheSettings(max_bytes=10_000), clock)
    cache.put(CacheKey("t", "small"), answer())
    cache.put(CacheKey("t", "big"), answer(text="x" * 20_000))
    assert cache.peek("small") and not cache.peek("big") and cache.stats().refused == 1


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3000), st.booleans()), max_size=60))
def test_its_bytes_are_always_accounted_for(steps: list[tuple[int, int, bool]]) -> None:
    cache = ExactCache(ExactCacheSettings(max_bytes=8000), lambda: NOW_S)
    for name, size, put in steps:
        cache.put(CacheKey("t", str(name)), answer(text="x" * (size + 1))) if put else cache.get(str(name))
        held = [cache._entries[name][0] for name in cache._entries]
        assert cache.stats().used_bytes == sum(map(answer_bytes, held)) <= 8000


@pytest.mark.parametrize(
    "events",
    [
        (),
        (Finish("stop"),),
        (TextDelta("cut sho"),),
        (TextDelta(""), Finish("stop")),
        (TextDelta("a"), Finish("content_filter")),
        (TextDelta("a", choice=0), TextDelta("b", choice=1), Finish("stop", 0)),
    ],
)
def test_incomplete_answers_are_never_kept(events: tuple[Event, ...], clock: Clock) -> None:
    broken = CachedAnswer("x", "m", events, Usage(), 0, NOW_S, 10)
    exact, shared = ExactCache(ExactCacheSettings(), clock), SemanticStore(CacheSettings(audit=0), clock)
    exact.put(CacheKey("t", "k"), broken)
    shared.store(key("k"), broken)
    assert not is_complete(broken)
    assert exact.get("k") is None and shared.lookup(key("k")).kind == "miss"


def test_tool_calls_and_several_choices_are_complete() -> None:
    call = (ToolCallDelta(0, "1", "f", "{}"), Finish("tool_calls"))
    two = (TextDelta("a"), TextDelta("b", choice=1), Finish("stop"), Finish("stop", 1))
    for events in (call, two):
        assert is_complete(CachedAnswer("x", "m", events, Usage(), 0, NOW_S, 10))


def test_the_estimated_size_is_about_what_memory_it_takes() -> None:
    def build() -> list[CachedAnswer]:
        answers = []
        for number in range(50):
            words = [TextDelta(f"word {number} {i} ", 1) for i in range(100)]
            scored = [TextDelta(f"w{number}{i}", 1, (TokenLogprob(f"w{i}{number}", -0.5 - i),)) for i in range(20)]
            events = (*words, *scored, Finish("stop"))
            answers.append(CachedAnswer(f"req {number}", "m", events, Usage(), 0, NOW_S, 10))
        return answers

    tracemalloc.start()
    held = build()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.7 < sum(map(answer_bytes, held)) / taken < 1.5


def test_a_hit_takes_under_a_tenth_of_a_millisecond() -> None:
    cache = ExactCache(ExactCacheSettings())
    kept = CachedAnswer("a", "m", answer().events, Usage(), 0, time.time(), 100)
    for number in range(10_000):
        cache.put(CacheKey("t", str(number)), kept)

    def once(name: str) -> float:
        began_s = time.perf_counter()
        assert cache.get(name)
        return time.perf_counter() - began_s

    assert sorted(once(str(number)) for number in range(1000))[500] < 0.0001


# ---- shared --------------------------------------------------------------------------------------------------------


def test_the_very_question_needs_no_embedding(clock: Clock) -> None:
    store = SemanticStore(CacheSettings(audit=0), clock)
    kept = answer()
    store.store(key("hi"), kept)
    found = store.lookup(key("hi"))
    assert found.kind == "hit-exact" and found.answer == kept
    assert store.lookup(key("hi", "other")).kind == "miss"


def test_a_near_question_is_answered_from_the_threshold_up(clock: Clock) -> None:
    store = SemanticStore(CacheSettings(audit=0, threshold=0.9), clock)
    vector = unit(1)
    store.store(key("how do I boil an egg?"), answer(), vector.tobytes())
    asked = key("How do I boil eggs?")
    found = store.lookup(asked, near(vector, 0.91))
    assert found.kind == "hit-semantic" and found.similarity == pytest.approx(0.91, abs=1e-3)
    missed = store.lookup(asked, near(vector, 0.89))
    assert missed.kind == "miss" and missed.embedding == near(vector, 0.89)
    store.reconfigure(CacheSettings(audit=0, threshold=0.85))
    assert store.lookup(asked, near(vector, 0.89)).kind == "hit-semantic"


def test_a_veto_stands_above_the_score_and_is_counted(clock: Clock) -> None:
    store = SemanticStore(CacheSettings(audit=0), clock)
    vector = unit(1)
    store.store(key("Add 2 and 3"), answer("wrong"), vector.tobytes())
    assert store.lookup(key("Add 2 and 4"), vector.tobytes()).kind == "miss"
    assert store.stats()["veto_number"] == 1
    store.store(key("please add 2 and 4"), answer("right"), near(vector, 0.96))
    found = store.lookup(key("Add 2 and 4"), vector.tobytes())
    assert found.answer is not None and found.answer.answer_id == "right"


def test_only_what_is_given_counts_as_used(clock: Clock) -> None:
    store, near_miss, asked = SemanticStore(CacheSettings(audit=0), clock), unit(1), unit(2)
    store.store(key("Add 2 and 3"), answer("never given"), near_miss.tobytes())
    store.store(key("Why is the sky blue?", scope="other"), answer("given"), asked.tobytes())
    assert store.exact(key("Why is the sky blue?", scope="other"))
    for number in range(4, 24):
        assert store.lookup(key(f"Add 2 and {number}"), near_miss.tobytes()).kind == "miss"
    uses = [store._keeping._worths[number].uses for number in store.entry_ids()]
    assert uses == [1, 2]


def test_a_claim_of_its_own_hides_no_similar_answer_from_a_process(clock: Clock) -> None:
    store, vector = SemanticStore(CacheSettings(audit=0, threshold=0.9), clock), unit(1)
    asked = key("How do I boil eggs?")
    assert store.lookup(asked, vector.tobytes(), Terms(claimant="me")).leader == "me"
    store.store(key("how do I boil an egg?"), answer(), vector.tobytes())
    assert store.exact(asked, Terms(claimant="me")) is None  # so the question is encoded
    assert store.lookup(asked, vector.tobytes(), Terms(claimant="me")).kind == "hit-semantic"
    assert store.exact(asked, Terms(claimant="you")).leader == "me"


def test_only_the_same_scope_is_compared(clock: Clock) -> None:
    store = SemanticStore(CacheSettings(audit=0), clock)
    vector = unit(1).tobytes()
    store.store(key("hi there", scope="s"), answer(), vector)
    assert store.lookup(key("hi there!", scope="s"), vector).kind == "hit-semantic"
    assert store.lookup(key("hi there!", scope="z"), vector).kind == "miss"
    assert store.lookup(key("hi there!", scope="s").exact_only(), vector).kind == "miss"
    store.store(key("hi there", "t2").exact_only(), answer(), vector)
    assert store.lookup(key("hi there!", "t2"), vector).kind == "miss"
    assert store.lookup(key("hi there", "t2")).kind == "hit-exact"


def test_outlived_answers_go_with_their_vectors(clock: Clock) -> None:
    store = SemanticStore(CacheSettings(audit=0, ttl_s=50), clock)
    vector = unit(1).tobytes()
    store.store(key("hi there"), answer(), vector)
    clock.now_s += 50
    assert store.lookup(key("hi there!"), vector).kind == "miss"
    stats = store.stats()
    assert (stats["expired"], stats["entries"], stats["tenants"], stats["used_bytes"]) == (1, 0, 0, 0)


def test_a_new_answer_takes_the_place_of_the_old_one(clock: Clock) -> None:
    store = SemanticStore(CacheSettings(audit=0), clock)
    vector = unit(1).tobytes()
    for name in ("old", "new"):
        store.store(key("hi there"), answer(name), vector)
    found = store.lookup(key("hi there!"), vector)
    assert found.answer is not None and found.answer.answer_id == "new"
    assert store.stats()["entries"] == 1


def test_it_is_bounded_over_all_tenants(clock: Clock) -> None:
    store = SemanticStore(CacheSettings(audit=0, max_bytes=100_000), clock)
    for number in range(500):
        store.store(key(f"number {number}", f"tenant {number % 50}"), answer(), unit(number).tobytes())
        assert store.stats()["used_bytes"] <= 100_000
    stats = store.stats()
    assert stats["evicted"] == 500 - stats["entries"] > 0
    assert store.lookup(key("number 499", "tenant 49")).kind == "hit-exact"
    assert store.lookup(key("number 0", "tenant 0")).kind == "miss"
    store.reconfigure(CacheSettings(audit=0, max_bytes=0))
    assert store.stats()["entries"] == store.stats()["tenants"] == store.stats()["used_bytes"] == 0


def test_no_answer_crosses_a_tenant_or_a_scope() -> None:
    """Random traffic of tenants that ask nearly the same, all at the same place of the vector space."""
    rng = random.Random(5)
    words = ["egg", "pot", "salt", "water", "the", "boiled", "please", "is", "i", "you", "of", "me"]
    vector = unit(1)
    store = SemanticStore(CacheSettings(audit=0, threshold=0, max_bytes=320_000), lambda: NOW_S)
    hits = 0
    for step in range(8_000):
        tenant, scope = f"{rng.randrange(12)}", f"{rng.randrange(3)}"
        text = " ".join([str(rng.randrange(30)), *rng.choices(words, k=2)])
        asked = CacheKey(partition(tenant, ""), f"{tenant}/{scope}/{text}", scope, text)
        embedding = near(vector, rng.random())
        found = store.lookup(asked, embedding)
        if found.answer is not None:
            hits += 1
            assert found.answer.answer_id.startswith(f"{tenant}/{scope}/")
        else:
            store.store(asked, answer(f"{tenant}/{scope}/{step}"), embedding)
    assert hits > 400 and store.stats()["evicted"] > 100


@pytest.mark.parametrize(
    ("entries", "scopes", "tenants"), [(250, 1, 1), (500, 500, 1), (500, 500, 500), (500, 100, 1), (600, 1, 1)]
)
def test_used_bytes_are_about_what_it_takes(entries: int, scopes: int, tenants: int) -> None:
    """Whatever the shape: one scope of many questions, or conversations with a scope each."""
    import usearch.index  # noqa: F401  (its own memory is not the entries')

    dimensions, store = 384, SemanticStore(CacheSettings(audit=0), lambda: NOW_S)
    embeddings = np.random.default_rng(1).standard_normal((entries, dimensions)).astype("<f4")
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)

    def fill() -> None:
        for number in range(entries):
            events = (*(TextDelta(f"word {number} {i}", 1) for i in range(10)), Finish("stop"))
            kept = CachedAnswer(f"req {number}", "m", events, Usage(3, 10), 7, NOW_S, 3600.0)
            text = f"what is the number {number} good for?"
            asked = CacheKey(
                partition(f"tenant {number % tenants}", ""), f"{number:064x}", f"{number % scopes:064x}", text
            )
            store.store(asked, kept, embeddings[number].tobytes())

    tracemalloc.start()
    fill()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    indexes = [index for scopes in store.vectors._by_tenant.values() for index in scopes.values()]
    unseen = sum(index.size_bytes for index in indexes if len(index) > PROMOTE_AT)  # usearch has its own memory
    assert 0.8 < (store.stats()["used_bytes"] - unseen) / taken < 1.25
    store.reconfigure(CacheSettings(audit=0, max_bytes=0))
    assert store.stats()["used_bytes"] == 0


# ---- index ---------------------------------------------------------------------------------------------------------


def test_an_index_finds_the_nearest_while_it_grows_and_shrinks() -> None:
    rng = random.Random(3)
    index, held = ScopeIndex(DIMENSIONS), {}
    for entry_id in range(3 * PROMOTE_AT):
        held[entry_id] = unit(entry_id)
        index.add([entry_id], quantised(held[entry_id])[None])
        if rng.random() < 0.3:
            gone = rng.choice([*held])
            index.remove(gone)
            del held[gone]
        assert len(index) == len(held)
    found = 0
    for entry_id, vector in held.items():
        pairs = index.nearest(vector, 0.99)
        assert {number for _, number in index.nearest(vector, -1.0)} <= held.keys()
        found += bool(pairs) and pairs[0][1] == entry_id and pairs[0][0] == pytest.approx(1.0, abs=2e-3)
    assert found >= 0.99 * len(held)
    for entry_id in [*held]:
        index.remove(entry_id)
    assert len(index) == 0 and index.nearest(unit(1), 0.0) == []
