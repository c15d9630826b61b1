"""`switchyard replay`: a recorded time, decided again under another configuration."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.logged import Report, logged
from models.errors import InvalidRequest
from router.replay import Logged, Policy, costs, policy_of, qualities
from router.settings import ClassifierSettings, RoutingSettings

THIS = "this policy"


def replay(
    path: Path, config: Path | None, changes: list[str], strategy: str | None = None, org: str | None = None
) -> str:
    """What the export `path` says of the policy in `config`, with `changes` ("exploration=0.1") to its routing.

    strategy, org: only requests that this strategy decided, of this organisation. Raises `InvalidRequest` for files
    that cannot be used, with what to do.
    """
    routing, classifier = _policy(config, changes)
    log = logged(path, strategy, org)
    usable = [row for row in log if row.decision.get("basis")]
    if len(usable) < 2:
        raise InvalidRequest(f"{path} was recorded before decisions were kept with what they went by; record anew.")
    policies = {THIS: policy_of(routing, classifier)}
    rated = sum(row.quality is not None for row in usable)
    report = Report(len(usable), rated, costs(usable, policies), qualities(usable, policies))
    left_out = len(log) - len(usable)
    notes = [f"{left_out} requests left out: recorded without what they went by."] if left_out else []
    return "\n".join([report.text(), *notes, "", _moves(usable, policies[THIS]), _LIMITS])


_LIMITS = """\
Prompts are not in the books, so the classifier's word is the logged one; who may answer, and the evidence of the
strategies that learn, are as they were then."""


def _moves(log: list[Logged], policy: Policy) -> str:
    """How often this policy would choose each model, and how often it was chosen."""
    was = Counter(row.action for row in log)
    would = dict.fromkeys(was, 0.0)
    for row in log:
        for action, probability in policy(row).items():
            would[action] = would.get(action, 0.0) + probability
    lines = [f"{'chosen':40} {'as it was':>10} {THIS:>12}"]
    for action in sorted(would, key=lambda action: (-would[action], action)):
        lines.append(f"{action:40} {was[action] / len(log):10.1%} {would[action] / len(log):12.1%}")
    return "\n".join(lines)


def _policy(config: Path | None, changes: list[str]) -> tuple[RoutingSettings, ClassifierSettings | None]:
    """A Serve configuration, or a file with the content of `routing` alone."""
    document = _read(config) if config else {}
    weights: dict[str, Any] | None = None
    routing = document
    if "applications" in document:
        users = {
            deployment.get("name"): deployment.get("user_config") or {}
            for application in document["applications"]
            for deployment in application.get("deployments") or ()
        }
        routing = users.get("Ingress", {}).get("routing") or {}
        weights = users.get("ComplexityClassifier") or users.get("Ingress", {}).get("classifier")
    try:
        settings = RoutingSettings.model_validate({**routing, **_changed(changes)})
        return settings, None if weights is None else ClassifierSettings.model_validate(weights)
    except ValidationError as error:
        what = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InvalidRequest(f"These are no settings of `routing`: {what}.") from None


def _changed(changes: list[str]) -> dict[str, Any]:
    found = {}
    for change in changes:
        name, sign, value = change.partition("=")
        if not sign:
            raise InvalidRequest(f"--set takes NAME=VALUE, as in strategy=learned, and not '{change}'.")
        found[name] = yaml.safe_load(value)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InvalidRequest(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path} is neither a Serve configuration nor the settings of `routing`.")
    return document
