"""The directory's one owner, within the ledger: applies acts of administrators, writes each down with its audit entry,
and tells every ingress at once."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from models.errors import InvalidRequest, NotFound
from router.accounting.audit import Verdict, verify
from router.accounting.directory import (
    DEFAULT_ORG,
    Changes,
    Directory,
    Entity,
    Key,
    Org,
    Policy,
    Promotion,
    Row,
    Team,
    ended_at,
)
from router.accounting.directory_store import DirectoryStore
from router.events import Actor, AuditEntry

logger = logging.getLogger(__name__)

MAX_ROWS = 100_000
"""Of all kinds: every ingress holds them, at about a kilobyte each."""
MAX_FOLLOWERS = 256
LONGEST_WAIT_S = 2.0
"""Short, since a ledger that is to be replaced first answers whoever waits."""
RETRY_S = 0.2


class Act(Protocol):
    """What an administrator wants done."""

    @property
    def name(self) -> str:
        """As the audit log calls it."""

    def entities(self, directory: Directory, now_unix_ms: int) -> list[Entity]:
        """What there is afterwards, the one acted on first. Raises `NotFound` or `InvalidRequest`."""


@dataclass(frozen=True, slots=True)
class Put:
    """Make an org, a team or a policy, or replace the one of that name."""

    entity: Org | Team | Policy

    @property
    def name(self) -> str:
        removed = isinstance(self.entity, Policy) and self.entity.removed_at_unix_ms is not None
        return f"{self.entity.kind}.{'remove' if removed else 'put'}"

    def entities(self, directory: Directory, now_unix_ms: int) -> list[Entity]:
        entity, known = self.entity, directory.find(type(self.entity), self.entity.id)
        if isinstance(entity, Org) and entity.org == DEFAULT_ORG and entity.disabled:
            raise InvalidRequest(f"'{DEFAULT_ORG}' is the operator's own organisation and stays enabled.", "disabled")
        _check_place(directory, entity.org, entity.team if isinstance(entity, Team | Policy) else "", type(entity))
        if isinstance(entity, Policy) and entity.key_id:
            key = directory.get(Key, entity.key_id)
            if (key.org, entity.team or key.team) != (entity.org, key.team):
                raise InvalidRequest(f"Key '{entity.key_id}' is not one of that organisation and team.", "key")
        if isinstance(entity, Policy) and entity.removed_at_unix_ms is not None:
            directory.get(Policy, entity.id)
        if isinstance(entity, Org) and isinstance(known, Org):
            entity = replace(entity, erased_at_unix_ms=known.erased_at_unix_ms)
        return [replace(entity, created_at_unix_ms=known.created_at_unix_ms if known else now_unix_ms)]


@dataclass(frozen=True, slots=True)
class AddKey:
    key: Key
    name: str = "key.create"

    def entities(self, directory: Directory, now_unix_ms: int) -> list[Entity]:
        _check_place(directory, self.key.org, self.key.team, Key)
        if (ends := self.key.expires_at_unix_ms) is not None and ends <= now_unix_ms:
            raise InvalidRequest("The key would have expired already; give a later 'expires_at'.", "expires_at")
        return [replace(self.key, created_at_unix_ms=now_unix_ms)]


@dataclass(frozen=True, slots=True)
class RotateKey:
    """Another key in place of one, which goes on for `overlap_ms`."""

    org: str
    key_id: str
    new_id: str
    mac: str
    prefix: str
    overlap_ms: int
    name: str = "key.rotate"

    def entities(self, directory: Directory, now_unix_ms: int) -> list[Entity]:
        old = _own_key(directory, self.org, self.key_id)
        if old.ended(now_unix_ms):
            raise InvalidRequest(f"Key '{self.key_id}' has ended and cannot be rotated; make a new one.", "key")
        ends = now_unix_ms + self.overlap_ms
        if old.expires_at_unix_ms is not None:
            ends = min(ends, old.expires_at_unix_ms)
        new = replace(
            old,
            key_id=self.new_id,
            mac=self.mac,
            prefix=self.prefix,
            created_at_unix_ms=now_unix_ms,
            replaces=self.key_id,
        )
        limits = [
            replace(policy, key_id=self.new_id, created_at_unix_ms=now_unix_ms)
            for policy in directory.all(Policy)
            if policy.key_id == self.key_id and policy.removed_at_unix_ms is None
        ]
        return [new, replace(old, expires_at_unix_ms=ends), *limits]


@dataclass(frozen=True, slots=True)
class RevokeKey:
    org: str
    key_id: str
    name: str = "key.revoke"

    def entities(self, directory: Directory, now_unix_ms: int) -> list[Entity]:
        return [ended_at(_own_key(directory, self.org, self.key_id), now_unix_ms)]


@dataclass(frozen=True, slots=True)
class Promote:
    """Give everybody this arm of an experiment; None: have it go on. once: only where neither was decided on this
    version before, so that an operator who withdraws it while a winner is looked for has the last word."""

    experiment: str
    arm: str | None
    version: str = ""
    once: bool = False

    @property
    def name(self) -> str:
        return "experiment.withdraw" if self.arm is None else "experiment.promote"

    def entities(self, directory: Directory, now_unix_ms: int) -> list[Entity]:
        if self.once and directory.promotion(self.experiment, self.version) is not None:
            raise InvalidRequest(f"It was decided before which arm of '{self.experiment}' everybody has.", "arm")
        return [Promotion(self.experiment, self.arm, now_unix_ms, version=self.version)]


@dataclass(frozen=True, slots=True)
class Forget:
    """End the keys of an org, which is disabled, or of one of its users; whose they were is not known any more."""

    org: str
    user: str | None

    @property
    def name(self) -> str:
        return "erase.org" if self.user is None else "erase.user"

    def entities(self, directory: Directory, now_unix_ms: int) -> list[Entity]:
        if self.user is None and self.org == DEFAULT_ORG:
            raise InvalidRequest(f"'{DEFAULT_ORG}' is the operator's own organisation and stays.", "org")
        org = directory.find(Org, self.org) or Org(self.org, now_unix_ms)
        keys = [
            replace(ended_at(key, now_unix_ms), user="", name="")
            for key in directory.all(Key)
            if key.org == self.org and self.user in (None, key.user)
        ]
        if self.user is None:
            org = replace(org, disabled=True, erased_at_unix_ms=now_unix_ms)
        return [org, *keys]


@dataclass(frozen=True, slots=True)
class Done:
    """What an act made of what it acted on, and the version from which every ingress knows it."""

    row: Row
    version: int


class Registrar:
    """write, read: run work in the thread that writes to the database, and in the one that reads from it."""

    def __init__(
        self,
        store: DirectoryStore,
        write: Callable[[Callable[[], Any]], Awaitable[Any]],
        read: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        self._store, self._write, self._read = store, write, read
        self._incarnation = secrets.token_hex(8)
        self._directory = Directory()
        self._lock = asyncio.Lock()
        self._followers: set[asyncio.Future[None]] = set()

    async def load(self) -> None:
        self._directory.apply(await self._write(self._store.rows))

    @property
    def directory(self) -> Directory:
        return self._directory

    async def do(self, act: Act, actor: Actor, detail: dict[str, Any]) -> Done:
        """Do it, write it down, tell every ingress. Raises what `Act.entities` raises."""
        async with self._lock:
            # Shielded: what is in the database must be known here too, even if the caller has left meanwhile.
            return await asyncio.shield(asyncio.ensure_future(self._do(act, actor, detail)))

    async def _do(self, act: Act, actor: Actor, detail: dict[str, Any]) -> Done:
        now = int(time.time() * 1000)
        entities = act.entities(self._directory, now)
        version = self._directory.version + 1
        rows = [Row.of(entity, version) for entity in entities]
        if len(self._directory.since(0)) + len(rows) > MAX_ROWS:
            raise InvalidRequest(
                f"There are {MAX_ROWS} organisations, teams, keys and policies, which is all it takes."
            )
        entry = AuditEntry(
            secrets.token_hex(12), now, rows[0].org, act.name, f"{rows[0].kind}:{rows[0].id}", actor, "done", detail
        )
        await self._write(lambda: self._store.save(rows, entry))
        self._directory.apply(rows)
        for follower in self._followers:
            if not follower.done():
                follower.set_result(None)
        return Done(rows[0], version)

    async def changes(self, incarnation: str, version: int, wait_s: float) -> Changes:
        """What is new since then; waits up to `wait_s` for something new."""
        known = incarnation == self._incarnation
        if known and version >= self._directory.version and len(self._followers) < MAX_FOLLOWERS:
            news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._followers.add(news)
            try:
                await asyncio.wait({news}, timeout=min(wait_s, LONGEST_WAIT_S))
            finally:
                self._followers.discard(news)
        since = version if known else 0
        return Changes(self._incarnation, self._directory.version, self._directory.since(since), not known)

    async def audit_page(self, org: str | None, after: str, limit: int) -> list[dict[str, Any]]:
        """See `DirectoryStore.audit_page`."""
        found: list[dict[str, Any]] = await self._read(lambda: self._store.audit_page(org, after, limit))
        return found

    async def audit_verdict(self, expected_head: str | None, org: str | None = None) -> Verdict:
        """Of the whole log, see `audit.verify`. Takes a second for 200,000 entries."""
        verdict: Verdict = await self._read(lambda: verify(self._store.audit_rows(), expected_head, org))
        return verdict


class Source(Protocol):
    """Where an ingress learns of changes."""

    async def changes(self, incarnation: str, version: int, wait_s: float) -> Changes: ...


class Follower:
    """Keeps a process's own `directory` equal to the ledger's; `run` does it. A ledger that is down leaves it as it is:
    nothing can be changed then either."""

    def __init__(self, source: Source) -> None:
        self.directory = Directory()
        self.loaded = False
        self._source = source
        self._incarnation = ""
        self._progress = asyncio.Event()

    async def run(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Follow for ever."""
        failing = False
        while True:
            try:
                changes = await self._source.changes(self._incarnation, self.directory.version, LONGEST_WAIT_S)
            except Exception as error:
                if not failing:
                    failing = True
                    logger.warning("the ledger does not tell of new keys (%s); it is asked again", type(error).__name__)
                await asyncio.sleep(RETRY_S)
                continue
            failing = False
            self._take(changes)
            on_change()

    def _take(self, changes: Changes) -> None:
        if changes.whole:
            self.directory.clear()
        self.directory.apply(changes.rows)
        self._incarnation, self.loaded = changes.incarnation, True
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()

    async def reached(self, version: int, wait_s: float) -> bool:
        """Wait until what was done at `version` is known here."""
        try:
            async with asyncio.timeout(wait_s):
                while not (self.loaded and self.directory.version >= version):
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True


def _check_place(directory: Directory, org: str, team: str, kind: type[Any]) -> None:
    """That the org, and the team where one is named, are there."""
    if kind is not Org and org != DEFAULT_ORG:
        directory.get(Org, org)
    if team and kind is not Team:
        directory.get(Team, f"{org}/{team}")


def _own_key(directory: Directory, org: str, key_id: str) -> Key:
    key = directory.get(Key, key_id)
    if org and key.org != org:
        raise NotFound(f"There is no key '{key_id}' here; list those there are, or make it first.", "key")
    return key
