from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import httpx
import pytest

from deployments.classifier import InlineClassifier
from models.errors import NotFound
from router.accounting.feedback import Feedback, wilson
from router.events import Principal
from router.experience import HALF_LIFE_S, Experience
from router.measured import RECENT_S, Conversations, Latencies
from router.pipeline import Options
from router.settings import ClassifierSettings, RoutingSettings
from tests.contract.test_stores import closed
from tests.unit.test_http_app import KEY, Door, open_door
from tests.unit.test_pipeline import ask, make_world


class Books:
    """What the ledger does for feedback, in memory."""

    def __init__(self, door: Door) -> None:
        self.kept: list[Feedback] = []
        self._door = door
        door.ingress.receipt = self.receipt
        door.ingress.feedback = self.feedback

    async def receipt(self, org: str, request_id: str) -> dict[str, Any]:
        for record in self._door.world.closes():
            if record.request_id == request_id and record.org == org:
                return asdict(record)
        raise NotFound("No receipt with this id.")

    async def feedback(self, given: Feedback, work: str) -> None:
        self.kept.append(given)
        self._door.world.pipeline.experience.learn(given.org, work, given.model, given.score)


@pytest.fixture
async def door():
    opened = open_door(make_world())
    yield opened
    await opened.client.aclose()
    opened.world.books_are_shut()


async def say(door: Door, **body: Any) -> httpx.Response:
    return await door.client.post("/v1/feedback", json=body, headers={"authorization": f"Bearer {KEY}"})


async def test_feedback_is_kept_with_what_the_receipt_says_and_is_learned_from(door: Door) -> None:
    books = Books(door)
    request_id = (await door.chat()).headers["x-switchyard-request-id"]
    told = await say(door, request_id=request_id, label="bad", tags=["wrong"], comment="no")
    assert told.status_code == 200 and told.json()["score"] == 0
    (given,) = books.kept
    assert (given.org, given.model, given.tags) == ("acme", "small-1", ("wrong",))
    work = (door.world.closes()[0].decision or {})["work"]
    found = door.world.pipeline.experience.of("acme", work, ["small-1"])
    assert found["small-1"] == pytest.approx((0.0, 1.0), abs=1e-6)


@pytest.mark.parametrize("strategy", ["cascade", "complexity", "cheapest"])
async def test_what_is_learned_under_one_strategy_the_others_know(door: Door, strategy: str) -> None:
    books, question = Books(door), "Explain to me how tides come about, please."
    door.world.pipeline.stages.classifier = InlineClassifier(ClassifierSettings())
    answer = await door.chat(question, switchyard={"cache": "off", "strategy": strategy})
    await say(door, request_id=answer.headers["x-switchyard-request-id"], label="bad")
    decision = door.world.closes()[0].decision or {}
    assert decision["work"] and books.kept[0].task == decision["task"]
    told: Any = await door.world.pipeline.explain(ask(question), Principal("acme"), Options(strategy="hybrid"))
    known = told["decision"]["basis"]["models"][answer.headers["x-switchyard-model"]]
    assert known["evidence"][1] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"request_id": "req_none", "label": "good"}, 404),
        ({"request_id": "r"}, 400),
        ({"request_id": "r", "score": 0.5, "label": "good"}, 400),
        ({"request_id": "r", "score": 1.5}, 400),
        ({"request_id": "r", "label": "meh"}, 400),
        ({"request_id": "r", "label": "good", "stars": 5}, 400),
        ({"request_id": "r", "label": "good", "tags": ["x"] * 17}, 400),
    ],
)
async def test_what_is_no_feedback_is_refused(door: Door, body: dict[str, Any], status: int) -> None:
    books = Books(door)
    assert (await say(door, **body)).status_code == status
    assert books.kept == []


def test_the_interval_of_a_share_is_wide_for_few_and_holds_the_share() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(1, 1)[0] == pytest.approx(0.2065, abs=1e-3)
    low, high = wilson(80, 100)
    assert (round(low, 3), round(high, 3)) == (0.711, 0.867)


