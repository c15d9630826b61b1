"""What routing is worth on real answers: held-out questions with known truth, asked of a running cluster.

    python -m cluster.bench.end_to_end --questions 1000 --json end_to_end.json

Starts the default profile and asks the demonstration models the same questions under each policy: always one model, or
`auto` with a strategy. Every question carries a grader that knows the answer, so accuracy is counted, not judged. Costs
are those of the receipts, in which a local token has its node's price; what a cascade discards is in them. A receipt
rounds up to whole micro-USD, which is about what a whole answer costs here, so the nodes are made `SCALE` times as dear
for the run and the costs divided by that. "Random at equal cost" is what tossing a coin between the cheapest and the
dearest model would reach for the strategy's cost: the straight line between the two, and the least that a strategy has
to beat. Caches are off, so that each policy does all of its work. Strategies that go by the price of a bad answer are
asked under the default and, while the cluster runs, under each `--price` (`routing.failure_price_answers`).

    python -m cluster.bench.end_to_end --strategies hybrid learning cheapest fastest round_robin

asks under those instead. `learning` knows nothing here but the models' tiers, since nobody rates an answer.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import httpx

from cluster.bench.connection import Connection, RequestFailed, Response, get, post
from cluster.bench.overhead import percentile
from cluster.bench.session import exit_code, own_cluster, tell, write_json
from cluster.runtime import APPLICATIONS, Config, applications, load_config, rest
from cluster.state import Cluster
from models.catalog import TIERS
from models.demo.dataset import held_out_items
from models.demo.items import DIFFICULTIES, Item
from router.settings import Strategy
from router.topology import LocalModel

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"
SEED = 2027  # of its own: that of the model card is 2026
CLIENTS = 4
MAX_TOKENS = 96
STRATEGIES = tuple(name for name in get_args(Strategy) if name != "custom")  # which takes a class of the operator's
ASKED = ("complexity", "learned", "hybrid", "cascade")
PRICED = ("hybrid", "cascade")
PRICE = 2.0
SETTLED_S = 60.0
SCALE = 1000


@dataclass(frozen=True, slots=True)
class Answered:
    item: Item
    model: str
    correct: bool
    cost_microusd: float
    first_ms: float
    total_ms: float
    output_tokens: int
    discarded_microusd: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy over all questions. Costs are the mean of a question, accuracies are shares of 1."""

    policy: str
    questions: int
    accuracy: float
    by_difficulty: dict[str, float]
    cost_microusd: float
    by_model: dict[str, int]
    first_p50_ms: float
    first_p99_ms: float
    tokens_per_s: float
    discarded_microusd: float = 0.0


async def ask_all(cluster: Cluster, policy: str, items: Sequence[Item], name: str = "") -> Outcome:
    """All `items` under one policy, `CLIENTS` at a time. Raises RequestFailed for the first that is not answered.
    `name`: of the policy in the figures."""
    waiting = iter(items)
    answered: list[Answered] = []

    async def client() -> None:
        connection = await Connection.open(cluster.base_url)
        try:
            for item in waiting:
                answered.append(await _ask(connection, cluster, policy, item))
        finally:
            await connection.close()

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
    return outcome(name or policy, answered, time.perf_counter() - began_s)


async def _ask(connection: Connection, cluster: Cluster, policy: str, item: Item) -> Answered:
    chosen: dict[str, Any] = {"model": policy}
    if policy in STRATEGIES:
        chosen = {"model": "auto", "switchyard": {"cache": "off", "strategy": policy}}
    body = {
        "messages": list(item.messages),
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
        "switchyard": {"cache": "off"},
        **chosen,
    }
    answer = await connection.ask(
        post(f"{cluster.base_url}/v1/chat/completions", json.dumps(body).encode(), cluster.api_key)
    )
    text, output_tokens = _text(answer)
    request_id = answer.headers["x-switchyard-request-id"]
    receipt = await connection.ask(get(f"{cluster.base_url}/v1/receipts/{request_id}", cluster.api_key))
    if receipt.status != 200:
        raise RequestFailed(f"request {request_id} has no receipt: {receipt.body.decode()}")
    told = json.loads(receipt.body)
    return Answered(
        item,
        answer.headers["x-switchyard-model"],
        item.grader.grade(text),
        told["cost_microusd"] / SCALE,
        answer.first_ms,
        answer.total_ms,
        output_tokens,
        sum(attempt["cost_microusd"] for attempt in told["attempts"][:-1]) / SCALE,
    )


