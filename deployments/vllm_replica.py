"""The process of an `LLMServer:<model>`: ray.serve.llm's server around vLLM, with the methods of every model shell.

Only its replicas import this file (Serve loads it by its name), since importing ray.serve.llm takes ten seconds and
half a gigabyte, which neither the Ingress nor the process that builds the graph should spend.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_models import VLLMEngineConfig
from ray.serve.llm import LLMConfig
from ray.serve.llm import LLMServer as RayLLMServer

from models.base import Call
from models.messages import ChatRequest, Event, UsageReport
from models.registry import resolve_source
from models.vllm_engine import VllmModel
from router.topology import LocalModel

_SEND_S = 0.001
"""What a batch of events costs on its way to the client, over all processes that it passes."""

_LONGEST_GAP_S = 0.05


class OneProcess(VLLMEngineConfig):
    """On a CPU vLLM, and ray.serve.llm too, have the only worker in a process of its own, so as to set its threads
    there. The replica's environment has set them already, and the process would cost half a gigabyte and 15 s."""

    def get_initialization_kwargs(self) -> dict[str, Any]:
        return {**super().get_initialization_kwargs(), "distributed_executor_backend": "uni"}


class LLMServer(RayLLMServer):
    """Fills `router.ports.ModelPort` for one engine. `config` is what `LLMConfig` takes, less the model's source, which
    each node finds for itself."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, model: LocalModel, data_dir: str, config: dict[str, Any]
    ) -> None:
        entry = model.resolve()
        source = await asyncio.to_thread(resolve_source, entry, Path(data_dir))
        self._weights_are_here = await asyncio.to_thread(Path(source).is_dir)
        loading = {"model_id": entry.name, "model_source": source}
        await super().__init__(LLMConfig(model_loading_config=loading, **config))
        engine: Any = self.engine
        self._model = VllmModel(entry, engine._oai_serving_chat)
        self._streams = 0

    async def _start_engine(self) -> None:
        """Without ray.serve.llm's agent for telemetry, a process of 400 MB for what is turned off; and, for weights
        that lie in a folder, without the task that would download them, another process that imports vLLM."""
        callback: Any = self._llm_config.get_or_create_callback()
        callback.ctx.run_init_node = not self._weights_are_here
        if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
            self._llm_config.get_engine_config().__class__ = OneProcess
        engine: Any = self.engine
        await engine.start()

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[list[Event]]:
        """The first batch at once. Then the streams share the way to the clients, which takes one batch per `_SEND_S`:
        until it is a stream's turn again, the engine's collector joins its tokens. Without this, at 48 streams, more
        of the machine goes into messages of one token each than into the model."""
        self._streams += 1
        try:
            async with aclosing(self._model.batches(request, call)) as batches:
                async for batch in batches:
                    yield batch
                    if not isinstance(batch[-1], UsageReport):
                        await asyncio.sleep(min(self._streams * _SEND_S, _LONGEST_GAP_S))
        finally:
            self._streams -= 1

    async def complete(self, request: ChatRequest, call: Call) -> list[Event]:
        return await self._model.complete(request, call)

    async def count_tokens(self, request: ChatRequest, call: Call) -> int | None:
        return await self._model.count_tokens(request, call)

    async def check_health(self) -> None:
        """Raises `ModelUnavailable` when the engine has died; Serve then replaces the replica."""
        await self._model.check_health()
