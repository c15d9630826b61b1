from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from cluster.cli import main
from models.catalog import TIERS, ModelEntry
from models.errors import InvalidRequest
from models.messages import ChatRequest
from router.basis import rebuilt
from router.constraints import Candidate
from router.policy import Circumstances, Wish, decide
from router.ports import Assessment, Outlook
from router.replay import Logged, action_of, costs, policy_of, qualities
from router.settings import ClassifierSettings, RoutingSettings, Strategy

CALM, NO_WISH = Circumstances(), Wish()
ASKED = ChatRequest("auto", ())
FACTORS = {"length": 0.2, "keywords": 0.9, "code": 0.0, "task": 0.4}
CANDIDATES = (
    Candidate(ModelEntry(name="cheap", engine="simulated", tier="small", context_tokens=100), "b", 10, 40.0),
    Candidate(ModelEntry(name="strong", engine="simulated", tier="large", context_tokens=100), "b", 100, 20.0, 7),
)


def decided(
    assessment: Assessment,
    routing: RoutingSettings,
    circumstances: Circumstances = CALM,
    candidates: tuple[Candidate, ...] = CANDIDATES,
    wish: Wish = NO_WISH,
) -> dict[str, Any]:
    """As it is in the books: through JSON."""
    made = decide(ASKED, assessment, candidates, routing, None, 0, wish, circumstances)
    return dict(json.loads(json.dumps(asdict(made))))


def logged(decision: dict[str, Any], cost: float = 1.0, quality: float | None = None) -> Logged:
    return Logged(decision, cost, quality, 0)


