"""Stored answers taken to a file and brought from one: who finds them again, and that nothing is believed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from deployments.cache_transfer_api import TakingIn
from deployments.http_app import build_http_app
from deployments.openai.chat_schema import parse_chat
from models.catalog import ModelEntry, Price
from models.errors import ModelUnavailable
from models.messages import Finish, TextDelta, ToolCallDelta, Usage
from router.accounting.denials import Denials
from router.accounting.keys import hash_key
from router.accounting.prices import PriceBook
from router.accounting.tenants import Tenants
from router.cache_transfer import TakenIn, answer_line, read_answer
from router.events import AuditEntry
from router.exact_cache import ExactCache
from router.fingerprint import fingerprint, partition
from router.invalidation import Selection
from router.ports import CachedAnswer, CacheKey
from router.semantic_cache import SemanticStore
from router.settings import CacheSettings, ExactCacheSettings, IngressSettings, KeySettings, TenantSettings
from router.topology import Topology

NOW_S = 1_800_000_000.0
SETTINGS = IngressSettings(exact_cache=ExactCacheSettings(ttl_s=1e8), tenants={"none": TenantSettings(cache_ttl_s=0)})
PRICE = Price.model_validate({"input": "1", "output": "2"})
MODELS = [ModelEntry(name="m", engine="simulated", context_tokens=1000, price=PRICE)]


def key(text: str, org: str = "acme", namespace: str = "", **body: Any) -> CacheKey:
    asked = parse_chat({"model": "m", "messages": [{"role": "user", "content": text}], **body})
    found = fingerprint(asked.request, org, namespace, SETTINGS)
    assert found is not None
    return found.key(SETTINGS)


def answer(name: str, age_s: float = 10.0, **changes: Any) -> CachedAnswer:
    events = (TextDelta(f"this is {name} \ud800", 3), Finish("stop"))
    made_s = NOW_S - age_s
    return replace(CachedAnswer(name, "m", events, Usage(1, 2), 5, made_s, 3600.0, ("tag",), made_s - 1), **changes)


class Shard:
    """The shared cache, in this process and without an encoder."""

    def __init__(self, *kept: tuple[CacheKey, CachedAnswer]) -> None:
        self.store = SemanticStore(CacheSettings(audit=0, ttl_s=1e8), lambda: NOW_S, judge=lambda text, others: [])
        self.breaks_after = 10**9
        for each in kept:
            self.store.store(*each)

    async def answers(self, selection: Selection) -> AsyncIterator[list[tuple[CacheKey, CachedAnswer]]]:
        for count, number in enumerate(self.store.meant(selection)):
            if count >= self.breaks_after:
                raise ModelUnavailable("The shard is down; try again.")
            yield [(record.key, record.answer) for record in self.store.records([number])]

    async def take_in(self, answers: Sequence[tuple[CacheKey, CachedAnswer]], dry_run: bool) -> list[TakenIn]:
        if len(self.store.entry_ids()) > self.breaks_after:
            raise ModelUnavailable("The shard is down; try again.")
        return [self.store.take_in(*each, None, dry_run) for each in answers]


class Door:
    """The HTTP door before a `Shard`."""

    def __init__(self, *kept: tuple[CacheKey, CachedAnswer]) -> None:
        scopes = {"sy-acme": "acme", "sy-other": "other", "sy-none": "none", "sy-operator": "default"}
        keys = [KeySettings(sha256=hash_key(name), org=org, scopes=("admin",)) for name, org in scopes.items()]
        keys.append(KeySettings(sha256=hash_key("sy-infer"), org="acme", scopes=("infer",)))
        keys.append(KeySettings(sha256=hash_key("sy-team"), org="acme", team="web", scopes=("admin",)))
        self.shard, self.log = Shard(*kept), list[AuditEntry]()
        self.ingress = SimpleNamespace(
            pipeline=SimpleNamespace(
                settings=SETTINGS, prices=PriceBook(MODELS, {}, {}), entries={entry.name: entry for entry in MODELS}
            ),
            tenants=Tenants(keys, SETTINGS),
            topology=Topology(max_body_bytes=20_000),
            embedders={},
            denials=Denials(lambda entry: None),
            shipper=SimpleNamespace(sink=self.log.append),
            shared_cache=self.shard,
        )
        transport = httpx.ASGITransport(app=build_http_app(self.ingress))  # type: ignore[arg-type]
        self.client = httpx.AsyncClient(transport=transport, base_url="http://door")

    async def export(self, who: str = "sy-acme", **params: str) -> httpx.Response:
        return await self.client.get("/v1/cache/export", params=params, headers={"authorization": f"Bearer {who}"})

    async def take_in(self, body: bytes | list[Any], who: str = "sy-acme", **params: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else b"\n".join(json.dumps(line).encode() for line in body)
        headers = {"authorization": f"Bearer {who}"}
        return await self.client.post("/v1/cache/import", params=params, content=content, headers=headers)

    def found(self, asked: CacheKey) -> CachedAnswer | None:
        found = self.shard.store.exact(asked)
        return found.answer if found is not None else None


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(time=lambda: NOW_S)
    monkeypatch.setattr("deployments.cache_transfer_api.time", clock)
    monkeypatch.setattr("deployments.openai.recorded.time", clock)


KEPT = [
    (key("What is a ledger?"), answer("1")),
    (key("What is a ledger?", namespace="wiki"), answer("2")),
    (key("What is a ledger?", "other"), answer("3")),
    (key("What is the latest ledger?"), answer("4")),  # only for the very question
]


async def test_what_was_taken_out_is_found_in_another_cache_by_the_same_organisation_as_it_was() -> None:
    source, target = Door(*KEPT), Door()
    taken = await source.export()
    lines = taken.text.splitlines()
    assert (len(lines), json.loads(lines[-1])) == (5, {"object": "cache.export.end", "count": 3})
    dry = (await target.take_in(taken.content, dry_run="true")).json()
    assert (dry["kept"], dry["dry_run"], target.shard.store.stats()["entries"]) == (3, True, 0)
    told = (await target.take_in(taken.content)).json()
    assert (told["kept"], told["complete"], told["errors"]) == (3, True, [])
    for asked, made in KEPT:
        assert target.found(asked) == (made if asked.tenant.startswith("4:acme") else None)
    again = (await target.take_in(taken.content)).json()
    assert (again["kept"], again["held"]) == (0, 3)
    assert [entry.act for entry in source.log + target.log] == ["cache.export", "cache.import", "cache.import"]
    assert "ledger" not in str(source.log + target.log)


async def test_a_namespace_alone_and_the_operator_for_any_organisation() -> None:
    door = Door(*KEPT)
    assert (await door.export(namespace="wiki")).text.count("cache.answer") == 1
    assert (await door.export("sy-operator", org="other")).text.count("cache.answer") == 1
    assert (await door.export("sy-operator")).text.count("cache.answer") == 0


@pytest.mark.parametrize("who", ["sy-infer", "sy-team", "sy-other"])
async def test_nobody_else_takes_or_brings_answers(who: str) -> None:
    door = Door(*KEPT)
    for told in (await door.export(who, org="acme"), await door.take_in(b"", who, org="acme")):
        assert told.status_code == 403 and "ledger" not in told.text


async def test_what_one_organisation_brings_reaches_no_other_whatever_its_file_says() -> None:
    """A file of another's answers, and one that names another's partition wherever it may."""
    taken = (await Door(*KEPT).export()).text.splitlines()
    planted = json.loads(taken[1])
    for line in (
        {**planted, "org": "acme"},
        {**planted, "tenant": "4:acme/"},
        {**planted, "key": {**planted["key"], "tenant": "4:acme/"}},
    ):
        assert (await Door().take_in([line], "sy-other")).json()["invalid"] == 1
    door = Door()
    assert (await door.take_in("\n".join(taken).encode(), "sy-other")).json()["kept"] == 3
    for name in door.shard.store._partitions:
        assert name.startswith("5:other/")
    assert all(door.found(asked) is None for asked, _ in KEPT)
    sneaky = (await door.take_in([{**planted, "namespace": "x/4:acme/"}], "sy-other")).json()
    assert sneaky["kept"] == 1 and all(door.found(asked) is None for asked, _ in KEPT)


async def test_the_rules_of_the_cache_hold_for_what_is_brought() -> None:
    door = Door()
    door.shard.store.invalidate(Selection("acme", tag="prices"), dry_run=False)
    cases = {
        "expired": answer("1", age_s=4000.0),
        "refused": answer("2", events=(TextDelta("cut sho", 1),)),
        "forgotten": answer("3", tags=("prices",)),
        "not_served": answer("4", model="elsewhere"),
        "kept": answer("5", created_at_unix_s=NOW_S + 1e6, ttl_s=1e12),
    }
    lines = [answer_line(key(name), made) for name, made in cases.items()]
    told = (await door.take_in(b"".join(lines))).json()
    assert {name: told[name] for name in cases} == dict.fromkeys(cases, 1)
    kept = door.found(key("kept"))
    assert kept is not None and (kept.created_at_unix_s, kept.ttl_s) == (NOW_S, 1e8)  # no longer than any other
    assert (await door.take_in(lines[0], "sy-none")).status_code == 400
    line = answer_line(key("dear"), answer("7", cost_microusd=10**18))  # it would stay while all others go
    assert (await door.take_in(line)).json()["kept"] == 1
    dear = door.found(key("dear"))
    assert dear is not None and dear.cost_microusd == 1000 + 2 * (len(line) - 1)
    older = (await door.take_in(answer_line(key("kept"), answer("6", age_s=20.0)))).json()
    assert older["held"] == 1


_GOOD = json.loads(answer_line(*KEPT[0]))


def changed(**changes: Any) -> dict[str, Any]:
    return {**_GOOD, "answer": {**_GOOD["answer"], **changes}}


@pytest.mark.parametrize(
    "line",
    [
        {},
        [],
        5,
        {"object": "cache.answer"},
        {**_GOOD, "key": {**_GOOD["key"], "exact": "x"}},
        {**_GOOD, "key": {**_GOOD["key"], "scope": None}},
        {**_GOOD, "key": {**_GOOD["key"], "text": "x" * 5000}},
        {**_GOOD, "namespace": "x" * 129},
        {**_GOOD, "namespace": 5},
        changed(events=[["text", "one"]]),
        changed(events=[[5, 1]]),
        changed(events=[["a", 1, [], "0"]]),
        changed(events=["text"]),
        changed(events=None),
        changed(events=[{"": "Finish", "reason": "whenever"}]),
        changed(events=[{"": "ToolCallDelta", "index": 0, "arguments": {"a": 1}}]),
        changed(events=[{"": "UsageReport", "usage": {"": "Finish", "reason": "stop"}}]),
        changed(events=[{"": "TextDelta", "text": "a", "logprobs": {"": "tuple", "of": [1]}}]),
        changed(events=[{"": "__import__"}]),
        changed(events=[{"": "bytes", "hex": "zz"}]),
        changed(usage={"": "Usage", "input_tokens": -1}),
        changed(usage=None),
        changed(cost_microusd="5"),
        changed(cost_microusd=-5),
        changed(usage={"": "Usage", "input_tokens": 2**62}),
        changed(ttl_s="NaN"),
        changed(tags=["t"] * 17),
        changed(tags=[5]),
        changed(model="x" * 300),
        changed(model=None),
        changed(unknown=1),
        {"request": {}, "response": {}},
        {
            "request": {"model": "m", "messages": [{"role": "user", "content": "a"}]},
            "response": {
                "model": "m",
                "choices": [{"message": {"content": "b"}}],
                "usage": {"prompt_tokens": 10**400, "completion_tokens": 1},
            },
        },
        {"request": 5, "response": {}},
        {"request": {"model": "m", "messages": []}, "response": {}},
        {"request": {"model": "m", "messages": [{"role": "user", "content": "a"}]}, "response": {"model": "m"}},
    ],
)
async def test_what_is_no_answer_is_named_by_its_line_and_the_others_are_taken(line: Any) -> None:
    door = Door()
    told = (await door.take_in([line, _GOOD])).json()
    assert (told["invalid"], told["kept"]) == (1, 1), told
    assert told["errors"][0]["line"] == 1 and told["complete"] is None


@pytest.mark.parametrize("body", [b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"NaN\n", b"{\n"])
async def test_what_is_no_json_is_no_answer_either(body: bytes) -> None:
    told = await Door().take_in(body + answer_line(*KEPT[0]))
    if len(body) > 20_000:
        assert told.status_code == 400 and "20000 bytes" in told.text
    else:
        assert (told.json()["invalid"], told.json()["kept"]) == (1, 1)


async def test_a_number_that_is_none_is_refused_where_json_has_it() -> None:
    line = json.dumps(changed(ttl_s=float("nan"), created_at_unix_s=float("inf"))).encode()
    assert (await Door().take_in(line)).json()["invalid"] == 1


async def test_a_file_of_another_version_is_refused_as_a_whole_and_a_torn_one_is_said_to_be_one() -> None:
    taken = (await Door(*KEPT).export()).content
    told = await Door().take_in(taken.replace(b'"version": 1', b'"version": 2'))
    assert told.status_code == 400 and "version" in told.text
    torn = (await Door().take_in(b"\n".join(taken.splitlines()[:2]))).json()
    assert (torn["kept"], torn["complete"]) == (1, False)
    short = b"\n".join([*taken.splitlines()[:2], taken.splitlines()[-1]])
    assert (await Door().take_in(short)).json()["complete"] is False


async def test_a_shard_that_is_down_ends_an_export_without_its_end_and_an_import_with_how_far_it_came() -> None:
    door = Door(*KEPT)
    door.shard.breaks_after = 1
    last = json.loads((await door.export()).text.splitlines()[-1])
    assert last["object"] == "error" and door.log[-1].detail["whole"] is False
    target = Door()
    target.shard.breaks_after = 40
    many = [answer_line(key(f"question number {n}"), answer(str(n))) for n in range(100)]
    told = await target.take_in(b"".join(many))
    assert told.status_code == 503 and "64 answers were kept" in told.text
    assert target.log[-1].detail["kept"] == 64


def exchange(text: str, said: str, **response: Any) -> dict[str, Any]:
    """As a log of OpenAI's API has it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": said, "refusal": None}, "finish_reason": "stop"}
    return {
        "request": {"model": "m", "messages": [{"role": "user", "content": text}]},
        "response": {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "m-2026",
            "choices": [choice],
            **response,
        },
    }


