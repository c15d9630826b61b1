"""Random organisations ask random questions, many of them the same ones, at random ingresses and at once: no cache,
answer under way, limit, sum, receipt, feedback, experiment, file or batch of one is ever another's. What another has
cached takes as long as what nobody has.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import NotFound
from router.archive.archive import Archive
from router.archive.responses import StoredResponse
from router.events import Record, RequestClosed, as_json
from router.fingerprint import partition
from router.ports import CachedAnswer, CacheKey, Lookup, Terms
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings, IngressSettings, RoutingSettings
from router.trial_settings import ExperimentSettings
from tests.unit.test_admin_api import Cluster, cluster_in
from tests.unit.test_cache import Clock, answer
from tests.unit.test_coalescing import Peers
from tests.unit.test_data_api import _ingress_of

EXAMPLES = int(os.environ.get("EXAMPLES", "6"))
PER_MINUTE = 6
"""Requests that the first organisation may make."""
FORMS = ("What is the {}?", "what is the {} ?", "Please say: what is the {}?")
KINDS = ("chat",) * 6 + ("together",) * 2 + ("receipt", "feedback", "file", "usage")

# Of few letters, so that some are others' beginnings, or the same but for a letter's case.
ORGS = st.lists(st.from_regex(r"[aA1][aA1._-]{0,4}", fullmatch=True), min_size=3, max_size=5, unique=True)
TEXTS = st.builds(
    lambda topic, others: [*(form.format(topic) for form in FORMS), *others],
    st.sampled_from(("capital of France", "colour of the sky", "height of Everest")),
    st.lists(st.text(min_size=1, max_size=60), max_size=3),
)
NAMES = st.lists(st.text("ab:/\0 1", max_size=6), min_size=2, max_size=2, unique=True)
"""Of users and namespaces: all organisations have the same ones."""


@dataclass(frozen=True)
class Step:
    """What an organisation does, each as a number that counts from the beginning again."""

    kind: str
    org: int
    other: int
    text: int
    name: int
    door: int


STEPS = st.lists(
    st.builds(Step, st.sampled_from(KINDS), *[st.integers(0, 5) for _ in range(5)]), min_size=30, max_size=60
)


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

    def __init__(self, cluster: Cluster, archive: Keeper, keys: dict[str, str], texts: list[str], names: list[str]):
        self.cluster, self.archive, self.keys, self.orgs = cluster, archive, keys, list(keys)
        self.texts, self.names = texts, names
        self.ids: dict[str, list[str]] = defaultdict(list)
        self.files: dict[str, list[str]] = defaultdict(list)
        self.batches: dict[str, list[str]] = defaultdict(list)
        self.judged: dict[str, set[str]] = defaultdict(set)
        self.whose: dict[str, str] = {}
        """Every answer is another one, so who has the same had it from the first."""
        self.cost: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    async def take(self, step: Step) -> None:
        org, other = (self.orgs[n % len(self.orgs)] for n in (step.org, step.other))
        text, name = self.texts[step.text % len(self.texts)], self.names[step.name % len(self.names)]
        match step.kind:
            case "chat":
                await self.chat(org, text, name, step.door)
            case "together":
                asked = [each for each in self.orgs[1:] for _ in range(2)]
                text = f"{text} {len(self.whose)}"  # which nobody has asked before
                await asyncio.gather(*(self.chat(each, text, name, step.door + n) for n, each in enumerate(asked)))
            case "file":
                await self.file(org, other, step.door)
            case _:
                await getattr(self, step.kind)(org, other, step.door)

    async def ask(self, method: str, path: str, org: str, door: int, **body: Any) -> httpx.Response:
        found = await self.cluster.ingresses[door % 3].ask(method, path, self.keys[org], **body)
        self.refused[org] += found.status_code == 429
        return found

    async def chat(self, org: str, text: str, name: str, door: int) -> None:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], "user": name}
        body["switchyard"] = {"namespace": name}
        found = await self.ask("POST", "/v1/chat/completions", org, door, **body)
        if found.status_code == 429:
            return
        assert found.status_code == 200, found.text
        said, request_id = found.json()["choices"][0]["message"]["content"], found.headers["x-switchyard-request-id"]
        assert self.whose.setdefault(said, org) == org, "an answer of another organisation"
        self.ids[org].append(request_id)

    async def receipt(self, org: str, other: str, door: int) -> None:
        """One's own is there, another's is as one that never was, and takes no word."""
        for request_id in self.ids[other][-1:]:
            found = await self.ask("GET", f"/v1/receipts/{request_id}", org, door)
            if org == other:
                assert found.status_code == 429 or found.json()["request_id"] == request_id
                continue
            never = await self.ask("GET", "/v1/receipts/req_never", org, door)
            said = await self.ask("POST", "/v1/feedback", org, door, request_id=request_id, score=0.0)
            assert {found.status_code, never.status_code, said.status_code} <= {404, 429}
            assert 429 in (found.status_code, never.status_code) or _message(found) == _message(never)

    async def feedback(self, org: str, other: str, door: int) -> None:
        for request_id in self.ids[org][-1:]:
            said = await self.ask("POST", "/v1/feedback", org, door, request_id=request_id, score=1.0)
            if said.status_code == 200:
                self.judged[org].add(request_id)

    async def usage(self, org: str, other: str, door: int) -> None:
        found = await self.ask("GET", "/v1/usage", org, door)
        assert found.status_code == 429 or found.json()["total"]["requests"] == len(self.ids[org])
        for path in (f"/v1/usage?org={other}", "/v1/usage?org=*", "/v1/experiments", "/v1/experiments/x"):
            if org != other or other not in path:
                assert (await self.ask("GET", path, org, door)).status_code in (403, 429)

    async def file(self, org: str, owner: str, door: int) -> None:
        file_id, _ = await self.archive.begin_file(org)
        await self.archive.append_file(file_id, f"secret of {org}".encode())
        await self.archive.finish_file(file_id, f"{org}.jsonl", "batch")
        self.files[org].append(file_id)
        for wanted in self.files[owner][-1:]:
            content = await self.ask("GET", f"/v1/files/{wanted}/content", org, door)
            batch = {"input_file_id": wanted, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            made = await self.ask("POST", "/v1/batches", org, door, **batch)
            if org == owner:
                assert content.status_code == 429 or content.text == f"secret of {org}"
                self.batches[org] += [made.json()["id"]] if made.status_code == 200 else []
                continue
            others = [await self.ask("GET", f"/v1/batches/{name}", org, door) for name in self.batches[owner][-1:]]
            others.append(await self.ask("DELETE", f"/v1/files/{wanted}", org, door))
            assert {each.status_code for each in (content, made, *others)} <= {404, 429}

    # ---- in the end ----------------------------------------------------------------------------------------------

    def check_receipts(self) -> None:
        for org, ids in self.ids.items():
            for request_id in ids:
                receipt = self.cluster.books._store.receipt(org, request_id)
                assert receipt is not None and receipt["org"] == org
                assert receipt["cached_from"] is None or receipt["cached_from"] in ids
                self.seen[receipt["cache_verdict"]] += 1
                self.cost[org] += receipt["cost_microusd"]

    def check_experiments(self) -> None:
        """No two organisations' users are one unit, though they have the same names."""
        outcomes = self.cluster.books._store._file.reader.execute("SELECT DISTINCT unit, org FROM experiment_outcomes")
        units = Counter(unit for unit, _ in outcomes)
        assert max(units.values(), default=1) == 1

    async def check(self, org: str) -> None:
        rows = (await self.ask("GET", "/v1/usage?group_by=user", org, 0)).json()
        if "data" in rows:
            assert {row["user"] for row in rows["data"]} <= {name.replace("\0", "?") for name in self.names}
            assert rows["total"]["requests"] == len(self.ids[org])
            assert rows["total"]["cost_microusd"] == self.cost[org]
        assert sum(row["count"] for row in await self.cluster.books.feedback(org, "model")) == len(self.judged[org])
        assert {file.file_id for file in await self.archive.list_files(org, None)} == set(self.files[org])
        assert {each["id"] for each in await self.archive.list_batches(org, 99, None)} == set(self.batches[org])
        budget = (await self.ask("GET", "/v1/budget", org, 0)).json()["data"]
        assert [entry["org"] for entry in budget] == [org] * (org == self.orgs[0])