outlooks = st.none() | st.builds(
    Outlook, st.floats(0, 1), st.floats(0, 1), st.sampled_from(["math", "open"]), st.booleans(), st.just("v1")
)
assessments = st.builds(
    Assessment, st.floats(0, 1), st.just("math"), st.just(FACTORS), st.just("complexity"), st.just("1"), outlooks
)
models = st.lists(
    st.builds(
        Candidate,
        st.builds(
            ModelEntry,
            name=st.sampled_from(["a", "b", "c", "d"]),
            engine=st.just("simulated"),
            tier=st.sampled_from(TIERS),
            quality=st.none() | st.floats(-1, 2),
            context_tokens=st.just(10),
        ),
        st.just("b"),
        st.integers(0, 1_000),
        st.none() | st.floats(0, 1_000),
        st.integers(0, 10),
        node_factor=st.floats(0.1, 10),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda candidate: candidate.entry.name,
)
evidences = st.dictionaries(st.sampled_from(["a", "b"]), st.tuples(st.floats(0, 50), st.floats(0, 50)))


@given(assessments, models, evidences, st.sampled_from(sorted(set(get_args(Strategy)) - {"custom"})), st.floats(0, 1))
def test_the_same_policy_makes_the_logged_decision_again(
    assessment: Assessment,
    candidates: list[Candidate],
    evidence: dict[str, tuple[float, float]],
    strategy: Strategy,
    exploration: float,
) -> None:
    routing = RoutingSettings(strategy=strategy, exploration=exploration)
    made = decided(assessment, routing, Circumstances(0, 0.999999, evidence), tuple(candidates))
    again = policy_of(routing)(logged(made))
    assert sum(again.values()) == pytest.approx(1)
    if strategy != "round_robin":
        assert again[action_of(made)] == pytest.approx(made["propensity"])
    else:
        assert list(again.values()) == [pytest.approx(1 / len(candidates))] * len(candidates)


def test_who_was_not_eligible_then_is_not_now() -> None:
    made = decided(Assessment(0.9, "code", FACTORS), RoutingSettings(strategy="complexity"), candidates=CANDIDATES[:1])
    assert policy_of(RoutingSettings(strategy="complexity"))(logged(made)) == {"cheap": 1.0}
    assert [candidate.entry.name for candidate in rebuilt(made)[1]] == ["cheap"]


def test_a_callers_own_strategy_stays() -> None:
    made = decided(Assessment(0.9, "code", FACTORS), RoutingSettings(), wish=Wish("cheapest"))
    assert policy_of(RoutingSettings(strategy="complexity"))(logged(made)) == {"cheap": 1.0}


def test_other_weights_of_the_factors_give_another_score() -> None:
    made = decided(Assessment(0.2, "code", FACTORS), RoutingSettings(strategy="complexity"))
    routing = RoutingSettings(strategy="complexity")
    assert policy_of(routing)(logged(made)) == {"cheap": 1.0}
    words = ClassifierSettings(length_weight=0, keyword_weight=1, code_weight=0, task_weight=0)
    assert policy_of(routing, words)(logged(made)) == {"strong": 1.0}


def test_a_judged_answer_is_another_thing_than_one_that_is_not() -> None:
    made = decided(Assessment(0.2, "code", FACTORS), RoutingSettings(strategy="cascade"))
    plain = decided(Assessment(0.2, "code", FACTORS), RoutingSettings(strategy="cheapest"))
    assert made["model"] == plain["model"] == "cheap"
    assert action_of(made) != action_of(plain) == "cheap"
    found = policy_of(RoutingSettings(strategy="cheapest"))
    line = next(each for each in costs([logged(made)] * 50, {"cheapest": found}) if each.policy == "cheapest")
    assert line.estimates is None and line.agrees == 0


def test_a_policys_limits_hold_and_those_that_the_log_cannot_tell_of_are_refused() -> None:
    made = decided(Assessment(0.9, "code", FACTORS), RoutingSettings(strategy="complexity"))
    assert made["model"] == "strong"
    for limits in ({"max_cost_microusd": 50}, {"max_cost_microusd": 50, "min_quality": 0.1}):
        for exploration in (0.0, 0.5):
            routing = RoutingSettings.model_validate({"limits": limits, "exploration": exploration})
            assert policy_of(routing)(logged(made)) == {"cheap": pytest.approx(1.0)}
    nobody = RoutingSettings.model_validate({"limits": {"max_cost_microusd": 1}})
    assert policy_of(nobody)(logged(made)) == {}
    by_night = RoutingSettings.model_validate({"rules": [{"name": "night", "routing": {"limits": {"region": "eu"}}}]})
    with pytest.raises(InvalidRequest, match=r"limits\.region"):
        policy_of(by_night)


# ---- a world whose truth is known ------------------------------------------------------------------------------------

LOGGING = RoutingSettings(strategy="learned", exploration=0.5, failure_price_microusd=200)
OTHER = RoutingSettings(strategy="learned", failure_price_microusd=2_000)
COST = {"cheap": 10.0, "strong": 100.0}


def world(draw: np.random.Generator, requests: int) -> tuple[list[Logged], float, float]:
    """A log, and the other policy's true mean cost and quality over these very requests."""
    log, cost, good = [], 0.0, 0.0
    for _ in range(requests):
        small = draw.uniform(0.3, 0.95)
        outlook = Outlook(small, min(0.99, small + draw.uniform(0, 0.4)), "math", False, "v1")
        assessment = Assessment(0.5, "math", FACTORS, outlook=outlook)
        made = decided(assessment, LOGGING, Circumstances(0, draw.random()))
        chances = {"cheap": outlook.small - 0.1, "strong": outlook.large}  # the classifier flatters the small one
        model = made["model"]
        quality = float(draw.random() < chances[model]) if draw.random() < 0.6 else None
        log.append(Logged(made, COST[model] * draw.uniform(0.5, 1.5), quality, 0))
        other = decide(ASKED, assessment, CANDIDATES, OTHER, None, 0).model
        cost, good = cost + COST[other], good + chances[other]
    return log, cost / requests, good / requests


def test_estimates_cover_what_the_other_policy_would_have_cost_and_been_worth() -> None:
    draw = np.random.default_rng(4)
    covered = np.zeros((2, 3))
    runs = 6
    for _ in range(runs):
        log, cost, good = world(draw, 600)
        policies = {"other": policy_of(OTHER)}
        for i, (lines, truth) in enumerate(((costs(log, policies), cost), (qualities(log, policies), good))):
            estimates = next(line.estimates for line in lines if line.policy == "other")
            assert estimates is not None
            covered[i] += [each.low <= truth <= each.high for each in estimates]
    assert (covered >= runs - 2).all(), covered  # of 95 % intervals three or more of 6 miss once in 450 times


# ---- the command -----------------------------------------------------------------------------------------------------


def export(path: Path, log: list[Logged]) -> Path:
    rows = [
        {
            "model": row.decision["model"],
            "org": "acme" if i % 2 else "other",
            "opened_at": datetime.fromtimestamp(1_780_000_000 + i, UTC),
            "decision": json.dumps(row.decision),
            "propensity": row.decision["propensity"],
            "cost_microusd": int(row.cost_microusd),
            "feedback": row.quality,
            "strategy": row.decision["strategy"],
            "status": "ok",
            "cache_verdict": "miss",
        }
        for i, row in enumerate(log)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_the_command_compares_a_configuration_with_what_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, _, _ = world(np.random.default_rng(1), 300)
    path = export(tmp_path / "log.parquet", [*log, replace(log[0], decision={**log[0].decision, "basis": None})])
    config = tmp_path / "other.yaml"
    settings = {"routing": OTHER.model_dump(mode="json", include={"strategy", "failure_price_microusd"})}
    deployments = [{"name": "Ingress", "user_config": settings}]
    config.write_text(yaml.safe_dump({"applications": [{"name": "s", "deployments": deployments}]}))
    assert main(["replay", str(path), "--policy", str(config)]) == 0
    told = capsys.readouterr().out
    assert "300 requests" in told and "1 requests left out" in told and "Prompts are not in the books" in told
    assert [line.split("  ")[0] for line in told.splitlines()[2:8]] == [
        *("as it was", "this policy", "always-strong", "always-cheap", "random", "random at equal cost")
    ]
    assert main(["replay", str(path), "--set", "strategy=cheapest", "--org", "acme"]) == 0
    told = capsys.readouterr().out
    assert "150 requests" in told
    assert next(line for line in told.splitlines() if line.startswith("cheap ")).endswith("100.0%")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "strategy"], "NAME=VALUE"),
        (["--set", "strategy=nonsense"], "strategy"),
        (["--set", "no_such=1"], "no_such"),
        (["--policy", "missing.yaml"], "cannot be read"),
    ],
)
def test_settings_that_are_none_are_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = export(tmp_path / "log.parquet", world(np.random.default_rng(1), 40)[0])
    assert main(["replay", str(path), *arguments]) == 1
    assert said in capsys.readouterr().err
