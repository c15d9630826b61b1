"""What administrators do: organisations, teams, keys and policies, under /v1/admin/. Needs the scope `admin`.

An admin key of the operator's own organisation (`default`) administers all organisations, one of another organisation
that one, and one of a team that team's keys. Every act is in the audit log.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.door import Operation, actor_of, authenticated, read_body
from deployments.openai.body import Body, read_json
from models.errors import InvalidRequest, NotFound, PermissionDenied
from router.accounting.directory import DEFAULT_ORG, Entity, Key, Org, Policy, Rules, Scope, Span, Team, Unit, public
from router.accounting.keys import keyed_hash, new_key, shown_prefix
from router.accounting.registrar import Act, AddKey, Done, Put, RevokeKey, RotateKey
from router.events import Principal

if TYPE_CHECKING:
    from deployments.ingress import Ingress

MAX_BODY_BYTES = 256 * 1024
LONGEST_S = 10 * 366 * 86_400
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
TeamName = Annotated[str, StringConstraints(pattern=f"^({NAME})?$")]
Words = Annotated[str, StringConstraints(max_length=200)]
UNITS: dict[str, tuple[Span, ...]] = {
    "microusd": ("day", "month", "total"),
    "requests": ("minute",),
    "tokens": ("minute",),
    "concurrent": ("now",),
}


class RulesBody(Body):
    """What may answer; null: anything."""

    models: list[Words] | None = None
    regions: list[Words] | None = None
    local_only: bool = False

    def rules(self) -> Rules:
        return Rules(_fixed(self.models), _fixed(self.regions), self.local_only)


class OrgBody(RulesBody):
    """Body of PUT /v1/admin/orgs/{org} and of PUT /v1/admin/orgs/{org}/teams/{team}."""

    disabled: bool = False


class KeyBody(RulesBody):
    """Body of POST /v1/admin/keys."""

    org: Name | None = None
    team: TeamName = ""
    user: Words = ""
    name: Words = ""
    scopes: list[Scope] = Field(default=["infer"], min_length=1)
    expires_in_s: int | None = Field(None, ge=1, le=LONGEST_S)


class RotateBody(Body):
    """Body of POST /v1/admin/keys/{key_id}/rotate: for how long the old key goes on."""

    overlap_s: int = Field(86_400, ge=0, le=LONGEST_S)


class PolicyBody(Body):
    """Body of POST /v1/admin/policies: a budget (`microusd` per day, month or in total), or a limit of `requests` or
    `tokens` per minute, or of requests at once (`concurrent`)."""

    org: Name | None = None
    team: TeamName = ""
    key: Words = ""
    model: Words = ""
    unit: Unit
    span: Span | None = None
    amount: int = Field(ge=0, le=2**53)
    hard: bool = True


class AdminDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        orgs, keys, policies = "/v1/admin/orgs", "/v1/admin/keys", "/v1/admin/policies"
        return (
            Operation("GET", orgs, self.orgs),
            Operation("PUT", orgs + "/{org}", self.put_org, OrgBody),
            Operation("GET", orgs + "/{org}/teams", self.teams),
            Operation("PUT", orgs + "/{org}/teams/{team}", self.put_team, OrgBody),
            Operation("GET", keys, self.keys),
            Operation("POST", keys, self.create_key, KeyBody),
            Operation("GET", keys + "/{key_id}", self.key),
            Operation("DELETE", keys + "/{key_id}", self.revoke_key),
            Operation("POST", keys + "/{key_id}/rotate", self.rotate_key, RotateBody),
            Operation("GET", policies, self.policies),
            Operation("POST", policies, self.put_policy, PolicyBody),
            Operation("DELETE", policies + "/{policy_id}", self.remove_policy),
        )

    # ---- organisations and teams -----------------------------------------------------------------------------------

    async def orgs(self, request: Request) -> Response:
        authority = self._authority(request)
        return _listed(org for org in self._directory.all(Org) if authority.covers(org.org))

    async def put_org(self, request: Request) -> Response:
        authority = self._authority(request)
        org = _named(request.path_params["org"], "org")
        if not authority.operator:
            raise PermissionDenied("Only the operator makes or changes organisations.")
        body = await self._body(OrgBody, request)
        return await self._done(request, Put(Org(org, 0, self._checked(body.rules()), body.disabled)), body)

    async def teams(self, request: Request) -> Response:
        authority, org = self._authority(request), request.path_params["org"]
        authority.check(org)
        mine = (team for team in self._directory.all(Team) if team.org == org)
        return _listed(team for team in mine if authority.covers(org, team.team))

    async def put_team(self, request: Request) -> Response:
        org, team = request.path_params["org"], _named(request.path_params["team"], "team")
        self._authority(request).check(org, "")
        body = await self._body(OrgBody, request)
        return await self._done(request, Put(Team(org, team, 0, self._checked(body.rules()), body.disabled)), body)

    # ---- keys ------------------------------------------------------------------------------------------------------

    async def keys(self, request: Request) -> Response:
        """Those in force, or with `ended=true` all; of `org` and `team` where they are given."""
        authority, query = self._authority(request), request.query_params
        now, ended = int(time.time() * 1000), query.get("ended") == "true"
        found = (key for key in self._directory.all(Key) if authority.covers(key.org, key.team))
        found = (
            key for key in found if key.org == query.get("org", key.org) and key.team == query.get("team", key.team)
        )
        return _listed(key for key in found if ended or not key.ended(now))

    async def key(self, request: Request) -> Response:
        return JSONResponse(public(self._own_key(request)))

    async def create_key(self, request: Request) -> Response:
        authority = self._authority(request)
        body = await self._body(KeyBody, request)
        org, team = body.org or authority.org, body.team or authority.team
        authority.check(org, team)
        text, expires = new_key(), body.expires_in_s
        key = Key(
            key_id=_new_key_id(),
            org=org,
            mac=keyed_hash(text, self.ingress.pepper),
            prefix=shown_prefix(text),
            created_at_unix_ms=0,
            team=team,
            user=body.user,
            name=body.name,
            scopes=tuple(sorted(set(body.scopes))),
            rules=self._checked(body.rules()),
            expires_at_unix_ms=None if expires is None else int(time.time() + expires) * 1000,
        )
        return await self._done(request, AddKey(key), body, text)

    async def rotate_key(self, request: Request) -> Response:
        key, body = self._own_key(request), await self._body(RotateBody, request)
        text = new_key()
        mac, prefix = keyed_hash(text, self.ingress.pepper), shown_prefix(text)
        act = RotateKey(key.org, key.key_id, _new_key_id(), mac, prefix, body.overlap_s * 1000)
        return await self._done(request, act, body, text)

    async def revoke_key(self, request: Request) -> Response:
        key = self._own_key(request)
        return await self._done(request, RevokeKey(key.org, key.key_id))

    def _own_key(self, request: Request) -> Key:
        authority, key_id = self._authority(request), request.path_params["key_id"]
        key = self._directory.find(Key, key_id)
        if key is None or not authority.covers(key.org, key.team):  # another's looks as if there were none
            raise NotFound(f"There is no key '{key_id[:64]}' here; GET /v1/admin/keys lists those there are.", "key")
        return key

    # ---- policies --------------------------------------------------------------------------------------------------

    async def policies(self, request: Request) -> Response:
        authority = self._authority(request)
        return _listed(p for p in self._policies() if authority.covers(p.org, p.team))

    async def put_policy(self, request: Request) -> Response:
        authority = self._authority(request)
        body = await self._body(PolicyBody, request)
        org, team = body.org or authority.org, body.team or authority.team
        authority.check(org, team, money=True)
        spans = UNITS[body.unit]
        span = body.span or (spans[0] if len(spans) == 1 else "month")
        if span not in spans:
            raise InvalidRequest(f"A limit of '{body.unit}' is per {' or '.join(spans)}.", "span")
        if body.model:
            self._checked(Rules((body.model,)))
        policy = Policy(org, body.unit, span, body.amount, 0, team, body.key, body.model, body.hard)
        return await self._done(request, Put(policy), body)

    async def remove_policy(self, request: Request) -> Response:
        authority, policy_id = self._authority(request), request.path_params["policy_id"]
        for policy in self._policies():
            if _policy_id(policy) == policy_id and authority.covers(policy.org, policy.team):
                authority.check(policy.org, policy.team, money=True)
                ended = Policy(
                    *(policy.org, policy.unit, policy.span, policy.amount, 0, policy.team, policy.key_id, policy.model),
                    hard=policy.hard,
                    removed_at_unix_ms=int(time.time() * 1000),
                )
                return await self._done(request, Put(ended))
        raise NotFound(
            f"There is no policy '{policy_id[:64]}'; GET /v1/admin/policies lists those there are.", "policy"
        )

    def _policies(self) -> Iterator[Policy]:
        return (policy for policy in self._directory.all(Policy) if policy.removed_at_unix_ms is None)

    # ---- within ----------------------------------------------------------------------------------------------------

    @property
    def _directory(self) -> Any:
        return self.ingress.follower.directory

    def _authority(self, request: Request) -> Authority:
        return Authority(authenticated(self.ingress, request, "admin"))

    async def _body(self, kind: type[Any], request: Request) -> Any:
        return read_json(kind, await read_body(request, MAX_BODY_BYTES) or b"{}")

    def _checked(self, rules: Rules) -> Rules:
        """A name that is nobody's would silently allow nothing. Raises `InvalidRequest`."""
        places = self.ingress.tenants.places
        if unknown := set(rules.models or ()) - set(places):
            raise InvalidRequest(f"There is no model '{min(unknown)}' here; GET /v1/models lists them.", "models")
        known = {place.region for place in places.values() if place.region}
        if unknown := set(rules.regions or ()) - known:
            raise InvalidRequest(
                f"There is no region '{min(unknown)}' here, but {', '.join(sorted(known))}.", "regions"
            )
        return rules

    async def _done(self, request: Request, act: Act, body: Body | None = None, key: str | None = None) -> Response:
        """Has the ledger do it, waits until every ingress knows, and shows what there is now; a new key's text here
        and nowhere else."""
        detail = body.model_dump(mode="json", exclude_unset=True) if body else {}
        done: Done = await self.ingress.ledger.administer(act, actor_of(request), detail)
        await self.ingress.catch_up_everywhere(done.version)
        shown = _shown(done.row.entity())
        return JSONResponse(shown if key is None else {**shown, "key": key}, 200 if key is None else 201)


