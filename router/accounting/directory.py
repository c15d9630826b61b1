"""Who there is: organisations, their teams, their keys, and what each may use. As rows that every ingress holds whole.

A row is found by its `id` within its kind and is replaced by the row of the same id with a higher `version`. What ends
(a key, a team) stays as a row that says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

from models.errors import NotFound

Scope = Literal["infer", "admin", "usage", "audit"]
SCOPES: tuple[Scope, ...] = ("infer", "admin", "usage", "audit")
DEFAULT_ORG = "default"
"""The operator's own organisation: a key of it with the scope `admin` administers all the others."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What may answer. None: anything. Those of org, team and key all hold at once.

    regions: as the configuration names them (`region` of an endpoint; that of local models is `local`).
    """

    models: tuple[str, ...] | None = None
    regions: tuple[str, ...] | None = None
    local_only: bool = False

    @property
    def open(self) -> bool:
        return self.models is None and self.regions is None and not self.local_only


@dataclass(frozen=True, slots=True)
class Org:
    kind: ClassVar[str] = "org"
    org: str
    created_at_unix_ms: int
    rules: Rules = Rules()
    disabled: bool = False
    erased_at_unix_ms: int | None = None

    @property
    def id(self) -> str:
        return self.org


@dataclass(frozen=True, slots=True)
class Team:
    kind: ClassVar[str] = "team"
    org: str
    team: str
    created_at_unix_ms: int
    rules: Rules = Rules()
    disabled: bool = False

    @property
    def id(self) -> str:
        return f"{self.org}/{self.team}"


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its text. mac: hex HMAC-SHA256 of that. prefix: its first characters, to recognise it by.

    replaces: the id of the key that this one was rotated from.
    """

    kind: ClassVar[str] = "key"
    key_id: str
    org: str
    mac: str
    prefix: str
    created_at_unix_ms: int
    team: str = ""
    user: str = ""
    name: str = ""
    scopes: tuple[Scope, ...] = ("infer",)
    rules: Rules = Rules()
    expires_at_unix_ms: int | None = None
    revoked_at_unix_ms: int | None = None
    replaces: str | None = None

    @property
    def id(self) -> str:
        return self.key_id

    def ended(self, now_unix_ms: int) -> bool:
        expired = self.expires_at_unix_ms is not None and now_unix_ms >= self.expires_at_unix_ms
        return expired or self.revoked_at_unix_ms is not None


Unit = Literal["microusd", "requests", "tokens", "concurrent"]
Span = Literal["minute", "day", "month", "total", "now"]


@dataclass(frozen=True, slots=True)
class Policy:
    """A budget or a limit: so many `unit` in each `span` (UTC), over all that is not named empty.

    hard: what would go over it is refused; soft: it is told to those who watch. There is one policy of each kind for
    each subject, so that its `id` says what it is about.
    """

    kind: ClassVar[str] = "policy"
    org: str
    unit: Unit
    span: Span
    amount: int
    created_at_unix_ms: int
    team: str = ""
    key_id: str = ""
    model: str = ""
    hard: bool = True
    removed_at_unix_ms: int | None = None

    @property
    def id(self) -> str:
        return "/".join((self.org, self.team, self.key_id, self.model, self.unit, self.span))


@dataclass(frozen=True, slots=True)
class Promotion:
    """An experiment is over: everybody who could take part gets this arm. arm None: it was taken back. version: of the
    experiment, see `trials.version_of`; with other arms it is another one. '': from before there were any, of all."""

    kind: ClassVar[str] = "promotion"
    experiment: str
    arm: str | None
    created_at_unix_ms: int
    org: str = DEFAULT_ORG
    version: str = ""

    @property
    def id(self) -> str:
        return self.experiment


