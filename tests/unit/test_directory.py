"""Organisations, teams and keys: from an administrator's act through the ledger's database to every ingress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from models.errors import AuthenticationFailed, InvalidRequest, NotFound, Overloaded, PermissionDenied
from router.accounting.books import Books
from router.accounting.directory import Directory, Key, Org, Policy, Row, Rules, Team, public
from router.accounting.keys import keyed_hash, new_key, shown_prefix
from router.accounting.registrar import AddKey, Follower, Put, RevokeKey, RotateKey
from router.accounting.store import SQLiteStore
from router.accounting.tenants import Place, Tenants
from router.events import Actor, Principal
from router.settings import IngressSettings, TenantSettings

PEPPER = "a pepper of the tests"
ADMIN = Actor("default", key_id="key_admin", address="10.0.0.1")


@asynccontextmanager
async def books_in(folder: Path) -> AsyncIterator[Books]:
    books = await Books.open(lambda: SQLiteStore(folder / "ledger.sqlite3", lock_wait_s=5), folder / "journal")
    try:
        yield books
    finally:
        await books.close()


@asynccontextmanager
async def following(books: Books, **more: object) -> AsyncIterator[Tenants]:
    """An ingress's tenants, kept up to date by `books`."""
    follower = Follower(books.registrar)
    tenants = Tenants([], IngressSettings(), follower=follower, pepper=PEPPER, **more)
    task = asyncio.create_task(follower.run(tenants.forget))
    assert await follower.reached(0, 5)
    try:
        yield tenants
    finally:
        task.cancel()
        await asyncio.wait({task})


def key_of(text: str, key_id: str = "key_1", **fields: object) -> Key:
    return replace(Key(key_id, "acme", keyed_hash(text, PEPPER), shown_prefix(text), 0), **fields)


def everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


async def do(books: Books, act: object) -> int:
    return (await books.registrar.do(act, ADMIN, {})).version


async def make_acme(books: Books) -> None:
    await do(books, Put(Org("acme", 0)))
    await do(books, Put(Team("acme", "web", 0)))


async def test_a_key_lets_in_until_it_is_revoked_everywhere_within_a_second(tmp_path: Path) -> None:
    text = new_key()
    async with books_in(tmp_path) as books, following(books) as one, following(books) as two, following(books) as three:
        await make_acme(books)
        await do(books, AddKey(key_of(text, team="web", user="ann", scopes=("infer", "usage"))))
        await asyncio.sleep(0.05)
        for tenants in (one, two, three):
            who = tenants.authenticate(None, text, "usage")
            assert who == Principal("acme", "web", "key_1", "ann", frozenset({"infer", "usage"}))
        began = time.monotonic()
        await do(books, RevokeKey("acme", "key_1"))
        refused = 0
        while refused < 3:
            refused = 0
            for tenants in (one, two, three):
                try:
                    tenants.authenticate(f"Bearer {text}", None)
                except AuthenticationFailed as error:
                    assert "was revoked" in error.message and text not in error.message
                    refused += 1
            assert time.monotonic() - began < 5
            await asyncio.sleep(0.001)
        with pytest.raises(AuthenticationFailed):
            one.check_still(who)


async def test_keys_outlive_the_ledger_and_their_text_is_nowhere_in_its_files(tmp_path: Path) -> None:
    text = new_key()
    async with books_in(tmp_path) as books:
        await make_acme(books)
        await do(books, AddKey(key_of(text)))
    written = everything_in(tmp_path)
    assert b"acme" in written and text.encode() not in written and PEPPER.encode() not in written
    async with books_in(tmp_path) as books, following(books) as tenants:
        assert tenants.authenticate(None, text).org == "acme"
        shown = public(books.registrar.directory.get(Key, "key_1"))
        assert "mac" not in shown and shown["prefix"] == text[:12]


async def test_a_follower_survives_the_ledgers_restart_with_all_that_changed_meanwhile(tmp_path: Path) -> None:
    class Line:
        """To a ledger that may be away."""

        books: Books | None = None

        async def changes(self, *asked: object) -> object:
            if self.books is None:
                raise Overloaded("away")
            return await self.books.registrar.changes(*asked)

    line, text = Line(), new_key()
    follower = Follower(line)
    tenants = Tenants([], IngressSettings(), follower=follower, pepper=PEPPER)
    task = asyncio.create_task(follower.run(tenants.forget))
    with pytest.raises(Overloaded):  # not a 401: the key may well be known
        tenants.authenticate(None, text)
    async with books_in(tmp_path) as line.books:
        await make_acme(line.books)
        version = await do(line.books, AddKey(key_of(text)))
        assert await follower.reached(version, 5)
        assert tenants.authenticate(None, text)
        line.books = None
    assert tenants.authenticate(None, text)  # while nobody can revoke it
    async with books_in(tmp_path) as books:
        await do(books, RevokeKey("acme", "key_1"))
        line.books = books
        for task_of_old in asyncio.all_tasks() - {asyncio.current_task(), task}:
            await asyncio.wait({task_of_old}, timeout=0.1)
        async with asyncio.timeout(25):
            while True:
                try:
                    tenants.authenticate(None, text)
                except AuthenticationFailed:
                    break
                await asyncio.sleep(0.01)
        line.books = None
    task.cancel()
    await asyncio.wait({task})


