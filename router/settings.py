"""What may change while the cluster runs: the `user_config` of the deployment that each class is named after.

Secrets are not here: they come from the environment, read once in `deployments/app.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from models.catalog import NodePrice, Price
from models.reliability.settings import ReliabilitySettings
from router.strict import Strict
from router.trial_settings import ExperimentSettings, LimitSettings, PromptSettings, TimeRule

Strategy = Literal[
    "hybrid", "learned", "learning", "complexity", "custom", "cheapest", "fastest", "round_robin", "cascade"
]
"""How the model for `auto` is chosen; docs/routing.md says what each does."""


_ALERT_VARIABLE = r"^SWITCHYARD_ALERT_[A-Z0-9_]{1,64}$"


class KeySettings(Strict):
    """One API key, by the SHA-256 of its text (keys are 256 random bits, so a plain digest cannot be guessed back)."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    org: str = Field(min_length=1, max_length=64)
    team: str = ""
    user: str = ""
    scopes: tuple[Literal["infer", "admin", "usage", "audit"], ...] = ("infer",)


class JwtSettings(Strict):
    """Tokens of an identity provider, taken where a key is. HS256 needs SWITCHYARD_JWT_SECRET in the environment, the
    others `jwks` or `jwks_url`. `scopes` is the most that a token's claim `scope` can give; without that claim: infer.
    """

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    algorithm: Literal["HS256", "RS256", "ES256", "EdDSA"] = "RS256"
    jwks_url: str | None = Field(None, pattern=r"^https?://")
    jwks: dict[str, Any] | None = None
    orgs: tuple[str, ...] | None = Field(
        None, description="that the issuer speaks for; None: all but the operator's own"
    )
    org_claim: str = "org"
    team_claim: str = "team"
    scopes: tuple[Literal["infer", "admin", "usage", "audit"], ...] = ("infer", "usage")
    leeway_s: float = Field(30.0, ge=0, le=300)


class TenantSettings(Strict):
    """Limits of one org, None: no limit; and what is done to its prompts."""

    monthly_budget_microusd: int | None = Field(None, ge=0)
    requests_per_minute: int | None = Field(None, ge=1, description="over all ingresses, in every 60 s")
    tokens_per_minute: int | None = Field(None, ge=1, description="of questions and answers, in every 60 s")
    concurrent_requests: int | None = Field(None, ge=1, description="at models at a time")
    models: tuple[str, ...] | None = Field(None, description="allow-list of catalogue names")
    cache_ttl_s: float | None = Field(None, ge=0, description="of its stored answers, instead of that of all; 0: none")
    prompt: PromptSettings = PromptSettings()


class ExactCacheSettings(Strict):
    enabled: bool = True
    max_bytes: int = Field(64 * 1024**2, ge=0)
    ttl_s: float = Field(3600.0, gt=0)
    time_sensitive_ttl_s: float = Field(
        300.0, ge=0, description="of answers to wording that depends on when it is asked, at most; 0: not kept"
    )
    max_temperature: float = Field(1.0, ge=0, description="an explicit temperature above this is not cached at all")


class GateSettings(Strict):
    """When the answer of a cheap model is given out in a cascade. Where the defaults come from: docs/cascade.md."""

    tokens: int = Field(16, ge=1, le=256, description="of an answer that are held back at most, until it is judged")
    min_mean_logprob: float = Field(
        -0.038, le=0, description="mean log probability (natural) of those tokens from which the answer is given out"
    )
    max_mean_entropy: float | None = Field(
        None, ge=0, description="mean entropy (nats, of the likeliest tokens) up to which it is; None: not asked for"
    )
    refusals: bool = Field(True, description="whether an answer that begins as a refusal is given up")
    samples: int = Field(
        0, ge=0, le=4, description="further answers, of `tokens` tokens, that are compared with the one held back"
    )
    min_agreement: float = Field(
        0.5, ge=0, le=1, description="share of words in common with those from which the answer is given out"
    )


