"""The README's first two questions, as the default profile decides and answers them; no cluster."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cluster.runtime import load_config
from deployments.openai.chat_schema import parse_chat
from models.catalog import ModelEntry
from models.demo.evaluate import answer
from models.demo.grading import Grader
from models.demo.items import Item
from models.messages import ChatRequest
from models.registry import resolve_source
from router.accounting.prices import PriceBook
from router.assessor import Assessor
from router.policy import Candidate, Decision, decide
from router.settings import ClassifierSettings, IngressSettings
from router.tokens import prompt_tokens
from router.topology import Topology

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BODIES = re.findall(r"curl -i \S+/v1/chat/completions .*?-d '(.*?)'\n", README, re.DOTALL)
EASY, HARDER = (parse_chat(body.encode()).request for body in BODIES)


@cache
def profile() -> tuple[dict[str, ModelEntry], Assessor, IngressSettings]:
    (application,) = load_config(ROOT / "serve_config.yaml")["applications"]
    given = {each["name"]: each["user_config"] for each in application["deployments"]}
    topology = Topology.model_validate(application["args"])
    settings = ClassifierSettings.model_validate(given["ComplexityClassifier"])
    assessor = Assessor(settings.model_copy(update={"heads": {**topology.heads(), **settings.heads}}))
    entries = {entry.name: entry for entry in (model.resolve() for model in topology.local_models)}
    return entries, assessor, IngressSettings.model_validate(given["Ingress"])


def decided(request: ChatRequest) -> Decision:
    entries, assessor, settings = profile()
    assert assessor.warning == ""
    prices = PriceBook(entries.values(), settings.prices, settings.node_prices)
    tokens, most = prompt_tokens(request), request.sampling.max_tokens
    assert most is not None
    pool = [
        Candidate(each, "", prices.worst_case_microusd(name, tokens.expected, most)) for name, each in entries.items()
    ]
    return decide(request, assessor.assess(request.messages), pool, settings.routing, None, tokens.at_least)


def says(model: str, request: ChatRequest) -> str:
    entry = profile()[0][model]
    turns = tuple({"role": turn.role, "content": turn.text} for turn in request.messages)
    item = Item("readme", "easy", turns, "", Grader("exact", ""))
    return answer(Path(resolve_source(entry, ROOT)), [item])[0].answer


def row(title: str) -> list[str]:
    """The table's two cells."""
    (cells,) = re.findall(rf"^\| {title}[^|]*\|(.*)\|$", README, re.MULTILINE)
    return [cell.strip() for cell in cells.split("|")]


def prose(pattern: str) -> tuple[str, ...]:
    (found,) = re.findall(pattern, README)
    return found if isinstance(found, tuple) else (found,)


def test_the_easy_question_is_answered_by_the_model_that_the_readme_names() -> None:
    said, model = prose(r'so the small model answers: "(.*?)" \(`x-switchyard-model: (\S+)`\)')
    assert (decided(EASY).model, says(model, EASY)) == (model, said)


def test_the_harder_question_goes_to_the_next_one_and_the_small_one_would_have_been_wrong() -> None:
    model, said, small, wrong = prose(r'`(demo-\w+)` says "(.*?)" \(`(demo-\w+)`, asked by name, says "(.*?)"\)')
    assert (decided(HARDER).model, says(model, HARDER), says(small, HARDER)) == (model, said, wrong)


def test_the_receipts_that_the_readme_shows_are_those_of_today() -> None:
    shown: dict[str, Any] = {
        title: row(title) for title in ("kind of work", "chance of", "expected loss", "answered by")
    }
    for column, decision in enumerate((decided(EASY), decided(HARDER))):
        loss = [decision.loss[name] for name in profile()[0]]
        assert shown["kind of work"][column] == decision.task
        assert shown["answered by"][column] == f"`{decision.model}`"
        for title, key in (("chance of", "chance"), ("expected loss", "total")):
            told = [float(number) for number in shown[title][column].split("/")]
            assert told == pytest.approx([each[key] for each in loss], abs=0.0051), (title, column)
