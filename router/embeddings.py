"""Embeddings on their way: allowed, reserved, made, settled, and on every exit one close, as answers have."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from models.catalog import ModelEntry, NodePrice
from models.errors import DeadlineExceeded, ModelNotFound, PermissionDenied, SwitchyardError
from models.messages import Usage
from router.accounting.limits import Claim
from router.accounting.prices import PriceBook
from router.events import Attempt, Principal, RequestClosed, RequestOpened, Status, Stopwatch
from router.pipeline import Pipeline
from router.ports import Embedded
from router.run import new_request_id
from router.tokens import CHARS_PER_TOKEN
from router.topology import Encoder


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """`dimensions` None: as many as the model has."""

    model: str
    texts: tuple[str, ...]
    dimensions: int | None = None
    user: str | None = None


class EmbedderPort(Protocol):
    async def embed(self, texts: Sequence[str], dimensions: int | None) -> Embedded:
        """A vector for each text. Raises `SwitchyardError`."""


Embedders = dict[str, tuple[ModelEntry, EmbedderPort]]
"""By the name that callers give: the model and what makes its vectors."""


def encoder_entry(encoder: Encoder) -> ModelEntry:
    """The cluster's own encoder as a model that can be named, listed and priced. A core reads 1,300 tokens/s."""
    folder = encoder.source.rstrip("/").rsplit("/", 1)[-1]
    return ModelEntry(
        name=re.sub(r"[^A-Za-z0-9._-]", "-", folder).lstrip("._-")[:100] or "encoder",
        engine="transformers",
        source=encoder.source,
        context_tokens=256,
        node_price=NodePrice(
            usd_per_hour=Decimal("0.1785"),
            replicas_per_node=4,
            input_tokens_per_hour=4_700_000,
            output_tokens_per_hour=4_700_000,
            source="AWS c7i.xlarge, on demand, us-east-1, one core of it; throughput measured on another machine",
        ),
        note="embeddings, from the encoder of the semantic cache",
    )


class Embedding:
    """One request for embeddings. Use it once."""

    def __init__(
        self,
        pipeline: Pipeline,
        models: Embedders,
        request: EmbeddingRequest,
        principal: Principal,
        door: str,
    ) -> None:
        self.request_id = new_request_id()
        self.request, self.principal, self.door = request, principal, door
        self._pipeline, self._models = pipeline, models
        self._watch = Stopwatch(time.perf_counter)
        self._opened_at_unix_ms = int(time.time() * 1000)
        self.tokens = 0
        self.cost_microusd = 0

    async def vectors(self) -> list[bytes]:
        """The vectors, in the order of the texts. Raises `SwitchyardError`."""
        entry, embedder = self._model()
        settings = self._pipeline.settings
        prices = PriceBook((entry,), settings.prices, settings.node_prices)
        # One token a byte is the most that any tokenizer makes, besides the two around each text.
        worst = prices.worst_case_microusd(entry.name, sum(len(text.encode()) + 2 for text in self.request.texts), 0)
        budgets, most = self._pipeline.stages.budgets, sum(len(text) for text in self.request.texts) // CHARS_PER_TOKEN
        self._watch.enter("reserve")
        await budgets.reserve(self.request_id, Claim(self.principal, entry.name, worst, most + 1))
        outcome: str = "cancelled"
        try:
            self._pipeline.emit(self._open(entry, worst))
            self._watch.enter("prefill")
            async with asyncio.timeout(settings.request_timeout_s):
                found = await embedder.embed(self.request.texts, self.request.dimensions)
            outcome, self.tokens = "ok", found.tokens
            self.cost_microusd = prices.cost_microusd(entry.name, Usage(self.tokens))
            return found.vectors
        except TimeoutError:
            outcome = DeadlineExceeded.code
            raise DeadlineExceeded("The encoder had not finished in time; send fewer texts.") from None
        except SwitchyardError as error:
            outcome = error.code
            raise
        except Exception:
            outcome = "internal_error"
            raise
        finally:
            budgets.settle(self.request_id, self.cost_microusd, self.tokens)
            self._pipeline.emit_close(self._close(entry, prices, outcome))

    def _model(self) -> tuple[ModelEntry, EmbedderPort]:
        name = self.request.model
        allowed = self._pipeline.tenants.allowed_models(self.principal)
        if allowed is not None and name not in allowed:
            raise PermissionDenied(
                f"This key may not use model '{name}'; GET /v1/models lists the ones it may.", "model"
            )
        if name not in self._models:
            known = ", ".join(sorted(self._models)) or "(none is configured)"
            raise ModelNotFound(f"There is no model '{name}' that makes embeddings; there is: {known}.", "model")
        return self._models[name]

    def _open(self, entry: ModelEntry, worst_microusd: int) -> RequestOpened:
        who = self.principal
        user = self.request.user or who.user
        return RequestOpened(
            self.request_id, self._opened_at_unix_ms, who.org, who.team, who.key_id, user, entry.name, worst_microusd
        )

    def _close(self, entry: ModelEntry, prices: PriceBook, outcome: str) -> RequestClosed:
        who, watch, quote = self.principal, self._watch, prices.quote(entry.name)
        watch.enter("close")
        model_ms = watch.stage_ms.get("prefill", 0.0)
        status: Status = "ok" if outcome == "ok" else "cancelled" if outcome == "cancelled" else "error"
        attempt = Attempt(entry.name, "embeddings", outcome, 0.0, None, model_ms, self.cost_microusd)
        watch.enter("end")
        return RequestClosed(
            request_id=self.request_id,
            opened_at_unix_ms=self._opened_at_unix_ms,
            closed_at_unix_ms=int(time.time() * 1000),
            org=who.org,
            team=who.team,
            key_id=who.key_id,
            user=self.request.user or who.user,
            door=self.door,
            status=status,
            error_code=outcome if status == "error" else None,
            requested_model=self.request.model,
            model=entry.name,
            provider=entry.engine,
            cache_verdict="bypass",
            cached_from=None,
            cache_similarity=None,
            finish_reason=None,
            usage=Usage(self.tokens),
            estimated=False,
            cost_microusd=self.cost_microusd,
            saved_microusd=0,
            price_version=quote.version,
            price=quote.details,
            attempts=(attempt,),
            decision=None,
            stage_ms={stage: round(ms, 3) for stage, ms in watch.stage_ms.items()},
            ttft_ms=None,
            total_ms=round(watch.entered_ms, 3),
            overhead_ms=round(watch.entered_ms - model_ms, 3),
        )
