"""Under which settings a request is decided: those of the hour, and those of the arm of an experiment it is drawn for.

Pure. Who asks again gets the same arm: it is drawn by a hash of the experiment's name and of the tenant, user or
conversation, so no state is kept and every replica draws alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from models.errors import SwitchyardError
from router.constraints import Limits
from router.events import Principal
from router.policy import Decision
from router.settings import RoutingSettings
from router.trial_settings import WEEKDAYS, ArmSettings, ExperimentSettings, LimitSettings, TimeRule


@dataclass(frozen=True, slots=True)
class Trial:
    """A request's part in an experiment. unit: whose arm it is, as a hash. version: see `version_of`."""

    experiment: str
    version: str
    arm: str
    unit: str


@dataclass(frozen=True, slots=True)
class Course:
    """What a request is decided under. prefer: the model that answers if it may. promoted: the experiment is over, and
    everybody who could take part has this arm."""

    routing: RoutingSettings
    rule: str = ""
    trial: Trial | None = None
    prefer: str | None = None
    promoted: bool = False


Promoted = Callable[[str, str], str | None]
"""The arm that was promoted, by the name of the experiment and its version; None: none was."""


def holds(rule: TimeRule, at: datetime) -> bool:
    """`at` has a time zone; the rule's own decides."""
    local = at.astimezone(ZoneInfo(rule.timezone))
    start, end = (_minutes(text) for text in rule.hours.split("-"))
    now, today = local.hour * 60 + local.minute, WEEKDAYS[local.weekday()]
    if start < end:
        return today in rule.days and start <= now < end
    yesterday = WEEKDAYS[(local - timedelta(days=1)).weekday()]
    return (today in rule.days and now >= start) or (yesterday in rule.days and now < end)


def arm_of(name: str, experiment: ExperimentSettings, unit: str) -> str | None:
    """The arm that `unit` gets; None: it does not take part."""
    digest = hashlib.sha256(f"{name}\x00{unit}".encode()).digest()
    taking_part, place = (int.from_bytes(digest[at : at + 6], "big") / 2**48 for at in (0, 6))
    if taking_part >= experiment.share:
        return None
    shares = _shares(experiment)
    for arm, share in shares.items():
        place -= share
        if place < 0:
            return arm
    return next(reversed(shares))


def version_of(experiment: ExperimentSettings) -> str:
    """Names who is compared and how they are drawn: with other arms, the counting begins anew."""
    text = experiment.model_dump_json(include={"arms", "by", "share", "orgs"})
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def unit_of(experiment: ExperimentSettings, principal: Principal, user: str | None, conversation: str | None) -> str:
    """A hash: neither who it is nor what was said can be read from it."""
    parts = [principal.org]
    if experiment.by != "tenant":
        parts.append(user or principal.user or principal.key_id)
    if experiment.by == "session":
        parts.append(conversation or "")
    return hashlib.sha256("\x00".join(parts).encode(errors="replace")).hexdigest()[:16]


