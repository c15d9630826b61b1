"""Logged decisions, made again by another policy with the same code, and what the log says of its cost and quality.

A log has neither prompts nor answers. So the classifier is not asked again: what it said then is in the log, with what
was known of each model, and that is all that a policy goes by. What cannot be made again: who may answer (models that
were excluded stay so), evidence that the other policy would have gathered itself, and later turns that would have gone
elsewhere. Estimates are those of `offpolicy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.errors import InvalidRequest, NoEligibleModel
from models.messages import ChatRequest
from router.basis import rebuilt
from router.offpolicy import Z_95, Array, Estimate, Log, Valuation, always, at_random, coin, evaluate, mean_by_model
from router.policy import AUTO, NO_LIMITS, Circumstances, Decision, Wish, decide
from router.ports import Assessment
from router.settings import ClassifierSettings, RoutingSettings
from router.trials import Courses, tighter

LEAST_EFFECTIVE = 30.0
"""Requests that an estimate must really stand on."""
COVERED = (0.8, 1.25)
"""Mean weight within which the log overlaps with a policy; 1 is perfect."""
_FACTORS = {"length": "length_weight", "keywords": "keyword_weight", "code": "code_weight", "task": "task_weight"}


@dataclass(frozen=True, slots=True)
class Logged:
    """A request that `auto` decided and a model answered. quality: what its callers said of it, in [0, 1]; None:
    nothing. model: who answered in the end."""

    decision: Mapping[str, Any]
    cost_microusd: float
    quality: float | None
    at_unix_ms: int
    model: str = ""

    @property
    def answered(self) -> bool:
        """Whether the model that was chosen answered itself."""
        return bool(self.model == self.decision["model"])

    @property
    def action(self) -> str:
        return action_of(self.decision)

    @property
    def actions(self) -> tuple[str, ...]:
        """All that could have been done, as far as it is in the log."""
        return tuple(sorted({*map(str, self.decision["eligible"]), self.action}))


Policy = Callable[[Logged], Mapping[str, float]]
"""With which probability each action is taken."""


def action_of(decision: Mapping[str, Any]) -> str:
    """The model; one whose answer a gate may give up is another thing, and under other gates another one again."""
    if len(decision.get("cascade") or ()) > 1:
        return f"cascade {decision['strategy_version']} from {decision['model']}"
    return str(decision["model"])


def policy_of(routing: RoutingSettings, classifier: ClassifierSettings | None = None) -> Policy:
    """`policy.decide` under these settings, those of the request's time; without experiments.

    classifier: weights of the four factors that stand in place of those of then; its keywords are not counted again,
    for want of the prompts. Raises `InvalidRequest` for limits of which the log does not tell which models meet them.
    The policy raises KeyError for a decision without its basis; who has no model left by its limits gets no answer.
    """
    _check_limits(routing)
    courses = Courses(routing.model_copy(update={"experiments": {}}), lambda _name, _version: None)

    def policy(logged: Logged) -> dict[str, float]:
        routing = courses.at(logged.at_unix_ms / 1000).routing
        quiet = routing.model_copy(update={"exploration": 0.0})
        assessment, candidates, evidence = rebuilt(logged.decision)
        wished = logged.decision["basis"].get("wished")
        wish = Wish(wished, limits=tighter(NO_LIMITS, routing.limits))

        def chosen(turn: int) -> str:
            circumstances = Circumstances(turn, 1.0, evidence)
            weighed = _weighed(assessment, classifier)
            return action_of(_seen(decide(_QUESTION, weighed, candidates, quiet, None, 0, wish, circumstances)))

        turns = len(candidates) if (wished or routing.strategy) == "round_robin" else 1
        found: dict[str, float] = {}
        try:
            for turn in range(turns):
                action = chosen(turn)
                found[action] = found.get(action, 0.0) + (1 - routing.exploration) / turns
            if routing.exploration:
                drawn = _drawn(logged, routing, wish, assessment)
                for action in drawn:
                    found[action] = found.get(action, 0.0) + routing.exploration / len(drawn)
        except NoEligibleModel:
            return {}
        return found

    return policy


_QUESTION = ChatRequest(AUTO, ())


def _seen(decision: Decision) -> dict[str, Any]:
    return {name: getattr(decision, name) for name in ("model", "cascade", "strategy_version")}


def _check_limits(routing: RoutingSettings) -> None:
    for each in routing.variants():
        for name in ("max_latency_ms", "local_only", "region"):
            if getattr(each.limits, name):
                raise InvalidRequest(
                    f"The books do not say which models met `limits.{name}` then; take it out of the policy to replay."
                )


def _drawn(logged: Logged, routing: RoutingSettings, wish: Wish, assessment: Assessment) -> list[str]:
    """What follows from each lot, all equally likely."""
    _, candidates, evidence = rebuilt(logged.decision)
    everything = routing.model_copy(update={"exploration": 1.0})
    sure = decide(_QUESTION, assessment, candidates, everything, None, 0, wish, Circumstances(0, 0.0, evidence))
    lots = ((i + 0.5) / len(sure.eligible) for i in range(len(sure.eligible)))
    made = (
        decide(_QUESTION, assessment, candidates, everything, None, 0, wish, Circumstances(0, lot, evidence))
        for lot in lots
    )
    return [action_of(_seen(each)) for each in made]


def _weighed(assessment: Assessment, classifier: ClassifierSettings | None) -> Assessment:
    if classifier is None or assessment.strategy != "complexity" or set(assessment.factors) != set(_FACTORS):
        return assessment
    score = sum(getattr(classifier, weight) * assessment.factors[name] for name, weight in _FACTORS.items())
    return replace(assessment, score=min(1.0, score))


# ---- what the log says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One policy: the mean of a request by IPS, SNIPS and doubly robust; None where the log cannot tell.

    effective: requests that the estimate really stands on. agrees: mean probability of what was really done.
    """

    policy: str
    estimates: tuple[Estimate, Estimate, Estimate] | None
    effective: float
    agrees: float


