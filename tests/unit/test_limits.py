"""What a caller demands of the model, through the door: who is out says why, and where nobody is left it is a 422."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from models.catalog import Price
from router.measured import RECENT_S, Latencies
from tests.unit.test_http_app import KEY, Door, open_door
from tests.unit.test_pipeline import make_world

MODELS = {"small-1", "medium-1"}
OFF = {"cache": "off"}


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    opened = open_door(make_world())
    yield opened
    await opened.client.aclose()
    opened.world.books_are_shut()


async def asked(door: Door, path: str, **limits: Any) -> httpx.Response:
    body = {"model": "auto", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {KEY}"}
    return await door.client.post(path, json=body | {"switchyard": OFF | limits}, headers=headers)


async def measured(door: Door) -> None:
    """Answers enough for a time to the first token of both."""
    for number in range(16):
        await door.chat(f"hi {number}", model=("small-1", "medium-1")[number % 2])


def provided(door: Door) -> None:
    """Both models run at a provider."""
    entries = door.world.pipeline.entries
    for name in MODELS:
        changes = {"engine": "openai_compatible", "provider": "far", "price": Price(input=1, output=1)}
        entries[name] = entries[name].model_copy(update=changes)
    door.world.pipeline.reconfigure(door.world.pipeline.settings)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/route"])
@pytest.mark.parametrize(
    ("limit", "why"),
    [
        ({"min_quality": 1.0}, "is expected to answer this well with probability"),
        ({"max_cost_microusd": 1}, "and at most 1 were allowed"),
        ({"max_ttft_ms": 1e-6}, "ms to its first token"),
        ({"max_latency_ms": 1e-6}, "ms to the end of such an answer"),
        ({"region": "mars"}, "not in 'mars'"),
        ({"local_only": True}, "runs at a provider"),
    ],
)
async def test_where_nobody_is_left_the_tightest_limit_is_named_and_all_say_why(
    door: Door, path: str, limit: dict[str, Any], why: str
) -> None:
    (name,) = limit
    if name in ("max_ttft_ms", "max_latency_ms"):
        await measured(door)
    if name == "local_only":
        provided(door)
    answer = await asked(door, path, **limit)
    error = answer.json()["error"]
    assert answer.status_code == 422 and error["type"] == "invalid_request_error"
    assert error["switchyard"].get("code", error.get("code")) == "no_eligible_model"
    assert f"the tightest is {name}, which excludes 2 of 2" in error["message"]
    excluded = error["switchyard"]["excluded"]
    assert excluded.keys() == MODELS and all(why in reason for reason in excluded.values())


@pytest.mark.parametrize("name", ["max_ttft_ms", "max_latency_ms"])
async def test_who_was_too_slow_for_all_is_tried_again(door: Door, name: str) -> None:
    now_s = 0.0
    door.world.pipeline.latencies = Latencies(lambda: now_s)
    await measured(door)
    assert (await asked(door, "/v1/chat/completions", **{name: 1e-6})).status_code == 422
    now_s = RECENT_S + 1
    assert (await asked(door, "/v1/chat/completions", **{name: 1e-6})).status_code == 200


async def test_each_limit_says_whom_it_excludes(door: Door) -> None:
    entries = door.world.pipeline.entries
    entries["small-1"] = entries["small-1"].model_copy(update={"region": "eu"})
    answer = await asked(door, "/v1/chat/completions", region="eu", max_cost_microusd=1)
    assert answer.status_code == 422
    told = answer.json()["error"]["switchyard"]["excluded"]
    assert "not in 'eu'" in told["medium-1"] and "at most 1 were allowed" in told["small-1"]


async def test_what_is_expected_has_no_writing_to_a_providers_cache_in_it(door: Door) -> None:
    provided(door)
    before = (await asked(door, "/v1/route")).json()["expected_cost_microusd"]
    entries = door.world.pipeline.entries
    dear = Price(input=1, output=1, cache_write_5m=2, cache_write_1h=4, cached_input=Decimal("0.1"))
    entries["small-1"] = entries["small-1"].model_copy(update={"price": dear})
    door.world.pipeline.reconfigure(door.world.pipeline.settings)
    assert (await asked(door, "/v1/route")).json()["expected_cost_microusd"] == before
    assert before["small-1"] > 0


async def test_who_is_left_answers_and_the_explanation_says_who_is_not(door: Door) -> None:
    entries = door.world.pipeline.entries
    entries["medium-1"] = entries["medium-1"].model_copy(update={"region": "eu"})
    told = (await asked(door, "/v1/route", region="eu")).json()
    assert told["decision"]["model"] == "medium-1" and told["decision"]["eligible"] == ["medium-1"]
    assert "not in 'eu'" in told["decision"]["excluded"]["small-1"]
    assert told["expected_cost_microusd"].keys() == MODELS, "what it would cost there is told all the same"
    answer = await asked(door, "/v1/chat/completions", region="eu")
    assert (answer.status_code, answer.headers["x-switchyard-model"]) == (200, "medium-1")