class Courses:
    """Of one configuration. Settings of rules and arms are put together once."""

    def __init__(self, routing: RoutingSettings, promoted: Promoted) -> None:
        self._routing, self._promoted = routing, promoted
        self._made: dict[tuple[str, str, str], RoutingSettings] = {}
        self._versions = {name: version_of(experiment) for name, experiment in routing.experiments.items()}

    def of(
        self, principal: Principal, user: str | None, conversation: str | None, auto: bool, at_unix_s: float
    ) -> Course:
        """auto: the caller left the choice of model and strategy open; only then it may take part in an experiment."""
        rule = self.rule_at(at_unix_s)
        if auto:
            for name, experiment in self._routing.experiments.items():
                if experiment.orgs is not None and principal.org not in experiment.orgs:
                    continue
                if (arm := self._promoted(name, self._versions[name])) in experiment.arms and arm is not None:
                    return replace(self._course(rule, name, arm), promoted=True)
                unit = unit_of(experiment, principal, user, conversation)
                if (arm := arm_of(name, experiment, unit)) is not None:
                    return replace(self._course(rule, name, arm), trial=Trial(name, self._versions[name], arm, unit))
        return self._plain(rule)

    def at(self, unix_s: float) -> Course:
        """Of a request that takes part in nothing."""
        return self._plain(self.rule_at(unix_s))

    def rule_at(self, unix_s: float) -> TimeRule | None:
        if not self._routing.rules:
            return None
        at = datetime.fromtimestamp(unix_s, UTC)
        return next((rule for rule in self._routing.rules if holds(rule, at)), None)

    def others(self, course: Course) -> Iterator[tuple[float, Course]]:
        """Every arm that the request could have had, with its probability."""
        assert course.trial is not None
        name = course.trial.experiment
        rule = next((rule for rule in self._routing.rules if rule.name == course.rule), None)
        for arm, share in _shares(self._routing.experiments[name]).items():
            yield share, self._course(rule, name, arm)

    def shadows(self, principal: Principal) -> Iterator[tuple[str, str, ExperimentSettings, ArmSettings]]:
        """Those that a request of `principal` may be copied to: experiment, arm, and their settings."""
        for name, experiment in self._routing.experiments.items():
            promoted = self._promoted(name, self._versions[name])
            if (experiment.orgs is None or principal.org in experiment.orgs) and promoted is None:
                for arm, settings in experiment.arms.items():
                    if settings.shadow:
                        yield name, arm, experiment, settings

    def _plain(self, rule: TimeRule | None) -> Course:
        return Course(self._settings(rule, "", ""), rule.name if rule else "")

    def _course(self, rule: TimeRule | None, experiment: str, arm: str) -> Course:
        prefer = self._routing.experiments[experiment].arms[arm].model
        return Course(self._settings(rule, experiment, arm), rule.name if rule else "", None, prefer)

    def _settings(self, rule: TimeRule | None, experiment: str, arm: str) -> RoutingSettings:
        if rule is None and not arm:
            return self._routing
        key = (rule.name if rule else "", experiment, arm)
        if key not in self._made:
            settings = self._routing.changed(rule.routing if rule else {})
            self._made[key] = settings.changed(self._routing.experiments[experiment].arms[arm].routing if arm else {})
        return self._made[key]


def marked(decision: Decision, course: Course, propensity: float | None) -> Decision:
    """With the words of why these settings held. propensity: over all arms that the request could have had."""
    trial = asdict(course.trial) if course.trial else None
    known = decision.propensity if propensity is None else propensity
    return replace(decision, rule=course.rule, experiment=trial, propensity=known)


def propensity_over(
    decision: Decision, arms: Iterator[tuple[float, Course]], decided: Callable[[Course], Decision]
) -> float:
    """The probability of this choice before the arm was drawn. `decided` makes the choice of an arm, without a lot."""
    found = 0.0
    for share, course in arms:
        try:
            made = decided(course)
        except SwitchyardError:
            continue  # under those settings nobody could have answered
        same = (made.model, made.cascade) == (decision.model, decision.cascade)
        lot = course.routing.exploration
        found += share * ((1 - lot) * same + (lot / len(made.eligible) if decision.model in made.eligible else 0.0))
    return min(1.0, found)


def tighter(caller: Limits, operator: LimitSettings) -> Limits:
    """Both hold."""

    def least(one: float | None, other: float | None) -> float | None:
        return other if one is None else one if other is None else min(one, other)

    regions = sorted({each for each in (caller.region, operator.region) if each is not None})
    qualities = [each for each in (caller.min_quality, operator.min_quality) if each is not None]
    most = least(caller.max_cost_microusd, operator.max_cost_microusd)
    return replace(
        caller,
        min_quality=max(qualities, default=None),
        max_cost_microusd=None if most is None else int(most),
        max_ttft_ms=least(caller.max_ttft_ms, operator.max_ttft_ms),
        max_latency_ms=least(caller.max_latency_ms, operator.max_latency_ms),
        local_only=caller.local_only or operator.local_only,
        region=" and ".join(regions) or None,  # two that differ are nowhere
    )


def _shares(experiment: ExperimentSettings) -> dict[str, float]:
    """Of the arms that answer; they sum to 1."""
    answering = {name: arm.share for name, arm in experiment.arms.items() if not arm.shadow}
    total = sum(answering.values())
    return {name: share / total for name, share in answering.items()}


def _minutes(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])