async def test_questions_with_their_answers_warm_a_cache() -> None:
    door = Door()
    faq = exchange(
        "What is a ledger?", "A book.", usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    )
    tagged = exchange("What is a journal?", "Another book.")
    tagged["request"]["switchyard"] = {"tags": ["faq"], "namespace": "wiki"}
    told = (await door.take_in([faq, tagged])).json()
    assert (told["kept"], told["errors"]) == (2, [])
    found = door.found(key("What is a ledger?"))
    assert found is not None and (found.completion.text, found.usage, found.model) == ("A book.", Usage(3, 2), "m")
    assert door.found(key("please, what is a LEDGER")) == found and found.created_at_unix_s == NOW_S
    other = door.found(key("What is a journal?", namespace="wiki"))
    assert other is not None and other.tags == ("faq",)
    assert door.found(key("What is a ledger?", "other")) is None


async def test_of_questions_with_their_answers_those_are_kept_that_would_have_been() -> None:
    cut, filtered, cold = (exchange(text, "A book.") for text in ("cut", "filtered", "cold"))
    cut["response"]["choices"][0]["finish_reason"] = "length"
    filtered["response"]["choices"][0]["finish_reason"] = "content_filter"
    cold["request"]["switchyard"] = {"cache": "off"}
    twice, empty = exchange("twice", "A book."), exchange("empty", "")
    twice["request"]["n"] = 2
    old, elsewhere = exchange("old", "A book.", created=int(NOW_S - 2e8)), exchange("x", "A book.")
    elsewhere["request"]["model"] = "elsewhere"
    asked = Door()
    told = (await asked.take_in([cut, filtered, cold, twice, empty, old, elsewhere])).json()
    names = ("kept", "refused", "expired", "not_served", "invalid")
    assert [told[name] for name in names] == [0, 5, 1, 1, 0], told
    cut["request"]["max_tokens"] = 2  # then it is what was asked for, and answers the very question only
    assert (await asked.take_in([cut])).json()["kept"] == 1
    assert asked.found(key("cut", max_tokens=2)) is not None and asked.found(key("CUT", max_tokens=2)) is None


