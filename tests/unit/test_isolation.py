"""Random organisations ask random questions, many of them the same ones, at random ingresses: no cache, limit, sum,
receipt, feedback, file or batch of one is ever another's. What another has cached takes as long as what nobody has.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import NotFound
from router.archive.archive import Archive
from router.archive.responses import StoredResponse
from router.events import Record, RequestClosed, as_json
from router.fingerprint import partition
from router.ports import CachedAnswer, CacheKey, Lookup, Terms
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings
from tests.unit.test_admin_api import Cluster, Ingress, cluster
from tests.unit.test_cache import Clock, answer
from tests.unit.test_data_api import _ingress_of

__all__ = ["cluster"]

ORGS = ("acme", "acme-1", "acme.1", "Acme", "acm", "e")
LIMITED, PER_MINUTE = "acm", 12
TOPICS = ("capital of France", "colour of the sky", "height of Everest", "author of Hamlet", "boiling point of water")
FORMS = ("What is the {}?", "Tell me the {}.", "what is the {} ?", "Please say: what is the {}?", "the {}, please")
STEPS = 260


class Shared:
    """A shared cache, over the real store, for all ingresses. Texts with the same words are near each other."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.store_ = SemanticStore(CacheSettings(audit=0.0, min_score=0.0), clock)

    def embed(self, text: str) -> bytes:
        words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
        vectors = [np.random.default_rng(sum(map(ord, word)) * 7919 + len(word)).standard_normal(64) for word in words]
        summed = np.sum(vectors, axis=0) if vectors else np.ones(64)
        found: bytes = (summed / np.linalg.norm(summed)).astype("<f4").tobytes()
        return found

    async def lookup(self, key: CacheKey, terms: Terms) -> Lookup:
        return self.store_.lookup(key, self.embed(key.text) if key.scope else None, terms)

    async def store(self, key: CacheKey, answer: CachedAnswer, embedding: bytes | None) -> bool:
        self.store_.store(key, answer, embedding or (self.embed(key.text) if key.scope else None))
        return True

    async def release(self, key: CacheKey, claimant: str) -> None:
        self.store_.release(key, claimant)


class Keeper(Archive):
    def store(self, org: str, response: StoredResponse) -> None: ...