async def test_rotation_lets_both_keys_in_until_the_overlap_is_over(tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    now = [time.time()]
    async with books_in(tmp_path) as books, following(books, unix_s=lambda: now[0]) as tenants:
        await make_acme(books)
        await do(books, AddKey(key_of(old, scopes=("usage",), rules=Rules(("m",)))))
        await do(books, Put(Policy("acme", "requests", "minute", 5, 0, key_id="key_1")))
        act = RotateKey("acme", "key_1", "key_2", keyed_hash(new, PEPPER), shown_prefix(new), 60_000)
        await do(books, act)
        await asyncio.sleep(0.05)
        assert tenants.authenticate(None, old, "usage").key_id == "key_1"
        assert tenants.authenticate(None, new, "usage").key_id == "key_2"
        taken_over = books.registrar.directory.get(Key, "key_2")
        assert (taken_over.rules, taken_over.replaces) == (Rules(("m",)), "key_1")
        assert {p.key_id for p in books.registrar.directory.all(Policy)} == {"key_1", "key_2"}
        now[0] += 61
        with pytest.raises(AuthenticationFailed, match="has expired"):
            tenants.authenticate(None, old)
        assert tenants.authenticate(None, new, "usage")
        for wrong in (RotateKey("acme", "key_9", "k", "", "", 0), RotateKey("other", "key_1", "k", "", "", 0)):
            with pytest.raises(NotFound):
                await do(books, wrong)


async def test_a_disabled_org_or_team_is_shut(tmp_path: Path) -> None:
    text = new_key()
    async with books_in(tmp_path) as books, following(books) as tenants:
        await make_acme(books)
        await do(books, AddKey(key_of(text, team="web")))
        for shut in (Org("acme", 0, disabled=True), Team("acme", "web", 0, disabled=True)):
            await do(books, Put(shut))
            await asyncio.sleep(0.05)
            with pytest.raises(PermissionDenied, match="is disabled"):
                tenants.authenticate(None, text)
            await do(books, Put(replace(shut, disabled=False)))
        await asyncio.sleep(0.05)
        assert tenants.authenticate(None, text)
        with pytest.raises(InvalidRequest):
            await do(books, Put(Org("default", 0, disabled=True)))


async def test_the_rules_of_org_team_and_key_hold_at_once(tmp_path: Path) -> None:
    places = {
        "here": Place(True, "local"),
        "there": Place(False, "eu"),
        "far": Place(False, "us"),
        "somewhere": Place(False),
    }
    text = new_key()
    async with books_in(tmp_path) as books, following(books, places=places) as tenants:
        await make_acme(books)
        await do(books, AddKey(key_of(text, team="web")))
        who = Principal("acme", "web", "key_1")

        async def allowed(*acts: object) -> tuple[str, ...] | None:
            for act in acts:
                await do(books, act)
            await asyncio.sleep(0.05)
            return tenants.allowed_models(who)

        assert await allowed() is None
        assert await allowed(Put(Org("acme", 0, Rules(regions=("eu", "local"))))) == ("here", "there")
        assert await allowed(Put(Team("acme", "web", 0, Rules(models=("there", "far"))))) == ("there",)
        assert await allowed(Put(Team("acme", "web", 0, Rules(local_only=True)))) == ("here",)
        tenants.reconfigure(IngressSettings(default_tenant=TenantSettings(models=("far",))))
        assert tenants.allowed_models(who) == ()
        assert tenants.allowed_models(Principal("other")) == ("far",)


async def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with books_in(tmp_path) as books:
        await do(books, Put(Org("acme", 0)))
        before = books.registrar.directory.version
        for act, error in (
            (Put(Team("nobody", "web", 0)), NotFound),
            (AddKey(key_of("k", org="nobody")), NotFound),
            (AddKey(key_of("k", team="nobody")), NotFound),
            (AddKey(key_of("k", expires_at_unix_ms=1)), InvalidRequest),
            (RevokeKey("acme", "key_9"), NotFound),
            (Put(Policy("acme", "requests", "minute", 5, 0, key_id="key_9")), NotFound),
            (Put(Policy("acme", "requests", "minute", 5, 0, removed_at_unix_ms=1)), NotFound),
        ):
            with pytest.raises(error):
                await do(books, act)
        assert books.registrar.directory.version == before


def test_a_row_of_a_newer_version_is_read_without_what_is_unknown() -> None:
    row = Row.of(Org("acme", 5, Rules(("m",))), 1)
    newer = replace(row, body=row.body[:-1] + ', "colour": "red"}')
    assert newer.entity() == Org("acme", 5, Rules(("m",)))
    directory = Directory()
    directory.apply([newer])
    assert directory.get(Org, "acme").rules.models == ("m",)