@dataclass(frozen=True, slots=True)
class Authority:
    """Over whom an administrator is set."""

    principal: Principal

    @property
    def org(self) -> str:
        return self.principal.org

    @property
    def team(self) -> str:
        return self.principal.team

    @property
    def operator(self) -> bool:
        return self.org == DEFAULT_ORG and not self.team

    def covers(self, org: str, team: str | None = None) -> bool:
        """`team` None: whether anything of the org is theirs."""
        return self.operator or (org == self.org and (not self.team or team in (self.team, None)))

    def check(self, org: str, team: str | None = None, money: bool = False) -> None:
        """Raises `PermissionDenied`. money: what somebody may spend is set by who is above them."""
        if not self.covers(org, team) or (money and self.team):
            whose = f"team '{self.team}' of organisation '{self.org}'" if self.team else f"organisation '{self.org}'"
            raise PermissionDenied(f"This key administers {whose} only, and cannot do this there or elsewhere.")


def _shown(entity: Entity) -> dict[str, Any]:
    return public(entity) | ({"id": _policy_id(entity)} if isinstance(entity, Policy) else {})


def _listed(entities: Iterable[Entity]) -> Response:
    """Newest last."""
    ordered = sorted(entities, key=lambda entity: (entity.created_at_unix_ms, entity.id))
    return JSONResponse({"object": "list", "data": [_shown(entity) for entity in ordered]})


def _policy_id(policy: Policy) -> str:
    return "policy_" + hashlib.sha256(policy.id.encode()).hexdigest()[:16]


def _new_key_id() -> str:
    return "key_" + secrets.token_hex(8)


def _named(text: str, param: Literal["org", "team"]) -> str:
    if not re.fullmatch(NAME, text):
        raise InvalidRequest(
            f"'{param}' is a name of up to 64 letters, digits, '.', '_' and '-', and begins with one of the former.",
            param,
        )
    return text


def _fixed(names: list[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)