class Crowd:
    """What each organisation did, as it knows it itself."""

    def __init__(self, cluster: Cluster, keys: dict[str, str], chance: random.Random) -> None:
        self.cluster, self.keys, self.chance = cluster, keys, chance
        self.ids: dict[str, list[str]] = defaultdict(list)
        self.files: dict[str, list[str]] = defaultdict(list)
        self.batches: dict[str, list[str]] = defaultdict(list)
        self.judged: dict[str, set[str]] = defaultdict(set)
        self.cost: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    async def ask(self, method: str, path: str, org: str, **body: Any) -> Any:
        ingress: Ingress = self.chance.choice(self.cluster.ingresses)
        answer = await ingress.ask(method, path, self.keys[org], **body)
        if answer.status_code == 429:
            self.refused[org] += 1
        return answer

    async def chat(self, org: str) -> None:
        text = self.chance.choice(FORMS).format(self.chance.choice(TOPICS))
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], "user": f"u-{org}"}
        answer = await self.ask("POST", "/v1/chat/completions", org, **body)
        if answer.status_code == 429:
            return
        assert answer.status_code == 200, answer.text
        request_id = answer.headers["x-switchyard-request-id"]
        receipt = self.cluster.books._store.receipt(org, request_id)
        assert receipt is not None and receipt["org"] == org
        self.seen[receipt["cache_verdict"]] += 1
        if receipt["cached_from"] is not None:
            assert receipt["cached_from"] in self.ids[org], (org, receipt["cached_from"])
        self.ids[org].append(request_id)
        self.cost[org] += receipt["cost_microusd"]

    async def receipt(self, org: str) -> None:
        """Anybody's: one's own is there, another's is as one that never was."""
        owner = self.chance.choice([each for each in self.ids if self.ids[each]] or [org])
        for request_id in self.ids[owner][-1:]:
            answer = await self.ask("GET", f"/v1/receipts/{request_id}", org)
            never = await self.ask("GET", "/v1/receipts/req_never", org)
            if 429 in (answer.status_code, never.status_code):
                return
            if owner == org:
                assert answer.json()["request_id"] == request_id
            else:
                assert (answer.status_code, _message(answer)) == (404, _message(never))
                said = await self.ask("POST", "/v1/feedback", org, request_id=request_id, score=0.0)
                assert said.status_code in (404, 429)

    async def feedback(self, org: str) -> None:
        for request_id in self.ids[org][-1:]:
            if (await self.ask("POST", "/v1/feedback", org, request_id=request_id, score=1.0)).status_code == 200:
                self.judged[org].add(request_id)

    async def file(self, org: str) -> None:
        archive = self.archive
        file_id, _ = await archive.begin_file(org)
        await archive.append_file(file_id, f"secret of {org}".encode())
        await archive.finish_file(file_id, f"{org}.jsonl", "batch")
        self.files[org].append(file_id)
        owner = self.chance.choice(list(self.files))
        wanted = self.files[owner][-1]
        content = await self.ask("GET", f"/v1/files/{wanted}/content", org)
        batch = {"input_file_id": wanted, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        if owner == org:
            assert content.status_code == 429 or content.text == f"secret of {org}"
            made = await self.ask("POST", "/v1/batches", org, **batch)
            self.batches[org] += [made.json()["id"]] if made.status_code == 200 else []
        else:
            gone = [
                await self.ask("DELETE", f"/v1/files/{wanted}", org),
                await self.ask("POST", "/v1/batches", org, **batch),
            ]
            gone += [await self.ask("GET", f"/v1/batches/{name}", org) for name in self.batches[owner][-1:]]
            assert {each.status_code for each in (content, *gone)} <= {404, 429}

    @property
    def archive(self) -> Keeper:
        keeper: Keeper = _ingress_of(self.cluster.ingresses[0].client._transport.app).archive
        return keeper


def _message(answer: Any) -> str:
    return str(answer.json()["error"]["message"])


@pytest.fixture
async def crowd(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Crowd]:
    shared, archive, first = Shared(), await Keeper.open(tmp_path / "archive"), cluster.ingresses[0]
    assert isinstance(archive, Keeper)

    for number, one in enumerate(cluster.ingresses):
        ingress = _ingress_of(one.client._transport.app)

        def sink(record: Record, holder: str = f"i{number}") -> None:
            if isinstance(record, RequestClosed):
                cluster.books._store.ingest(holder, [json.loads(json.dumps(as_json(record)))])

        async def receipt(org: str, request_id: str) -> dict[str, Any]:
            found = cluster.books._store.receipt(org, request_id)
            if found is None:
                raise NotFound("No receipt with this id.")
            return found

        ingress.pipeline.stages.sinks.append(sink)
        ingress.pipeline.stages.semantic_cache = shared
        vars(ingress).update(archive=archive, receipt=receipt, feedback=cluster.books.keep_feedback)
        ingress.ledger.feedback = cluster.books.feedback
    keys = {}
    for org in ORGS:
        await first.done("PUT", f"/v1/admin/orgs/{org}")
        made = await first.done("POST", "/v1/admin/keys", org=org, scopes=["infer", "usage"])
        keys[org] = made["key"]
    await first.done("POST", "/v1/admin/policies", org=LIMITED, unit="requests", amount=PER_MINUTE)
    yield Crowd(cluster, keys, random.Random(20))
    await archive.close()


async def test_nothing_of_one_organisation_is_anothers(crowd: Crowd) -> None:
    chance = crowd.chance
    for _ in range(STEPS):
        what = chance.choices((crowd.chat, crowd.receipt, crowd.feedback, crowd.file), (12, 2, 1, 1))[0]
        await what(chance.choice(ORGS))
    assert crowd.seen["hit-exact"] > 20 and crowd.seen["hit-semantic"] > 0 and crowd.seen["miss"] > 20, crowd.seen
    assert set(crowd.refused) == {LIMITED}, crowd.refused  # one's limit is nobody else's
    assert len(crowd.ids[LIMITED]) <= PER_MINUTE
    for org in ORGS:
        rows = await crowd.cluster.books.usage(org, 0, 2**50, ("user",))
        assert [row["user"] for row in rows if row["requests"]] == [f"u-{org}"] * bool(crowd.ids[org])
        assert sum(row["requests"] for row in rows) == len(crowd.ids[org])
        assert sum(row["cost_microusd"] for row in rows) == crowd.cost[org]
        assert sum(row["count"] for row in await crowd.cluster.books.feedback(org, "model")) == len(crowd.judged[org])
        assert {file.file_id for file in await crowd.archive.list_files(org, None)} == set(crowd.files[org])
        assert {each["id"] for each in await crowd.archive.list_batches(org, 99, None)} == set(crowd.batches[org])
        if org != LIMITED:
            budget = (await crowd.ask("GET", "/v1/budget", org)).json()["data"]
            assert all(entry["org"] == org for entry in budget)


def test_what_another_organisation_has_in_the_cache_takes_as_long_as_what_nobody_has() -> None:
    """Two caches in which the other organisation has asked different questions of one kind: each question is looked up
    in both, one of which has it as the other's."""
    chance, texts = random.Random(3), [f"what is the price of item {n * 37} in store {n}" for n in range(180)]
    chance.shuffle(texts)
    mine, first, second = texts[:60], texts[60:120], texts[120:]
    caches = Shared(Clock()), Shared(Clock())
    for shared, theirs in zip(caches, (first, second), strict=True):
        for org, asked in (("acme", mine), ("globex", theirs)):
            for text in asked:
                shared.store_.store(_key(org, text), answer(f"{org}-{text}"), shared.embed(text))
    ratios = []
    for turn in range(400):
        text = chance.choice((first, second)[turn % 2])
        key, embedding = _key("acme", text), caches[0].embed(text)
        took = {}
        for which in chance.sample((0, 1), 2):
            began = time.thread_time_ns()
            found = caches[which].store_.lookup(key, embedding)
            took[which == turn % 2] = time.thread_time_ns() - began
            assert found.answer is None or found.answer.answer_id.startswith("acme-")
        ratios.append(took[True] / took[False])
    assert 0.9 < statistics.median(ratios) < 1.1


def _key(org: str, text: str) -> CacheKey:
    tenant = partition(org, "")
    return CacheKey(tenant, f"{tenant}|{text}", "s", text)
