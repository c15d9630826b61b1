from __future__ import annotations

import pytest

from models.messages import Finish, TextDelta, Usage
from router.agreement import agree
from router.audits import MAX_PENDING, PATIENCE, Audits, Pending
from router.error_bound import NEVER, SHOWN
from router.fingerprint import partition
from router.pipeline import Options
from router.ports import CachedAnswer, CacheKey, Terms
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings
from router.verifier import Judgement

VECTOR = b"\0\0\x80?" + b"\0" * 28


def answer(name: str, text: str = "blue") -> CachedAnswer:
    return CachedAnswer(name, "m", (TextDelta(text, 1), Finish("stop")), Usage(), 0, 0.0, 1e9)


TENANT = partition("t", "")


def key(text: str, tenant: str = TENANT) -> CacheKey:
    return CacheKey(tenant, f"{tenant}|{text}", "s", text)


def store(score: float, **settings: float) -> SemanticStore:
    return SemanticStore(
        CacheSettings(ttl_s=1e9, **settings), lambda: 1.0, judge=lambda text, near: [Judgement(score) for _ in near]
    )


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("The sky is blue.", "the sky is blue", True),
        ("It is 42.", "It is 43.", False),
        ("Paris is the capital of France.", "The capital of France is Paris, a city.", True),
        ("Boil it for long.", "No cats may fly", False),
        ("one two three four", "one two five six", None),
    ],
)
def test_what_answers_say_is_compared(a: str, b: str, same: bool | None) -> None:
    assert agree(answer("a", a), answer("b", b)) is same
    assert agree(answer("b", b), answer("a", a)) is same


def test_every_hit_is_audited_where_that_is_wanted_and_the_comparison_counts() -> None:
    cache = store(0.9, audit=1.0)
    cache.store(key("one"), answer("first"), VECTOR)
    found = cache.lookup(key("two"), VECTOR)
    assert (found.kind, found.near, found.score) == ("miss", "first", 0.9)
    cache.store(key("two"), answer("second"), VECTOR)
    assert cache.audit(TENANT) | {"requests": 1, "audited": 1, "compared": 1, "other_answers": 0} == cache.audit(TENANT)


def test_an_entry_that_was_wrong_asks_for_more_from_then_on() -> None:
    cache = store(0.29, audit=0.5, min_score=0.3)
    cache.store(key("one"), answer("first"), VECTOR)
    assert cache.lookup(key("two"), VECTOR).near == "first"
    cache.compared(key("two"), False)
    cache.reconfigure(CacheSettings(ttl_s=1e9, audit=0, min_score=0.295))
    assert cache.audit(TENANT)["requests"] == 0
    cache._judge = lambda text, near: [Judgement(0.297) for _ in near]
    assert cache.lookup(key("three"), VECTOR).kind == "miss"
    cache._judge = lambda text, near: [Judgement(0.301) for _ in near]
    assert cache.lookup(key("three"), VECTOR).kind == "hit-semantic"


def test_audits_may_be_turned_off_while_one_is_under_way() -> None:
    cache = store(0.9, audit=1.0)
    cache.store(key("one"), answer("first"), VECTOR)
    assert cache.lookup(key("two"), VECTOR).kind == "miss"
    cache.reconfigure(CacheSettings(ttl_s=1e9, audit=0.0))
    cache.store(key("two"), answer("second"), VECTOR)
    assert cache.lookup(key("two")).kind == "hit-exact" and cache.audit(TENANT)["requests"] == 0


def test_without_audits_nothing_is_remembered() -> None:
    cache = store(0.2, audit=0.0)
    cache.store(key("one"), answer("first"), VECTOR)
    cache.lookup(key("two"), VECTOR)
    assert cache.audit(TENANT) == {"threshold": 0.3, "requests": 0}


def test_one_tenant_learns_nothing_from_another() -> None:
    audits = Audits(CacheSettings(audit=1.0))
    audits.compared(Pending("a", 1, 0.9), False)
    assert (audits.stats("a")["other_answers"], audits.stats("b")["requests"]) == (1, 0)


