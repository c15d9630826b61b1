"""The completions door over a whole pipeline, read back with the official SDK's own types."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai.types import Completion as SdkCompletion

from deployments.openai.completions import OpenAICompletions
from deployments.openai.completions_schema import parse_completions
from models.errors import ModelUnavailable
from models.messages import Choice, Completion, Finish, TextDelta, TokenLogprob, Usage
from router.run import Head
from tests.unit.test_http_app import KEY, Door, events_of, open_door
from tests.unit.test_pipeline import make_world

HEAD = Head("req_1", "base", "miss", 5, 0.1, 0.0)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    opened = open_door(make_world())
    yield opened
    await opened.client.aclose()
    opened.world.books_are_shut()


async def go_on(door: Door, prompt: Any = "Once upon a time", **fields: Any) -> Any:
    body = {"model": "auto", "prompt": prompt, **fields}
    return await door.client.post("/v1/completions", json=body, headers={"authorization": f"Bearer {KEY}"})


async def test_a_text_is_gone_on_with_and_booked(door: Door) -> None:
    response = await go_on(door, user="kim")
    answer = SdkCompletion.model_validate_json(response.text)
    assert (answer.object, answer.choices[0].finish_reason, answer.choices[0].index) == ("text_completion", "length", 0)
    assert answer.usage is not None and answer.usage.completion_tokens == 16  # OpenAI's default
    assert not answer.choices[0].text.startswith("Once")
    close = door.world.closes()[0]
    assert (close.door, close.user, answer.id) == ("openai-completions", "kim", f"cmpl-{close.request_id}")
    assert (await go_on(door)).headers["x-switchyard-cache"] == "hit-exact"
    assert (await door.chat("Once upon a time", max_tokens=16)).headers["x-switchyard-cache"] == "miss"


async def test_a_stream_says_the_same(door: Door) -> None:
    whole = (await go_on(door, max_tokens=8)).json()["choices"][0]["text"]
    fields = {"max_tokens": 8, "echo": True, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = events_of(await go_on(door, **fields))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Once upon a time" + whole
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert (usage["usage"]["completion_tokens"], usage["choices"], done) == (8, [], "[DONE]")


async def test_several_prompts_are_several_choices_and_several_receipts(door: Door) -> None:
    response = await go_on(door, [f"prompt {number}" for number in range(20)], echo=True, max_tokens=2)
    answer = SdkCompletion.model_validate_json(response.text)
    assert [choice.index for choice in answer.choices] == list(range(20))
    assert all(choice.text.startswith(f"prompt {choice.index}") for choice in answer.choices)
    assert answer.usage is not None and answer.usage.completion_tokens == 40
    closes = door.world.closes()
    receipts = response.json()["switchyard"]["request_ids"]
    assert receipts[0] == answer.id.removeprefix("cmpl-")
    assert sorted(receipts) == sorted(close.request_id for close in closes)
    assert int(response.headers["x-switchyard-cost-microusd"]) == sum(close.cost_microusd for close in closes)


async def test_one_prompt_that_fails_ends_all_of_them(door: Door) -> None:
    door.world.small.failures = [ModelUnavailable("gone")] * 20
    response = await go_on(door, ["a", "b", "c"], model="small-1")
    assert response.status_code == 503
    assert {close.status for close in door.world.closes()} <= {"ok", "error", "cancelled"}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": [1, 2]}, "unsupported_feature", "prompt"),
        ({"prompt": ""}, "invalid_request", "prompt"),
        ({"prompt": []}, "invalid_request", "prompt"),
        ({"prompt": ["a"] * 129}, "invalid_request", "prompt"),
        ({"suffix": "end"}, "unsupported_feature", "suffix"),
        ({"logit_bias": {"50256": -100}}, "unsupported_feature", "logit_bias"),
        ({"best_of": 3}, "unsupported_feature", "best_of"),
        ({"echo": True, "logprobs": 1}, "unsupported_feature", "echo"),
        ({"max_tokens": 0}, "unsupported_feature", "max_tokens"),
        ({"prompt": ["a", "b"], "stream": True}, "unsupported_feature", "stream"),
        ({"logprobs": 2}, "unsupported_feature", "logprobs"),  # the simulated model has none
        ({"messages": []}, "unsupported_feature", "messages"),
        ({"switchyard": {"priority": -1}}, "permission_denied", "priority"),
    ],
)
async def test_what_cannot_be_done_is_refused(door: Door, fields: dict[str, Any], code: str, param: str) -> None:
    response = await go_on(door, **{"model": "small-1", **fields})
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert response.status_code == (403 if code == "permission_denied" else 400)


def test_log_probabilities_have_the_older_shape() -> None:
    parsed = parse_completions(json.dumps({"model": "m", "prompt": "p", "logprobs": 1}).encode())
    rows = tuple(TokenLogprob(text, -0.5, (TokenLogprob(text, -0.5), TokenLogprob("x", -2.0))) for text in ("ab", "c"))
    whole = Completion((Choice("abc", logprobs=rows, finish_reason="stop"),), Usage(1, 2), False)
    body = SdkCompletion.model_validate_json(OpenAICompletions("p", parsed).unary(None, HEAD, whole))
    shown = body.choices[0].logprobs
    assert shown is not None and (shown.tokens, shown.text_offset) == (["ab", "c"], [0, 2])
    assert shown.top_logprobs == [{"ab": -0.5, "x": -2.0}, {"c": -0.5, "x": -2.0}]
    dialect = OpenAICompletions("p", parsed)
    dialect.first(HEAD)
    lines = dialect.chunk([TextDelta("ab", 1, rows[:1]), TextDelta("c", 1, rows[1:]), Finish("stop")]).decode()
    chunks = [json.loads(line[6:]) for line in lines.split("\n") if line]
    assert [c["choices"][0]["logprobs"]["text_offset"] for c in chunks[:2]] == [[0], [2]]