Entity = Org | Team | Key | Policy | Promotion
_KINDS: dict[str, type[Any]] = {entity.kind: entity for entity in (Org, Team, Key, Policy, Promotion)}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One entity as it is kept and sent."""

    kind: str
    id: str
    org: str
    version: int
    body: str

    @classmethod
    def of(cls, entity: Entity, version: int) -> Row:
        return cls(entity.kind, entity.id, entity.org, version, json.dumps(asdict(entity), separators=(",", ":")))

    def entity(self) -> Entity:
        """Fields that this version does not know are left out: a newer one wrote them."""
        kind = _KINDS[self.kind]
        known = {field.name for field in fields(kind)}
        values = {name: _frozen(value) for name, value in json.loads(self.body).items() if name in known}
        if "rules" in values:
            values["rules"] = Rules(**{name: _frozen(value) for name, value in values["rules"].items()})
        entity: Entity = kind(**values)
        return entity


@dataclass(frozen=True, slots=True)
class Changes:
    """Rows that are new since a `version` of the ledger process `incarnation`; with `whole`, all rows there are."""

    incarnation: str
    version: int
    rows: tuple[Row, ...]
    whole: bool


class Directory:
    """All rows in memory, and the ways to find them."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.version = 0
        self._entities: dict[tuple[str, str], Entity] = {}
        self._rows: dict[tuple[str, str], Row] = {}
        self._by_mac: dict[str, Key] = {}
        self._policies: dict[str, dict[str, Policy]] = {}

    def apply(self, rows: Iterable[Row]) -> None:
        for row in rows:
            entity = row.entity()
            self._entities[row.kind, row.id] = entity
            self._rows[row.kind, row.id] = row
            self.version = max(self.version, row.version)
            if isinstance(entity, Key):
                self._by_mac[entity.mac] = entity
            if isinstance(entity, Policy):
                self._policies.setdefault(entity.org, {})[entity.id] = entity

    def since(self, version: int) -> tuple[Row, ...]:
        return tuple(row for row in self._rows.values() if row.version > version)

    def find(self, kind: type[T], id: str) -> T | None:
        found = self._entities.get((getattr(kind, "kind"), id))  # noqa: B009  (a class variable that T has not)
        return found if isinstance(found, kind) else None

    def get(self, kind: type[T], id: str) -> T:
        """Raises `NotFound`."""
        found = self.find(kind, id)
        if found is None:
            name = getattr(kind, "kind")  # noqa: B009
            raise NotFound(f"There is no {name} '{id}' here; list those there are, or make it first.", name)
        return found

    def all(self, kind: type[T]) -> Iterator[T]:
        """In the order they were made."""
        return (entity for entity in self._entities.values() if isinstance(entity, kind))

    def key_of(self, mac: str) -> Key | None:
        """By the keyed hash. What the time of this lookup tells is about a number that only the pepper's owner can
        aim; compare the whole of it in constant time all the same."""
        return self._by_mac.get(mac)

    def rules_over(self, org: str, team: str, key_id: str) -> Iterator[Rules]:
        """Of the org, the team and the key, where they have any."""
        for entity in (self.find(Org, org), self.find(Team, f"{org}/{team}"), self.find(Key, key_id)):
            if entity is not None and not entity.rules.open:
                yield entity.rules

    def policies_of(self, org: str) -> list[Policy]:
        """Those in force."""
        return [policy for policy in self._policies.get(org, {}).values() if policy.removed_at_unix_ms is None]

    def promotion(self, experiment: str, version: str) -> Promotion | None:
        """What was decided last on this version of an experiment."""
        found = self.find(Promotion, experiment)
        return found if found is not None and found.version in ("", version) else None

    def promoted(self, experiment: str, version: str) -> str | None:
        """The arm, if one was and still is."""
        found = self.promotion(experiment, version)
        return found.arm if found is not None else None

    def shut(self, org: str, team: str) -> str | None:
        """What of the two is disabled, in words."""
        if (found := self.find(Org, org)) is not None and found.disabled:
            return f"Organisation '{org}'"
        if (group := self.find(Team, f"{org}/{team}")) is not None and group.disabled:
            return f"Team '{team}'"
        return None


def public(entity: Entity) -> dict[str, Any]:
    """What an administrator sees of it: no hash."""
    shown = {"object": entity.kind, "id": entity.id, **asdict(entity)}
    shown.pop("mac", None)
    shown.pop("key_id", None)
    return shown


def ended_at(key: Key, now_unix_ms: int) -> Key:
    """`key`, revoked."""
    return key if key.revoked_at_unix_ms is not None else replace(key, revoked_at_unix_ms=now_unix_ms)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
