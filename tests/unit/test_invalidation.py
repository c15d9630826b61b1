"""Answers that are to be forgotten: which are meant, who may say so, and that nothing else goes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.http_app import build_http_app
from models.catalog import ModelEntry, Price
from models.messages import Finish, TextDelta, Usage
from router.accounting.denials import Denials
from router.accounting.keys import hash_key
from router.accounting.tenants import Tenants
from router.events import AuditEntry
from router.exact_cache import ExactCache
from router.fingerprint import partition
from router.invalidation import MAX_BARS, MAX_SHOWN, Bars, Forgotten, Match, Selection, version_of
from router.ports import CachedAnswer, CacheKey
from router.scope_index import PROMOTE_AT
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings, ExactCacheSettings, IngressSettings, KeySettings
from router.topology import Topology

NOW_S = 1_800_000_000.0


def answer(name: str, model: str = "m", tags: tuple[str, ...] = ()) -> CachedAnswer:
    return CachedAnswer(name, model, (TextDelta("yes", 1), Finish("stop")), Usage(1, 1), 5, NOW_S, 3600.0, tags)


def key(name: str, org: str = "acme", namespace: str = "") -> CacheKey:
    tenant = partition(org, namespace)
    return CacheKey(tenant, f"{tenant} {name}", f"{tenant} scope", f"question {name}")


def vectors(count: int) -> np.ndarray:
    made = np.random.default_rng(3).standard_normal((count, 32)).astype("<f4")
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def store_of(*kept: tuple[CacheKey, CachedAnswer]) -> SemanticStore:
    store = SemanticStore(CacheSettings(audit=0), lambda: NOW_S, judge=lambda text, others: [])
    for each, vector in zip(kept, vectors(len(kept)), strict=True):
        store.store(*each, vector.tobytes())
    return store


SMALL = ModelEntry(name="small", engine="simulated", source="hub/small-2", context_tokens=100)

KEPT = [
    (key("a"), answer("1", "small", ("news",))),
    (key("b"), answer("2", "large", ("news", "law"))),
    (key("c", namespace="wiki"), answer("3", "small")),
    (key("d", "other"), answer("4", "small", ("news",))),
    (key("e", "acme/x"), answer("5", "small", ("news",))),
]


@pytest.mark.parametrize("count", [5, PROMOTE_AT + 5])
def test_the_very_question_is_within_1(count: int) -> None:
    store = store_of(*((key(str(number)), answer(str(number))) for number in range(count)))
    for number, vector in enumerate(vectors(count)):
        found = store.invalidate(Selection("acme", question="?", similarity=1.0), vector.tobytes())
        assert [match.answer_id for match in found] == [str(number)]


@pytest.mark.parametrize(
    ("means", "ids"),
    [
        ({}, "123"),
        ({"namespace": ""}, "12"),
        ({"namespace": "wiki"}, "3"),
        ({"model": "small"}, "13"),
        ({"tag": "news"}, "12"),
        ({"tag": "law", "model": "small"}, ""),
        ({"answer_id": "2"}, "2"),
        ({"answer_id": "4"}, ""),  # another organisation's
        ({"answer_id": "2", "namespace": "wiki"}, ""),
    ],
)
def test_what_is_meant_goes_and_nothing_else_and_never_anothers(means: dict[str, Any], ids: str) -> None:
    store, exact = store_of(*KEPT), ExactCache(ExactCacheSettings(), lambda: NOW_S)
    for each in KEPT:
        exact.put(*each)
    selection = Selection("acme", **means)
    assert {match.answer_id for match in store.invalidate(selection)} == set(ids)
    assert store.stats()["entries"] == len(KEPT)  # so far it was only asked
    store.invalidate(selection, dry_run=False)
    exact.invalidate(selection, ())
    left = {kept.answer_id for asked, kept in KEPT if store.exact(asked) is not None}
    assert left == set("12345") - set(ids) and store.stats()["invalidated"] == len(ids)
    assert {kept.answer_id for asked, kept in KEPT if exact.get(asked.exact) is not None} == left


@pytest.mark.parametrize("count", [20, PROMOTE_AT + 40])
def test_all_questions_within_a_radius_are_found_however_many_there_are(count: int) -> None:
    kept = [(key(str(n)), answer(str(n))) for n in range(count)]
    store, made = store_of(*kept), vectors(count)
    near = made @ made[7]
    for similarity in (0.2, 0.999):
        expected = {str(n) for n in np.flatnonzero(near >= similarity + 0.002)}
        possible = {str(n) for n in np.flatnonzero(near >= similarity - 0.002)}  # 16-bit floats
        found = store.invalidate(Selection("acme", question="?", similarity=similarity), made[7].tobytes())
        ids = [match.answer_id for match in found]
        assert expected <= set(ids) <= possible and ids[0] == "7"
    exact = ExactCache(ExactCacheSettings(), lambda: NOW_S)
    for each in kept:
        exact.put(*each)
    selection = Selection("acme", question="?", similarity=0.999)
    exact.invalidate(selection, Forgotten.of(store.invalidate(selection, made[7].tobytes(), dry_run=False)).exacts)
    assert exact.get(key("7").exact) is None and store.exact(key("7")) is None
    assert store.stats()["entries"] == count - 1
    assert exact.stats().entries == 0  # which were near is not known there, and the store has the others


def test_what_was_asked_before_it_was_forgotten_is_not_stored_afterwards_and_nothing_else_is_refused() -> None:
    early, late = (replace(answer("9", tags=("news",)), opened_at_unix_s=NOW_S + after) for after in (-1.0, 1.0))
    selection = Selection("acme", namespace="", tag="news", question="which is not compared")
    for asked, made, kept in [
        (key("x"), early, False),
        (key("x"), late, True),
        (key("x"), replace(early, tags=()), True),
        (key("x", namespace="wiki"), early, True),
        (key("x", "other"), early, True),
    ]:
        store, exact = store_of(), ExactCache(ExactCacheSettings(), lambda: NOW_S)
        store.invalidate(selection, vectors(1)[0].tobytes(), dry_run=False)
        exact.invalidate(selection, ())
        store.store(asked, made)
        exact.put(asked, made)
        assert (store.exact(asked) is not None, exact.get(asked.exact) is not None) == (kept, kept)


def test_of_too_many_acts_none_is_forgotten_for_what_began_before_them() -> None:
    bars = Bars()
    for number in range(MAX_BARS + 10):
        bars.add(Selection("acme", answer_id=str(number)), NOW_S + number)
    tenant = partition("acme", "")
    assert bars.against(tenant, replace(answer("0"), opened_at_unix_s=NOW_S - 1))
    assert not bars.against(tenant, replace(answer("x"), opened_at_unix_s=NOW_S + 9))
    assert bars.against(tenant, replace(answer("20"), opened_at_unix_s=NOW_S + 19))


def test_what_several_shards_say_is_one_word() -> None:
    parts = [Forgotten.of([Match("4:acme/x", f"{part}{n}", f"{n}", "m", float(n)) for n in range(80)]) for part in "ab"]
    found = Forgotten.together(parts)
    assert (found.count, len(found.exacts), len(found.shown)) == (160, 160, MAX_SHOWN)
    assert found.shown[0].created_at_unix_s == 79 and found.shown[0].namespace == "x"


class Door:
    """The HTTP door before a store in this process."""

    def __init__(self) -> None:
        scopes = {"sy-admin": ("admin",), "sy-infer": ("infer",)}
        keys = [KeySettings(sha256=hash_key(name), org="acme", scopes=each) for name, each in scopes.items()]
        keys.append(KeySettings(sha256=hash_key("sy-team"), org="acme", team="web", scopes=("admin",)))
        keys.append(KeySettings(sha256=hash_key("sy-operator"), org="default", scopes=("admin",)))
        self.store, self.log = store_of(*KEPT), list[AuditEntry]()
        tenants = Tenants(keys, IngressSettings())
        ingress = SimpleNamespace(
            pipeline=SimpleNamespace(entries={SMALL.name: SMALL}),
            tenants=tenants,
            topology=Topology(),
            embedders={},
            denials=Denials(lambda entry: None),
            shipper=SimpleNamespace(sink=self.log.append),
            invalidate_everywhere=self.invalidate,
        )
        transport = httpx.ASGITransport(app=build_http_app(ingress))  # type: ignore[arg-type]
        self.client = httpx.AsyncClient(transport=transport, base_url="http://door")

    async def invalidate(self, selection: Selection, dry_run: bool) -> Forgotten:
        return Forgotten.of(self.store.invalidate(selection, None, dry_run))

    async def ask(self, who: str = "sy-admin", **body: Any) -> httpx.Response:
        return await self.client.post("/v1/cache/invalidate", json=body, headers={"authorization": f"Bearer {who}"})


async def test_it_is_only_said_what_would_go_until_that_is_confirmed_and_then_it_is_in_the_audit_log() -> None:
    door = Door()
    told = (await door.ask(tag="news")).json()
    assert (told["count"], told["dry_run"], {each["id"] for each in told["data"]}) == (2, True, {"1", "2"})
    assert door.store.stats()["entries"] == 5 and not door.log
    assert (await door.ask(tag="news", dry_run=False)).json()["count"] == 2
    assert door.store.stats()["entries"] == 3
    (entry,) = door.log
    assert (entry.act, entry.org, entry.outcome) == ("cache.invalidate", "acme", "done")
    assert entry.detail["tag"] == "news" and entry.detail["count"] == 2


async def test_answers_of_a_model_that_was_replaced_under_its_name_go_and_those_of_no_known_version_stay() -> None:
    door, older = Door(), SMALL.model_copy(update={"source": "hub/small-1"})
    dearer = SMALL.model_copy(update={"price": Price.model_validate({"input": "1"})})
    assert version_of(older) != version_of(SMALL) == version_of(dearer)
    for number, entry in enumerate((older, SMALL, dearer)):
        made = replace(answer(f"v{number}", "small"), version=version_of(entry))
        door.store.store(key(f"v{number}"), made, vectors(1)[0].tobytes())
    told = (await door.ask(outdated=True)).json()
    assert [(each["id"], each["version"]) for each in told["data"]] == [("v0", version_of(older))]
    assert (await door.ask(version=version_of(SMALL))).json()["count"] == 2
    assert (await door.ask(outdated=True, model="small", dry_run=False)).json()["count"] == 1
    assert door.store.stats()["entries"] == 7 and door.log[0].detail["outdated"] is True
    assert not Selection("acme", version="x").whole and not Selection("acme", current=frozenset()).whole


async def test_no_question_is_in_the_audit_log() -> None:
    door = Door()
    assert (await door.ask(question="What is my secret?", dry_run=False)).status_code == 200
    assert "secret" not in str(door.log[0]) and door.log[0].detail["by_question"] is True


@pytest.mark.parametrize(
    ("who", "body", "status"),
    [
        ("sy-infer", {"all": True}, 403),
        ("sy-team", {"all": True}, 403),
        ("sy-admin", {"all": True, "org": "other"}, 403),
        ("sy-admin", {}, 400),
        ("sy-admin", {"all": True, "tag": "news"}, 400),
        ("sy-admin", {"tag": "news", "namespce": "x"}, 400),
        ("sy-admin", {"question": "x", "similarity": 0.1}, 400),
        ("sy-operator", {"all": True, "org": "other"}, 200),
    ],
)
async def test_who_may_have_whose_answers_forgotten(who: str, body: dict[str, Any], status: int) -> None:
    door = Door()
    told = await door.ask(who, **body, dry_run=False)
    assert told.status_code == status, told.text
    assert door.store.stats()["entries"] == (4 if status == 200 else 5)
