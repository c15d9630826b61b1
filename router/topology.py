"""What runs where: the `args` of serve_config.yaml. A change restarts replicas."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from models.catalog import BUILT_IN, ENGINE_CAPABILITIES, ModelEntry, Tier
from models.providers import ENGINES, PROVIDERS, Dialect, Platform, Quirks, known_provider
from router.strict import Strict


class Scale(Strict):
    """Autoscaling bounds of a deployment."""

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    upscale_delay_s: float = Field(2.0, ge=0)
    downscale_delay_s: float = Field(60.0, ge=0)
    num_cpus: float = Field(0.1, ge=0, description="what Ray reserves for a replica")
    num_gpus: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Scale:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas must not be above max_replicas")
        return self


class LocalModel(Strict):
    """A local model to serve: a catalogue name, with what differs from its entry, or a whole entry of your own."""

    name: str
    entry: ModelEntry | None = Field(None, description="for a model that the catalogue does not list")
    source: str | None = Field(None, description="hub id or local folder, instead of the catalogue's")
    engine: Literal["transformers", "vllm", "simulated"] | None = None
    device: Literal["cpu", "gpu"] = "cpu"
    tier: Tier | None = None
    scale: Scale = Scale()
    engine_args: dict[str, int | float | str | bool] = Field({}, description="passed to the engine as they are")
    optional: bool = Field(False, description="`switchyard up` leaves it out where its memory is not there")

    def resolve(self) -> ModelEntry:
        """The catalogue entry to serve; with another source than the catalogue's it is another model, and what is known
        of that one's answers is not known of it. Raises ValueError for an unknown name."""
        entry = self.entry or next((e for e in BUILT_IN if e.name == self.name), None)
        if entry is None:
            known = ", ".join(e.name for e in BUILT_IN)
            raise ValueError(f"model '{self.name}' is not in the catalogue ({known}); give it an `entry`")
        changes: dict[str, object] = {
            field: value
            for field, value in (("source", self.source), ("engine", self.engine), ("tier", self.tier))
            if value is not None
        }
        if self.source not in (None, entry.source) and self.entry is None:
            changes["head"] = None
        if self.engine not in (None, entry.engine):
            changes |= {"capabilities": ENGINE_CAPABILITIES[self.engine], "tool_parser": None}
        return entry.model_copy(update={**changes, "name": self.name})


class CloudEndpoint(Strict):
    """A provider. It is enabled when the environment has its key; the key is held by its own deployment only, unless it
    is placed inline.

    Either one that Switchyard knows, by `provider`: what is known of it (models/providers.py) and its rows of the
    catalogue hold for all that is not given here. Or an endpoint of your own: `name`, `dialect`, `base_url`,
    `api_key_env` and `models`.
    """

    provider: str | None = None
    name: str = Field("", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="default: that of `provider`")
    dialect: Dialect | None = None
    platform: Platform | None = None
    base_url: str | None = None
    api_key_env: str | tuple[str, ...] | None = Field(
        None, description="where the key is; of several names the first that is set. None: the endpoint needs no key"
    )
    models: tuple[ModelEntry, ...] = Field((), description="instead of the catalogue's rows")
    embedding_models: tuple[ModelEntry, ...] = Field(
        (), description="models that make vectors, for `POST /v1/embeddings`; of the dialect `openai` only"
    )
    only: tuple[str, ...] | None = Field(None, description="names of the rows to serve; None: all")
    quirks: Quirks | None = None
    settings: dict[str, str] = Field(
        {}, description="what it needs besides a key, such as AWS_REGION; before the environment's of that name"
    )
    ambient: bool = Field(False, description="no key is needed: the platform's SDK finds credentials by itself")
    placement: Literal["deployment", "inline"] = Field(
        "deployment",
        description="inline: in every Ingress process, which saves a hop but has the key in the public door's memory",
    )
    region: str = Field(
        "", max_length=64, description="where its machines are, in words of yours, for allow-lists of regions"
    )
    max_concurrency: int = Field(64, ge=1, description="requests at once: of a replica, or in all where it is inline")
    scale: Scale = Scale(num_cpus=0.02)  # it mostly waits, and there may be a dozen of them on two cores

    @model_validator(mode="before")
    @classmethod
    def _shorter(cls, fields: Any) -> Any:
        """What need not be said: the name of a known provider, and which adapter the models of a dialect have."""
        if not isinstance(fields, dict):
            return fields
        provider = known_provider(str(fields.get("provider")))
        dialect = fields.get("dialect") or (provider and provider.dialect)
        filled = {"name": fields["provider"], **fields} if fields.get("provider") else dict(fields)
        for field in ("models", "embedding_models"):
            models = filled.get(field)
            if dialect in ENGINES and isinstance(models, list | tuple):
                known = {"engine": ENGINES[dialect]}
                filled[field] = [{**known, **model} if isinstance(model, dict) else model for model in models]
        return filled

    @model_validator(mode="after")
    def _complete(self) -> CloudEndpoint:
        if self.provider is not None:
            if known_provider(self.provider) is None:
                known = ", ".join(provider.name for provider in PROVIDERS)
                raise ValueError(f"there is no provider '{self.provider}' ({known}); give an endpoint a `dialect`")
        elif missing := [f for f in ("name", "dialect", "api_key_env", "models") if f not in self.model_fields_set]:
            raise ValueError(f"an endpoint without `provider` needs {', '.join(missing)} (api_key_env may be null)")
        elif not self.models:
            raise ValueError("an endpoint without `provider` needs `models`")
        return self

    @model_validator(mode="after")
    def _placed(self) -> CloudEndpoint:
        if self.placement == "inline":
            provider = known_provider(self.provider or "")
            if self.platform or (provider and provider.platform):
                raise ValueError(
                    f"'{self.name}' cannot be placed inline: a platform's SDK finds credentials in the environment, "
                    "and the public door's has none; leave `placement` out"
                )
            if "scale" in self.model_fields_set:
                raise ValueError(f"'{self.name}' is placed inline and has no replicas of its own: leave `scale` out")
        return self

    @property
    def key_variables(self) -> tuple[str, ...]:
        """The environment variables that may have the key."""
        if self.api_key_env is None:
            return ()
        return (self.api_key_env,) if isinstance(self.api_key_env, str) else self.api_key_env