def test_evidence_decays_by_half_and_stays_apart_by_tenant_and_work() -> None:
    now = [0.0]
    seen = Experience(lambda: now[0])
    seen.learn("acme", "math", "m", 1.0)
    now[0] = HALF_LIFE_S
    assert seen.of("acme", "math", ["m", "n"]) == {"m": (0.5, 0.0)}
    assert seen.of("beta", "math", ["m"]) == {} and seen.of("acme", "code", ["m"]) == {}


def test_what_is_remembered_is_bounded() -> None:
    seen, talks = Experience(most=10), Conversations(most=10)
    for number in range(50):
        seen.learn(f"org-{number}", "math", "m", 1.0)
        talks.answered(f"talk-{number}", "m", "math")
    assert len(seen) == len(talks) == 10
    assert talks.last_model("talk-49") == "m" and talks.last_model("talk-0") is None


def test_a_gates_verdicts_are_outcomes() -> None:
    seen = Experience()
    record = closed("r", decision={"task": "question", "work": "math"})
    judged = replace(record.attempts[1], gate={"verdict": "release"})
    seen(replace(record, attempts=(replace(judged, outcome="escalated"), replace(judged, model="strong"))))
    found = seen.of("acme", "math", ["m", "strong"])
    assert found["m"][1] > 0 and found["strong"][0] > 0


def test_latency_is_known_after_some_answers() -> None:
    seen = Latencies()
    for number in range(20):
        assert (seen.first_token_ms("m") is None) == (number < 8)
        attempt = replace(closed("r").attempts[1], ttft_ms=float(number))
        seen(closed("r", attempts=(attempt,)))
    assert seen.first_token_ms("m") == 18.0


def test_the_time_to_the_end_is_that_of_an_answer_as_long_as_this_one_may_get() -> None:
    seen = Latencies()
    streamed = replace(closed("r").attempts[1], ttft_ms=100.0, total_ms=1100.0, output_tokens=100)
    for number in range(20):
        assert (seen.total_ms("m", 1000) is None) == (number < 8)
        seen(closed("r", attempts=(streamed,)))
    assert [seen.total_ms("m", most) for most in (1000, 100, 50, 10)] == [1100.0, 1100.0, 600.0, 200.0]
    whole = replace(streamed, ttft_ms=1100.0, whole=True)
    for _ in range(20):
        seen(closed("r", attempts=(replace(whole, model="w"),)))
        seen(closed("r", attempts=(whole,)))
    assert [seen.total_ms("w", most) for most in (1000, 50)] == [1100.0, 550.0]
    assert seen.first_token_ms("w") == 1100.0, "nobody has seen it sooner"
    assert seen.first_token_ms("m") == 100.0, "which those that came in one piece say nothing about"


def test_times_of_long_ago_exclude_nobody_and_new_ones_take_their_place() -> None:
    now_s = 0.0
    seen = Latencies(lambda: now_s)
    slow = replace(closed("r").attempts[1], ttft_ms=9_000.0, total_ms=10_000.0, output_tokens=10)
    for _ in range(100):
        seen(closed("r", attempts=(slow,)))
    now_s = RECENT_S
    assert (seen.first_token_ms("m"), seen.total_ms("m", 10), seen.stale("m")) == (9_000.0, 10_000.0, False)
    now_s += 1
    assert (seen.first_token_ms("m"), seen.total_ms("m", 10), seen.stale("m")) == (9_000.0, None, True)
    for _ in range(8):
        seen(closed("r", attempts=(replace(slow, ttft_ms=90.0, total_ms=100.0),)))
    assert (seen.first_token_ms("m"), seen.total_ms("m", 10), seen.stale("m")) == (90.0, 100.0, False)


async def test_a_named_model_after_auto_speaks_against_the_one_that_auto_chose(door: Door) -> None:
    first = await door.chat("Compare two designs of a cache for me, please.", switchyard={"cache": "off"})
    chosen = first.headers["x-switchyard-model"]
    pipeline = door.world.pipeline
    other = next(name for name in pipeline.entries if name != chosen)
    decision = door.world.closes()[0].decision or {}
    await door.chat("Compare two designs of a cache for me, please.", model=other, switchyard={"cache": "off"})
    found = pipeline.experience.of("acme", decision["work"], [chosen])
    assert found[chosen] == pytest.approx((0.0, 0.5), abs=1e-6)
    assert RoutingSettings().strategy == "hybrid"
