"""`GET /v1/providers` over the door in this process."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from deployments import providers_api
from deployments.providers_api import Providers
from models.errors import ModelUnavailable
from router.cloud import ProviderState
from router.settings import IngressSettings, TenantSettings
from tests.unit.test_http_app import KEY, open_door
from tests.unit.test_pipeline import make_world

HEALTHY = {"state": "healthy", "checked_at": "2026-11-21T12:00:00+00:00", "last_error_code": None}
STATES = (
    ProviderState("groq", None, "GROQ_API_KEY", ("groq/a", "groq/b")),
    ProviderState("gone", None, "GONE_API_KEY", ("gone/a",)),
    ProviderState("asleep", None, None, ("asleep/a",)),
    ProviderState("openai", "OPENAI_API_KEY is not set", "OPENAI_API_KEY", ("gpt-4.1",)),
)


class Handle:
    """A deployment's handle: `provider_health` gives what it was made with, raises it, or never answers."""

    def __init__(self, health: Any) -> None:
        self.health = health
        self.asked = 0
        self.deployment_name = "CloudModel"
        self.provider_health = self

    def remote(self) -> Any:
        self.asked += 1

        async def answer() -> Any:
            if self.health is None:
                await asyncio.Event().wait()
            if isinstance(self.health, Exception):
                raise self.health
            return self.health

        return asyncio.ensure_future(answer())


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch) -> dict[str, Handle]:
    monkeypatch.setattr(providers_api, "HEALTH_TIMEOUT_S", 0.2)
    return {"CloudModel:groq": Handle(HEALTHY), "CloudModel:gone": Handle(None), "CloudModel:asleep": Handle(HEALTHY)}


async def ask(handles: dict[str, Handle], settings: IngressSettings | None = None, key: str | None = KEY) -> Any:
    door = open_door(make_world(), settings)
    door.ingress.providers = Providers(STATES, handles, frozenset({"asleep"}))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    response = await door.client.get("/v1/providers", headers=headers)
    await door.client.aclose()
    return response


async def test_which_why_not_and_how_they_do_in_bounded_time(handles):
    began_s = time.monotonic()
    response = await ask(handles)
    assert time.monotonic() - began_s < 2
    assert response.status_code == 200 and response.json()["object"] == "list"
    groq, gone, asleep, openai = response.json()["data"]
    assert groq == {
        "name": "groq",
        "enabled": True,
        "why_not": None,
        "key_variable": "GROQ_API_KEY",
        "models": ["groq/a", "groq/b"],
        "health": HEALTHY,
    }
    assert gone["health"] == {"state": "unknown", "checked_at": None, "last_error_code": "deadline_exceeded"}
    assert (asleep["health"]["state"], handles["CloudModel:asleep"].asked) == ("unknown", 0)
    assert (openai["enabled"], openai["why_not"]) == (False, "OPENAI_API_KEY is not set")
    assert openai["health"] is None


async def test_one_that_runs_in_the_door_is_asked_there(handles):
    class Own:
        async def provider_health(self) -> dict[str, Any]:
            return HEALTHY

    providers = Providers(STATES, {}, frozenset(), {"CloudModel:gone": Own()})
    assert [row["health"] for row in await providers.described(None)] == [
        {"state": "unknown", "checked_at": None, "last_error_code": None},
        HEALTHY,
        {"state": "unknown", "checked_at": None, "last_error_code": None},
        None,
    ]


async def test_a_deployment_that_is_gone_is_unknown_with_its_error(handles):
    handles["CloudModel:gone"].health = ModelUnavailable("no replica")
    gone = (await ask(handles)).json()["data"][1]
    assert gone["health"] == {"state": "unknown", "checked_at": None, "last_error_code": "model_unavailable"}


async def test_only_models_that_the_caller_may_use_are_named(handles):
    settings = IngressSettings(tenants={"acme": TenantSettings(models=("groq/b",))})
    assert [row["models"] for row in (await ask(handles, settings)).json()["data"]] == [["groq/b"], [], [], []]


async def test_it_needs_a_key(handles):
    assert (await ask(handles, key=None)).status_code == 401
    assert (await ask(handles, key="sy-wrong")).status_code == 401
    assert handles["CloudModel:groq"].asked == 0