class RoutingSettings(Strict):
    """How `auto` is answered, and what follows a model that cannot answer. docs/routing.md explains the strategies.

    complexity, custom: scores below `medium_from` go to a small model, up to `large_above` to a medium one, the rest to
    a large one. hybrid, learned, learning: the model with the least expected loss, which is its cost, the price of a
    bad answer times its chance, and the prices of waiting and of leaving the model that has the conversation. cascade:
    the cheapest model first, the next stronger one where the first tokens do not pass the `gate`.
    """

    strategy: Strategy = "hybrid"
    failure_price_microusd: int | None = Field(None, ge=0, description="what a bad answer costs; None: by the next one")
    failure_price_answers: float = Field(
        4.0, ge=0, description="what a bad answer costs, in answers of the strongest model that may answer"
    )
    waiting_price_microusd_per_s: float = Field(0.0, ge=0, description="of the time to the first token")
    node_costs: Literal["measured", "listed"] = Field(
        "measured", description="of local models: by what their replicas were measured to do, or as the prices say"
    )
    asleep: Literal["avoid", "wait"] = Field(
        "avoid",
        description="a model that has scaled to zero: another one answers while it starts, or the request waits",
    )
    switch_price: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the prompt's price that a model which had the last turn saves by its cache",
    )
    exploration: float = Field(
        0.0, ge=0, le=1, description="share of requests whose model is drawn by lot from those that may answer"
    )
    quality: dict[str, Annotated[float, Field(ge=-1, le=2)]] = Field(
        {}, description="by model name, stands before the catalogue's; `switchyard place` finds it from labels"
    )
    medium_from: float = Field(0.3, ge=0, le=1)
    large_above: float = Field(0.6, ge=0, le=1)
    gate: GateSettings = GateSettings()
    gates: dict[str, GateSettings] = Field({}, description="by model name; what one of them sets stands before `gate`")
    fallbacks: dict[str, tuple[str, ...]] = Field(
        {}, description="model name -> the models that are tried after it, in this order; a named model has no others"
    )
    content_filter_falls_back: bool = Field(
        False,
        description="whether a content filter that refuses a prompt, or ends an answer before its first text, sends "
        "the question to the next model",
    )
    limits: LimitSettings = LimitSettings()
    rules: tuple[TimeRule, ...] = Field((), max_length=64, description="what changes by the time of the day")
    experiments: dict[Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")], ExperimentSettings] = Field(
        {}, max_length=16, description="a request takes part in the first one that it is drawn for"
    )

    def gate_of(self, model: str) -> GateSettings:
        own = self.gates.get(model)
        return self.gate.model_copy(update=own.model_dump(include=own.model_fields_set)) if own else self.gate

    @model_validator(mode="after")
    def _ordered(self) -> RoutingSettings:
        if self.medium_from > self.large_above:
            raise ValueError("medium_from must not be above large_above")
        if len({rule.name for rule in self.rules}) < len(self.rules):
            raise ValueError("two rules have the same name")
        self.variants()
        return self

    def models_named(self) -> set[str]:
        arms = (arm for experiment in self.experiments.values() for arm in experiment.arms.values())
        after = (name for model, others in self.fallbacks.items() for name in (model, *others))
        return {*self.gates, *self.quality, *after, *(arm.model for arm in arms if arm.model is not None)}

    def variants(self) -> list[RoutingSettings]:
        """What may hold at some time for some request. Raises ValueError where a rule or an arm is wrong."""
        by_time = [self, *(self.changed(rule.routing) for rule in self.rules)]
        arms = [arm for experiment in self.experiments.values() for arm in experiment.arms.values()]
        return by_time + [settings.changed(arm.routing) for settings in by_time for arm in arms]

    def changed(self, changes: dict[str, Any]) -> RoutingSettings:
        """With these settings in place of its own, and without rules and experiments. Raises ValueError."""
        if both := {"rules", "experiments"} & changes.keys():
            raise ValueError(f"`{min(both)}` cannot be set within a rule or an arm")
        plain = self.model_dump(exclude={"rules", "experiments"}, exclude_unset=True)
        return RoutingSettings.model_validate({**plain, **changes})


