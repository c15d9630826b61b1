"""A conversation stays with its model where leaving it costs more than it gains."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.classifier import InlineClassifier
from models.messages import ChatRequest, Message, Sampling, TextPart
from router.events import Principal
from router.pipeline import Options
from router.settings import ClassifierSettings, IngressSettings
from tests.unit.test_pipeline import ME, PLAIN, World, ask, make_world, unary

PRICES = {"small-1": {"input": 10, "output": 10}, "medium-1": {"input": 12, "output": 12}}


def world_of(switch_price: float) -> World:
    routing = {"strategy": "hybrid", "switch_price": switch_price, "failure_price_microusd": 0}
    world = make_world(IngressSettings.model_validate({"prices": PRICES, "routing": routing}))
    world.pipeline.stages.classifier = InlineClassifier(ClassifierSettings())
    return world


def next_turn(first: ChatRequest) -> ChatRequest:
    told = Message("assistant", (TextPart("It is about a harbour. " * 40),))
    return ChatRequest(
        "auto", (*first.messages, told, Message("user", (TextPart("And then?"),))), Sampling(max_tokens=8)
    )


async def told_of(world: World, request: ChatRequest, who: Principal = ME) -> dict[str, Any]:
    found: Any = await world.pipeline.explain(request, who, Options(cache="off"))
    return dict(found["decision"])


@pytest.mark.parametrize("price", [0.0, 1.0])
async def test_the_next_turn_goes_where_the_last_one_went_if_leaving_is_dear(price: float) -> None:
    world, first = world_of(price), ask("Tell me a story.")
    alone = await told_of(world, next_turn(first))
    assert alone["model"] == "small-1" and not any(loss["switching"] for loss in alone["loss"].values())
    await unary(world, ask("Tell me a story.", model="medium-1"), PLAIN)
    after = await told_of(world, next_turn(first))
    assert after["model"] == ("medium-1" if price else "small-1")
    assert after["loss"]["medium-1"]["switching"] == 0
    assert (after["loss"]["small-1"]["switching"] > 0) == (price > 0)


async def test_another_conversation_and_another_caller_owe_it_nothing() -> None:
    world, first = world_of(1.0), ask("Tell me a story.")
    await unary(world, ask("Tell me a story.", model="medium-1"), PLAIN)
    for request, who in ((next_turn(ask("Sing me a song.")), ME), (next_turn(first), Principal("beta"))):
        assert (await told_of(world, request, who))["model"] == "small-1"
