from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from models.catalog import BUILT_IN
from models.messages import Message, TextPart
from router.assessor import Assessor
from router.learned.hashing import asked_terms
from router.learned.heads import Head, load_head
from router.learned.strategy import LearnedStrategy
from router.objective import chances
from router.policy import Candidate
from router.ports import Outlook
from router.settings import ClassifierSettings, RoutingSettings
from tests.unit.test_objective import entry

PROMPT = "Is the grass green?"

DEMO = tuple(each for each in BUILT_IN if each.source.startswith("demo:") and each.head)


def user(text: str) -> list[Message]:
    return [Message("user", (TextPart(text),))]


def one_prompt_head(log_odds: float) -> Head:
    """That knows the terms of `PROMPT` and no others."""
    places, _ = asked_terms(PROMPT)
    seen = np.zeros(1024, np.uint8)
    seen[places & 1023] = 1
    return Head(np.zeros(1024), log_odds, seen, 0.6, "", {})


@pytest.fixture
def heads(tmp_path: Path) -> dict[str, str]:
    for name, odds in (("bad", -3.0), ("good", 3.0)):
        one_prompt_head(odds).save(tmp_path / f"{name}.safetensors")
    return {name: str(tmp_path / f"{name}.safetensors") for name in ("bad", "good")}


def test_a_head_speaks_of_what_it_knows_alone(heads: dict[str, str]) -> None:
    strategy = LearnedStrategy(ClassifierSettings(heads=heads))
    assert strategy.outlook(user(PROMPT)).heads == {
        "bad": pytest.approx(0.047, abs=0.001),
        "good": pytest.approx(0.953, abs=0.001),
    }
    assert strategy.outlook(user("Prove that there are infinitely many primes.")).heads == {}
    assert strategy.warning == ""


def test_what_it_says_stands_before_the_place_between_small_and_large(heads: dict[str, str]) -> None:
    pool = [Candidate(entry(name, "medium"), "b") for name in ("bad", "good", "unknown")]
    with_heads, without = (Assessor(ClassifierSettings(heads=each)).assess(user(PROMPT)) for each in (heads, {}))
    for strategy in ("learned", "hybrid", "cascade"):
        found = chances(strategy, with_heads, pool, {}, RoutingSettings())
        plain = chances(strategy, without, pool, {}, RoutingSettings())
        assert found["bad"] == pytest.approx(0.047, abs=0.001) and found["good"] == pytest.approx(0.953, abs=0.001)
        assert found["unknown"] == plain["unknown"] == plain["bad"]
    neutral = chances("learning", with_heads, pool, {}, RoutingSettings())
    assert len(set(neutral.values())) == 1, "which goes by outcomes alone"


def test_many_outcomes_move_it_and_few_do_not(heads: dict[str, str]) -> None:
    assessment = Assessor(ClassifierSettings(heads=heads)).assess(user(PROMPT))
    pool = [Candidate(entry("good"), "b")]
    few, many = (
        chances("hybrid", assessment, pool, {"good": (0.0, bad)}, RoutingSettings())["good"] for bad in (20.0, 2e4)
    )
    assert few > 0.9 and many < 0.1


def test_the_version_names_the_heads(heads: dict[str, str]) -> None:
    none, one, other = (
        LearnedStrategy(ClassifierSettings(heads=each)).version
        for each in ({}, {"m": heads["good"]}, {"m": heads["bad"]})
    )
    assert len({none, one, other}) == 3 and one.startswith(none)


@pytest.mark.parametrize("what", ["missing", "no such format", "damaged", "sizes", "the weights of the classifier"])
def test_a_wrong_file_is_named_and_its_model_is_placed_as_before(
    what: str, heads: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "wrong.safetensors"
    match what:
        case "no such format":
            path.write_bytes(b"nothing of the kind")
        case "damaged":
            whole = bytearray(Path(heads["good"]).read_bytes())
            whole[-1] ^= 0xFF
            path.write_bytes(bytes(whole))
        case "sizes":
            Head(np.zeros(1000), 0.0, np.zeros(1024, np.uint8), 0.5, "", {}).save(path)
        case "the weights of the classifier":
            from router.learned.model import WEIGHTS

            shutil.copy(WEIGHTS / "router.safetensors", path)
    with pytest.raises(ValueError, match=r"wrong\.safetensors"):
        load_head(str(path))
    assessor = Assessor(ClassifierSettings(heads={"other": str(path), "good": heads["good"]}))
    assert "wrong.safetensors" in assessor.warning and "`other` is placed by its quality" in assessor.warning
    assessment = assessor.assess(user(PROMPT))
    assert assessment.warning == assessor.warning and assessment.outlook is not None
    assert set(assessment.outlook.heads) == {"good"}, "the others speak all the same"


def test_none_takes_a_models_head_away() -> None:
    assert Assessor(ClassifierSettings(heads={"other": None})).warning == ""


# ---- those that ship -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> LearnedStrategy:
    strategy = LearnedStrategy(ClassifierSettings(heads={each.name: each.head for each in DEMO}))
    assert strategy.warning == ""
    return strategy


def test_a_classifier_of_the_version_before_knows_no_heads() -> None:
    state = Outlook(0.4, 0.8, "math", version="v", heads={"m": 0.5}).__getstate__()
    received = []
    for sent in (state, state[:5]):
        outlook = object.__new__(Outlook)
        outlook.__setstate__(sent)
        received.append(outlook)
    assert received == [Outlook(0.4, 0.8, "math", False, "v", heads) for heads in ({"m": 0.5}, {})]


def test_those_of_the_demo_models_are_small() -> None:
    from router.learned.heads import _DEMO

    assert sum(path.stat().st_size for path in _DEMO.glob("*.safetensors")) < 300_000


def test_they_know_what_the_models_can(demo: LearnedStrategy) -> None:
    easy = demo.outlook(user("Which city is France's capital?")).heads
    assert set(easy) == {each.name for each in DEMO} and min(easy.values()) > 0.9
    for sum_of in ("What number do you get for 71 + 26?", "Calculate 63 plus 18."):
        hard = demo.outlook(user(sum_of)).heads
        assert hard["demo-small"] < 0.5 < hard["demo-medium"], sum_of
    for text in (
        "Write a poem about autumn leaves.",
        "Prove that there are infinitely many primes.",
        "Summarize the plot of Hamlet.",
    ):
        assert demo.outlook(user(text)).heads == {}, text


def test_they_cost_next_to_nothing() -> None:
    """CPU time of this thread, of a prompt of 300 words; the shortest of many, since other work is on the machine."""
    text = " ".join(f"word{number} and {number} of the capital" for number in range(60))
    heads = [load_head(str(each.head)) for each in DEMO]
    times = []
    for _ in range(50):
        began_s = time.thread_time()
        terms = asked_terms(text)
        for head in heads:
            head.chance(terms)
        times.append(time.thread_time() - began_s)
    assert min(times) < 0.0015
