"""What every store does, over each of them."""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InternalError, InvalidRequest
from models.messages import Usage
from router.accounting.alerts import Alert, Delivery, Told
from router.accounting.audit import verify
from router.accounting.balances import Lease, Spent
from router.accounting.directory import Org, Row
from router.accounting.experiment_store import Tally
from router.accounting.feedback import Feedback
from router.accounting.journal import encode
from router.accounting.limits import Account
from router.accounting.node_time import NodeHour, Reading, node_rows
from router.accounting.store import PostgresStore, SQLiteStore, SQLStore, Store
from router.accounting.usage_sql import UsageQuery
from router.events import Actor, Attempt, AuditEntry, Record, RequestClosed, RequestOpened, as_json
from router.experience import Learned, Lessons

AT = 1_780_000_000_000
HOUR = 3_600_000
ACME = Account("acme", "microusd", "total")
_CHANCE = random.Random(7)
SPANS = [tuple(sorted(AT + _CHANCE.randrange(20 * HOUR) for _ in range(2))) for _ in range(8)]
"""Within the day that AT is in, out of it, and most or little of an hour."""


@pytest.fixture(params=["sqlite", "postgresql"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], SQLStore]]:
    """Opens the same database anew each time; the one opened before is closed first."""
    opened: list[SQLStore] = []
    server = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    url = server.new_database() if server else ""

    def make() -> SQLStore:
        while opened:
            opened.pop().close()
        # A server that is busy takes a moment to see that a connection is closed.
        opened.append(PostgresStore(url, lock_wait_s=30) if url else SQLiteStore(tmp_path / "ledger.sqlite3"))
        return opened[-1]

    yield make
    while opened:
        opened.pop().close()


@pytest.fixture
def store(make_store: Callable[[], Store]) -> Store:
    return make_store()


def opened(request_id: str, org: str = "acme", reserved: int = 500, at: int = AT) -> RequestOpened:
    return RequestOpened(request_id, at, org, "web", "key", "ann", "m", reserved)


def closed(request_id: str, org: str = "acme", cost: int = 100, at: int = AT, **changes: Any) -> RequestClosed:
    record = RequestClosed(
        request_id=request_id,
        opened_at_unix_ms=at,
        closed_at_unix_ms=at + 900,
        org=org,
        team="web",
        key_id="key",
        user="ann",
        door="openai",
        status="ok",
        error_code=None,
        requested_model="auto",
        model="m",
        provider="simulated",
        cache_verdict="miss",
        cached_from=None,
        cache_similarity=None,
        finish_reason="stop",
        usage=Usage(10, 5, 3, 2, 1, 4),
        estimated=False,
        cost_microusd=cost,
        saved_microusd=0,
        price_version="v1",
        price={"input": "1"},
        attempts=(Attempt("m", "b", "overloaded", 0.5, None, 9.0, 0), Attempt("m", "b", "ok", 0.5, 1.5, 9.0, cost)),
        decision={"eligible": ("m", "n"), "propensity": 0.5, "strategy": "complexity", "strategy_version": "1"},
        stage_ms={"parse": 0.1},
        ttft_ms=1.5,
        total_ms=9.0,
        overhead_ms=0.4,
    )
    return replace(record, **changes)


def take(store: Store, *records: Record, holder: str = "h") -> list[tuple[str, str, int]]:
    plain = [json.loads(json.dumps(as_json(record))) for record in records]
    return [(entry.request_id, entry.kind, entry.microusd) for entry in store.ingest(holder, plain)]


def books(store: Store) -> tuple[list[dict[str, Any]], list[Spent], list[str]]:
    """Everything that money can be read from."""
    usage = [row for org in ("acme", "other") for row in store.usage(UsageQuery(org, 0, 2 * AT, ("model", "status")))]
    spent = [row for org in ("acme", "other") for row in store.spent(Account(org, "microusd", "total"), 0, None)]
    return usage, sorted(spent, key=str), sorted(r.request_id for r in store.open_requests())


def test_an_open_and_its_close_make_one_request(store: Store) -> None:
    assert take(store, opened("r")) == [("r", "open", 0)]
    assert [(r.request_id, r.reserved_microusd, r.end_user) for r in store.open_requests()] == [("r", 500, "ann")]
    assert store.receipt("acme", "r") is None
    assert take(store, closed("r")) == [("r", "close", 100)]
    assert store.open_requests() == []
    receipt = store.receipt("acme", "r")
    assert receipt == json.loads(json.dumps(as_json(closed("r"))))