def _text(answer: Response) -> tuple[str, int]:
    """Of a whole stream, and how many tokens it had. Raises RequestFailed when it is none."""
    if answer.status != 200:
        raise RequestFailed(f"a question was answered {answer.status}: {answer.body.decode()}")
    lines = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    if not chunks or "error" in chunks[-1]:
        raise RequestFailed(f"a stream broke off: {lines[-1:]}")
    deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    return "".join(deltas), chunks[-1]["usage"]["completion_tokens"]


def outcome(policy: str, answered: Sequence[Answered], wall_s: float) -> Outcome:
    models = [each.model for each in answered]
    first_ms = [each.first_ms for each in answered]
    return Outcome(
        policy,
        len(answered),
        _accuracy(answered),
        {level: _accuracy([each for each in answered if each.item.difficulty == level]) for level in DIFFICULTIES},
        sum(each.cost_microusd for each in answered) / len(answered),
        {model: models.count(model) for model in sorted(set(models))},
        percentile(first_ms, 50),
        percentile(first_ms, 99),
        sum(each.output_tokens for each in answered) / wall_s,
        sum(each.discarded_microusd for each in answered) / len(answered),
    )


def _accuracy(answered: Sequence[Answered]) -> float:
    return sum(each.correct for each in answered) / len(answered) if answered else 0.0


def at_equal_cost(cost_microusd: float, cheap: Outcome, dear: Outcome) -> float:
    """The accuracy of a coin between two models that is weighted so that it costs `cost_microusd` a question."""
    span = dear.cost_microusd - cheap.cost_microusd
    share = min(1.0, max(0.0, (cost_microusd - cheap.cost_microusd) / span)) if span > 0 else 0.0
    return cheap.accuracy + share * (dear.accuracy - cheap.accuracy)


def on_the_front(one: Outcome, outcomes: Sequence[Outcome]) -> bool:
    """Whether no other policy is at least as right and as cheap, and better in one of the two (Pareto)."""
    return not any(
        other.accuracy >= one.accuracy
        and other.cost_microusd <= one.cost_microusd
        and (other.accuracy, other.cost_microusd) != (one.accuracy, one.cost_microusd)
        for other in outcomes
    )


