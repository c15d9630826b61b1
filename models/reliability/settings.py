"""How patient and how persistent the wrappers are. All of it changes without a restart."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TimeoutSettings(_Strict):
    """Of one attempt. A model that thinks in silence needs more; the caller's own deadline holds besides."""

    first_event_s: float = Field(120.0, gt=0, description="until the answer begins")
    stall_s: float = Field(60.0, gt=0, description="between two pieces of the answer")
    total_s: float | None = Field(None, gt=0, description="for the whole answer; None: the caller's deadline")


class RetrySettings(_Strict):
    """Exponential back-off with full jitter, within a budget that all requests of the process share."""

    max_attempts: int = Field(3, ge=1, le=10, description="1: no retries")
    base_s: float = Field(0.25, gt=0, description="longest wait before the first retry; doubles with each")
    max_backoff_s: float = Field(8.0, gt=0)
    max_wait_s: float = Field(10.0, ge=0, description="a longer Retry-After is not waited for: the error goes out")
    budget_share: float = Field(0.1, ge=0, le=1, description="retries and hedges per request")
    budget_min_per_s: float = Field(0.1, ge=0, description="retries that are always allowed, however few requests come")
    budget_burst: int = Field(10, ge=1, description="unused retries are kept up to so many")


class BreakerSettings(_Strict):
    """Of each model of the endpoint."""

    enabled: bool = True
    window_s: float = Field(30.0, gt=0)
    min_requests: int = Field(10, ge=1, description="fewer in the window say nothing")
    failure_share: float = Field(0.5, gt=0, le=1, description="of the window's requests, from which it opens")
    cooldown_s: float = Field(5.0, gt=0, description="doubles each time that a probe fails")
    max_cooldown_s: float = Field(120.0, gt=0)
    probes: int = Field(1, ge=1, description="requests let through at a time after the cool-down")
    slow_s: float = Field(
        30.0, gt=0, description="no event within so much of a caller's deadline counts as a failure of the provider"
    )

    @model_validator(mode="after")
    def _ordered(self) -> BreakerSettings:
        if self.cooldown_s > self.max_cooldown_s:
            raise ValueError("cooldown_s must not be above max_cooldown_s")
        return self


class HedgeSettings(_Strict):
    """Only of models whose entry has `spare_attempts`: a hedge may cost the whole answer twice."""

    mode: Literal["off", "fixed", "p95"] = "off"
    after_s: float = Field(2.0, gt=0, description="of `fixed`; of `p95` until enough first events were measured")


class KeyRestSettings(_Strict):
    """Of endpoints with several keys."""

    limited_s: float = Field(5.0, gt=0, description="rest after 429 that does not say how long")
    max_limited_s: float = Field(60.0, gt=0, description="longest rest after 429, whatever it says")
    refused_s: float = Field(60.0, gt=0, description="rest after 401 or a used-up account; doubles each time")
    max_refused_s: float = Field(3600.0, gt=0)


class ReliabilitySettings(_Strict):
    timeouts: TimeoutSettings = TimeoutSettings()
    retries: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()
    hedging: HedgeSettings = HedgeSettings()
    keys: KeyRestSettings = KeyRestSettings()
