"""The admin API and the audit log through the HTTP door, over a ledger in this process; no Ray."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster import admin_command
from cluster.checks import StartError
from cluster.cli import _parser
from models.errors import PermissionDenied
from router.accounting.audit import verify
from router.accounting.books import Books
from router.accounting.budget import Budgets
from router.accounting.denials import MAX_DISTINCT, Denials
from router.accounting.journal import encode
from router.accounting.keys import hash_key
from router.accounting.registrar import Follower
from router.accounting.store import SQLiteStore
from router.accounting.tenants import Place, Tenants
from router.events import Actor, AuditEntry
from router.pipeline import Pipeline
from router.settings import IngressSettings, KeySettings
from tests.unit.test_http_app import open_door
from tests.unit.test_pipeline import make_world

OPERATOR = "sy-operator"
PLACES = {"small-1": Place(True, "local"), "medium-1": Place(False, "eu")}


class LocalLedger:
    """`deployments.ledger.LedgerHandle` without the hop."""

    def __init__(self, books: Books) -> None:
        self.administer, self.changes = books.registrar.do, books.registrar.changes
        self.standings, self.lease = books.standings, books.lease
        self.usage, self.forecast, self.outlook = books.usage, books.forecast, books.outlook
        self.anomalies, self.judged = books.anomalies, books.judged
        self.experiment = books.experiment
        self.node_hours, self.take_node_time = books.node_hours, books.take_node_time
        self.forget_user, self.forget_org, self.facts = books.forget_user, books.forget_org, books.facts
        self.requests_of = books.requests_of
        self.alerts, self.tell = books.alerts, books.watch.tell
        self.audit_page, self.audit_verdict = books.registrar.audit_page, books.registrar.audit_verdict


@dataclass
class Ingress:
    client: httpx.AsyncClient
    denials: Denials
    tenants: Tenants
    pipeline: Pipeline

    async def ask(self, method: str, path: str, key: str = OPERATOR, **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}", "x-forwarded-for": "6.6.6.6, 10.1.2.3"}
        return await self.client.request(method, path, json=body or None, headers=headers)

    async def done(self, method: str, path: str, key: str = OPERATOR, **body: Any) -> Any:
        answer = await self.ask(method, path, key, **body)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()


@dataclass
class Cluster:
    books: Books
    ingresses: list[Ingress]
    folder: Path

    def __iter__(self) -> Iterator[Ingress]:
        return iter(self.ingresses)

    async def audit(self, org: str | None = None) -> list[dict[str, Any]]:
        for ingress in self:
            ingress.denials.flush()
        return await self.books.registrar.audit_page(org, "", 1000)


@asynccontextmanager
async def ingress_of(
    books: Books, name: str, everywhere: list[Follower], settings: IngressSettings | None = None, **model: Any
) -> AsyncIterator[Ingress]:
    """model: of the simulated ones that answer."""
    follower = Follower(books.registrar)
    everywhere.append(follower)
    operator = KeySettings(sha256=hash_key(OPERATOR), org="default", scopes=("infer", "admin", "usage", "audit"))
    tenants = Tenants([operator], IngressSettings(), follower=follower, pepper="pepper", places=PLACES)
    task = asyncio.create_task(follower.run(tenants.forget))

    def sink(entry: AuditEntry) -> None:
        books._store.ingest(name, [json.loads(encode(entry)[9:])])

    async def catch_up_everywhere(version: int) -> None:
        assert all(await asyncio.gather(*(each.reached(version, 1) for each in everywhere)))

    world = make_world(settings, **model)
    world.pipeline.stages.promoted = follower.directory.promoted
    door = open_door(world)
    world.pipeline.tenants = door.ingress.tenants = tenants
    denials = Denials(sink)
    ledger = LocalLedger(books)
    more = {
        "budgets": Budgets(name, tenants, ledger.lease),
        "ledger": ledger,
        "follower": follower,
        "pepper": "pepper",
        "denials": denials,
    }
    vars(door.ingress).update(more | {"catch_up_everywhere": catch_up_everywhere})
    door.client._transport.app._denials = denials
    try:
        yield Ingress(door.client, denials, tenants, world.pipeline)
    finally:
        task.cancel()
        await asyncio.wait({task})
        await door.client.aclose()


@asynccontextmanager
async def cluster_in(folder: Path, settings: IngressSettings | None = None, **model: Any) -> AsyncIterator[Cluster]:
    """Three ingresses and a ledger."""
    books = await Books.open(lambda: SQLiteStore(folder / "ledger.sqlite3"), folder / "journal")
    followers: list[Follower] = []
    async with AsyncExitStack() as stack:
        stack.push_async_callback(books.close)
        opened = (ingress_of(books, f"i{n}", followers, settings, **model) for n in range(3))
        ingresses = [await stack.enter_async_context(ingress) for ingress in opened]
        for follower in followers:
            assert await follower.reached(0, 5)
        yield Cluster(books, ingresses, folder)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster_in(tmp_path) as opened:
        await opened.ingresses[0].done("PUT", "/v1/admin/orgs/acme")
        await opened.ingresses[0].done("PUT", "/v1/admin/orgs/globex")
        yield opened


async def test_a_key_is_shown_once_and_ends_on_every_ingress_when_it_is_revoked(cluster: Cluster) -> None:
    one, two, three = cluster
    made = await one.done("POST", "/v1/admin/keys", org="acme", user="ann", name="laptop", scopes=["infer", "usage"])
    text = made.pop("key")
    assert text.startswith(made["prefix"]) and len(text) >= 46 and made["scopes"] == ["infer", "usage"]
    for ingress in (one, two, three):
        assert (await ingress.ask("GET", "/v1/models", text)).status_code == 200
        assert (await ingress.done("GET", "/v1/admin/keys"))["data"] == [made]
        assert await ingress.done("GET", f"/v1/admin/keys/{made['id']}") == made
    began = time.monotonic()
    ended = await two.done("DELETE", f"/v1/admin/keys/{made['id']}")
    for ingress in (one, two, three):
        assert (await ingress.ask("GET", "/v1/models", text)).status_code == 401
    assert time.monotonic() - began < 5
    assert ended["revoked_at_unix_ms"] and (await three.done("GET", "/v1/admin/keys"))["data"] == []
    assert (await three.done("GET", "/v1/admin/keys?ended=true"))["data"] == [ended]


async def test_who_administers_what(cluster: Cluster) -> None:
    one, *_ = cluster
    await one.done("PUT", "/v1/admin/orgs/acme/teams/web")
    await one.done("PUT", "/v1/admin/orgs/acme/teams/ops")

    async def key(**fields: Any) -> tuple[str, str]:
        made = await one.done("POST", "/v1/admin/keys", **fields)
        return made["key"], made["id"]

    acme, acme_id = await key(org="acme", scopes=["admin", "audit"])
    web, _ = await key(org="acme", team="web", scopes=["admin"])
    plain, _ = await key(org="acme")
    _, globex_id = await key(org="globex")
    _, ops_id = await key(org="acme", team="ops")

    async def status(method: str, path: str, by: str, **body: Any) -> int:
        return (await one.ask(method, "/v1/admin/" + path, by, **body)).status_code

    assert await status("GET", "keys", plain) == 403
    assert await status("PUT", "orgs/acme", acme) == 403 == await status("PUT", "orgs/mine", acme)
    assert await status("PUT", "orgs/acme/teams/new", acme) == 200
    assert await status("PUT", "orgs/globex/teams/new", acme) == 403 == await status("GET", "orgs/globex/teams", acme)
    assert await status("POST", "keys", acme, org="globex") == 403
    assert await status("GET", f"keys/{globex_id}", acme) == 404 == await status("DELETE", f"keys/{globex_id}", acme)
    assert await status("POST", f"keys/{globex_id}/rotate", acme) == 404
    assert await status("POST", "policies", acme, org="globex", unit="microusd", amount=5) == 403
    assert [each["id"] for each in (await one.done("GET", "/v1/admin/orgs", acme))["data"]] == ["acme"]
    # of a team: its keys, and no more
    assert await status("POST", "keys", web, user="ann") == 201 == await status("POST", "keys", web, team="web")
    assert await status("POST", "keys", web, team="ops") == 403 == await status("PUT", "orgs/acme/teams/web", web)
    assert await status("DELETE", f"keys/{ops_id}", web) == 404 == await status("DELETE", f"keys/{acme_id}", web)
    assert await status("POST", "policies", web, unit="microusd", amount=10**9) == 403
    teams = {each["team"] for each in (await one.done("GET", "/v1/admin/keys", web))["data"]}
    assert teams == {"web"}
    assert [each["team"] for each in (await one.done("GET", "/v1/admin/orgs/acme/teams", web))["data"]] == ["web"]
    # what another's log says is theirs
    assert {entry["org"] for entry in (await one.done("GET", "/v1/audit", acme))["data"]} == {"acme"}
    assert {entry["org"] for entry in (await one.done("GET", "/v1/audit"))["data"]} == {"acme", "globex"}
    assert (await one.ask("GET", "/v1/audit", plain)).status_code == 403


async def test_rules_of_a_key_are_in_force_in_routing_and_lists(cluster: Cluster) -> None:
    one, two, _ = cluster
    made = await one.done("POST", "/v1/admin/keys", org="acme", regions=["eu"])
    listed = (await two.done("GET", "/v1/models", made["key"]))["data"]
    assert [model["id"] for model in listed] == ["auto", "medium-1"]
    question = {"messages": [{"role": "user", "content": "hi"}]}
    answer = await two.done("POST", "/v1/chat/completions", made["key"], model="auto", **question)
    assert answer["model"] == "medium-1"
    assert (await two.ask("POST", "/v1/chat/completions", made["key"], model="small-1", **question)).status_code == 403
    await one.done("PUT", "/v1/admin/orgs/acme", local_only=True)
    assert (await two.ask("POST", "/v1/chat/completions", made["key"], model="medium-1", **question)).status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("PUT", "orgs/a%20b", {}, "org"),
        ("PUT", "orgs/" + "a" * 65, {}, "org"),
        ("PUT", "orgs/acme", {"models": ["gpt-17"]}, "models"),
        ("PUT", "orgs/acme", {"regions": ["mars"]}, "regions"),
        ("PUT", "orgs/acme", {"colour": "red"}, "colour"),
        ("PUT", "orgs/default", {"disabled": True}, "disabled"),
        ("POST", "keys", {"org": "acme", "scopes": []}, "scopes"),
        ("POST", "keys", {"org": "acme", "scopes": ["root"]}, "scopes.0"),
        ("POST", "keys", {"org": "acme", "expires_in_s": 0}, "expires_in_s"),
        ("POST", "policies", {"org": "acme", "unit": "requests", "span": "total", "amount": 1}, "span"),
        ("POST", "policies", {"org": "acme", "unit": "microusd", "amount": -1}, "amount"),
        ("POST", "policies", {"org": "acme", "unit": "microusd", "amount": 1, "model": "gpt-17"}, "models"),
    ],
)
async def test_what_is_wrong_is_named(cluster: Cluster, method: str, path: str, body: Any, param: str) -> None:
    answer = await cluster.ingresses[0].ask(method, f"/v1/admin/{path}", **body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


async def test_unknown_orgs_teams_and_keys_are_404(cluster: Cluster) -> None:
    one, *_ = cluster
    for method, path, body in (
        ("POST", "keys", {"org": "nobody"}),
        ("POST", "keys", {"org": "acme", "team": "nobody"}),
        ("PUT", "orgs/nobody/teams/web", {}),
        ("GET", "keys/key_9", {}),
        ("DELETE", "policies/policy_9", {}),
    ):
        assert (await one.ask(method, f"/v1/admin/{path}", **body)).status_code == 404


async def test_policies_are_set_changed_listed_and_removed(cluster: Cluster) -> None:
    one, two, _ = cluster
    made = await one.done("POST", "/v1/admin/policies", org="acme", unit="microusd", amount=5, model="medium-1")
    assert (made["span"], made["hard"]) == ("month", True)
    changed = await one.done(
        "POST", "/v1/admin/policies", org="acme", unit="microusd", amount=7, model="medium-1", hard=False
    )
    assert changed["id"] == made["id"] and (await two.done("GET", "/v1/admin/policies"))["data"] == [changed]
    assert (await two.done("DELETE", f"/v1/admin/policies/{made['id']}"))["removed_at_unix_ms"]
    assert (await one.done("GET", "/v1/admin/policies"))["data"] == []


async def test_budgets_and_limits_are_shown_and_refuse_over_all_ingresses(cluster: Cluster) -> None:
    one, *_ = cluster
    await one.done("PUT", "/v1/admin/orgs/acme/teams/web")
    key = (await one.done("POST", "/v1/admin/keys", org="acme", team="web"))["key"]
    await one.done("POST", "/v1/admin/policies", org="acme", unit="requests", amount=6)
    await one.done("POST", "/v1/admin/policies", org="acme", team="web", unit="microusd", span="total", amount=10**7)
    await one.done("POST", "/v1/admin/policies", org="acme", unit="microusd", span="day", amount=1, hard=False)
    await one.done("POST", "/v1/admin/policies", org="globex", unit="requests", amount=1)
    question = {"model": "small-1", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    statuses = [
        (await ingress.ask("POST", "/v1/chat/completions", key, **question)).status_code
        for _ in range(4)
        for ingress in cluster
    ]
    assert statuses.count(200) == 6 and statuses.count(429) == 6
    shown = (await one.done("GET", "/v1/budget", key))["data"]
    assert [(row["team"], row["unit"], row["span"], row["hard"], row["limit"]) for row in shown] == [
        ("", "requests", "minute", True, 6),
        ("web", "microusd", "total", True, 10**7),
        ("", "microusd", "day", False, 1),
    ]
    assert (shown[0]["held"], shown[0]["left"]) == (6, 0) and shown[0]["resets_at"] and not shown[1]["resets_at"]
    refused = await one.ask("POST", "/v1/chat/completions", key, **question)
    told = refused.json()["error"]["switchyard"]
    assert (told["unit"], told["limit"], told["left"], told["needed"]) == ("requests", 6, 0, 1) and told["resets_at"]
    assert (await cluster.audit("acme"))[-1]["detail"] == {"code": "rate_limited", "status": 429}


# ---- the audit log -------------------------------------------------------------------------------------------------


async def test_every_act_and_every_denied_request_is_in_the_log_and_no_key_is(cluster: Cluster) -> None:
    one, two, _ = cluster
    made = await one.done("POST", "/v1/admin/keys", org="acme", name="laptop")
    for _ in range(3):
        await two.ask("GET", "/v1/models", "sy-somebody-guessing")
    await two.ask("GET", "/v1/usage", made["key"])
    await one.done("DELETE", f"/v1/admin/keys/{made['id']}")
    log = await cluster.audit()
    acts = [(entry["act"], entry["target"], entry["outcome"], entry["count"]) for entry in log]
    assert acts == [
        ("org.put", "org:acme", "done", 1),
        ("org.put", "org:globex", "done", 1),
        ("key.create", f"key:{made['id']}", "done", 1),
        ("key.revoke", f"key:{made['id']}", "done", 1),
        ("request.denied", "GET /v1/models", "denied", 3),
        ("request.denied", "GET /v1/usage", "denied", 1),
    ]
    created, guessed, scoped = log[2], log[4], log[5]
    assert created["actor"]["org"] == "default" and created["detail"] == {"org": "acme", "name": "laptop"}
    assert created["actor"]["forwarded_for"] == "10.1.2.3" and created["actor"]["address"] == "127.0.0.1"
    assert guessed["org"] == "" and guessed["detail"] == {"code": "invalid_api_key", "status": 401}
    assert scoped["org"] == "acme" and scoped["actor"]["key_id"] == made["id"]
    written = b"".join(file.read_bytes() for file in [*cluster.folder.iterdir()] if file.is_file())
    for secret in (made["key"], "guessing", OPERATOR, "pepper"):
        assert secret.encode() not in written


async def test_the_log_cannot_be_changed_and_a_change_would_be_seen(cluster: Cluster) -> None:
    one, *_ = cluster
    for n in range(4):
        await one.done("PUT", f"/v1/admin/orgs/acme/teams/t{n}")
    verdict = await one.done("GET", "/v1/audit/verify")
    assert verdict["valid"] and verdict["entries"] == 6
    assert not (await one.done("GET", "/v1/audit/verify?head=" + "0" * 64))["valid"]
    with closing(sqlite3.connect(cluster.folder / "ledger.sqlite3", isolation_level=None)) as thief:
        for statement in ("UPDATE audit SET body = '{}' WHERE sequence = 3", "DELETE FROM audit WHERE sequence = 6"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                thief.execute(statement)
        rows = list(cluster.books._store.directory.audit_rows())
        thief.execute("DROP TRIGGER audit_is_not_changed")
        thief.execute("DROP TRIGGER audit_is_not_shortened")
        thief.execute("UPDATE audit SET body = replace(body, 't1', 't9') WHERE sequence = 4")
        assert (await one.done("GET", "/v1/audit/verify"))["broken_at"] == 4
        thief.execute("DELETE FROM audit WHERE sequence >= 4")
        assert (await one.done("GET", "/v1/audit/verify"))["valid"]  # a shorter log is a log
        assert not (await one.done("GET", f"/v1/audit/verify?head={verdict['head']}"))["valid"]
    assert verify(rows).broken_at is None
    assert verify(rows[:2] + rows[3:]).broken_at == 3
    assert verify([rows[1], rows[0], *rows[2:]]).broken_at == 1


async def test_an_organisation_sees_of_the_log_what_is_its_own_and_not_how_much_others_do(cluster: Cluster) -> None:
    one, *_ = cluster
    acme = (await one.done("POST", "/v1/admin/keys", org="acme", scopes=["audit"]))["key"]
    before = await one.done("GET", "/v1/audit/verify", acme)
    for n in range(3):
        await one.done("PUT", f"/v1/admin/orgs/globex/teams/t{n}")
    assert await one.done("GET", "/v1/audit/verify", acme) == before
    log = (await one.done("GET", "/v1/audit", acme))["data"]
    assert before == {"object": "audit.verdict", "valid": True, "entries": 2, "head": log[-1]["hash"], "reason": ""}
    assert [entry["act"] for entry in log] == ["org.put", "key.create"] and "sequence" not in log[0]
    assert (await one.done("GET", f"/v1/audit?after={log[0]['id']}", acme))["data"] == log[1:]
    whole = (await one.done("GET", "/v1/audit"))["data"]
    assert [entry["sequence"] for entry in whole] == [1, 2, 3, 4, 5, 6]
    theirs = await one.ask("GET", f"/v1/audit?after={whole[-1]['id']}", acme)
    assert (theirs.status_code, theirs.json()["error"]["param"]) == (400, "after")
    assert (await one.done("GET", f"/v1/audit/verify?head={before['head']}", acme))["valid"]
    with closing(sqlite3.connect(cluster.folder / "ledger.sqlite3", isolation_level=None)) as thief:
        thief.execute("DROP TRIGGER audit_is_not_changed")
        thief.execute("UPDATE audit SET body = replace(body, 't1', 't9') WHERE sequence = 5")
    broken = await one.done("GET", "/v1/audit/verify", acme)
    assert not broken["valid"] and broken["entries"] == 2 and "broken_at" not in broken


async def test_the_chain_goes_on_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        store = SQLiteStore(tmp_path / "ledger.sqlite3")
        for n in range(3):
            entry = AuditEntry(f"e{time.time_ns()}", n, "acme", "a", "t", Actor(), "done", {})
            store.ingest("h", [json.loads(encode(entry)[9:])] * 2)  # a journal may come twice
        store.close()
    store = SQLiteStore(tmp_path / "ledger.sqlite3")
    assert verify(store.directory.audit_rows()).entries == 6
    store.close()


def test_a_flood_of_denials_is_few_entries() -> None:
    entries: list[AuditEntry] = []
    denials = Denials(entries.append)
    for n in range(10_000):
        denials.note(Actor(address=f"10.0.{n // 256}.{n % 256}"), "GET /v1/models", PermissionDenied("no"))
    denials.flush()
    assert len(entries) == MAX_DISTINCT + 1 and sum(entry.count for entry in entries) == 10_000
    denials.flush()
    assert len(entries) == MAX_DISTINCT + 1


# ---- the command line ----------------------------------------------------------------------------------------------


def command_line(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Awaitable[list[str]]]:
    """`switchyard LINE` against this door: what it prints. To be called where the door's loop runs."""
    loop = asyncio.get_running_loop()

    class Wire(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            async def pass_on() -> httpx.Response:
                body = request.read()
                return await ingress.client.request(request.method, request.url, content=body, headers=request.headers)

            answer = asyncio.run_coroutine_threadsafe(pass_on(), loop).result(10)
            return httpx.Response(answer.status_code, content=answer.content)

    real = httpx.Client
    monkeypatch.setattr(admin_command.httpx, "Client", lambda **given: real(**given, transport=Wire()))

    async def switchyard(line: str) -> list[str]:
        arguments = _parser().parse_args(line.split())
        return await asyncio.to_thread(admin_command.run, arguments, "http://door", OPERATOR)

    return switchyard


async def test_the_command_line_does_the_same(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    one, *_ = cluster
    switchyard = command_line(one, monkeypatch)
    assert await switchyard("orgs put initech --local-only") == ["initech  org=initech  local_only=true"]
    assert await switchyard("teams put initech web") == ["initech/web  org=initech  team=web"]
    shown, text = await switchyard("keys create --org initech --team web --scope usage --expires-in-days 1")
    key_id, text = shown.split()[0], text.split("\n")[0]
    assert one.tenants.authenticate(None, text, "usage").org == "initech" and "expires=" in shown
    rotated, other = await switchyard(f"keys rotate {key_id} --overlap-hours 1")
    assert rotated.startswith("key_") and other.split("\n")[0] != text
    assert len(await switchyard("keys list --org initech")) == 2
    assert "revoked=" in (await switchyard(f"keys revoke {key_id}"))[0]
    (policy,) = await switchyard("policies put microusd 5000000 --org initech --span day")
    assert "amount=5000000" in policy and await switchyard("policies list") == [policy]
    await switchyard(f"policies remove {policy.split()[0]}")
    assert await switchyard("policies list") == ["none"]
    assert "all in their place" in (await switchyard("audit verify"))[0]
    assert "key.rotate done" in "\n".join(await switchyard("audit list"))
    with pytest.raises(StartError, match="There is no key 'key_9'"):
        await switchyard("keys revoke key_9")
    with pytest.raises(StartError, match="broken at entry"):
        await switchyard("audit verify --head " + "0" * 64)
