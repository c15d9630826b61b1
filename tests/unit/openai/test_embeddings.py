"""The door of embeddings over a whole pipeline; the encoder is the real one in tests/serve."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse

from models.errors import ModelUnavailable, UnsupportedFeature
from router.embeddings import encoder_entry
from router.events import RequestOpened
from router.ports import Embedded
from router.settings import IngressSettings, TenantSettings
from router.topology import Encoder
from tests.unit.test_http_app import KEY, Door, open_door
from tests.unit.test_pipeline import make_world

NAME = "all-MiniLM-L6-v2"


class Lengths:
    """Makes a vector of a text's length."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.hangs = asyncio.Event()
        self.hangs.set()
        self.asked = asyncio.Event()

    async def embed(self, texts: Sequence[str], dimensions: int | None) -> Embedded:
        self.asked.set()
        await self.hangs.wait()
        if self.failure:
            raise self.failure
        if dimensions not in (None, 2):
            raise UnsupportedFeature("This model has 2 dimensions.", "dimensions")
        vectors = [struct.pack("<2f", len(text), 0.5) for text in texts]
        return Embedded(vectors, sum(len(text.split()) for text in texts), "lengths")


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    opened = open_door(make_world())
    opened.ingress.embedders = {NAME: (encoder_entry(Encoder()), Lengths())}
    yield opened
    await opened.client.aclose()
    opened.world.books_are_shut()


async def embed(door: Door, text: Any, **fields: Any) -> Any:
    body = {"model": NAME, "input": text, **fields}
    return await door.client.post("/v1/embeddings", json=body, headers={"authorization": f"Bearer {KEY}"})


async def test_vectors_come_in_order_as_numbers_or_as_bytes_and_are_booked(door: Door) -> None:
    response = await embed(door, ["one", "three words here"], user="kim")
    answer = CreateEmbeddingResponse.model_validate_json(response.text)
    assert [item.embedding for item in answer.data] == [[3.0, 0.5], [16.0, 0.5]]
    assert [item.index for item in answer.data] == [0, 1]
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == (NAME, 4, 4)
    packed = (await embed(door, "one", encoding_format="base64")).json()["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (3.0, 0.5)
    close = door.world.closes()[0]
    assert (close.door, close.status, close.model, close.user) == ("openai-embeddings", "ok", NAME, "kim")
    assert close.usage.input_tokens == 4
    assert close.cost_microusd == int(response.headers["x-switchyard-cost-microusd"]) == 1
    assert close.request_id == response.headers["x-switchyard-request-id"]
    opened = next(record for record in door.world.records if isinstance(record, RequestOpened))
    assert (opened.request_id, opened.model) == (close.request_id, NAME)


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"input": [1, 2]}, 400, "unsupported_feature", "input"),
        ({"input": [[1], [2]]}, 400, "unsupported_feature", "input"),
        ({"input": []}, 400, "invalid_request", "input"),
        ({"input": ["a", ""]}, 400, "invalid_request", "input"),
        ({"input": ["a"] * 2049}, 400, "invalid_request", "input"),
        ({"dimensions": 3}, 400, "unsupported_feature", "dimensions"),
        ({"encoding_format": "hex"}, 400, "invalid_request", "encoding_format"),
        ({"truncate": True}, 400, "unsupported_feature", "truncate"),
        ({"model": "small-1"}, 404, "model_not_found", "model"),
    ],
)
async def test_what_cannot_be_done_is_refused_with_the_field(
    door: Door, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    response = await embed(door, **{"text": "hi"} | {"text" if k == "input" else k: v for k, v in fields.items()})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)


async def test_an_encoder_that_is_away_costs_nothing(door: Door) -> None:
    door.ingress.embedders[NAME][1].failure = ModelUnavailable("gone", None, 1.0)
    response = await embed(door, "hi")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    close = door.world.closes()[0]
    assert (close.status, close.error_code, close.cost_microusd) == ("error", "model_unavailable", 0)


async def test_a_client_that_leaves_closes_its_books(door: Door) -> None:
    door.ingress.embedders[NAME][1].hangs.clear()
    asking = asyncio.create_task(embed(door, "hi"))
    await door.ingress.embedders[NAME][1].asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert door.world.closes()[0].status == "cancelled"


async def test_budget_and_allow_list_hold() -> None:
    settings = IngressSettings(tenants={"acme": TenantSettings(models=("small-1",))})
    door = open_door(make_world(settings), settings)
    door.ingress.embedders = {NAME: (encoder_entry(Encoder()), Lengths())}
    assert (await embed(door, "hi")).status_code == 403
    headers = {"authorization": f"Bearer {KEY}"}
    assert NAME not in (await door.client.get("/v1/models", headers=headers)).text
    await door.client.aclose()
    world = make_world()
    poor = open_door(world)
    poor.ingress.embedders = {NAME: (encoder_entry(Encoder()), Lengths())}
    world.purse.left_microusd = 0
    assert (await embed(poor, "hi")).status_code == 402
    listed = (await poor.client.get("/v1/models", headers=headers)).json()["data"]
    assert listed[-1]["capabilities"] == {"embeddings": True}
    await poor.client.aclose()


def test_the_encoder_has_a_name_that_can_be_used() -> None:
    assert encoder_entry(Encoder()).name == NAME
    assert encoder_entry(Encoder(source="/models/my encoder/")).name == "my-encoder"
    assert encoder_entry(Encoder(source="BAAI/bge-small-en")).name == "bge-small-en"
