"""The models Switchyard knows by name, what they can do, what they need and what they cost."""

from __future__ import annotations

import datetime
import math
from dataclasses import fields, replace
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from models.base import Capabilities

Engine = Literal[
    "transformers", "vllm", "simulated", "openai_compatible", "openai_responses", "anthropic", "gemini", "cohere"
]
LOCAL_ENGINES = frozenset({"transformers", "vllm", "simulated"})
"""Those that run in the cluster itself."""
Tier = Literal["small", "medium", "large"]
TIERS: tuple[Tier, ...] = ("small", "medium", "large")


class TokenPrices(BaseModel):
    """USD per million tokens of each kind, which is micro-USD per token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Decimal = Field(Decimal(0), ge=0)
    cached_input: Decimal | None = Field(None, ge=0, description="None: as `input`")
    cache_write_5m: Decimal | None = Field(None, ge=0, description="None: as `input`")
    cache_write_1h: Decimal | None = Field(None, ge=0, description="None: as `input`")
    output: Decimal = Field(Decimal(0), ge=0)
    reasoning: Decimal | None = Field(None, ge=0, description="None: as `output`")


class LongContextPrices(TokenPrices):
    """What every token of a request costs, those of its answer too, once its input is longer than this."""

    above_input_tokens: int = Field(gt=0)


class Price(TokenPrices):
    """`source` says where the numbers are from, `date` when that was looked at, `version` names them in receipts."""

    long_context: LongContextPrices | None = None
    batch_factor: Decimal | None = Field(
        None,
        gt=0,
        le=1,
        description="of every price, for work sent through the provider's batch API; None: it has none",
    )
    version: str = Field("unpriced", description="where there is a date, that is the default")
    date: datetime.date | None = None
    source: str = ""

    @model_validator(mode="before")
    @classmethod
    def _dated(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("date") and "version" not in fields:
            return {**fields, "version": str(fields["date"])}
        return fields


class NodePrice(BaseModel):
    """What a local model's machine costs and how much it does, so that a local token has a price too.

    `input_tokens_per_hour` and `output_tokens_per_hour` are what one replica does when busy: a prior until measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    usd_per_hour: Decimal
    replicas_per_node: int = Field(1, ge=1)
    input_tokens_per_hour: int = Field(gt=0)
    output_tokens_per_hour: int = Field(gt=0)
    batch_factor: Decimal = Field(
        Decimal("0.5"), gt=0, le=1, description="of the price, for lines of batches: they take only what is idle"
    )
    version: str = "prior"
    source: str = ""


def _listed_capabilities(value: Any) -> Any:
    """A list names all that a model can do: what is not in it, it cannot."""
    if not isinstance(value, list | tuple):
        return value
    known = [field.name for field in fields(Capabilities)]
    if unknown := sorted(set(map(str, value)) - set(known)):
        raise ValueError(f"no such capability: {', '.join(unknown)}; there are {', '.join(known)}")
    return Capabilities(**{name: name in value for name in known})


class ModelEntry(BaseModel):
    """One model. `source` is a hub id or a local folder for a local engine, the upstream model name for a cloud one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$")
    engine: Engine
    provider: str = Field("", description="of a cloud model: the name of its endpoint")
    source: str = ""
    tier: Tier = "small"
    quality: float | None = Field(
        None, ge=-1, le=2, description="between a typical small model (0) and a large one (1); None: by its tier"
    )
    head: str | None = Field(
        None, description="a file with what is known of its own answers, made by `switchyard head` (docs/routing.md)"
    )
    region: str = Field("", max_length=64, description="where it runs, for callers whose data must stay there")
    context_tokens: int = Field(gt=0)
    max_output_tokens: int | None = Field(None, gt=0)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    chat_template: str | None = Field(None, description="a Jinja template, where the tokenizer has none")
    tool_parser: str | None = Field(
        None, description="vLLM's parser of the tool calls that a model writes; without one it gets no tools"
    )
    weights_gb: float = Field(0.0, ge=0, description="memory for the weights in `dtype`")
    max_batch: int = Field(16, ge=1, description="requests that one replica works on at once")
    capabilities: Annotated[Capabilities, BeforeValidator(_listed_capabilities)] = Capabilities()
    effort_with_tools: str | None = Field(
        None, description="`reasoning_effort` sent along with tools where the caller sets none (OpenAI dialect)"
    )
    cached_from_tokens: int = Field(
        4096, ge=1, description="shortest beginning of a prompt that the provider's cache takes (Anthropic dialect)"
    )
    price: Price | None = None
    node_price: NodePrice | None = None
    note: str = ""

    def within(self, able: Capabilities) -> ModelEntry:
        """Without the capabilities that its provider's API lacks."""
        lacking = dict.fromkeys(self.capabilities.beyond(able), False)
        return self.model_copy(update={"capabilities": replace(self.capabilities, **lacking)})

    def check_engine_has(self, able: Capabilities) -> None:
        """Raises ValueError for a capability that its engine lacks."""
        if lacking := self.capabilities.beyond(able):
            raise ValueError(
                f"model '{self.name}': the {self.engine} engine has no {', '.join(lacking)}; "
                "take it out of `capabilities`"
            )