class Encoder(Strict):
    source: str = Field("all-MiniLM-L6-v2", description="the packaged model, a hub id or a local folder")
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["int8", "float32"] = Field(
        "int8", description="on a CPU: half the time of float32, and vectors at a cosine of .99 to its own"
    )
    max_batch: int = Field(32, ge=1)
    batch_wait_s: float = Field(0.0, ge=0, description="0: a batch is what came while the last one was encoded")


class WarmUp(Strict):
    """Answers that are there from the start."""

    file: str = Field(
        min_length=1, description="what `switchyard cache export` wrote, at the same path wherever a shard may run"
    )
    org: str = Field(min_length=1, max_length=128, description="whose the answers are, whatever the file says")


class Topology(Strict):
    """What runs where. `data_dir` None: SWITCHYARD_DATA_DIR, else `~/.switchyard`.

    catalogue: a file of cloud models that stands before the packaged one (models/catalog_file.py).
    auto_providers: every known provider that `cloud` does not name is there too, enabled by its key alone.
    """

    data_dir: str | None = None
    local_models: tuple[LocalModel, ...] = ()
    cloud: tuple[CloudEndpoint, ...] = ()
    catalogue: str | None = None
    auto_providers: bool = True
    encoder: Encoder = Encoder()
    semantic_cache: Literal["deployment", "off"] = "deployment"
    cache_on_disk: bool | None = Field(
        None, description="whether stored answers outlive their process; None: where there is a key to encrypt them"
    )
    cache_store: str | None = Field(
        None,
        description="where stored answers outlive their node: redis://, rediss:// or postgresql://. With a password: "
        "SWITCHYARD_CACHE_STORE_URL in the environment instead",
    )
    cache_warm_up: tuple[WarmUp, ...] = Field(
        (), description="stored answers that a shard of the cache takes in where it starts without any"
    )
    classifier: Literal["deployment", "inline"] = "deployment"
    ingress: Scale = Scale()
    cache_scale: Scale = Field(Scale(), description="max_replicas is the number of shards")
    classifier_scale: Scale = Scale()
    auth: bool = True
    region: str = Field("local", min_length=1, max_length=64, description="of the cluster's own models")
    cors_allow_origins: tuple[str, ...] = ()
    max_body_bytes: int = Field(8 * 1024**2, gt=0)

    def model_names(self) -> list[str]:
        """Of all models there may be: those of providers without a key too."""
        return [m.name for m in self.local_models] + [e.name for c in self.cloud for e in c.models]

    def heads(self) -> dict[str, str]:
        """By model name: the file with what is known of its own answers, of those whose entry names one."""
        entries = [*(m.resolve() for m in self.local_models), *(e for c in self.cloud for e in c.models)]
        return {entry.name: entry.head for entry in entries if entry.head is not None}

    @model_validator(mode="after")
    def _stored_once(self) -> Topology:
        if self.cache_store is None:
            return self
        if self.cache_on_disk:
            raise ValueError("answers are kept at `cache_store` or on disk: leave `cache_on_disk` out")
        if urlsplit(self.cache_store).password is not None:
            raise ValueError(
                "`cache_store` must not have a password: set SWITCHYARD_CACHE_STORE_URL in the environment instead"
            )
        return self

    @model_validator(mode="after")
    def _names(self) -> Topology:
        names = self.model_names()
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise ValueError(f"model names must be unique, these are not: {', '.join(sorted(doubled))}")
        endpoints = [endpoint.name for endpoint in self.cloud]
        if len(set(endpoints)) < len(endpoints):
            raise ValueError(f"names of endpoints in `cloud` must be unique, these are not: {', '.join(endpoints)}")
        for model in self.local_models:
            model.resolve()
        return self