def table(outcomes: Sequence[Outcome], dear: Outcome) -> str:
    """In Markdown. The first outcome is of the cheapest model; accuracy and cost are also shown as shares of those of
    `dear`, the strongest one."""
    cheap = outcomes[0]
    lines = [
        f"| policy | accuracy (easy / medium / hard) | of {dear.policy} | cost, micro-USD (of it discarded) "
        f"| of {dear.policy} | random at equal cost | Pareto | TTFT p50 / p99, ms | tokens/s | answered by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in outcomes:
        levels = " / ".join(f"{each.by_difficulty[level]:.0%}" for level in DIFFICULTIES)
        by_model = ", ".join(f"{model} {count}" for model, count in each.by_model.items())
        discarded = f" ({each.discarded_microusd:.2f})" if each.discarded_microusd else ""
        lines.append(
            f"| {each.policy} | {each.accuracy:.1%} ({levels}) | {each.accuracy / dear.accuracy:.0%} "
            f"| {each.cost_microusd:.2f}{discarded} | {each.cost_microusd / dear.cost_microusd:.0%} "
            f"| {at_equal_cost(each.cost_microusd, cheap, dear):.1%} "
            f"| {'yes' if on_the_front(each, outcomes) else 'no'} "
            f"| {each.first_p50_ms:.0f} / {each.first_p99_ms:.0f} | {each.tokens_per_s:.0f} | {by_model} |"
        )
    return "\n".join(lines)


def models_of(config: Config) -> list[str]:
    """The demonstration models of a configuration, the weakest first."""
    entries = [LocalModel.model_validate(model).resolve() for model in _args(config)["local_models"]]
    asked = [entry for entry in entries if entry.source.startswith("demo:")]
    return [entry.name for entry in sorted(asked, key=lambda entry: TIERS.index(entry.tier))]


def dearer(config: Config) -> Config:
    """With nodes that cost `SCALE` times as much. Each has to have a price of its own in the catalogue or there."""
    config = copy.deepcopy(config)
    entries = [LocalModel.model_validate(model).resolve() for model in _args(config)["local_models"]]
    nodes = {entry.name: entry.node_price.model_dump(mode="json") for entry in entries if entry.node_price}
    for node in nodes.values():
        node["usd_per_hour"] = str(SCALE * Decimal(node["usd_per_hour"]))
    _ingress_settings(config["applications"][0])["node_prices"] = nodes
    return config


def reprice(cluster: Cluster, price: float) -> None:
    """Set the price of a bad answer in a running cluster, as an operator does it. Raises RequestFailed."""
    try:
        (application,) = (each["deployed_app_config"] for each in applications(cluster).values())
        settings = _ingress_settings(application)
        settings["routing"] = {**settings.get("routing", {}), "failure_price_answers": price}
        with rest(cluster) as api:
            api.put(APPLICATIONS, json={"applications": [application]}).raise_for_status()
        deadline = time.monotonic() + SETTLED_S
        while time.monotonic() < deadline:
            (described,) = applications(cluster).values()
            if described["status"] == "RUNNING" and described["deployed_app_config"] == application:
                return
            time.sleep(0.5)
    except httpx.HTTPError as error:
        raise RequestFailed(f"the price of a bad answer could not be changed: {type(error).__name__} {error}") from None
    raise RequestFailed(f"the price of a bad answer was not changed within {SETTLED_S:.0f} s")


def _ingress_settings(application: dict[str, Any]) -> dict[str, Any]:
    """The `user_config` of the door, to be changed."""
    deployments = application.setdefault("deployments", [])
    ingress = next((each for each in deployments if each["name"] == "Ingress"), None)
    if ingress is None:
        deployments.append(ingress := {"name": "Ingress"})
    ingress["user_config"] = settings = {**(ingress.get("user_config") or {})}
    return settings


def _args(config: Config) -> dict[str, Any]:
    args: dict[str, Any] = config["applications"][0]["args"]
    return args


def _told(found: Outcome) -> Outcome:
    tell(f"{found.policy}: {found.accuracy:.1%} right at {found.cost_microusd:.2f} micro-USD")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.bench.end_to_end", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--config", type=Path, default=CONFIG, help="with the demo models (default serve_config.yaml)")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument(
        "--strategies",
        nargs="+",
        choices=STRATEGIES,
        default=ASKED,
        metavar="STRATEGY",
        help=f"besides each model alone: some of {', '.join(STRATEGIES)} (default {' '.join(ASKED)})",
    )
    parser.add_argument(
        "--price", type=float, action="append", help=f"of a bad answer, besides the default (default {PRICE:g})"
    )
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args(argv)
    return exit_code(lambda: measure(options))


def measure(options: argparse.Namespace) -> None:
    """Prints the table. Raises RequestFailed for the first question that is not answered."""
    items = held_out_items(SEED, -(-options.questions // len(DIFFICULTIES)))[: options.questions]
    config = load_config(options.config)
    models = models_of(config)
    asked = tuple(dict.fromkeys(options.strategies))
    priced = [policy for policy in PRICED if policy in asked]
    with own_cluster(dearer(config)) as cluster:
        outcomes: list[Outcome] = []
        for policy in (*models, *asked):
            outcomes.append(_told(asyncio.run(ask_all(cluster, policy, items))))
        for price in (options.price or (PRICE,)) if priced else ():
            reprice(cluster, price)
            for policy in priced:
                outcomes.append(_told(asyncio.run(ask_all(cluster, policy, items, f"{policy}, price {price:g}"))))
    write_json(options.json, {"seed": SEED, "outcomes": [asdict(each) for each in outcomes]})
    print(table(outcomes, outcomes[len(models) - 1]))


if __name__ == "__main__":
    raise SystemExit(main())
