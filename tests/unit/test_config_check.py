from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.checks import StartError
from cluster.config_check import check_config

ROOT = Path(__file__).parents[2]


def config(args: Any, **deployments: Any) -> dict[str, Any]:
    each = [{"name": name, "user_config": settings} for name, settings in deployments.items()]
    return {"applications": [{"import_path": "deployments.app:build", "args": args, "deployments": each}]}


@pytest.mark.parametrize("path", sorted(ROOT.glob("serve_config*.yaml")), ids=lambda path: path.name)
def test_what_the_project_ships_is_right(path: Path) -> None:
    check_config(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (config({"ingres": {}}), "args: ingres: Extra inputs"),
        (config({"local_models": [{"name": "nobody"}]}), "args: Value error, model 'nobody' is not in the catalogue"),
        (config({"auto_providers": False}), "args: no model to serve: list one in 'local_models'"),
        (config({}, Ingress={"routing": {"strategy": "best"}}), "user_config of Ingress: routing.strategy: Input"),
        (config({}, SemanticCache={"delta": 2}), "user_config of SemanticCache: delta: Input should be less"),
        (config({}, Ledger={"retention": {"days": 30}}), "user_config of Ledger: retention.days: Input should be"),
        (config({}, **{"CloudModel:x": {"keys": 1}}), "user_config of CloudModel:x: keys: Extra inputs"),
    ],
)
def test_the_first_wrong_value_is_named_and_not_shown(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(StartError) as caught:
        check_config(wrong)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_an_application_that_is_not_ours_is_left_alone() -> None:
    check_config({"applications": [{"import_path": "other:app", "args": {"anything": 1}}]})