class ClassifierSettings(Strict):
    """Of ComplexityClassifier: weights of the four factors (they sum to 1) and keywords by domain."""

    length_weight: float = Field(0.30, ge=0)
    keyword_weight: float = Field(0.30, ge=0)
    code_weight: float = Field(0.25, ge=0)
    task_weight: float = Field(0.15, ge=0)
    keywords: dict[str, tuple[str, ...]] = Field({}, description="domain -> further words that mark a hard question")
    learned: bool = Field(True, description="whether the learned classifier is asked too")
    weights: str | None = Field(None, description="a folder with its weights; None: those of the package")
    heads: dict[str, str | None] = Field(
        {},
        max_length=64,
        description="by model name: a file with what is known of its own answers, made by `switchyard head`; stands "
        "before the catalogue's. None: the model goes without",
    )
    custom: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="'package.module:Class' of a strategy of your own, made with these settings; it gives the score",
    )

    @model_validator(mode="after")
    def _sum(self) -> ClassifierSettings:
        total = self.length_weight + self.keyword_weight + self.code_weight + self.task_weight
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the four weights must sum to 1, not {total:g}")
        return self


class CloudModelSettings(Strict):
    """Of CloudModel:<name>."""

    reliability: ReliabilitySettings = ReliabilitySettings()


class IngressSettings(Strict):
    keys: tuple[KeySettings, ...] = ()
    jwt: JwtSettings | None = None
    tenants: dict[str, TenantSettings] = Field({}, description="by organisation; `default_tenant` holds for others")
    default_tenant: TenantSettings = TenantSettings()
    exact_cache: ExactCacheSettings = ExactCacheSettings()
    semantic_cache: bool = True
    coalesce: bool = Field(
        True, description="whether a request reads along with one that asks the very same at the same time"
    )
    semantic_max_temperature: float = Field(
        0.7, ge=0, description="an explicit temperature above this is not answered semantically"
    )
    routing: RoutingSettings = RoutingSettings()
    classifier: ClassifierSettings = Field(ClassifierSettings(), description="of a classifier that is placed inline")
    cloud: dict[str, CloudModelSettings] = Field({}, description="by name of a provider that is placed inline")
    prices: dict[str, Price] = Field({}, description="by model name; stands before the catalogue's")
    node_prices: dict[str, NodePrice] = Field({}, description="by model name; stands before the catalogue's")
    request_timeout_s: float = Field(600.0, gt=0)
    queue_timeout_s: float = Field(30.0, gt=0)
    default_max_output_tokens: int = Field(512, gt=0, description="when the caller sets none")
    cache_timeout_s: float = Field(2.0, gt=0, description="a slower semantic cache counts as a miss")
    spare_attempts: dict[str, Annotated[int, Field(ge=0, le=2)]] = Field(
        {},
        description="by name of a provider's model: attempts besides the first that a request sets money aside for, so "
        "that it may be hedged, or tried again after an attempt that did not begin in time",
    )

    @model_validator(mode="after")
    def _shadows_have_a_budget(self) -> IngressSettings:
        for name, experiment in self.routing.experiments.items():
            org = experiment.shadow_org
            if any(arm.shadow for arm in experiment.arms.values()) and (
                org not in self.tenants or self.tenants[org].monthly_budget_microusd is None
            ):
                raise ValueError(
                    f"experiment '{name}' has a shadow, which needs a budget: tenants: {{{org}: "
                    "{monthly_budget_microusd: ...}}"
                )
        return self


class CacheSettings(Strict):
    """Of SemanticCache."""

    threshold: float = Field(
        0.7, ge=0, le=1, description="cosine similarity from which a stored question is looked at at all"
    )
    min_score: float = Field(
        0.3,
        ge=0,
        le=1,
        description="the verifier's score from which its answer is given, or a higher one if `delta` wants that",
    )
    delta: float = Field(
        0.005,
        gt=0,
        lt=1,
        description="wrong answers per request that a tenant puts up with; below 0.0005 it begins with none",
    )
    audit: float = Field(
        0.05, ge=0, le=1, description="share of similar hits that the model is asked anyway, to compare; 0: never"
    )
    ttl_s: float = Field(3600.0, gt=0)
    max_bytes: int = Field(256 * 1024**2, ge=0, description="answers and vectors, over all tenants of the shard")


class ArchiveSettings(Strict):
    """Of Archive: what callers leave here for later."""

    response_ttl_s: float = Field(30 * 86_400.0, gt=0, description="how long a stored response can be fetched")
    max_response_bytes: int = Field(1024**3, ge=0, description="of all stored responses; the oldest go first")
    max_response_bytes_per_org: int = Field(256 * 1024**2, ge=0)
    file_ttl_s: float = Field(30 * 86_400.0, gt=0)
    ttl_s_by_org: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="of responses and files of these organisations, instead of the two above"
    )
    max_file_bytes: int = Field(200 * 1024**2, gt=0)
    max_file_bytes_per_org: int = Field(2 * 1024**3, gt=0)
    max_batch_requests: int = Field(50_000, gt=0, description="lines of one batch")
    max_open_batches_per_org: int = Field(16, gt=0)
    batch_concurrency: int = Field(4, ge=1, description="lines that are worked on at once, of all batches")


