from __future__ import annotations

import pytest

from cluster.bench.curve import ENTRIES, Answer, Question, World, questions, table
from models.messages import ChatRequest, Message, Sampling, TextPart

SURE, UNSURE = (-0.001,) * 4, (-0.9,) * 4


def asked(text: str, *answers: Answer) -> Question:
    request = ChatRequest("auto", (Message("user", (TextPart(text),)),), sampling=Sampling(max_tokens=96))
    return Question(request, dict(zip(ENTRIES, answers, strict=True)))


EASY = asked("What is the capital of France?", *(Answer(True, 12, SURE) for _ in ENTRIES))
HARD = asked(
    "What number do you get for 71 + 26?", Answer(False, 20, UNSURE), Answer(True, 20, SURE), Answer(True, 20, SURE)
)


def test_one_model_for_all_costs_its_tokens() -> None:
    found = World([EASY, HARD], heads=False).always("demo-small")
    # 0.1785 USD an hour over 20 million input and 4 million output tokens: 32 and 8 of them for two questions
    assert found.cost_microusd == pytest.approx((32 * 0.1785 / 20 + 8 * 0.1785 / 4) / 2, rel=1e-3)
    assert (found.accuracy, found.by_model["demo-small"], found.discarded_microusd) == (0.5, 2, 0.0)


def test_with_heads_a_sum_goes_to_the_model_that_can_and_the_rest_to_the_cheapest() -> None:
    found = World([EASY, HARD], heads=True).point("hybrid", 4.0)
    assert found.accuracy == 1.0 and found.by_model == {"demo-small": 1, "demo-medium": 1, "demo-large": 0}


def test_a_cascade_pays_for_what_it_gives_up_and_heads_spare_it() -> None:
    without, having = (World([EASY, HARD], heads=heads).point("cascade", 4.0) for heads in (False, True))
    assert without.accuracy == having.accuracy == 1.0
    assert without.discarded_microusd > 0 == having.discarded_microusd
    assert having.cost_microusd < without.cost_microusd


def test_the_questions_are_in_no_published_set_and_the_table_shows_each_point() -> None:
    assert 0 < len(questions(40)) <= 120
    world = World([EASY, HARD], heads=False)
    dear = world.always("demo-large")
    assert "| demo-large | no | 0 | 100.0% | 100.0% |" in table([dear], dear)
