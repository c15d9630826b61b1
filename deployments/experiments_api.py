"""Experiments: how they stand, and who is promoted. For the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.admin_api import Authority
from deployments.door import Operation, actor_of, authenticated, read_body
from deployments.openai.body import Body, read_json
from models.errors import InvalidRequest, NotFound, PermissionDenied
from router.accounting.registrar import Promote
from router.experiment_report import as_json, report
from router.trial_settings import ExperimentSettings
from router.trials import version_of

if TYPE_CHECKING:
    from deployments.ingress import Ingress

MAX_BODY_BYTES = 4 * 1024


class PromoteBody(Body):
    """Body of POST /v1/experiments/{name}/promote."""

    arm: str = Field(min_length=1, max_length=64)


class ExperimentsDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        one = "/v1/experiments/{name}"
        return (
            Operation("GET", "/v1/experiments", self.experiments),
            Operation("GET", one, self.experiment),
            Operation("POST", one + "/promote", self.promote, PromoteBody),
            Operation("POST", one + "/withdraw", self.withdraw),
        )

    async def experiments(self, request: Request) -> Response:
        self._operator(request)
        data = [await self._described(name, settings) for name, settings in self._configured.items()]
        return JSONResponse({"object": "list", "data": data})

    async def experiment(self, request: Request) -> Response:
        self._operator(request)
        return JSONResponse(await self._described(*self._named(request)))

    async def promote(self, request: Request) -> Response:
        """Everybody who could take part gets this arm from now on, until that is withdrawn."""
        self._operator(request)
        name, settings = self._named(request)
        body = read_json(PromoteBody, await read_body(request, MAX_BODY_BYTES) or b"{}")
        if body.arm not in settings.arms:
            raise InvalidRequest(f"'{body.arm}' is no arm of '{name}', but {', '.join(settings.arms)}.", "arm")
        return await self._done(request, name, settings, body.arm)

    async def withdraw(self, request: Request) -> Response:
        """The experiment goes on where it was, and is not promoted automatically any more."""
        self._operator(request)
        return await self._done(request, *self._named(request), None)

    async def _done(self, request: Request, name: str, settings: ExperimentSettings, arm: str | None) -> Response:
        detail = {} if arm is None else {"arm": arm}
        done = await self.ingress.ledger.administer(Promote(name, arm, version_of(settings)), actor_of(request), detail)
        await self.ingress.catch_up_everywhere(done.version)
        return JSONResponse(await self._described(name, settings))

    async def _described(self, name: str, settings: ExperimentSettings) -> dict[str, Any]:
        version = version_of(settings)
        tallies = await self.ingress.ledger.experiment(name, version)
        promoted = self.ingress.follower.directory.promoted(name, version)
        return as_json(name, settings, report(settings, tallies), promoted)

    @property
    def _configured(self) -> dict[str, ExperimentSettings]:
        return self.ingress.pipeline.settings.routing.experiments

    def _named(self, request: Request) -> tuple[str, ExperimentSettings]:
        name = request.path_params["name"]
        if name not in self._configured:
            known = ", ".join(self._configured) or "none yet: `routing.experiments` in the user_config of Ingress"
            raise NotFound(f"There is no experiment '{name}'; there are: {known}.", "name")
        return name, self._configured[name]

    def _operator(self, request: Request) -> None:
        """Experiments are over all organisations."""
        if not Authority(authenticated(self.ingress, request, "admin")).operator:
            raise PermissionDenied("Experiments are the operator's: use an admin key of the organisation 'default'.")
