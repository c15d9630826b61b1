"""Reports of experiments, and promotion by hand and automatically, over a ledger in this process."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.admin_command import _told
from cluster.checks import StartError
from router.accounting.books import Books
from router.accounting.experiment_store import MEASURES, ArmTally, Tally
from router.accounting.feedback import Feedback
from router.accounting.journal import encode
from router.accounting.registrar import Follower, Promote
from router.accounting.store import SQLiteStore
from router.events import Actor, RequestClosed
from router.experiment_report import report, winner
from router.promotion import Promoter
from router.settings import IngressSettings, RoutingSettings
from router.trial_settings import ExperimentSettings
from router.trials import version_of
from tests.contract.test_stores import closed
from tests.unit.test_admin_api import Ingress, command_line, ingress_of

EXPERIMENT: dict[str, Any] = {"arms": {"control": {}, "b": {"routing": {"strategy": "cheapest"}}}}


def settings(**changes: Any) -> ExperimentSettings:
    return ExperimentSettings.model_validate({**EXPERIMENT, **changes})


def tally(arm: str, units: int, cost: float, good: float | None = None, failed: int = 0) -> ArmTally:
    """Costs spread by a third of their mean."""
    measures = dict.fromkeys(MEASURES, Tally(0, 0.0, 0.0))
    measures["cost"] = Tally(units, units * cost, units * (cost**2 + (cost / 3) ** 2))
    measures["failure"] = Tally(units, failed, failed)
    if good is not None:
        measures["quality"] = Tally(units - failed, (units - failed) * good, (units - failed) * good)
    return ArmTally(arm, units, units, failed, round(units * cost), measures)


@pytest.mark.parametrize(
    ("control", "b", "verdict"),
    [
        (tally("control", 20, 100), tally("b", 20, 10), "too few"),
        (tally("control", 200, 100), tally("b", 200, 98), "open"),
        (tally("control", 200, 100), tally("b", 200, 300), "worse"),
        (tally("control", 200, 100), tally("b", 200, 10), "better, quality open"),
        (tally("control", 9_000, 100, 0.8), tally("b", 9_000, 10, 0.8), "better"),
        (tally("control", 9_000, 100, 0.9), tally("b", 9_000, 10, 0.7), "better, quality open"),
    ],
)
def test_what_is_cheaper_wins_only_where_it_lost_no_more_quality_than_allowed(
    control: ArmTally, b: ArmTally, verdict: str
) -> None:
    arms = report(settings(margin=0.06), [b, control])
    assert [arm.verdict for arm in arms] == ["control", verdict]
    assert winner(settings(margin=0.06), arms) == ("b" if verdict == "better" else None)


def test_more_quality_is_better() -> None:
    arms = report(settings(metric="quality"), [tally("control", 900, 1, 0.6), tally("b", 900, 9, 0.8)])
    assert winner(settings(metric="quality"), arms) == "b"
    arms = report(settings(metric="quality"), [tally("control", 900, 1, 0.8), tally("b", 900, 9, 0.6)])
    assert arms[1].verdict == "worse"


@pytest.mark.parametrize(("metric", "good"), [("cost", 0.9), ("quality", 0.96)])
def test_an_arm_that_fails_too_often_does_not_win(metric: str, good: float) -> None:
    experiment = settings(metric=metric)
    for failed, won in ((0, "b"), (12_000, None)):
        arms = report(experiment, [tally("control", 40_000, 100, 0.9), tally("b", 40_000, 70, good, failed)])
        assert winner(experiment, arms) == won, failed
    assert arms[1].verdict == "better, quality open" and arms[1].measures["failure"].mean == 0.3


def test_a_failure_is_no_cheap_and_quick_answer(tmp_path: Path) -> None:
    """One unit: an answer, a failure that cost nothing, one that did cost, and one who left before the first word."""
    answered = replace(outcome(1, "b", 100), total_ms=900.0, ttft_ms=None)
    failed = replace(answered, request_id="r2", status="error", cost_microusd=0, total_ms=1.0)
    paid = replace(failed, request_id="r3", cost_microusd=20)
    left = replace(failed, request_id="r4", status="cancelled")
    store = SQLiteStore(tmp_path / "ledger.sqlite3")
    store.ingest("h", [json.loads(encode(each)[9:]) for each in (answered, failed, paid, left)])
    (found,) = store.experiments.tallies("e", version_of(settings()))
    assert (found.units, found.requests, found.failed, found.microusd) == (1, 4, 3, 120)
    sums = {name: (each.units, each.total) for name, each in found.measures.items()}
    assert sums.pop("failure") == (1, 0.75)
    assert sums == {"cost": (1, 120), "latency": (1, 900), "quality": (0, 0), "escalation": (1, 0)}
    store.close()


def test_a_shadow_never_wins() -> None:
    arms = {"control": {}, "b": {"model": "m", "shadow": True}}
    shadowed = settings(arms=arms, metric="cost", margin=0.99)
    found = report(shadowed, [tally("control", 900, 100), tally("b", 900, 1)])
    assert found[1].shadow and winner(shadowed, found) is None


def test_equal_arms_hardly_ever_have_a_winner_however_often_one_looks() -> None:
    draw, wrong = random.Random(3), 0
    experiment = settings(metric="escalation", margin=0.9)
    for _ in range(40):
        sums = {"control": 0.0, "b": 0.0}
        for units in range(1, 200):
            for arm in sums:
                sums[arm] += draw.random() < 0.3
            if units >= 50 and units % 5 == 0:
                tallies = [_escalations(arm, units, total) for arm, total in sums.items()]
                if report(experiment, tallies)[1].verdict not in ("open", "too few"):
                    wrong += 1
                    break
    assert wrong <= 3


def _escalations(arm: str, units: int, total: float) -> ArmTally:
    measures = dict.fromkeys(MEASURES, Tally(0, 0.0, 0.0)) | {"escalation": Tally(units, total, total)}
    return ArmTally(arm, units, units, 0, 0, measures)


# ---- through the door ------------------------------------------------------------------------------------------------


def outcome(number: int, arm: str, cost: int) -> RequestClosed:
    trial = {"experiment": "e", "version": version_of(settings()), "arm": arm, "unit": f"u{number}"}
    return closed(f"r{number}", cost=cost, decision={"eligible": ("m",), "experiment": trial})


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    """Of 120 units: the arm `b` costs a tenth, and everybody is content with both."""
    books = await Books.open(lambda: SQLiteStore(tmp_path / "ledger.sqlite3"), tmp_path / "journal")
    records = [outcome(n, "b" if n % 2 else "control", (10 if n % 2 else 100) + n % 7) for n in range(240)]
    await books.ingest("h", b"".join(encode(record) for record in records))
    for n in range(240):
        await books.keep_feedback(Feedback("acme", f"r{n}", "k", 1, "m", "", "", 1.0))
    yield books
    await books.close()


@pytest.fixture
async def door(books: Books) -> AsyncIterator[Ingress]:
    followers: list[Follower] = []
    async with ingress_of(books, "i", followers) as ingress:
        assert await followers[0].reached(0, 5)
        ingress.pipeline.reconfigure(IngressSettings(routing=RoutingSettings(experiments={"e": settings(margin=0.2)})))
        yield ingress


async def test_how_one_stands_and_promotion_by_hand(door: Ingress) -> None:
    (told,) = (await door.done("GET", "/v1/experiments"))["data"]
    assert (told["id"], told["promoted"], told["winner"]) == ("e", None, "b")
    control, b = told["arms"]
    assert (control["verdict"], b["verdict"], b["units"]) == ("control", "better", 120)
    assert b["measures"]["cost"]["low"] < b["measures"]["cost"]["mean"] < control["measures"]["cost"]["low"]
    assert (await door.done("POST", "/v1/experiments/e/promote", arm="b"))["promoted"] == "b"
    assert (await door.done("GET", "/v1/experiments/e"))["promoted"] == "b"
    version = version_of(settings())
    assert door.pipeline.stages.promoted("e", version) == "b"
    assert door.pipeline.stages.promoted("e", "of other arms") is None
    assert (await door.done("POST", "/v1/experiments/e/withdraw"))["promoted"] is None
    assert door.pipeline.stages.promoted("e", version) is None
    lines = list(_told(told))
    assert "winner=b" in lines[0] and lines[2].startswith("  b  better") and "cost=12.98" in lines[2]


async def test_the_command_line_does_the_same(door: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    switchyard = command_line(door, monkeypatch)
    for line in ("experiments list", "experiments show e"):
        head, control, b = await switchyard(line)
        assert head.startswith("e  ") and "winner=b" in head and "promoted=" not in head, line
        assert control.startswith("  control  control  units=120") and b.startswith("  b  better  units=120"), line
    (told,) = (json.loads(text) for text in await switchyard("experiments show e --json"))
    assert [arm["verdict"] for arm in told["arms"]] == ["control", "better"]
    assert "promoted=b" in (await switchyard("experiments promote e b"))[0]
    assert door.pipeline.stages.promoted("e", version_of(settings())) == "b"
    assert "promoted=" not in (await switchyard("experiments withdraw e"))[0]
    assert door.pipeline.stages.promoted("e", version_of(settings())) is None
    with pytest.raises(StartError, match="control, b"):
        await switchyard("experiments promote e nobody")
    for what in ("show", "withdraw"):
        with pytest.raises(StartError, match="There is no experiment 'none'"):
            await switchyard(f"experiments {what} none")


async def test_what_cannot_be_promoted_and_by_whom(door: Ingress) -> None:
    await door.done("PUT", "/v1/admin/orgs/acme")
    theirs = (await door.done("POST", "/v1/admin/keys", org="acme", scopes=["admin", "infer"]))["key"]
    assert (await door.ask("GET", "/v1/experiments", theirs)).status_code == 403
    assert (await door.ask("POST", "/v1/experiments/e/promote", theirs, arm="b")).status_code == 403
    assert (await door.ask("GET", "/v1/experiments/none")).status_code == 404
    wrong = await door.ask("POST", "/v1/experiments/e/promote", arm="nobody")
    assert wrong.status_code == 400 and "control, b" in wrong.text


@pytest.mark.parametrize(("promote", "arm"), [("automatic", "b"), ("hand", None)])
async def test_a_winner_is_promoted_automatically_where_that_is_wanted(
    books: Books, promote: str, arm: str | None
) -> None:
    routing = RoutingSettings(experiments={"e": settings(margin=0.2, promote=promote)})
    directory = books.registrar.directory

    async def done(name: str, won: str, version: str) -> None:
        act = Promote(name, won, version, once=True)
        await books.registrar.do(act, Actor(user="automatic promotion"), {"arm": won})

    promoter, version = Promoter(books, lambda: routing, directory.promotion, done), version_of(settings())
    await promoter.look()
    await promoter.look()
    assert directory.promoted("e", version) == arm
    acts = [entry["act"] for entry in await books.registrar.audit_page(None, "", 10)]
    assert acts == ["experiment.promote"] * (arm is not None)
    if arm is not None:
        await books.registrar.do(Promote("e", None, version), Actor(user="somebody"), {})
        await promoter.look()
        await Promoter(books, lambda: routing, lambda *_: None, done).look()  # it has not heard of that yet
        assert directory.promoted("e", version) is None  # what a person took back stays so
        assert directory.promotion("e", "of other arms") is None
