"""`LLMServer` with a view of its engine, and a way to ask vLLM's own server code on that same engine.

Loaded by its name in the replica only, as the class that it extends.
"""

import os
from collections.abc import AsyncIterator
from typing import Any

import psutil

from deployments.vllm_replica import LLMServer


class Probe(LLMServer):
    async def vllms_own_answer(self, body: dict[str, Any]) -> list[str]:
        """The chunks that vLLM's own `/v1/chat/completions` streams for `body`."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        request = ChatCompletionRequest(**body, stream=True, stream_options={"include_usage": True})
        chunks: AsyncIterator[str] = await self.engine._oai_serving_chat.create_chat_completion(request)
        return [chunk async for chunk in chunks]

    async def running(self) -> int:
        return self.engine._engine_client.get_num_unfinished_requests()

    async def processes(self) -> list[int]:
        """The process ids of the engine, which runs beside the replica."""
        return [child.pid for child in psutil.Process(os.getpid()).children(recursive=True)]
