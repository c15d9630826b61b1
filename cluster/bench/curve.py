"""Which price of a bad answer buys which accuracy at which cost? By the demonstration models' own answers, off line.

    python -m cluster.bench.curve --per-difficulty 500

Asks the three models held-out questions with known answers (greedily, with transformers, in this process), and has the
router decide each of them again under every `failure_price_answers` of a list, with the heads that ship and without.
Costs are those of the tokens, as a receipt has them before it is rounded. A cascade's gates judge the log probabilities
that the models gave. The questions are of a seed of their own, without those of the published scores.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import models.demo
from cluster.bench import end_to_end, gate
from cluster.bench.connection import RequestFailed
from cluster.bench.session import exit_code, tell, write_json
from models.catalog import BUILT_IN, ModelEntry, NodePrice
from models.demo import evaluate
from models.demo.dataset import held_out_items
from models.demo.items import Item
from models.demo.tokenizer import encoded
from models.messages import ChatRequest, Event, Finish, Message, Sampling, TextDelta, TextPart, TokenLogprob, Usage
from router.accounting.prices import PriceBook
from router.assessor import Assessor
from router.cascade import judge
from router.plan import Plan
from router.policy import Candidate, decide
from router.ports import Assessment
from router.settings import ClassifierSettings, GateSettings, RoutingSettings, Strategy
from router.tokens import prompt_tokens

SEED = 2029
PUBLISHED = (*gate.PUBLISHED, (gate.SEED, 3 * 500))
WEIGHTS = Path(models.demo.__file__).with_name("weights")
ENTRIES = {entry.name: entry for entry in BUILT_IN if entry.source.startswith("demo:")}
PRICES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
STRATEGIES: tuple[Strategy, ...] = ("learned", "hybrid", "cascade")
EXACT = 1_000_000
"""Costs are counted in millionths of a micro-USD, which is what an answer of these models costs."""


@dataclass(frozen=True, slots=True)
class Answer:
    right: bool
    input_tokens: int
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """request: as the door makes it. answers: by model."""

    request: ChatRequest
    answers: dict[str, Answer]


@dataclass(frozen=True, slots=True)
class Point:
    """Under one policy, with the heads or without. accuracy and costs are means of a question."""

    policy: str
    heads: bool
    price: float
    accuracy: float
    cost_microusd: float
    discarded_microusd: float
    by_model: dict[str, int]


def ask(per_difficulty: int) -> list[Question]:
    """All models, the same questions."""
    items = questions(per_difficulty)
    lengths = [prompt for _, prompt in encoded(items)]
    found: list[dict[str, Answer]] = [{} for _ in items]
    for name in ENTRIES:
        tell(f"{len(items)} questions to {name}")
        for place, one in enumerate(evaluate.answer(WEIGHTS / name, items)):
            found[place][name] = Answer(one.correct, lengths[place], one.logprobs)
    return [Question(_request(item), answers) for item, answers in zip(items, found, strict=True)]


def questions(per_difficulty: int) -> list[Item]:
    """Those of `SEED` that are in none of the published sets."""
    published = {str(item.messages) for seed, count in PUBLISHED for item in held_out_items(seed, count // 3)}
    return [item for item in held_out_items(SEED, per_difficulty) if str(item.messages) not in published]


def _request(item: Item) -> ChatRequest:
    messages = tuple(Message(turn["role"], (TextPart(turn["content"]),)) for turn in item.messages)  # type: ignore[arg-type]
    return ChatRequest("auto", messages, sampling=Sampling(temperature=0, max_tokens=end_to_end.MAX_TOKENS))


class World:
    """The questions, with what the classifier says of them and what answers cost."""

    def __init__(self, asked: Sequence[Question], heads: bool, entries: Mapping[str, ModelEntry] = ENTRIES) -> None:
        self.asked, self.heads, self.entries = asked, heads, entries
        self._prices = PriceBook(entries.values(), {}, {name: _exact(entry) for name, entry in entries.items()})
        files = {name: entry.head for name, entry in entries.items() if heads}
        assessor = Assessor(ClassifierSettings(heads=files))
        if assessor.warning:
            raise RequestFailed(assessor.warning)
        self._assessed = [assessor.assess(question.request.messages) for question in asked]

    def always(self, model: str) -> Point:
        return self._point(model, 0.0, [(model, [self._cost(question, model)]) for question in self.asked])

    def point(self, strategy: Strategy, price: float) -> Point:
        routing = RoutingSettings(strategy=strategy, failure_price_answers=price)
        taken = [self._taken(*each, routing) for each in zip(self.asked, self._assessed, strict=True)]
        return self._point(strategy, price, taken)

    def _taken(self, question: Question, assessment: Assessment, routing: RoutingSettings) -> tuple[str, list[float]]:
        """Who answers, and what that costs, with what is given up before it."""
        request = question.request
        tokens = prompt_tokens(request)
        candidates = [
            Candidate(entry, "", self._prices.worst_case_microusd(name, tokens.expected, end_to_end.MAX_TOKENS))
            for name, entry in self.entries.items()
        ]
        plan = Plan(decide(request, assessment, candidates, routing, None, tokens.at_least), self.entries, routing)
        costs = []
        while True:
            model = plan.next()
            seen = _seen(question.answers[model].logprobs, request, plan.gate(model))
            costs.append(self._cost(question, model, seen))
            if seen is None:
                return model, costs
            plan.escalate(model)

    def _cost(self, question: Question, model: str, output_tokens: int | None = None) -> float:
        answer = question.answers[model]
        usage = Usage(answer.input_tokens, len(answer.logprobs) if output_tokens is None else output_tokens)
        return self._prices.cost_microusd(model, usage) / EXACT

    def _point(self, policy: str, price: float, taken: Sequence[tuple[str, list[float]]]) -> Point:
        models = [model for model, _ in taken]
        right = sum(question.answers[model].right for question, model in zip(self.asked, models, strict=True))
        return Point(
            policy,
            self.heads,
            price,
            right / len(taken),
            sum(sum(costs) for _, costs in taken) / len(taken),
            sum(sum(costs[:-1]) for _, costs in taken) / len(taken),
            {model: models.count(model) for model in self.entries},
        )


def _exact(entry: ModelEntry) -> NodePrice:
    assert entry.node_price is not None
    return entry.node_price.model_copy(update={"usd_per_hour": EXACT * entry.node_price.usd_per_hour})


def _seen(logprobs: Sequence[float], request: ChatRequest, gate: GateSettings | None) -> int | None:
    """How many tokens a gate has seen of an answer that it gives up; None: it lets it through, or there is none."""
    if gate is None:
        return None
    events: list[Event] = []
    for logprob in logprobs[:-1] or logprobs:  # an engine does not show that of the end
        events.append(TextDelta("w ", 1, (TokenLogprob("w ", logprob),)))
        if judge(events, request, gate).verdict != "wait":
            break
    else:
        events.append(Finish("stop"))
    given_up = judge(events, request, gate).verdict == "escalate"
    return sum(isinstance(event, TextDelta) for event in events) if given_up else None


def table(points: Sequence[Point], dear: Point) -> str:
    """In Markdown; shares are of `dear`, the strongest model."""
    lines = [
        f"| policy | heads | price of a bad answer | right | of {dear.policy} | cost, micro-USD (of it discarded) "
        f"| of {dear.policy} | answered by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in points:
        discarded = f" ({each.discarded_microusd:.2f})" if each.discarded_microusd else ""
        lines.append(
            f"| {each.policy} | {'yes' if each.heads else 'no'} | {each.price:g} | {each.accuracy:.1%} "
            f"| {each.accuracy / dear.accuracy:.1%} | {each.cost_microusd:.2f}{discarded} "
            f"| {each.cost_microusd / dear.cost_microusd:.1%} "
            f"| {', '.join(f'{model} {count}' for model, count in each.by_model.items() if count)} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.bench.curve", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--per-difficulty", type=int, default=500, help="questions, before the published ones go")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args(argv)

    def measure() -> None:
        asked = ask(options.per_difficulty)
        worlds = [World(asked, heads) for heads in (False, True)]
        always = [worlds[0].always(name) for name in ENTRIES]
        points = [w.point(strategy, price) for strategy in STRATEGIES for w in worlds for price in PRICES]
        write_json(options.json, {"seed": SEED, "points": [asdict(each) for each in (*always, *points)]})
        print(table([*always, *points], always[-1]))

    return exit_code(measure)


if __name__ == "__main__":
    raise SystemExit(main())
