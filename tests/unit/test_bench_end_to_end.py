from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.bench import end_to_end
from cluster.bench.connection import RequestFailed, Response
from cluster.bench.end_to_end import (
    CONFIG,
    SCALE,
    Answered,
    _text,
    at_equal_cost,
    dearer,
    models_of,
    on_the_front,
    outcome,
    table,
)
from cluster.runtime import load_config
from models.demo.dataset import held_out_items
from router.settings import IngressSettings
from router.topology import LocalModel

ITEMS = held_out_items(5, 2)  # two of each difficulty


def answered(model: str, right: int, cost_microusd: int) -> list[Answered]:
    return [
        Answered(item, model, number < right, cost_microusd, 10.0 + number, 20.0, 5)
        for number, item in enumerate(ITEMS)
    ]


def stream(*deltas: str, tokens: int = 2, **last: object) -> Response:
    chunks = [{"choices": [{"delta": {"content": delta}}]} for delta in deltas]
    chunks.append(dict(last) or {"choices": [], "usage": {"completion_tokens": tokens}})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return Response(200, {}, body.encode(), 1.0, 2.0)


def test_a_policy_is_summed_up_by_difficulty() -> None:
    found = outcome("always", answered("m", 3, 4), wall_s=2.0)
    assert (found.accuracy, found.by_difficulty) == (0.5, {"easy": 1.0, "medium": 0.5, "hard": 0.0})
    assert (found.cost_microusd, found.by_model, found.tokens_per_s) == (4.0, {"m": 6}, 15.0)


def test_a_coin_between_two_models_lies_on_the_line_between_them() -> None:
    small, large = outcome("small", answered("s", 3, 2), 1.0), outcome("large", answered("l", 6, 10), 1.0)
    assert [at_equal_cost(cost, small, large) for cost in (2, 6, 10)] == [0.5, 0.75, 1.0]
    assert at_equal_cost(99, small, large) == 1.0, "no coin buys more than the large model"
    assert at_equal_cost(5, small, outcome("same price", answered("l", 6, 2), 1.0)) == 0.5
    shown = table([small, large], large)
    assert "| small | 50.0% (100% / 50% / 0%) | 50% | 2.00 | 20% | 50.0% | yes |" in shown


def test_a_policy_is_on_the_front_unless_another_is_as_good_and_better_in_one_thing() -> None:
    small, large = outcome("small", answered("s", 3, 2), 1.0), outcome("large", answered("l", 6, 10), 1.0)
    dear, twin = outcome("dear", answered("d", 3, 3), 1.0), outcome("twin", answered("t", 3, 2), 1.0)
    found = [on_the_front(each, [small, large, dear, twin]) for each in (small, large, dear, twin)]
    assert found == [True, True, False, True]


def test_the_default_profile_is_asked_with_nodes_that_are_dearer_and_else_the_same() -> None:
    config = load_config(CONFIG)
    assert models_of(config)[:2] == ["demo-small", "demo-medium"]
    changed = dearer(config)
    prices = changed["applications"][0]["deployments"][0]["user_config"].pop("node_prices")
    assert changed == config
    checked = IngressSettings.model_validate({"node_prices": prices}).node_prices
    entry = LocalModel(name="demo-small").resolve()
    assert entry.node_price and checked["demo-small"].usd_per_hour == SCALE * entry.node_price.usd_per_hour


def test_a_stream_is_read_whole_or_not_at_all() -> None:
    assert _text(stream("Par", "is.")) == ("Paris.", 2)
    with pytest.raises(RequestFailed, match="broke off"):
        _text(stream("Par", error={"message": "gone"}))
    with pytest.raises(RequestFailed, match="503"):
        _text(Response(503, {}, b"busy", 1.0, 2.0))


@pytest.mark.parametrize(
    ("line", "policies"),
    [
        ("", ["complexity", "learned", "hybrid", "cascade", "hybrid, price 2", "cascade, price 2"]),
        ("--strategies learning cheapest fastest round_robin", ["learning", "cheapest", "fastest", "round_robin"]),
        ("--strategies cascade cascade --price 1 --price 3", ["cascade", "cascade, price 1", "cascade, price 3"]),
    ],
)
def test_which_policies_are_asked(
    line: str, policies: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def no_cluster(config: Any) -> Iterator[Namespace]:
        yield Namespace(config=config)

    async def asked(_: Any, policy: str, items: Any, name: str = "") -> Any:
        return outcome(name or policy, answered(policy, 3, 2), 1.0)

    monkeypatch.setattr(end_to_end, "own_cluster", no_cluster)
    monkeypatch.setattr(end_to_end, "reprice", lambda *_: None)
    monkeypatch.setattr(end_to_end, "ask_all", asked)
    file = tmp_path / "figures.json"
    assert end_to_end.main([*line.split(), "--questions", "6", "--json", str(file)]) == 0
    found = [each["policy"] for each in json.loads(file.read_text())["outcomes"]]
    assert found == [*models_of(load_config(CONFIG)), *policies]
    assert f"| {policies[-1]} |" in capsys.readouterr().out


def test_a_strategy_that_there_is_not_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        end_to_end.main(["--strategies", "custom"])
    assert refused.value.code == 2 and "round_robin" in capsys.readouterr().err