def _message(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


@asynccontextmanager
async def crowd_of(orgs: list[str], texts: list[str], names: list[str]) -> AsyncIterator[Crowd]:
    experiment = ExperimentSettings.model_validate({"arms": {"one": {}, "other": {}}, "by": "user"})
    routing = IngressSettings(routing=RoutingSettings(experiments={"x": experiment}))
    with tempfile.TemporaryDirectory() as scratch:
        async with cluster_in(Path(scratch), routing, ttft_ms=2.0, output_tokens=2, stamped=True) as cluster:
            archive, first = await Keeper.open(Path(scratch) / "archive"), cluster.ingresses[0]
            assert isinstance(archive, Keeper)
            _join(cluster, archive)
            keys = {}
            for org in orgs:
                await first.done("PUT", f"/v1/admin/orgs/{org}")
                keys[org] = (await first.done("POST", "/v1/admin/keys", org=org, scopes=["infer", "usage"]))["key"]
            await first.done("POST", "/v1/admin/policies", org=orgs[0], unit="requests", amount=PER_MINUTE)
            try:
                yield Crowd(cluster, archive, keys, texts, names)
            finally:
                await archive.close()


def _join(cluster: Cluster, archive: Keeper) -> None:
    """One shared cache, one archive and one ledger for all ingresses, which read along with each other."""
    shared, pipelines = Shared(), {}
    for number, one in enumerate(cluster.ingresses):
        ingress, name = _ingress_of(one.client._transport.app), f"i{number}"

        def sink(record: Record, holder: str = name) -> None:
            if isinstance(record, RequestClosed):
                cluster.books._store.ingest(holder, [json.loads(json.dumps(as_json(record)))])

        async def receipt(org: str, request_id: str) -> dict[str, Any]:
            found = cluster.books._store.receipt(org, request_id)
            if found is None:
                raise NotFound("No receipt with this id.")
            return found

        pipeline = pipelines[name] = ingress.pipeline
        pipeline.name, pipeline.stages.peers, pipeline.stages.semantic_cache = name, Peers(name, pipelines), shared
        pipeline.stages.sinks.append(sink)
        vars(ingress).update(archive=archive, receipt=receipt, feedback=cluster.books.keep_feedback)
        ingress.ledger.feedback = cluster.books.feedback


async def acted(orgs: list[str], texts: list[str], names: list[str], steps: list[Step]) -> Crowd:
    async with crowd_of(orgs, texts, names) as crowd:
        for step in steps:
            await crowd.take(step)
        crowd.check_receipts()
        crowd.check_experiments()
        for org in orgs:
            await crowd.check(org)
    assert set(+crowd.refused) <= {orgs[0]}, crowd.refused  # one's limit is nobody else's
    assert len(crowd.ids[orgs[0]]) <= PER_MINUTE
    return crowd


def test_nothing_of_one_organisation_is_anothers() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(orgs=ORGS, texts=TEXTS, names=NAMES, steps=STEPS)
    def one(orgs: list[str], texts: list[str], names: list[str], steps: list[Step]) -> None:
        seen.update(asyncio.run(acted(orgs, texts, names, steps)).seen)

    one()
    assert {"miss", "hit-exact", "hit-semantic", "coalesced"} <= seen.keys(), seen


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
        for each in caches:  # what is worked out of a question once would make the first of the two the slower one
            each.store_.lookup(key, embedding)
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
