"""vLLM's engine as `VllmModel` is given it in a replica, but in this process: the engine itself runs beside it.

`inside` is for a look at other weights: an engine that is whole in this process.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.vllm_server import CHAT_TEMPLATE, CONTEXT_TOKENS, ONE_ENGINE_PROCESS, TOOL_PARSER

_SETTINGS = {
    # Not forked from a process that has threads by now.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    **ONE_ENGINE_PROCESS,
}


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Any]:
    """vLLM's `OpenAIServingChat` of an engine for the model in `folder`, made as vLLM's own server makes it. It takes
    half a minute and belongs to the loop it is made on."""
    # vLLM sets a dozen variables, LD_PRELOAD among them, which no process of a later test should inherit.
    with patch.dict(os.environ, _SETTINGS), _vllms_own_warnings():
        from starlette.datastructures import State
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        arguments = ["--model", str(folder), "--dtype", "float32", "--max-model-len", str(CONTEXT_TOKENS)]
        arguments += ["--max-num-seqs", "16", "--enforce-eager", "--kv-cache-memory-bytes", str(64 * 1024**2)]
        arguments += ["--distributed-executor-backend", "uni"]
        arguments += ["--enable-auto-tool-choice", "--tool-call-parser", TOOL_PARSER, "--chat-template", CHAT_TEMPLATE]
        parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
        async with build_async_engine_client(parsed) as engine:
            state = State()
            await init_app_state(engine, state, parsed, await engine.get_supported_tasks())
            yield state.openai_serving_chat
        engine.engine_core.resources.ctx.destroy(linger=0)  # vLLM leaves its sockets' context to the garbage collector


@contextmanager
def inside(folder: str, arguments: dict[str, Any]) -> Iterator[Any]:
    """vLLM's `LLM` of the model in `folder`, for a while. Two seconds where vLLM has been imported, as a process of its
    own would have to do first (13 s)."""
    with patch.dict(os.environ, _SETTINGS), _vllms_own_warnings():
        from vllm import LLM
        from vllm.distributed import cleanup_dist_env_and_memory

        engine = LLM(folder, **arguments, distributed_executor_backend="uni", disable_log_stats=True)
        try:
            yield engine
        finally:
            engine.llm_engine.engine_core.shutdown()
            cleanup_dist_env_and_memory()


@contextmanager
def _vllms_own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
