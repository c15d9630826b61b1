"""Erasure, retention and the report of what is stored: over real books, a real archive and real caches."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.admin_command import _told
from models.errors import ModelUnavailable, NotFound
from router.accounting import books as books_module
from router.accounting import usage_cells, usage_store
from router.accounting.feedback import Feedback
from router.accounting.latencies import unpacked
from router.accounting.limits import Account
from router.accounting.store import SQLiteStore
from router.accounting.usage_sql import UsageQuery
from router.archive import archive as archive_module
from router.archive.archive import Archive
from router.archive.batches import new_batch
from router.archive.responses import StoredResponse
from router.events import Principal, as_json
from router.invalidation import Forgotten, Selection
from router.sealing import Sealer
from router.settings import RetentionSettings
from tests.contract.test_stores import closed
from tests.unit.test_admin_api import OPERATOR, Cluster, Ingress, cluster

__all__ = ["cluster"]

PLANTED, DAY = "ann-of-the-marketing-department", 86_400_000


def everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.fixture
async def ingress(cluster: Cluster, tmp_path: Path) -> Any:
    """With an archive, and with what there is to be forgotten: two users of acme, one of globex."""
    one = cluster.ingresses[0]
    archive = await Archive.open(tmp_path / "archive")
    ingress = _ingress_of(one.client._transport.app)
    asked: list[Selection] = []

    async def invalidate_everywhere(selection: Selection, dry_run: bool) -> Forgotten:
        asked.append(selection)
        return Forgotten(3, (), ())

    vars(ingress).update(archive=archive, invalidate_everywhere=invalidate_everywhere, asked=asked)
    now, records = int(time.time() * 1000), []
    for number, (org, user) in enumerate((("acme", PLANTED), ("acme", "bob"), ("globex", PLANTED)) * 4):
        records.append(closed(f"req_{number}", org, 100, now - number * 1000, user=user))
        await archive.put_response(org, StoredResponse(f"resp_{number}", None, time.time(), f'"{user}"', "[]"))
        cluster.books._store.feedback.save(Feedback(org, f"req_{number}", "k", now, "m", "", "", 1.0, comment=user))
    cluster.books._store.ingest("h", [json.loads(json.dumps(as_json(record))) for record in records])
    for org, user in (("acme", PLANTED), ("acme", "bob")):
        file_id, _ = await archive.begin_file(org)
        await archive.append_file(file_id, user.encode())
        await archive.finish_file(file_id, "f", "batch")
        batch = new_batch(Principal(org, "", "k", user), file_id, "/v1/chat/completions", None)
        batch.body["status"] = "completed"
        await archive.create_batch(batch)
    await one.done("POST", "/v1/admin/keys", org="acme", user=PLANTED)
    yield one
    await archive.close()


def _ingress_of(door: Any) -> Any:
    return next(
        endpoint._handler.__self__.ingress
        for route in door.routes
        for endpoint in getattr(route, "_endpoints", {}).values()
        if hasattr(getattr(endpoint._handler, "__self__", None), "ingress")
    )


async def test_a_user_is_forgotten_everywhere_and_the_sums_stay(ingress: Ingress, cluster: Cluster) -> None:
    archive: Archive = _ingress_of(ingress.client._transport.app).archive
    before = await cluster.books.usage(UsageQuery("acme", 0, 2**50, ("model",), latency=True))
    told = await ingress.done("POST", "/v1/admin/erasures", org="acme", user=PLANTED)
    assert told["erased"] == {"responses": 4, "files": 1, "batches": 1, "requests": 4, "cached_answers": 3}
    assert await cluster.books.usage(UsageQuery("acme", 0, 2**50, ("model",), latency=True)) == before
    users = {row["user"]: row["requests"] for row in await cluster.books.usage(UsageQuery("acme", 0, 2**50, ("user",)))}
    assert users == {"": 4, "bob": 4}
    receipt = await cluster.books.receipt("acme", "req_1", 0)
    assert receipt is not None and receipt["user"] == "bob"
    assert await cluster.books.receipt("acme", "req_0", 0) is None
    assert len(await archive.list_files("acme", None)) == 1
    assert len(await archive.list_batches("acme", 9, None)) == 1
    kept = {row["user"] for row in await cluster.books.usage(UsageQuery("globex", 0, 2**50, ("user",)))}
    assert kept == {PLANTED} and await archive.response("globex", "resp_2", 0)
    (key,) = (await ingress.done("GET", "/v1/admin/keys?org=acme&ended=true"))["data"]
    assert key["revoked_at_unix_ms"] and not key.get("user")
    last = (await cluster.audit("acme"))[-1]
    assert last["act"] == "erase.user" and "user_sha256" in last["detail"] and PLANTED not in json.dumps(last)
    again = await ingress.done("POST", "/v1/admin/erasures", org="acme", user=PLANTED)
    assert again["erased"]["requests"] == again["erased"]["responses"] == 0


async def test_a_part_of_the_cache_that_does_not_answer_is_told_when_all_else_is_done(ingress: Ingress) -> None:
    async def half(selection: Selection, dry_run: bool) -> Forgotten:
        return Forgotten(lost=(ModelUnavailable("gone"),))

    inner = _ingress_of(ingress.client._transport.app)
    inner.invalidate_everywhere = half
    told = await ingress.ask("POST", "/v1/admin/erasures", OPERATOR, org="acme", user=PLANTED)
    assert told.status_code == 503 and "Ask again" in told.text
    with pytest.raises(NotFound):
        await inner.archive.response("acme", "resp_0", 0)


async def test_nothing_of_the_user_is_left_on_disk_but_the_audit_log(ingress: Ingress, cluster: Cluster) -> None:
    for org in ("acme", "globex"):
        await ingress.done("POST", "/v1/admin/erasures", org=org, user=PLANTED)
    in_audit = json.dumps(await cluster.audit()).count(PLANTED)
    assert in_audit == 1  # that a key was made for them
    archived = everything_in(cluster.folder / "archive")
    assert PLANTED.encode() not in archived.replace(b"batch", b"")
    database = b"".join(path.read_bytes() for path in cluster.folder.glob("ledger.sqlite3*"))
    assert database.count(PLANTED.encode()) <= in_audit + 1  # a page of the log may be there twice


async def test_an_organisation_is_forgotten_and_what_it_spent_is_not(ingress: Ingress, cluster: Cluster) -> None:
    key = (await ingress.done("POST", "/v1/admin/keys", org="acme", scopes=["infer", "admin"]))["key"]
    refused = await ingress.ask("POST", "/v1/admin/erasures", key, org="acme")
    assert refused.status_code == 403
    assert (await ingress.ask("POST", "/v1/admin/erasures", key, org="globex", user="x")).status_code == 403
    total = Account("acme", "microusd", "total")
    spent = sum(row.microusd for row in cluster.books._store.spent(total, 0, None))
    told = await ingress.done("POST", "/v1/admin/erasures", org="acme")
    assert told["erased"]["requests"] == told["erased"]["responses"] == 8
    assert sum(row.microusd for row in cluster.books._store.spent(total, 0, None)) == spent == 800
    assert (await cluster.books.usage(UsageQuery("acme", 0, 2**50)))[0]["cost_microusd"] == 800
    assert await cluster.books.receipt("acme", "req_1", 0) is None
    assert (await ingress.ask("GET", "/v1/models", key)).status_code == 401
    assert (await cluster.books.usage(UsageQuery("globex", 0, 2**50)))[0]["requests"] == 4
    assert (await ingress.ask("POST", "/v1/admin/erasures", OPERATOR, org="default")).status_code == 400


async def test_requests_go_when_they_have_had_their_time(ingress: Ingress, cluster: Cluster) -> None:
    books, now = cluster.books, int(time.time() * 1000)
    old = [closed(f"old{n}", org, 7, now - 50 * DAY) for n in range(3) for org in ("acme", "globex")]
    books._store.ingest("h", [json.loads(json.dumps(as_json(record))) for record in old])
    before = {org: await books.usage(UsageQuery(org, 0, 2**50, ("day",))) for org in ("acme", "globex")}
    assert await books.retain(now) == 0
    books.retention = RetentionSettings(days=40, days_by_org={"globex": 60})
    assert (await books.retain(now), await books.retain(now)) == (3, 0)
    assert await books.receipt("acme", "old0", 0) is None and await books.receipt("globex", "old0", 0)
    assert {org: await books.usage(UsageQuery(org, 0, 2**50, ("day",))) for org in before} == before
    for narrowed in ({}, {"team": "web"}, {"key_id": "key"}, {"model": "m"}):
        account = Account("acme", "microusd", "total", **narrowed)
        assert sum(row.microusd for row in books._store.spent(account, 0, None)) == 821, narrowed


async def test_the_report_says_what_is_stored_and_how(ingress: Ingress, cluster: Cluster) -> None:
    told = await ingress.done("GET", "/v1/admin/compliance")
    stores = {store["what"].split(":")[0]: store for store in told["stores"]}
    assert stores["requests"]["entries"] == 12 and stores["requests"]["kept"].startswith("for ever; the oldest")
    assert stores["stored responses"]["encrypted"] == "no: set SWITCHYARD_ENCRYPTION_KEY"
    assert stores["stored responses"]["kept"] == "30 days at most" and stores["files"]["entries"] == 2
    keeper: Archive = _ingress_of(ingress.client._transport.app).archive
    sealer = Sealer([b"k" * 32])
    for part in (keeper, keeper.files, keeper._responses):
        vars(part)["sealer" if part is keeper else "_sealer"] = sealer
    keeper._file.writer.execute("UPDATE responses SET body = ? WHERE response_id = 'resp_1'", (b"torn",))
    await keeper.reseal()
    told = await ingress.done("GET", "/v1/admin/compliance")
    stores = {store["what"].split(":")[0]: store for store in told["stores"]}
    assert stores["stored responses"]["encrypted"].startswith(f"AES-256-GCM: 11 by the first key ({sealer.first})")
    assert [*_told(told)][-1].startswith("unreadable: 1 ")
    key = (await ingress.done("POST", "/v1/admin/keys", org="acme", scopes=["admin"]))["key"]
    assert (await ingress.ask("GET", "/v1/admin/compliance", key)).status_code == 403


async def test_responses_of_an_organisation_may_have_their_own_time(ingress: Ingress) -> None:
    keeper: Archive = _ingress_of(ingress.client._transport.app).archive
    keeper.settings = replace_settings(keeper, ttl_s_by_org={"acme": 0.001})
    await asyncio.sleep(0.01)
    await keeper.sweep()
    assert await keeper.response("globex", "resp_2", 0)
    assert (await keeper.facts())["responses"]["count"] == 4


def replace_settings(keeper: Archive, **changes: Any) -> Any:
    return keeper.settings.model_copy(update=changes)


def as_shipped(record: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(as_json(record)))
    return found


async def test_a_user_with_more_requests_than_go_at_once_is_forgotten_whole(
    ingress: Ingress, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books_module, "_FORGOTTEN_AT_ONCE", 3)
    told = await ingress.done("POST", "/v1/admin/erasures", org="acme", user=PLANTED)
    assert (told["erased"]["requests"], told["erased"]["responses"]) == (4, 4)
    for number in (0, 3, 6, 9):
        assert await cluster.books.receipt("acme", f"req_{number}", 0) is None


async def test_what_could_not_be_erased_at_once_is_erased_when_it_is_asked_again(
    ingress: Ingress, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive: Archive = _ingress_of(ingress.client._transport.app).archive
    monkeypatch.setattr(archive_module, "ERASE_WAIT_S", 0.01)
    file_id = (await archive.list_files("acme", None))[0].file_id
    batch = new_batch(Principal("acme", "", "k", PLANTED), file_id, "/v1/chat/completions", None)
    await archive.create_batch(batch)
    assert (await ingress.ask("POST", "/v1/admin/erasures", org="acme", user=PLANTED)).status_code == 503
    batch.enter("completed")
    await archive._write(lambda: archive.batches.save(batch))
    told = await ingress.done("POST", "/v1/admin/erasures", org="acme", user=PLANTED)
    assert (told["erased"]["responses"], told["erased"]["requests"]) == (4, 4)
    assert (await archive.facts())["responses"]["count"] == 8


async def test_a_response_is_found_when_the_books_know_its_request_no_more(ingress: Ingress) -> None:
    archive: Archive = _ingress_of(ingress.client._transport.app).archive
    await archive.put_response("acme", StoredResponse("resp_old", None, time.time(), "{}", "[]", PLANTED))
    await archive.put_response("globex", StoredResponse("resp_old", None, time.time(), "{}", "[]", PLANTED))
    told = await ingress.done("POST", "/v1/admin/erasures", org="acme", user=PLANTED)
    assert told["erased"]["responses"] == 5 and await archive.response("globex", "resp_old", 0)


def test_histograms_stay_right_when_a_user_is_forgotten(tmp_path: Path) -> None:
    store, now = SQLiteStore(tmp_path / "ledger.sqlite3"), int(time.time() * 1000)

    def put(number: int, user: str) -> None:
        store.ingest("h", [as_shipped(closed(f"r{number}", "acme", 1, now, user=user))])

    for number in range(12):
        put(number, "ann" if number > 2 else "")
    store.retention.forget_user("acme", "ann", store.retention.requests_of("acme", "ann", 100))
    put(100, "")
    put(101, "ann")
    sql = "SELECT value, requests, total FROM usage_by WHERE dimension = 'user'"
    found = {value: (requests, sum(unpacked(bytes(total)).values())) for value, requests, total in _rows(store, sql)}
    assert found == {"": (13, 13), "ann": (1, 1)}
    store.close()


def test_no_table_names_a_user_who_was_forgotten(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "ledger.sqlite3")
    part = {"experiment": "e", "version": "v", "arm": "a", "unit": "of-ann"}
    good = [as_shipped(closed(f"r{number}", user="ann")) for number in range(2)]
    for record in good:
        record["decision"] = {**(record["decision"] or {}), "experiment": part}
    wrong = {**as_shipped(closed("r2", user="ann")), "cost_microusd": {"x": 1}}
    others = {**as_shipped(closed("r3", user="bob")), "cost_microusd": {"x": 1}}
    store.ingest("h", [*good, wrong, others])
    store.retention.forget_user("acme", "ann", store.retention.requests_of("acme", "ann", 10))
    ((one,), (other,)) = _rows(store, "SELECT unit FROM experiment_outcomes")
    assert one == other != "of-ann"  # still one unit, of nobody
    assert ["bob" in body for (body,) in _rows(store, "SELECT body FROM rejected_records")] == [True]
    store.retention.forget_users("acme")
    assert _rows(store, "SELECT body FROM rejected_records") == []
    store.close()


async def test_what_is_delivered_again_after_an_organisation_was_forgotten_is_still_known(
    ingress: Ingress, cluster: Cluster
) -> None:
    books, now = cluster.books, int(time.time() * 1000)
    again = [as_shipped(closed(f"again{number}", "acme", 100, now, user=PLANTED)) for number in range(3)]
    books._store.ingest("h", again)
    month = Account("acme", "microusd", "month")
    spent = books._store.spent(month, now - DAY, now + DAY)
    told = await ingress.done("POST", "/v1/admin/erasures", org="acme")
    assert told["erased"]["requests"] == 11
    assert books._store.spent(month, now - DAY, now + DAY) == spent
    assert books._store.ingest("h", again) == [] and await books.receipt("acme", "again0", 0) is None
    assert {row["user"] for row in await books.usage(UsageQuery("acme", 0, 2**50, ("user",)))} == {""}
    assert (await ingress.done("POST", "/v1/admin/erasures", org="acme"))["erased"]["requests"] == 0
    await ingress.done("PUT", "/v1/admin/orgs/acme", disabled=False)  # which does not make the books keep it longer
    assert (await books.retain(now + 30 * DAY), await books.retain(now + 36 * DAY)) == (0, 11)


def _rows(store: SQLiteStore, sql: str) -> list[Any]:
    return store._file.writer.execute(sql).fetchall()


async def test_how_long_they_stay_holds_from_the_next_sweep_on(cluster: Cluster) -> None:
    books, now = cluster.books, int(time.time() * 1000)
    books._store.ingest("h", [as_shipped(closed("old", "acme", 1, now - 50 * DAY))])
    await books.sweep()  # as the ledger's first one, before its settings are there
    books.retention = RetentionSettings(days=40)
    await books.sweep()
    assert (await books.facts())["rows"]["requests"] == 0


async def test_sums_by_user_go_with_the_requests_and_stay_as_nobodys(cluster: Cluster) -> None:
    books, now = cluster.books, int(time.time() * 1000)
    records = [closed(f"r{n}", "acme", 1, now - n * 20 * DAY, user=f"user {n}") for n in range(5)]
    books._store.ingest("h", [as_shipped(record) for record in records])
    books.retention = RetentionSettings(days=50)
    assert await books.retain(now) == 2
    users = {row["user"]: row["requests"] for row in await books.usage(UsageQuery("acme", 0, 2**50, ("user", "day")))}
    assert users == {"": 1, "user 0": 1, "user 1": 1, "user 2": 1}  # a row for each of two days is ''
    by_user = await books.usage(UsageQuery("acme", 0, 2**50, ("user",), latency=True))
    sums = {row["user"]: row["requests"] for row in by_user}
    assert sums[""] == 2 and sum(sums.values()) == 5


def test_no_more_users_of_a_day_are_told_apart_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_cells, "MAX_USERS", 3)
    store, now = SQLiteStore(tmp_path / "ledger.sqlite3"), int(time.time() * 1000)
    for start in (0, 4, 8):
        batch = [closed(f"r{n}", "acme", 1, now, user=f"user {n % 6}") for n in range(start, start + 4)]
        store.ingest("h", [as_shipped(record) for record in batch])
    found = {row["user"]: (row["requests"], row["total_ms"]["p50"]) for row in _by_user(store)}
    median = found["user 0"][1]
    assert found == {"": (6, median), **{f"user {n}": (2, median) for n in range(3)}}
    late = closed("late", "acme", 500, now, user="user 9", status="abandoned", attempts=())
    store.ingest("h", [as_shipped(late)])
    store.ingest("h", [as_shipped(closed("late", "acme", 1, now, user="user 9"))])  # taken off where it was added
    assert {row["user"]: row["cost_microusd"] for row in _by_user(store)}[""] == 7
    store.close()
    anew = SQLiteStore(tmp_path / "ledger.sqlite3")
    anew.ingest("h", [as_shipped(closed(f"s{n}", "acme", 1, now, user=f"user {n}")) for n in range(6)])
    assert {row["user"]: row["requests"] for row in _by_user(anew)} == {
        "": 10,
        **{f"user {n}": 3 for n in range(3)},
    }
    anew.close()


def test_sums_are_made_of_the_requests_that_were_there_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = SQLiteStore(tmp_path / "ledger.sqlite3"), int(time.time() * 1000)
    records = [closed(f"r{n}", org, 1, now, user=f"user {n % 2}") for n in range(7) for org in ("acme", "globex")]
    store.ingest("h", [as_shipped(record) for record in records])
    before = _by_user(store)
    store._file.writer.execute("DELETE FROM usage_by")
    store.close()
    monkeypatch.setattr(usage_store, "_BATCH_ROWS", 3)
    anew = SQLiteStore(tmp_path / "ledger.sqlite3")
    assert _by_user(anew) == before and len(before) == 2
    anew.close()


def _by_user(store: SQLiteStore) -> list[dict[str, Any]]:
    day = int(time.time() * 1000) // DAY * DAY
    return store.usage(UsageQuery("acme", day - DAY, day + DAY, ("user",), latency=True))