async def test_what_another_brings_takes_nothing_from_anybody() -> None:
    """A file may have any ids and digests, also those of another organisation's answers."""
    door = Door()
    theirs = key("hello", "other"), answer("1")
    door.shard.store.store(*theirs)
    assert (await door.take_in(answer_line(*theirs))).json()["kept"] == 1
    forgotten = door.shard.store.invalidate(Selection("other", answer_id="1"), dry_run=False)
    assert [match.exact for match in forgotten] == [theirs[0].exact], "also where acme has one of that name"
    copies = ExactCache(SETTINGS.exact_cache, lambda: NOW_S)
    copies.put(*theirs)
    copies.invalidate(Selection("acme"), [theirs[0].exact])
    assert copies.get(theirs[0].exact) is not None


async def test_calls_of_tools_are_brought_too() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    told = exchange("look", "")
    told["response"]["choices"][0] |= {
        "message": {"content": None, "tool_calls": [call]},
        "finish_reason": "tool_calls",
    }
    door = Door()
    assert (await door.take_in([told])).json()["kept"] == 1
    found = door.found(key("look"))
    assert found is not None and found.events[0] == ToolCallDelta(0, "call_1", "look", '{"a": 1}')


async def test_what_is_brought_is_written_a_little_at_a_time() -> None:
    door, most = Door(), 0
    taking = TakingIn(door.ingress, "acme", False)  # type: ignore[arg-type]
    for number in range(200):
        await taking.line(answer_line(key(f"question number {number}"), answer(str(number))))
        most = max(most, len(taking._answers))
    assert most < 33
    await taking.flush()
    assert taking.counts["kept"] == 200
    long = (TextDelta("x" * 700_000, 1), Finish("stop"))
    for number in range(5):
        await taking.line(answer_line(key(f"long {number}"), answer(str(number), events=long)))
        assert len(taking._answers) < 2


def test_a_line_is_read_as_it_was_written() -> None:
    asked, made = KEPT[0]
    assert read_answer(json.loads(answer_line(asked, made)), "acme", NOW_S) == (asked, made)
    other, _ = read_answer(json.loads(answer_line(asked, made)), "other", NOW_S)
    assert other.tenant == partition("other", "")
