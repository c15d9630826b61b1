"""Which cloud providers there are, why one is not enabled, and how those do that are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deployments.door import Operation, admitted
from deployments.hop import call
from models.errors import SwitchyardError
from router.cloud import ProviderState

if TYPE_CHECKING:
    from deployments.cloud import CloudModel
    from deployments.ingress import Ingress

HEALTH_TIMEOUT_S = 1.5
_UNKNOWN = {"state": "unknown", "checked_at": None, "last_error_code": None}


class Providers:
    """The providers as the graph was built with them, and the deployments of those that are enabled.

    handles: by backend name. Those in `asleep` have no replica while nobody asks, and are not woken for this.
    inline: by backend name, those that this process runs itself.
    """

    def __init__(
        self,
        states: Sequence[ProviderState],
        handles: Mapping[str, DeploymentHandle],
        asleep: frozenset[str] = frozenset(),
        inline: Mapping[str, CloudModel] | None = None,
    ) -> None:
        self._states = tuple(states)
        self._handles = handles
        self._asleep = asleep
        self._inline = inline or {}

    async def described(self, allowed: Sequence[str] | None) -> list[dict[str, Any]]:
        """Of each provider what `GET /v1/providers` says, within `HEALTH_TIMEOUT_S`. allowed: the models that the
        caller may use; None: all."""
        return list(await asyncio.gather(*(self._describe(state, allowed) for state in self._states)))

    async def _describe(self, state: ProviderState, allowed: Sequence[str] | None) -> dict[str, Any]:
        return {
            "name": state.name,
            "enabled": state.enabled,
            "why_not": state.why_not,
            "key_variable": state.key_variable,
            "models": [name for name in state.models if allowed is None or name in allowed],
            "health": await self._health(state.name) if state.enabled else None,
        }

    async def _health(self, name: str) -> dict[str, Any]:
        if own := self._inline.get(f"CloudModel:{name}"):
            return await own.provider_health()
        handle = self._handles.get(f"CloudModel:{name}")
        if handle is None or name in self._asleep:
            return _UNKNOWN
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                health: dict[str, Any] = await call(handle.provider_health)
                return health
        except (SwitchyardError, TimeoutError) as error:
            return {**_UNKNOWN, "last_error_code": getattr(error, "code", "deadline_exceeded")}


class ProvidersDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        return (Operation("GET", "/v1/providers", self.providers),)

    async def providers(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        allowed = self.ingress.tenants.allowed_models(principal)
        return JSONResponse({"object": "list", "data": await self.ingress.providers.described(allowed)})