def costs(log: Sequence[Logged], policies: Mapping[str, Policy] = {}) -> list[Line]:
    """Mean cost of a request in micro-USD: as it was, under each of `policies`, and under the named baselines."""
    return _lines(log, np.array([row.cost_microusd for row in log]), None, policies)


def qualities(log: Sequence[Logged], policies: Mapping[str, Policy] = {}) -> list[Line]:
    """The same of the quality, over the requests that somebody rated; empty where there are fewer than two."""
    rated = [row for row in log if row.quality is not None]
    if len(rated) < 2:
        return []
    return _lines(rated, np.array([row.quality for row in rated], float), (0.0, 1.0), policies)


def _lines(
    log: Sequence[Logged], outcome: Array, within: tuple[float, float] | None, policies: Mapping[str, Policy]
) -> list[Line]:
    tables = {name: [policy(row) for row in log] for name, policy in policies.items()}
    actions = sorted({a for row in log for a in row.actions} | {a for rows in tables.values() for r in rows for a in r})
    column = {action: i for i, action in enumerate(actions)}
    chosen = np.array([column[row.action] for row in log])
    propensity = np.array([float(row.decision["propensity"]) for row in log])
    data = Log(chosen, propensity, outcome, mean_by_model(chosen, outcome, len(actions)))
    half = Z_95 * float(outcome.std(ddof=1)) / float(np.sqrt(len(outcome)))
    was = Estimate(float(outcome.mean()), float(outcome.mean() - half), float(outcome.mean() + half))
    lines = [Line("as it was", (was, was, was), float(len(log)), 1.0)]
    tried = {name: _matrix(rows, column) for name, rows in tables.items()}
    for name, policy in {**tried, **_baselines(log, column, chosen)}.items():
        lines.append(_line(name, evaluate(data, policy), within, float(policy[np.arange(len(log)), chosen].mean())))
    return lines


def _baselines(log: Sequence[Logged], column: Mapping[str, int], chosen: Array) -> dict[str, Array]:
    """Models are strong or cheap by their mean cost in the log."""
    costs = np.array([row.cost_microusd for row in log])
    eligible = np.zeros((len(log), len(column)), bool)
    for i, row in enumerate(log):
        eligible[i, [column[action] for action in row.actions]] = True
    mean = np.array([costs[chosen == i].mean() if (chosen == i).any() else np.nan for i in range(len(column))])
    strong = always(_extreme(eligible, np.nan_to_num(mean, nan=-np.inf)), len(column))
    cheap = always(_extreme(eligible, -np.nan_to_num(mean, nan=np.inf)), len(column))
    expected = np.tile(np.nan_to_num(mean), (len(log), 1))
    return {
        "always-strong": strong,
        "always-cheap": cheap,
        "random": at_random(eligible),
        "random at equal cost": coin(cheap, strong, expected, float(costs.mean())),
    }


def _matrix(rows: Sequence[Mapping[str, float]], column: Mapping[str, int]) -> Array:
    found = np.zeros((len(rows), len(column)))
    for i, row in enumerate(rows):
        for action, probability in row.items():
            found[i, column[action]] = probability
    return found


def _line(name: str, found: Valuation, within: tuple[float, float] | None, agrees: float) -> Line:
    known = found.effective >= LEAST_EFFECTIVE and COVERED[0] <= found.covered <= COVERED[1]
    estimates = (found.ips, found.snips, found.doubly_robust)
    if within is not None:
        estimates = (
            _clipped(found.ips, *within),
            _clipped(found.snips, *within),
            _clipped(found.doubly_robust, *within),
        )
    return Line(name, estimates if known else None, found.effective, agrees)


def _clipped(estimate: Estimate, least: float, most: float) -> Estimate:
    value, low, high = (min(most, max(least, each)) for each in (estimate.value, estimate.low, estimate.high))
    return Estimate(value, low, high)


def _extreme(eligible: Array, value: Array) -> Array:
    found: Array = np.argmax(np.where(eligible, value[None, :], -np.inf), axis=1)
    return found