def test_who_never_compares_is_not_audited_for_long() -> None:
    audits = Audits(CacheSettings(audit=1.0), seed=1)
    assert sum(audits.draws("t", 0.9) for _ in range(100)) == PATIENCE


def test_what_waits_is_bounded() -> None:
    audits = Audits(CacheSettings())
    for number in range(MAX_PENDING + 10):
        audits.wait(str(number), Pending("t", number, 0.5))
    assert audits.totals()["audits_lost"] == 10 and audits.take("0") is None and audits.take("10") is not None


@pytest.mark.parametrize("terms", [Options(cache="only-if-cached").terms, Options(cache="no-store").terms])
def test_who_wants_no_new_answer_is_given_the_one_there_is_and_counts_for_nothing(terms: Terms) -> None:
    cache = store(0.9, audit=1.0)
    cache.store(key("one"), answer("first"), VECTOR)
    assert cache.lookup(key("two"), VECTOR, terms).kind == "hit-semantic"
    assert cache.audit(TENANT)["requests"] == 0


def test_who_allows_fewer_wrong_answers_gets_none_below_what_a_cache_for_them_begins_with() -> None:
    audits = Audits(CacheSettings(audit=0.5, delta=0.01, min_score=0.8))
    audits._bound(TENANT).threshold = 0.5
    told = [audits.threshold(TENANT, delta) for delta in (None, 0.02, 0.005, 1e-6)]
    assert told == [0.5, 0.5, 0.8, NEVER]
    audits._bound(TENANT).threshold = 0.9  # a retreat holds for all
    assert audits.threshold(TENANT, 0.005) == 0.9


SCORES = [number / 100 for number in range(1, 100)]


def hits(delta: float, asked: float | None = None, audit: float = 0.0) -> int:
    """Of a fresh cache, whose one stored question each of as many others resembles at one of `SCORES`."""
    cache = store(0.0, delta=delta, audit=audit)
    cache._judge = lambda text, near: [Judgement(float(text)) for _ in near]
    cache.store(CacheKey(TENANT, "stored", "s", "0", "spelling"), answer("first"), VECTOR)
    terms = Terms(asked, audited=False)
    found = [cache.lookup(key(str(score)), VECTOR, terms).kind for score in SCORES]
    verbatim = [CacheKey(TENANT, "stored"), CacheKey(TENANT, "other", "s", "0", "spelling")]
    assert [cache.lookup(each, VECTOR, terms).kind for each in verbatim] == ["hit-exact", "hit-semantic"]
    return found.count("hit-semantic")


@pytest.mark.parametrize("audit", [0.0, 0.05])
def test_a_fresh_cache_serves_the_fewer_the_fewer_may_be_wrong(audit: float) -> None:
    default = CacheSettings()
    assert hits(default.delta, audit=audit) == sum(score >= default.min_score for score in SCORES)
    shown = [wrong for _, wrong in SHOWN if wrong <= default.delta]
    by_setting = [hits(wrong, audit=audit) for wrong in shown]
    assert by_setting == sorted(by_setting, reverse=True) and by_setting[-1] < by_setting[0]
    assert by_setting == [hits(default.delta, wrong, audit) for wrong in shown]
    least = min(wrong for _, wrong in SHOWN)
    assert hits(least * 0.99, audit=audit) == hits(default.delta, least * 0.99, audit) == 0


def test_a_request_is_given_no_more_than_the_operator_allows() -> None:
    assert hits(0.002, 0.5) == hits(0.002)


def test_who_allows_fewer_is_no_sample_of_what_is_served() -> None:
    """Their misses were not drawn, so each stands for itself and not for twenty."""
    cache = store(0.5, audit=0.05)
    cache.store(key("one"), answer("first"), VECTOR)
    for number in range(60):
        assert cache.lookup(key(f"other {number}"), VECTOR, Terms(1e-6)).kind == "miss"
        cache.compared(key(f"other {number}"), False)
        cache._entries[next(iter(cache._entries))].least_score = 0.0
    told = cache.audit(TENANT)
    assert (told["other_answers"], told["audited"], told["retreats"]) == (60, 0, 0)
