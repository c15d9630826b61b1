# ruff: noqa: RUF001 (other scripts are part of what is tested)
"""What is said about a question: both classifiers' words, and what happens without the learned one."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.messages import ChatRequest, Message, TextPart
from router.assessor import Assessor
from router.policy import AUTO, Candidate, decide
from router.ports import Assessment
from router.settings import ClassifierSettings, RoutingSettings
from tests.unit.test_objective import entry


class Mine:
    """A strategy as an operator writes one."""

    name, version = "mine", "7"

    def __init__(self, settings: ClassifierSettings) -> None: ...

    def assess(self, messages: list[Message], domain: str | None = None) -> Assessment:
        return Assessment(1.0, "question", {}, self.name, self.version)


def user(text: str) -> Message:
    return Message("user", (TextPart(text),))


def tier(text: str, **routing: object) -> str:
    assessment = Assessor(ClassifierSettings()).assess([user(text)])
    pool = [Candidate(entry("s", "small"), "b", 100), Candidate(entry("l", "large"), "b", 1000)]
    request = ChatRequest(AUTO, (user(text),))
    return decide(request, assessment, pool, RoutingSettings.model_validate(routing), None, 10).tier


def test_both_words_are_there() -> None:
    assessor = Assessor(ClassifierSettings())
    found = assessor.assess([user("Prove that there are infinitely many primes.")])
    assert assessor.warning == "" == found.warning
    assert found.strategy == "complexity" and found.outlook is not None and found.outlook.work == "math"
    assert found == assessor.assess([user("Prove that there are infinitely many primes.")])


def test_weights_that_are_wrong_are_a_clear_warning_and_the_four_factors_take_over(tmp_path: Path) -> None:
    (tmp_path / "router.safetensors").write_bytes(b"no weights at all")
    assessor = Assessor(ClassifierSettings(weights=str(tmp_path)))
    assert "router.safetensors" in assessor.warning and "`complexity` stands in" in assessor.warning
    assessment = assessor.assess([user("hi")])
    assert assessment.outlook is None and assessment.warning == assessor.warning
    pool = [Candidate(entry("s", "small"), "b", 100), Candidate(entry("l", "large"), "b", 1000)]
    decision = decide(ChatRequest(AUTO, (user("hi"),)), assessment, pool, RoutingSettings(), None, 10)
    assert (decision.strategy, decision.model) == ("complexity", "s")


def test_turned_off_it_is_no_warning() -> None:
    assessor = Assessor(ClassifierSettings(learned=False))
    assert assessor.warning == "" and assessor.assess([user("hi")]).outlook is None


def test_a_strategy_of_ones_own_gives_the_score() -> None:
    assessor = Assessor(ClassifierSettings(custom="tests.unit.test_assessor:Mine"))
    assessment = assessor.assess([user("hi")])
    pool = [Candidate(entry("s", "small"), "b", 100), Candidate(entry("l", "large"), "b", 1000)]
    decision = decide(ChatRequest(AUTO, (user("hi"),)), assessment, pool, RoutingSettings(strategy="custom"), None, 10)
    assert (decision.strategy, decision.strategy_version, decision.tier) == ("mine", "7", "large")


@pytest.mark.parametrize("path", ["no_such_module:Mine", "tests.unit.test_assessor:Nobody"])
def test_a_path_that_leads_nowhere_is_a_clear_warning(path: str) -> None:
    assert path in Assessor(ClassifierSettings(custom=path)).warning


@pytest.mark.parametrize("text", ["hi", "你好", "Спасибо!", "ありがとう", "Wie geht's?", "merci beaucoup"])
def test_small_talk_is_for_a_small_model_in_any_language(text: str) -> None:
    assert tier(text) == "small"


@pytest.mark.parametrize(
    "text",
    [
        "Prove that for every prime p > 3, p^2 - 1 is divisible by 24, and derive a generalisation with each "
        "lemma proven.",
        "请证明：对任意素数 p > 3，p^2 - 1 能被 24 整除。请逐步推导并分析每一步，然后设计一个算法验证该结论，"
        "并比较其时间复杂度。请给出 Python 代码实现和优化方案。",
    ],
)
def test_demanding_questions_are_for_a_large_model_in_any_language(text: str) -> None:
    assert tier(text) == "large"


def test_the_whole_conversation_counts() -> None:
    assessor = Assessor(ClassifierSettings())
    hard = user("Prove that there are infinitely many primes, and prove every lemma that you use.")
    follow_up = user("And now shorter, please.")
    alone, after = assessor.assess([follow_up]).outlook, assessor.assess([hard, follow_up]).outlook
    assert alone is not None and after is not None
    assert after.score > alone.score
