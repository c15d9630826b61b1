"""Settings within those of `settings.py`: what holds at some hours, for some requests, and for some prompts."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from router.strict import Strict

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class LimitSettings(Strict):
    """What the operator demands of the model for `auto`, besides what the caller does; the tighter of both holds."""

    min_quality: float | None = Field(None, ge=0, le=1, description="least chance of a good answer")
    max_cost_microusd: int | None = Field(None, ge=0)
    max_ttft_ms: float | None = Field(None, gt=0, description="measured time to the first token, 95th percentile")
    max_latency_ms: float | None = Field(
        None, gt=0, description="measured time to the end of an answer as long as this one may get, 95th percentile"
    )
    local_only: bool = False
    region: str | None = Field(None, min_length=1, max_length=64, description="where the model has to run")


class TimeRule(Strict):
    """Other settings of `routing` at some hours. The first rule of a list that matches the time holds."""

    name: str = Field(min_length=1, max_length=64)
    hours: str = Field(
        "00:00-24:00",
        pattern=r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$",
        description="from, and up to but without; '22:00-06:00' goes on into the next day",
    )
    days: tuple[Weekday, ...] = Field(WEEKDAYS, min_length=1, description="on which the hours begin")
    timezone: str = Field("UTC", description="a name of the IANA database, as in Europe/Berlin")
    routing: dict[str, Any] = Field(description="settings of `routing` in place of those outside the rule")

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"there is no time zone '{name}' on this machine: use UTC or install tzdata") from None
        return name


class ArmSettings(Strict):
    """One of the ways that an experiment compares: `routing` holds settings in place of those outside, `model` answers
    where it may. A shadow answers nobody: its model is asked the same once more, after the answer, at the operator's
    cost."""

    share: float = Field(
        1.0,
        gt=0,
        description="of those who take part, in proportion to the other arms'; a shadow's is the share of requests "
        "that it is asked too, 1 at most",
    )
    routing: dict[str, Any] = Field({}, description="settings in place of those outside the arm")
    model: str | None = None
    shadow: bool = False

    @model_validator(mode="after")
    def _shadow_of_one(self) -> ArmSettings:
        if self.shadow and (self.model is None or self.routing or self.share > 1):
            raise ValueError("a shadow names a `model`, has no `routing`, and a `share` of 1 at most")
        return self


class ExperimentSettings(Strict):
    """Who takes part in what. The first of `arms` is the one that the others are compared with.

    by: what always gets the same arm: an organisation, a user of it (or a key, where no user is named), or a
    conversation. With a new name, or other arms under it, an experiment begins anew.
    """

    arms: dict[Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")], ArmSettings] = Field(min_length=2, max_length=8)
    by: Literal["tenant", "user", "session"] = "session"
    share: float = Field(1.0, gt=0, le=1, description="of them that take part")
    orgs: tuple[str, ...] | None = Field(None, description="whose requests; None: everybody's")
    metric: Literal["cost", "latency", "quality", "escalation"] = Field("cost", description="what is to get better")
    margin: float = Field(0.05, gt=0, lt=1, description="of quality that a winner may have lost")
    alpha: float = Field(0.05, gt=0, lt=1, description="probability with which a verdict may ever be wrong")
    least_units: int = Field(50, ge=10, description="of each arm, before which there is no verdict")
    promote: Literal["hand", "automatic"] = "hand"
    shadow_org: str = Field("shadow", min_length=1, max_length=64, description="whose money pays for shadows")

    @model_validator(mode="after")
    def _control_answers(self) -> ExperimentSettings:
        if next(iter(self.arms.values())).shadow:
            raise ValueError("the first arm is what the others are compared with, and cannot be a shadow")
        return self


class ExampleSettings(Strict):
    """A question and how it should be answered."""

    question: str = Field(min_length=1, max_length=8_000)
    answer: str = Field(min_length=1, max_length=8_000)


class PromptSettings(Strict):
    """What is done to the prompts of one org before a model is asked; by default nothing."""

    compress: Literal["off", "whitespace", "boilerplate"] = "off"
    history_tokens: int | None = Field(
        None, ge=100, description="of a conversation, besides its instructions; older turns are not sent"
    )
    examples: tuple[ExampleSettings, ...] = Field((), max_length=500)
    shots: int = Field(3, ge=0, le=16, description="of the examples, those most like the question")
    cache_prefixes: bool = Field(
        False, description="mark long tools and instructions for Anthropic's prompt cache where a caller marks nothing"
    )

    @property
    def changes(self) -> bool:
        return self.compress != "off" or self.history_tokens is not None or bool(self.examples and self.shots)
