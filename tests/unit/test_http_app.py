"""The HTTP door over a whole pipeline in this process, without Serve."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import pytest
from ray.serve._private.thirdparty.get_asgi_route_name import get_asgi_route_name

from deployments.http_app import build_http_app
from models.errors import ContentRefused, ModelUnavailable
from router.accounting.budget import Budgets
from router.accounting.denials import Denials
from router.accounting.keys import hash_key
from router.accounting.tenants import Tenants
from router.settings import IngressSettings, KeySettings, TenantSettings
from router.topology import Topology
from tests.unit.leases import Leases
from tests.unit.test_pipeline import World, make_world

KEY = "sy-test"
AUTH = {"authorization": f"Bearer {KEY}"}


@dataclass
class Door:
    world: World
    client: httpx.AsyncClient
    ingress: SimpleNamespace

    async def chat(self, text: str = "hi there", key: str | None = KEY, **fields: Any) -> httpx.Response:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)


def open_door(world: World, settings: IngressSettings | None = None, **topology: Any) -> Door:
    key = KeySettings(sha256=hash_key(KEY), org="acme", scopes=("infer", "usage"))
    tenants = Tenants((key,), settings or IngressSettings())
    world.pipeline.tenants = tenants

    async def nothing() -> None: ...

    ingress = SimpleNamespace(
        pipeline=world.pipeline,
        tenants=tenants,
        topology=Topology(**topology),
        embedders={},
        budgets=Budgets("door", tenants, Leases().lease),
        denials=Denials(lambda entry: None),
        startup=nothing,
        shutdown=nothing,
    )
    transport = httpx.ASGITransport(app=build_http_app(ingress))
    return Door(world, httpx.AsyncClient(transport=transport, base_url="http://door"), ingress)


@pytest.fixture
async def door():
    opened = open_door(make_world())
    yield opened
    await opened.client.aclose()
    opened.world.books_are_shut()


def events_of(response: httpx.Response) -> list[Any]:
    lines = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_a_unary_answer_with_its_headers(door):
    response = await door.chat()
    assert response.status_code == 200
    body = response.json()
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 64
    assert body["model"] == response.headers["x-switchyard-model"] == "small-1"
    assert response.headers["x-switchyard-cache"] == "miss"
    assert int(response.headers["x-switchyard-cost-microusd"]) > 0
    assert response.headers["x-switchyard-request-id"] == door.world.closes()[0].request_id
    again = await door.chat()
    assert again.headers["x-switchyard-cache"] == "hit-exact"
    assert again.headers["x-switchyard-cost-microusd"] == "0"
    assert again.json()["choices"] == body["choices"]


async def test_a_stream_has_a_role_deltas_a_finish_usage_and_an_end(door):
    whole = (await door.chat()).json()["choices"][0]["message"]["content"]
    for verdict in ("miss", "hit-exact"):
        fields = {"max_tokens": 32, "stream": True, "stream_options": {"include_usage": True}}
        response = await door.chat(**fields)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-switchyard-cache"] == verdict
        *chunks, usage, done = events_of(response)
        assert done == "[DONE]"
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == 32
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "length"}
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert whole.startswith(text)
        assert len(chunks) == 34
        assert all(chunk["usage"] is None for chunk in chunks)


async def test_no_key_and_a_wrong_key_are_401(door):
    for key in (None, "sy-wrong"):
        response = await door.chat(key=key)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    assert (await door.client.get("/v1/models")).status_code == 401


async def test_errors_are_openai_shaped_and_say_what_to_do(door):
    for fields, status, code in (
        ({"model": "gpt-9"}, 404, "model_not_found"),
        ({"messages": []}, 400, "invalid_request"),
        ({"temperature": "warm"}, 400, "invalid_request"),
        ({"logit_bias": {"7": 5}, "model": "small-1"}, 400, "unsupported_feature"),
        ({"n": 2, "model": "small-1"}, 400, "unsupported_feature"),
        ({"text": "word " * 20_000}, 400, "context_length_exceeded"),
    ):
        response = await door.chat(**fields)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, code)
        assert error["message"]
        assert set(error) == {"message", "type", "param", "code", "switchyard"}


async def test_bad_json_and_unknown_paths(door):
    headers = {"authorization": f"Bearer {KEY}"}
    response = await door.client.post("/v1/chat/completions", content=b"{", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
    assert (await door.client.get("/v1/nothing")).status_code == 404
    assert (await door.client.get("/v1/chat/completions")).status_code == 405
    assert (await door.client.get("/v1/nothing")).json()["error"]["code"] == "not_found"


async def test_a_body_over_the_limit_is_413_whether_announced_or_not():
    door = open_door(make_world(), max_body_bytes=1000)
    assert (await door.chat("x" * 2000)).status_code == 413

    async def drip():
        for _ in range(20):
            yield b"x" * 100

    headers = {"authorization": f"Bearer {KEY}"}
    response = await door.client.post("/v1/chat/completions", content=drip(), headers=headers)
    assert response.status_code == 413
    await door.client.aclose()


async def test_a_failure_after_the_first_byte_is_an_event_in_the_stream():
    door = open_door(make_world(failure_rate=1.0, fail_after_tokens=3))
    response = await door.chat(stream=True)
    assert response.status_code == 200
    assert events_of(response)[-1]["error"]["code"] == "stream_interrupted"
    assert door.world.closes()[0].error_code == "stream_interrupted"
    await door.client.aclose()


async def test_a_fault_of_ours_is_a_500_without_its_text():
    world = make_world()
    door = open_door(world)
    world.small.failures = [ValueError("the prompt was: my secret")]
    response = await door.chat()
    assert response.status_code == 500
    assert "secret" not in response.text
    await door.client.aclose()
    world.books_are_shut()


async def test_refusals_carry_retry_after():
    world = make_world()
    door = open_door(world)
    world.places.full = {"SimulatedModel:small-1", "SimulatedModel:medium-1"}
    response = await door.chat()
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    limited = open_door(world, IngressSettings(tenants={"acme": TenantSettings(requests_per_minute=1)}))
    await limited.chat()
    response = await limited.chat()
    assert response.status_code == 429
    for path in ("/v1/receipts/any", "/v1/usage"):
        refused = await limited.client.get(path, headers={"authorization": f"Bearer {KEY}"})
        assert refused.status_code == 429
    assert 1 <= int(response.headers["retry-after"]) <= 70
    await door.client.aclose()
    await limited.client.aclose()


async def test_models_and_route(door):
    headers = {"authorization": f"Bearer {KEY}"}
    listed = (await door.client.get("/v1/models", headers=headers)).json()["data"]
    assert [model["id"] for model in listed] == ["auto", "small-1", "medium-1"]
    for model in listed:
        assert (await door.client.get(f"/v1/models/{model['id']}", headers=headers)).json() == model
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
    told = (await door.client.post("/v1/route", json=body, headers=headers)).json()
    assert told["decision"]["model"] == "small-1"
    assert door.world.records == []


async def test_one_model_is_found_by_both_sdks_whatever_its_name():
    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI, NotFoundError

    settings = IngressSettings(tenants={"acme": TenantSettings(models=("groq/small-1",))})
    world = make_world(settings)
    entries = world.pipeline.entries
    entries["groq/small-1"] = entries["small-1"].model_copy(update={"name": "groq/small-1"})
    door = open_door(world, settings)
    transport = httpx2.ASGITransport(app=door.client._transport.app)
    fields = {"api_key": KEY, "http_client": httpx2.AsyncClient(transport=transport), "max_retries": 0}
    async with (
        door.client,
        AsyncOpenAI(base_url="http://door/v1", **fields) as openai,
        AsyncAnthropic(base_url="http://door", open_telemetry=False, **fields) as anthropic,
    ):
        assert [model.id async for model in anthropic.models.list()] == ["auto", "groq/small-1"]
        for found in (await openai.models.retrieve("groq/small-1"), await anthropic.models.retrieve("groq/small-1")):
            type(found).model_validate(found.model_dump(exclude={"capabilities"}), strict=False)
            assert found.id == "groq/small-1"
        assert (await openai.models.retrieve("auto")).id == "auto"
        refused = [(await door.client.get(f"/v1/models/{name}", headers=AUTH)) for name in ("small-1", "groq", "")]
        for name in ("small-1", "nobody/there"):  # the first one is there, and not for them
            with pytest.raises(NotFoundError) as unknown:
                await openai.models.retrieve(name)
            error = unknown.value.body
            assert (error["code"], error["param"]) == ("model_not_found", "model")
            assert error["message"] == f"There is no model '{name}' here; GET /v1/models lists what there is."
        assert [response.status_code for response in refused] == [404] * 3
        assert (await door.client.get("/v1/models/auto")).status_code == 401
        document = (await door.client.get("/openapi.json")).json()
        (parameter,) = document["paths"]["/v1/models/{model}"]["get"]["parameters"]
        assert (parameter["name"], parameter["in"]) == ("model", "path")


async def test_cors_answers_only_the_origins_it_was_told():
    door = open_door(make_world(), cors_allow_origins=["https://app.example"])
    preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
    response = await door.client.options("/v1/chat/completions", headers=preflight)
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    response = await door.client.options(
        "/v1/chat/completions", headers={**preflight, "origin": "https://evil.example"}
    )
    assert "access-control-allow-origin" not in response.headers
    await door.client.aclose()


async def test_a_dead_backend_is_503_when_nothing_else_can_answer():
    world = make_world()
    door = open_door(world)
    world.small.failures = [ModelUnavailable("gone")] * 2
    response = await door.chat(model="small-1")
    assert response.status_code == 503
    assert response.json()["error"]["switchyard"]["retryable"] is True
    await door.client.aclose()


async def test_a_content_filters_refusal_is_what_openais_clients_know(door):
    from openai import AsyncOpenAI, BadRequestError

    door.world.small.failures = [ContentRefused("A content filter refuses the prompt.", "messages")]
    transport = httpx2.ASGITransport(app=door.client._transport.app)
    client = httpx2.AsyncClient(transport=transport)
    async with AsyncOpenAI(base_url="http://door/v1", api_key=KEY, http_client=client, max_retries=0) as openai:
        with pytest.raises(BadRequestError) as refused:
            await openai.chat.completions.create(model="small-1", messages=[{"role": "user", "content": "hi"}])
    assert (refused.value.code, refused.value.type) == ("content_filter", "invalid_request_error")


async def test_the_openapi_document_describes_every_route_and_resolves(door):
    document = (await door.client.get("/openapi.json")).json()
    assert set(document["paths"]) >= {"/v1/chat/completions", "/v1/route", "/v1/models", "/v1/usage", "/metrics"}
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert "ChatBody" in references
    assert references <= set(schemas)
    assert (await door.client.get("/docs")).status_code == 200


async def test_a_wrong_method_is_405_and_says_which_are_right(door):
    wrong = await door.client.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "is not served here" in wrong.json()["error"]["message"]
    assert (await door.client.head("/health")).status_code == 200
    assert (await door.client.get("/v1/providers/")).status_code == 404


@pytest.mark.parametrize("origins", [(), ("https://app.example",)])
async def test_serve_finds_the_route_of_a_request(origins: tuple[str, ...]):
    opened = open_door(make_world(), cors_allow_origins=origins)
    app = opened.client._transport.app
    scope = {"type": "http", "method": "GET", "path": "/v1/receipts/req_1", "root_path": "", "headers": []}
    assert get_asgi_route_name(app, scope) == "/v1/receipts/{request_id}"
    assert "ok" in (await opened.client.get("/health")).text
    await opened.client.aclose()


async def test_a_websocket_is_closed_quietly(door, caplog):
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message["type"])

    scope = {"type": "websocket", "path": "/v1/chat/completions", "root_path": "", "headers": []}
    await door.client._transport.app(scope, receive, send)
    assert sent == ["websocket.close"] and not caplog.records


async def test_the_document_is_served_and_the_page_finds_it(door):
    document = (await door.client.get("/openapi.json")).json()
    assert document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    assert "/openapi.json" in (await door.client.get("/docs")).text