def cpu_kv_cache_bytes(weights_gb: float) -> int:
    """Memory for vLLM's KV cache on a CPU where nobody says how much: as much as the weights, in whole GiB. vLLM itself
    would take nearly all memory of the machine."""
    return math.ceil(max(1.0, weights_gb)) * 1024**3


def _cpu_node(input_tokens_per_hour: int, output_tokens_per_hour: int) -> NodePrice:
    return NodePrice(
        usd_per_hour=Decimal("0.1785"),
        input_tokens_per_hour=input_tokens_per_hour,
        output_tokens_per_hour=output_tokens_per_hour,
        source="AWS c7i.xlarge, on demand, us-east-1; throughput is a guess until measured",
    )


def _gpu_node(input_tokens_per_hour: int, output_tokens_per_hour: int) -> NodePrice:
    return NodePrice(
        usd_per_hour=Decimal("1.006"),
        input_tokens_per_hour=input_tokens_per_hour,
        output_tokens_per_hour=output_tokens_per_hour,
        source="AWS g5.xlarge, on demand, us-east-1; throughput is a guess until measured",
    )


_TRANSFORMERS = Capabilities(logprobs=True, multiple_choices=True, penalties=True, logit_bias=True, top_k=True)
_VLLM = replace(_TRANSFORMERS, json_object=True, json_schema=True)
ENGINE_CAPABILITIES: dict[Engine, Capabilities] = {
    "transformers": _TRANSFORMERS,
    "vllm": _VLLM,
    "simulated": Capabilities(),
}
"""What an engine does with any model; tools need a parser for what this very model writes."""

BUILT_IN: tuple[ModelEntry, ...] = (
    ModelEntry(
        name="demo-small",
        engine="transformers",
        source="demo:small",
        head="demo:small",
        capabilities=_TRANSFORMERS,
        tier="small",
        context_tokens=2048,
        dtype="float32",
        weights_gb=0.01,
        note="a demonstration, see models/demo/README.md: easy questions about a few hundred facts",
        node_price=_cpu_node(20_000_000, 4_000_000),
    ),
    ModelEntry(
        name="demo-medium",
        engine="transformers",
        source="demo:medium",
        head="demo:medium",
        capabilities=_TRANSFORMERS,
        tier="medium",
        context_tokens=2048,
        dtype="float32",
        weights_gb=0.02,
        note="a demonstration, see models/demo/README.md: also small sums and tasks on words",
        node_price=_cpu_node(8_000_000, 2_000_000),
    ),
    ModelEntry(
        name="demo-large",
        engine="transformers",
        source="demo:large",
        head="demo:large",
        capabilities=_TRANSFORMERS,
        tier="large",
        context_tokens=2048,
        dtype="float32",
        weights_gb=0.03,
        note="a demonstration, see models/demo/README.md: somewhat better at longer sums and words",
        node_price=_cpu_node(4_000_000, 1_200_000),
    ),
    ModelEntry(
        name="smoke-small",
        engine="transformers",
        source="smoke:small",
        capabilities=_TRANSFORMERS,
        tier="small",
        context_tokens=1024,
        dtype="float32",
        weights_gb=0.01,
        note="made on this machine with random weights: proves the path, writes nonsense",
        node_price=_cpu_node(20_000_000, 4_000_000),
    ),
    ModelEntry(
        name="smoke-medium",
        engine="transformers",
        source="smoke:medium",
        capabilities=_TRANSFORMERS,
        tier="medium",
        context_tokens=2048,
        dtype="float32",
        weights_gb=0.03,
        note="made on this machine with random weights: proves the path, writes nonsense",
        node_price=_cpu_node(8_000_000, 2_000_000),
    ),
    ModelEntry(
        name="tinyllama-1.1b-chat",
        engine="vllm",
        source="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        capabilities=_VLLM,
        tier="small",
        context_tokens=2048,
        dtype="bfloat16",
        weights_gb=2.2,
        max_batch=32,
        node_price=_cpu_node(2_000_000, 200_000),
    ),
    ModelEntry(
        name="phi-2",
        engine="vllm",
        source="microsoft/phi-2",
        capabilities=_VLLM,
        tier="medium",
        context_tokens=2048,
        dtype="bfloat16",
        weights_gb=5.6,
        max_batch=32,
        chat_template=(
            "{% for m in messages %}{{ {'user': 'Instruct: ', 'assistant': 'Output: '}.get(m['role'], '') }}"
            "{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}Output:{% endif %}"
        ),
        node_price=_gpu_node(10_000_000, 1_500_000),
    ),
    ModelEntry(
        name="mistral-7b-instruct",
        engine="vllm",
        source="mistralai/Mistral-7B-Instruct-v0.3",
        capabilities=replace(_VLLM, tools=True),
        tool_parser="mistral",
        tier="large",
        context_tokens=32_768,
        dtype="bfloat16",
        weights_gb=14.5,
        max_batch=64,
        node_price=_gpu_node(10_000_000, 2_000_000),
    ),
)