def test_the_same_record_again_changes_nothing(store: Store) -> None:
    take(store, opened("r"), closed("r"))
    before = books(store)
    assert take(store, opened("r"), closed("r"), closed("r", cost=999), holder="another") == []
    assert books(store) == before


def test_a_close_may_come_before_its_open(store: Store) -> None:
    assert take(store, closed("r"), opened("r")) == [("r", "close", 100)]
    assert store.open_requests() == []


def test_a_guessed_close_gives_way_to_the_real_one_and_only_to_it(store: Store) -> None:
    guess = closed("r", cost=500, status="abandoned", estimated=True)
    assert take(store, opened("r"), guess) == [("r", "open", 0), ("r", "close", 500)]
    assert take(store, closed("r", cost=120)) == [("r", "close", -380)]
    assert take(store, guess, closed("r", cost=7)) == []
    assert store.spent(ACME, 0, None) == [Spent("h", 120)]
    receipt = store.receipt("acme", "r")
    assert receipt is not None and receipt["status"] == "ok"


def test_orgs_see_only_their_own_even_with_equal_ids(store: Store) -> None:
    take(store, closed("r", "acme", 1), closed("r", "other", 2))
    assert store.receipt("third", "r") is None
    for org, cost in (("acme", 1), ("other", 2)):
        receipt = store.receipt(org, "r")
        assert receipt is not None and receipt["org"] == org
        (row,) = store.usage(UsageQuery(org, 0, 2 * AT))
        assert (row["requests"], row["cost_microusd"]) == (1, cost)


def test_usage_by_group_and_time(store: Store) -> None:
    hit = {"cache_verdict": "hit-exact", "saved_microusd": 70}
    take(
        store,
        closed("a", cost=1),
        closed("b", cost=2, at=AT + HOUR, model="n", user="bob"),
        closed("c", cost=0, at=AT + HOUR, **hit),
        closed("d", cost=4, at=AT + 24 * HOUR, status="error", error_code="overloaded", model=None),
    )
    (total,) = store.usage(UsageQuery("acme", 0, 2 * AT))
    assert total == {
        "requests": 4,
        "errors": 1,
        "hits": 1,
        "input_tokens": 30,
        "output_tokens": 15,
        "cached_input_tokens": 9,
        "cache_write_5m_tokens": 6,
        "cache_write_1h_tokens": 3,
        "reasoning_tokens": 12,
        "cost_microusd": 7,
        "saved_microusd": 70,
    }
    by_model = {row["model"]: row["cost_microusd"] for row in store.usage(UsageQuery("acme", 0, 2 * AT, ("model",)))}
    assert by_model == {"m": 1, "n": 2, None: 4}
    by_hour = store.usage(UsageQuery("acme", AT, AT + 2 * HOUR, ("hour", "user")))
    hour = AT // HOUR * HOUR
    assert [(r["hour"], r["user"], r["requests"]) for r in by_hour] == [
        (hour, "ann", 1),
        (hour + HOUR, "ann", 1),
        (hour + HOUR, "bob", 1),
    ]
    assert [r["requests"] for r in store.usage(UsageQuery("acme", 0, 2 * AT, ("day",)))] == [3, 1]
    assert len(store.usage(UsageQuery("acme", 0, 2 * AT, ("model",), limit=2))) == 2
    assert store.usage(UsageQuery("acme", AT + 1, AT + HOUR))[0]["requests"] == 0
    assert store.usage(UsageQuery("acme", AT + 1, AT + HOUR, ("model",))) == []