class AlertChannel(Strict):
    """Who is told of alerts, and how. Secrets, and addresses that are secrets, are named by the environment's variables
    that hold them; they begin with SWITCHYARD_ALERT_ and are read when Ray starts."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    kind: Literal["webhook", "slack", "discord", "email"] = "webhook"
    url: str | None = Field(None, pattern=r"^https?://[^\s/@]+(/\S*)?$")
    url_env: str | None = Field(None, pattern=_ALERT_VARIABLE)
    secret_env: str = Field("SWITCHYARD_ALERT_SECRET", pattern=_ALERT_VARIABLE, description="that signs the body")
    to: tuple[str, ...] = Field((), max_length=32)
    sender: str = "switchyard@localhost"
    host: str | None = Field(None, description="of the SMTP server")
    port: int = Field(587, ge=1, le=65535)
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    user: str = ""
    password_env: str = Field("SWITCHYARD_ALERT_SMTP_PASSWORD", pattern=_ALERT_VARIABLE)
    orgs: tuple[str, ...] | None = Field(None, description="of whose alerts; None: of all")
    kinds: tuple[Literal["budget", "forecast", "anomaly", "database"], ...] | None = Field(
        None, description="which alerts; None: all"
    )

    def takes(self, org: str, kind: str) -> bool:
        return (self.orgs is None or org in self.orgs) and (self.kinds is None or kind == "test" or kind in self.kinds)

    @model_validator(mode="after")
    def _whole(self) -> AlertChannel:
        if self.kind == "email":
            if not (self.host and self.to):
                raise ValueError(f"channel '{self.name}' sends mail and needs `host` and `to`")
            if self.tls == "none" and self.user:
                raise ValueError(f"channel '{self.name}' would send a password in the clear; set `tls`, or no `user`")
        elif bool(self.url) == bool(self.url_env):
            raise ValueError(f"channel '{self.name}' needs either `url` or `url_env`")
        return self


class AlertSettings(Strict):
    channels: tuple[AlertChannel, ...] = Field((), max_length=32)
    budget_thresholds: tuple[Annotated[float, Field(gt=0, le=10)], ...] = Field((0.5, 0.8, 1.0), max_length=10)
    forecast: bool = Field(True, description="whether a month's budget that will not last is one")
    anomalies: bool = Field(True, description="whether an hour unlike those before is one")
    every_s: float = Field(30.0, ge=1, description="how often budgets are looked at")
    database_down_s: float = Field(15.0, ge=0, description="after which a database that does not answer is one")

    @model_validator(mode="after")
    def _distinct(self) -> AlertSettings:
        names = [channel.name for channel in self.channels]
        if len(set(names)) < len(names):
            raise ValueError("two alert channels have the same name")
        return self


LEAST_RETENTION_DAYS = 35
"""Budgets of a month count that far back, and for so long a record that comes twice has to be known."""
RetentionDays = Annotated[int, Field(ge=LEAST_RETENTION_DAYS, le=3660)]
"""More than a month, so that what a budget counts is there until its period is over."""


class RetentionSettings(Strict):
    """How long requests, with their receipts and what was said about them, stay in the books. Their sums stay."""

    days: RetentionDays | None = Field(None, description="None: for ever")
    days_by_org: dict[str, RetentionDays] = Field({}, description="instead of `days`")

    def days_of(self, org: str) -> int | None:
        return self.days_by_org.get(org, self.days)


class LedgerSettings(Strict):
    """Of Ledger."""

    alerts: AlertSettings = AlertSettings()
    retention: RetentionSettings = RetentionSettings()


class BatcherSettings(Strict):
    """Of Batcher."""

    max_queue: int = Field(256, ge=0, description="waiting requests per backend; more are answered 503")
    max_queue_per_tenant: int = Field(
        128, ge=0, description="waiting requests per backend and tenant; more are answered 429"
    )
    lease_ttl_s: float = Field(10.0, gt=0, description="a holder that does not renew for this long loses its places")