def test_sums_by_hour_are_those_of_the_requests(store: SQLStore) -> None:
    """Whatever the edges are, and after a guess gave way to the truth."""
    for number in range(120):
        changes = {"model": "mno"[number % 3] if number % 7 else None, "team": "web" if number % 2 else "ops"}
        changes |= {"status": "error" if number % 5 == 0 else "ok", "key_id": f"k{number % 4}"}
        changes |= {"cache_verdict": "hit-exact" if number % 6 == 0 else "miss"}
        take(store, closed(f"r{number}", cost=number, at=AT + number * HOUR // 7, **changes))
    take(store, opened("late"), closed("late", cost=500, status="abandoned"))
    take(store, closed("late", cost=3))
    for since, until in (
        (AT, AT + 20 * HOUR),
        (AT - 40 * HOUR, AT + 90 * HOUR),
        (AT + 5, AT + 9 * HOUR + 7),
        (AT + 1, AT + 2),
        (0, 2 * AT),
        (AT, AT),
        *SPANS,
    ):
        for groups in (
            [],
            ["model"],
            ["team", "key"],
            ["hour"],
            ["hour", "key"],
            ["day", "status"],
            ["provider"],
            ["key"],
        ):
            by_user = store.usage(UsageQuery("acme", since, until, (*groups, "user")))  # which reads the requests
            expected = [{name: value for name, value in row.items() if name != "user"} for row in by_user]
            found = [
                row for row in store.usage(UsageQuery("acme", since, until, tuple(groups))) if groups or row["requests"]
            ]
            assert sorted(found, key=str) == sorted(expected, key=str)


def test_sums_by_user_are_those_of_the_requests_over_weeks(make_store: Callable[[], SQLStore]) -> None:
    """Also after a user was forgotten, and the users of the first days."""
    store, day = make_store(), 24 * HOUR
    for number in range(90):
        take(store, closed(f"r{number}", cost=number, at=AT + number * day // 2, user=f"u{number % 4}"))
    take(store, opened("late"), closed("late", cost=500, status="abandoned"))
    take(store, closed("late", cost=3))

    def of_requests(since: int, until: int) -> dict[str, tuple[int, int]]:
        found: Counter[str] = Counter()
        costs: Counter[str] = Counter()
        for row in store.usage(UsageQuery("acme", since, until, ("user", "model"))):  # which reads them
            found[row["user"]] += row["requests"]
            costs[row["user"]] += row["cost_microusd"]
        return {user: (found[user], costs[user]) for user in found}

    def of_sums(since: int, until: int) -> dict[str, tuple[int, int]]:
        rows = store.usage(UsageQuery("acme", since, until, ("user",)))
        return {row["user"]: (row["requests"], row["cost_microusd"]) for row in rows}

    spans = [(0, 2 * AT), (AT + 5, AT + 30 * day + 7), (AT + 3 * day, AT + 17 * day), (AT + 8 * day, AT + 9 * day)]
    for since, until in spans:
        assert of_sums(since, until) == of_requests(since, until)
    ids = store.retention.requests_of("acme", "u1", 100)
    store.retention.forget_user("acme", "u1", ids)
    for since, until in spans:
        assert of_sums(since, until) == of_requests(since, until)
    whole = of_sums(0, 2 * AT)
    assert whole.keys() == {"", "ann", "u0", "u2", "u3"}
    while store.retention.merge_users("acme", AT + 10 * day):
        pass
    merged = of_sums(0, 2 * AT)
    assert sum(count for count, _ in merged.values()) == sum(count for count, _ in whole.values())
    assert of_sums(AT + 11 * day, AT + 40 * day) == of_requests(AT + 11 * day, AT + 40 * day)
    store.retention.forget_users("acme")
    weeks = store._file.writer.execute("SELECT DISTINCT end_user FROM usage_user_weeks WHERE org = 'acme'").fetchall()
    assert [user for (user,) in weeks] == [""] and of_sums(0, 2 * AT)[""][0] == 91


def test_percentiles_are_those_of_the_requests(make_store: Callable[[], SQLStore]) -> None:
    """By one thing at a time, whatever the edges are; and of all organisations together."""
    store, times = make_store(), [1.5**n / 10 for n in range(30)]
    for number, ms in enumerate(times):
        changes = {"model": "mn"[number % 2], "org": ("acme", "other")[number % 3 == 0], "user": f"u{number % 4}"}
        changes |= {"ttft_ms": None if number % 5 == 0 else ms / 2, "total_ms": ms}
        take(store, closed(f"r{number}", at=AT + number * HOUR // 3, **changes))
    take(store, opened("late"), closed("late", status="abandoned", total_ms=9e9))  # of which the time is not known
    store = make_store()

    def exact(chosen: list[float]) -> list[float]:
        ordered = sorted(chosen)
        return [ordered[max(0, -(-len(ordered) * percent // 100) - 1)] for percent in (50, 95, 99)]

    for org, since, until in (
        ("acme", 0, 2 * AT),
        (None, AT + 5, AT + 8 * HOUR + 7),
        ("other", AT + HOUR, AT + 2 * HOUR),
        *((org, *span) for span in SPANS[:4] for org in ("acme", None)),
    ):
        for by in ((), ("model",), ("user",), ("model", "org")):
            for row in store.usage(UsageQuery(org, since, until, tuple(by), latency=True)):
                which = [
                    ms
                    for n, ms in enumerate(times)
                    if since <= AT + n * HOUR // 3 < until
                    and row.get("model", "mn"[n % 2]) == "mn"[n % 2]
                    and row.get("user", f"u{n % 4}") == f"u{n % 4}"
                    and (org or row.get("org") or ("acme", "other")[n % 3 == 0]) == ("acme", "other")[n % 3 == 0]
                ]
                if not which:
                    continue
                assert list(row["total_ms"].values()) == pytest.approx(exact(which), rel=0.0201)
                assert list(row["total_ms"]) == ["p50", "p95", "p99"]


def test_the_operator_sees_the_sums_of_every_organisation(store: Store) -> None:
    take(store, closed("r", "acme", 1), closed("r", "other", 2), closed("s", "other", 4, team="ops"))
    rows = store.usage(UsageQuery(None, 0, 2 * AT, ("org",)))
    assert [(row["org"], row["cost_microusd"]) for row in rows] == [("acme", 1), ("other", 6)]
    by_two = store.usage(UsageQuery(None, 0, 2 * AT, ("org", "team", "model")))
    assert [(row["org"], row["team"], row["requests"]) for row in by_two] == [
        ("acme", "web", 1),
        ("other", "ops", 1),
        ("other", "web", 1),
    ]


def test_requests_from_before_there_were_such_sums_are_in_them(make_store: Callable[[], SQLStore]) -> None:
    store = make_store()
    take(store, closed("a", cost=3), closed("b", cost=4, model="n", ttft_ms=None))
    before = store.usage(UsageQuery("acme", 0, 2 * AT, ("model",), latency=True))
    for gone in ("", " WHERE step = 'day' AND dimension NOT IN ('key', 'user')"):  # and from before those by day
        with make_store()._file.transaction() as writer:
            writer.execute(f"DELETE FROM usage_by{gone}")
        store = make_store()
        for since, until in ((0, 2 * AT), (AT - 1, AT + 1)):
            assert store.usage(UsageQuery("acme", since, until, ("model",), latency=True)) == before


@pytest.mark.parametrize("user", ["half \ud800", "zero \0", "Zoë 🚋", "'; DROP TABLE requests; --"])
def test_a_caller_may_be_called_anything(store: Store, user: str) -> None:
    assert len(take(store, replace(opened("r"), user=user), closed("r", user=user))) == 2
    receipt = store.receipt("acme", "r")
    assert receipt is not None and receipt["user"] == user


def test_open_requests_by_holder_and_age(store: Store) -> None:
    take(store, opened("a"), opened("b", at=AT + 5), holder="one")
    take(store, opened("c"), holder="two")
    assert {r.request_id for r in store.open_requests(holder="one")} == {"a", "b"}
    assert {r.request_id for r in store.open_requests(before_unix_ms=AT + 1)} == {"a", "c"}
    assert [r.request_id for r in store.open_requests(holder="one", before_unix_ms=AT + 1)] == ["a"]


def test_spending_by_holder_and_time(store: Store) -> None:
    take(store, closed("a", cost=5), closed("b", cost=6), holder="one")
    take(store, closed("c", cost=7), closed("d", cost=9, at=AT + 10), closed("e", cost=0), holder="two")
    assert sorted(store.spent(ACME, AT, AT + 10), key=str) == [Spent("one", 11), Spent("two", 7)]


def test_spending_by_team_key_and_model(store: Store) -> None:
    def tries(*costs: int) -> tuple[Attempt, ...]:
        return tuple(Attempt(model, "b", "ok", 0, None, 1, cost) for model, cost in zip("mn", costs, strict=False))

    take(store, closed("a", cost=5, attempts=tries(2, 3)), closed("b", cost=4, attempts=tries(4), team="ops"))
    take(store, closed("c", cost=1, attempts=tries(0, 1), key_id="other"))
    take(store, opened("d"), closed("d", cost=500, attempts=(), status="abandoned"))

    def cost(**narrowed: str) -> int:
        return sum(row.microusd for row in store.spent(Account("acme", "microusd", "total", **narrowed), 0, None))

    assert (cost(), cost(team="web"), cost(team="ops")) == (510, 506, 4)
    assert (cost(key_id="other"), cost(team="web", key_id="key")) == (1, 505)
    assert (cost(model="m"), cost(model="n"), cost(model="o")) == (506, 4, 0)
    assert (cost(model="m", team="web"), cost(model="n", key_id="key")) == (502, 3)


def test_leases_are_kept_replaced_and_dropped(make_store: Callable[[], Store]) -> None:
    store = make_store()
    minute = Account("acme", "requests", "minute", "web", "key", "m")
    first, second = Lease(ACME, "total", "one", 1, 0, 10), Lease(ACME, "total", "two", 1, 3, 20)
    used = Lease(minute, "000000000007", "one", 1, 0, 2)
    for lease in (first, second, used):
        store.save_lease(lease)
    store.save_lease(replace(first, sequence=2, authority=30))
    store = make_store()
    assert sorted(store.leases(ACME, "total"), key=str) == [replace(first, sequence=2, authority=30), second]
    assert sorted(store.lease_holders()) == ["one", "two"]
    store.drop_leases("one")
    assert store.leases(ACME, "total") == [second] and store.leases(ACME, "2026-05") == []
    assert store.leases(minute, used.period) == [used]  # a minute's is used up, whoever is gone
    store.drop_minutes("000000000007")
    assert store.leases(minute, used.period) == [used]
    store.drop_minutes("000000000008")
    assert store.leases(minute, used.period) == []


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"kind": "other"},
        {"status": "lost"},
        {"usage": None},
        {"usage": {"input_tokens": 1}},
        {"cost_microusd": -1},
        {"cost_microusd": 10**30},
        {"door": {"a": 1}},
        {"model": ["x"]},
    ],
)
def test_a_record_that_no_table_takes_is_set_aside_and_stops_no_other(store: Store, bad: dict[str, Any]) -> None:
    good = [json.loads(json.dumps(as_json(closed(request_id)))) for request_id in ("a", "b")]
    broken = {**good[0], "request_id": "x", **bad} if bad else {}
    accepted = store.ingest("h", [good[0], broken, good[1]])
    assert [entry.request_id for entry in accepted] == ["a", "b"]
    assert store.receipt("acme", "x") is None and store.receipt("acme", "b") is not None


def test_everything_is_there_after_a_restart(make_store: Callable[[], Store]) -> None:
    store = make_store()
    take(store, opened("a"), closed("b"))
    before = books(store)
    store = make_store()
    assert books(store) == before and store.receipt("acme", "b") is not None


def test_a_newer_database_is_refused(make_store: Callable[[], SQLStore]) -> None:
    with make_store()._file.transaction() as writer:
        writer.execute("INSERT INTO schema_migrations VALUES (9999)")
    with pytest.raises(InternalError, match="newer"):
        make_store()


def test_one_process_at_a_time(store: SQLStore, tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="Another process"):
        if isinstance(store, PostgresStore):
            PostgresStore(store._file._url, lock_wait_s=0.05)
        else:
            SQLiteStore(tmp_path / "ledger.sqlite3", lock_wait_s=0.05)


def entry(number: int, org: str = "acme") -> AuditEntry:
    return AuditEntry(f"e{number}", AT + number, org, "key.create", "key:k", Actor("default"), "done", {"a": "\ud800"})


def test_rows_of_the_directory_and_their_audit_entries_are_kept(make_store: Callable[[], SQLStore]) -> None:
    store = make_store()
    first, second = Row.of(Org("acme", 1), 1), Row.of(Org("other", 2), 2)
    store.directory.save([first], entry(1))
    store.directory.save([second, replace(first, version=3, body="{}")], entry(2, "other"))
    store = make_store()
    assert store.directory.rows() == [second, replace(first, version=3, body="{}")]
    assert [each["entry_id"] for each in store.directory.audit_page(None, "", 9)] == ["e1", "e2"]
    assert [each["entry_id"] for each in store.directory.audit_page("other", "", 9)] == ["e2"]
    assert store.directory.audit_page(None, "e2", 9) == []
    with pytest.raises(InvalidRequest):
        store.directory.audit_page(None, "\0", 9)


def test_the_audit_log_is_a_chain_that_survives_what_is_taken_back(make_store: Callable[[], SQLStore]) -> None:
    store = make_store()
    plain = json.loads(encode(entry(1))[9:])
    assert store.ingest("h", [plain, plain]) == []
    with pytest.raises(TypeError):
        store.directory.save([Row.of(Org("acme", 1), 1), ("no", "row")], entry(2))  # type: ignore[list-item]
    assert store.directory.rows() == []
    store.ingest("h", [plain, {**plain, "entry_id": "e3", "org": None}, {**plain, "entry_id": "e4"}])
    assert store.rejected == 1
    store = make_store()
    store.directory.save([], entry(5))
    rows = list(store.directory.audit_rows())
    assert [row.entry_id for row in rows] == ["e1", "e4", "e5"] and verify(rows).broken_at is None
    for statement in ("UPDATE audit SET body = '{}'", "DELETE FROM audit WHERE sequence = 3"):
        with pytest.raises(store._file.bad_record, match="append-only"):
            store._file.writer.execute(statement)
    assert verify(store.directory.audit_rows()) == verify(rows)


RECORDS = [
    *(opened(f"r{n}", org) for n, org in itertools.product(range(3), ("acme", "other"))),
    *(closed(f"r{n}", org, cost=n + 1) for n, org in itertools.product(range(4), ("acme", "other"))),
]


def test_any_order_any_repetition_any_split_gives_the_same_books(tmp_path: Path) -> None:
    with closing(SQLiteStore(tmp_path / "plain")) as plain:
        take(plain, *RECORDS)
        expected = books(plain)

    @settings(max_examples=20)
    @given(order=st.permutations(RECORDS), again=st.lists(st.sampled_from(RECORDS), max_size=10), data=st.data())
    def check(order: list[Record], again: list[Record], data: st.DataObject) -> None:
        todo = [*order, *again] if data.draw(st.booleans()) else [*again, *order]
        with tempfile.TemporaryDirectory() as folder, closing(SQLiteStore(Path(folder, "db"))) as shuffled:
            total = 0
            while todo:
                size = data.draw(st.integers(1, len(todo)))
                total += sum(cost for _, _, cost in take(shuffled, *todo[:size]))
                todo = todo[size:]
            assert books(shuffled) == expected
            assert total == sum(spent.microusd for spent in expected[1])

    check()


def test_the_newest_word_of_a_key_counts_and_no_other_org_sees_it(make_store: Callable[[], SQLStore]) -> None:
    given = Feedback("acme", "r1", "key", AT, "m", "math", "", 0.0, "bad", ("slow",), "not 'this'")
    store = make_store()
    store.feedback.save(given)
    store.feedback.save(replace(given, score=1.0, given_at_unix_ms=AT + 1))
    store.feedback.save(replace(given, key_id="other", cached_from="r0"))
    store = make_store()
    (row,) = store.feedback.summary("acme", "model")
    assert (row["model"], row["count"], row["good"]) == ("m", 2, 0.5)
    assert row["low"] < 0.5 < row["high"]
    assert [row["cached_from"] for row in store.feedback.summary("acme", "cached_from")] == ["r0"]
    assert store.feedback.summary("beta", "model") == []


def test_an_experiment_counts_each_unit_once_with_the_mean_of_its_requests(make_store: Callable[[], SQLStore]) -> None:
    def part(request_id: str, arm: str, unit: str, cost: int, version: str = "v1", **changes: Any) -> RequestClosed:
        trial = {"experiment": "e", "version": version, "arm": arm, "unit": unit}
        return closed(request_id, cost=cost, decision={"eligible": ("m",), "experiment": trial}, **changes)

    store = make_store()
    gated = (Attempt("m", "b", "escalated", 0.5, None, 9.0, 0), Attempt("n", "b", "ok", 0.5, 1.5, 9.0, 40))
    take(
        store,
        *(part("a", "one", "u1", 10, ttft_ms=4.0), part("b", "one", "u1", 20, ttft_ms=None, total_ms=8.0)),
        part("c", "one", "u2", 40, attempts=gated),
        part("d", "two", "u3", 70, status="error", error_code="overloaded"),
        *(part("e", "two", "u4", 5, version="v2"), closed("f")),
    )
    for key, score in (("k1", 1.0), ("k2", 0.5)):
        store.feedback.save(Feedback("acme", "a", key, AT, "m", "math", "", score))
    store = make_store()
    one, two = store.experiments.tallies("e", "v1")
    assert (one.arm, one.units, one.requests, one.failed, one.microusd) == ("one", 2, 3, 0, 70)
    assert one.measures["cost"] == Tally(2, 55.0, 15.0**2 + 40.0**2)
    assert one.measures["latency"] == Tally(2, 7.5, 36.0 + 2.25)
    assert one.measures["quality"] == Tally(1, 0.75, 0.75**2) and one.measures["escalation"] == Tally(2, 1.0, 1.0)
    assert (two.arm, two.failed, two.measures["quality"]) == ("two", 1, Tally(0, 0.0, 0.0))
    assert store.experiments.tallies("other", "v1") == []


def test_an_abandoned_request_that_was_closed_after_all_counts_once_in_its_experiment(store: SQLStore) -> None:
    trial = {"experiment": "e", "version": "v1", "arm": "one", "unit": "u1"}
    take(store, opened("a"), closed("a", status="abandoned", decision=None, attempts=()))
    take(store, closed("a", cost=7, decision={"eligible": ("m",), "experiment": trial}))
    (one,) = store.experiments.tallies("e", "v1")
    assert (one.requests, one.microusd) == (1, 7)


def test_an_alert_is_kept_once_with_how_far_it_is(make_store: Callable[[], SQLStore]) -> None:
    store = make_store()
    told = Told(Alert("acme", "k", AT, "budget", "warning", "t", "é", {"a": 1}), {"ops": Delivery(due_unix_ms=AT)})
    assert store.alerts.add(told) and not store.alerts.add(told)
    store = make_store()
    assert store.alerts.due(9) == [told]
    told.deliveries["ops"] = Delivery("sent", 2, AT, "")
    store.alerts.save(told)
    assert store.alerts.due(9) == [] and store.alerts.page("other", 9) == []
    (shown,) = store.alerts.page("acme", 9)
    assert shown["deliveries"]["ops"]["attempts"] == 2 and shown["text"] == "é"
    assert store.alerts.drop(AT) == 0 and store.alerts.drop(AT + 1) == 1 and store.alerts.page(None, 9) == []


def test_what_goes_leaves_its_sums_and_what_budgets_count(store: SQLStore) -> None:
    for number in range(7):
        changes = {"user": "ann" if number % 2 else "bob", "team": "web" if number < 4 else "ops"}
        take(store, closed(f"r{number}", cost=10, at=AT + number, **changes))
    take(store, opened("late"), closed("late", cost=500, attempts=(), status="abandoned"), closed("x", "other", 3))
    store.feedback.save(Feedback("acme", "r0", "key", AT, "m", "", "", 1.0))
    teams = [Account("acme", "microusd", "total", team=team) for team in ("", "web", "ops")]
    accounts = [*teams, Account("acme", "microusd", "total", model="m")]

    def spent() -> list[int]:
        return [sum(row.microusd for row in store.spent(account, 0, None)) for account in accounts]

    sums, before = store.usage(UsageQuery("acme", 0, 2 * AT, ("model",), latency=True)), spent()
    assert before == [570, 540, 30, 570]
    assert [store.retention.drop_requests("acme", AT + 5, 3) for _ in range(4)] == [3, 3, 0, 0]
    assert spent() == before and store.receipt("acme", "r0") is None and store.receipt("acme", "r6")
    assert store.usage(UsageQuery("acme", 0, 2 * AT, ("model",), latency=True)) == sums
    assert store.feedback.summary("acme", "model") == []
    assert store.spent(accounts[0], AT, AT + 99) == [Spent("h", 20)]  # a month's budget counts what is there
    ids = store.retention.requests_of("acme", "ann", 10)
    assert ids == ["r5"]
    store.retention.forget_user("acme", "ann", ids)
    assert store.receipt("acme", "r5") is None and store.retention.requests_of("acme", "ann", 10) == []
    users = {row["user"]: row["requests"] for row in store.usage(UsageQuery("acme", 0, 2 * AT, ("user",)))}
    assert "ann" not in users and sum(users.values()) == sums[0]["requests"]
    assert [store.retention.forget_requests("acme", 1) for _ in range(2)] == [1, 0]
    assert spent() == before and store.receipt("acme", "r6") is None
    take(store, closed("r6", cost=10, at=AT + 6, user="bob", team="ops"))  # a chunk that comes again is known
    assert spent() == before and store.receipt("acme", "r6") is None
    store.retention.forget_users("acme")
    assert store.usage(UsageQuery("acme", 0, 2 * AT, ("user",)))[0]["user"] == ""
    assert store.retention.orgs() and store.retention.facts()["rows"]["requests"] == 3
    assert store.usage(UsageQuery("other", 0, 2 * AT, ("user",)))[0]["user"] == "ann"


def test_what_was_learned_of_models_is_kept_and_comes_back(make_store: Callable[[], SQLStore]) -> None:
    store = make_store()
    one, two = Learned("acme", "math", "m", 1.0, 0.5, AT), Learned("other", "code", "m", 0.0, 1.0, AT)
    told = store.experience.share(Lessons((one, two)), AT)
    assert told.rows == (one, two) and store.experience.share(Lessons((), *_where(told)), AT).rows == ()
    more = store.experience.share(Lessons((one,), *_where(told)), AT)
    assert more.rows == (replace(one, good=2.0, bad=1.0),)
    store = make_store()
    assert set(store.experience.share(Lessons((), *_where(more)), AT).rows) == {two, *more.rows}


def _where(lessons: Lessons) -> tuple[str, int]:
    return lessons.incarnation, lessons.version


def test_time_of_replicas_counts_once_however_often_a_meter_is_read(make_store: Callable[[], SQLStore]) -> None:
    reading = Reading("a", "m", 100.0, 40.0, 3_600_000)
    for now in (AT, AT + HOUR):  # and over a restart
        store = make_store()
        store.node_time.take([reading, reading], now)
    store.node_time.take([replace(reading, replica_s=90.0, busy_s=30.0)], AT + HOUR)  # read before, told after
    more = replace(reading, replica_s=160.0, busy_s=160.0)
    store.node_time.take([more, replace(more, meter="b", microusd_per_hour=7)], AT + HOUR)
    hour = AT // HOUR * HOUR
    found = [NodeHour(hour + HOUR, "m", 7, 160_000, 160_000), NodeHour(hour + HOUR, "m", 3_600_000, 60_000, 60_000)]
    first = NodeHour(hour, "m", 3_600_000, 100_000, 40_000)
    assert store.node_time.hours(0, 2**50) == [first, *found]
    assert store.node_time.hours(hour + 1, 2**50) == found
    by_day = store.node_time.hours(0, 2**50, 48 * HOUR)
    assert [(each.microusd_per_hour, each.replica_ms, each.busy_ms) for each in by_day] == [
        (7, 160_000, 160_000),
        (3_600_000, 160_000, 100_000),
    ]
    rows = node_rows([first, *found], [{"model": "m", "cost_microusd": 5}], UsageQuery(None, 0, 2**50, ("model",)))
    cost, busy = 100_000 + 60_000, 40_000 + 60_000  # and 160 s of 7 micro-USD an hour, which is less than one
    money = {"cost_microusd": cost, "busy_microusd": busy, "idle_microusd": cost - busy, "charged_microusd": 5}
    assert rows == [{"model": "m", "replica_s": 320.0, "busy_replica_s": 260.0, **money}]


def test_what_ran_before_its_node_had_a_price_does_not_count(store: SQLStore) -> None:
    store.node_time.take([Reading("a", "m", 9_000.0, 40.0, None)], AT)
    assert store.node_time.hours(0, 2**50) == []
    store.node_time.take([Reading("a", "m", 9_030.0, 50.0, 7)], AT)
    assert store.node_time.hours(0, 2**50) == [NodeHour(AT // HOUR * HOUR, "m", 7, 30_000, 10_000)]


def test_a_model_that_sleeps_for_weeks_is_not_counted_again(store: SQLStore) -> None:
    asleep, gone = Reading("a", "m", 100.0, 40.0, 1), Reading("gone", "m", 5.0, 0.0, 1)
    store.node_time.take([gone], AT)
    for hour in range(0, 22 * 24, 6):
        store.node_time.take([asleep], AT + hour * HOUR)
    assert sum(each.replica_ms for each in store.node_time.hours(0, 2**50)) == 105_000
    with store._file.reading("*") as reader:
        assert reader.execute("SELECT meter FROM node_meters").fetchall() == [("a",)], "those that are read no more go"


def test_a_user_too_many_of_a_day_owes_nobody_a_request(store: SQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.accounting.usage_cells.MAX_USERS", 2)
    day = AT // (24 * HOUR) * 24 * HOUR
    for number in range(24):
        take(store, closed(f"r{number}", at=day + number * HOUR, user=f"u{number % 4}"))
    for since, until in ((day + 5 * HOUR, day + 24 * HOUR), (day, day + 19 * HOUR), (0, 2 * AT), (day, day + HOUR)):
        rows = store.usage(UsageQuery("acme", since, until, ("user",)))
        (whole,) = store.usage(UsageQuery("acme", since, until))
        assert sum(row["requests"] for row in rows) == whole["requests"] and all(row["requests"] > 0 for row in rows)
