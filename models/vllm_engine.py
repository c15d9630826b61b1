"""vLLM's engine as a `ChatModel`: vLLM's own chat rendering and sampling parameters, its outputs as our events.

The answer is the same, token for token, as from vLLM's own server; what is left out is that server's work per token
(Pydantic chunks, JSON, server-sent events), which costs as much as a small model does.
Nothing of vLLM is imported before `VllmModel` is made, and nothing of it leaves here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from models.base import Call, Capabilities, check_supported
from models.catalog import ModelEntry
from models.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelUnavailable,
    Overloaded,
    StreamInterrupted,
    SwitchyardError,
)
from models.messages import ChatRequest, Event
from models.prefix_salt import PrefixSalt
from models.vllm_output import OutputReader
from models.vllm_request import openai_request, unbounded_request_class
from models.vllm_tools import parsers

_ABLE = Capabilities(
    tools=True,
    json_object=True,
    json_schema=True,
    logprobs=True,
    multiple_choices=True,
    seed=True,
    penalties=True,
    logit_bias=True,
    top_k=True,
)


class VllmModel:
    """A `ChatModel` over a running engine.

    serving: vLLM's `OpenAIServingChat` of that engine, which holds the engine client, the renderer and the defaults of
    the model's generation config.
    """

    def __init__(self, entry: ModelEntry, serving: Any) -> None:
        entry.check_engine_has(_ABLE)
        if entry.capabilities.tools:
            _check_tools(entry, serving)
        self._entry = entry
        self._serving = serving
        self._engine = serving.engine_client
        self._closed = False
        self._request_class = unbounded_request_class()
        self._salt = PrefixSalt()

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        async with aclosing(self.batches(request, call)) as batches:
            async for batch in batches:
                for event in batch:
                    yield event

    def batches(self, request: ChatRequest, call: Call) -> AsyncGenerator[list[Event], None]:
        """The same events, in lists of what came since the last one was taken: vLLM's output collector joins the tokens
        that a busy consumer has not fetched, so this is `models.base.merged` without its task and queue."""
        return self._generate(request, call, streamed=True)

    async def complete(self, request: ChatRequest, call: Call) -> list[Event]:
        """The whole answer. The engine then reports once instead of once per token."""
        async with aclosing(self._generate(request, call, streamed=False)) as batches:
            return [event async for batch in batches for event in batch]

    async def count_tokens(self, request: ChatRequest, call: Call) -> int:
        """How long the prompt of `request` is."""
        with self._errors():
            async with asyncio.timeout(call.timeout_s):
                _, prompt = await self._prompt(request, call, streamed=False)
        return len(prompt["prompt_token_ids"])

    async def check_health(self) -> None:
        if self._closed:
            raise ModelUnavailable(f"Model '{self._entry.name}' is shut down; send the request again in a moment.")
        with self._errors():
            await self._engine.check_health()

    async def close(self) -> None:
        """Ends the engine's own process, for which this waits up to some seconds."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._engine.shutdown)

    async def _generate(self, request: ChatRequest, call: Call, streamed: bool) -> AsyncGenerator[list[Event], None]:
        await self.check_health()
        check_supported(request, self._entry.capabilities, self._entry.name)
        deadline_s = asyncio.get_running_loop().time() + call.timeout_s
        with self._errors() as progress:
            async with asyncio.timeout_at(deadline_s):
                asked, prompt = await self._prompt(request, call, streamed)
            sampling = self._sampling(request, asked, prompt)
            answer_parsers = None if request.raw_prompt else parsers(self._serving, asked, request)
            reader = OutputReader(request.sampling.top_logprobs, answer_parsers)
            extra = self._thinking(asked, prompt)
            async with aclosing(self._engine.generate(prompt, sampling, call.request_id, **extra)) as outputs:
                while not reader.finished:
                    async with asyncio.timeout_at(deadline_s):
                        output = await anext(outputs)
                    if batch := reader.read(output):
                        progress.started = True
                        yield batch

    def _sampling(self, request: ChatRequest, asked: Any, prompt: Any) -> Any:
        """vLLM's `SamplingParams`."""
        from vllm.entrypoints.serve.utils.api_utils import get_max_tokens

        context = self._serving.model_config.max_model_len
        length = len(prompt["prompt_token_ids"])
        if length >= context:
            raise ContextLengthExceeded(
                f"The prompt has {length} tokens, model '{self._entry.name}' takes {context} with the answer; shorten "
                "it or choose a model with a longer context.",
                "messages",
                None,
                {"prompt_tokens": length, "context_tokens": context},
            )
        limits = (request.sampling.max_tokens, self._entry.max_output_tokens)
        max_tokens = get_max_tokens(
            context,
            min((limit for limit in limits if limit is not None), default=None),
            length,
            self._serving.default_sampling_params,
            self._serving.override_max_tokens,
        )
        return asked.to_sampling_params(max_tokens, self._serving.default_sampling_params)

    def _thinking(self, asked: Any, prompt: Any) -> dict[str, Any]:
        """What the engine has to know of a model that thinks, since a grammar holds only after the thoughts."""
        serving = self._serving
        if serving.parser_cls is None or serving.parser_cls.reasoning_parser_cls is None:
            return {}
        keywords = serving._effective_chat_template_kwargs(asked)
        parser = serving.parser_cls(
            serving.renderer.tokenizer, asked.tools, chat_template_kwargs=keywords, model_config=serving.model_config
        )
        return {
            "reasoning_ended": asked._grammar_from_parser or parser.is_reasoning_end(prompt["prompt_token_ids"]),
            "reasoning_parser_kwargs": {"chat_template_kwargs": serving._engine_chat_template_kwargs(keywords)},
        }

    async def _prompt(self, request: ChatRequest, call: Call, streamed: bool) -> tuple[Any, Any]:
        """vLLM's own request for `request`, and its prompt. Templating and tokenising run in vLLM's own threads."""
        salt = self._salt.of(call.tenant)
        asked = self._request_class(**openai_request(request, streamed, self._entry.tool_parser, salt))
        renderer = self._serving.online_renderer
        if request.raw_prompt:
            (prompt,) = await renderer.preprocess_completion(asked, request.messages[-1].text, None)
        else:
            rendered = await renderer.render_chat(asked)
            if not isinstance(rendered, tuple):  # an ErrorResponse
                raise InvalidRequest(f"Model '{self._entry.name}': {rendered.error.message}")
            (prompt,) = rendered[1]
        return asked, prompt

    @contextmanager
    def _errors(self) -> Iterator[_Progress]:
        progress = _Progress()
        try:
            yield progress
        except SwitchyardError:
            raise
        except Exception as error:
            ours = _translate(error, self._entry.name, progress.started)
            # vLLM's words about a wrong request may quote the prompt, which must not get into a log.
            raise ours from (None if isinstance(ours, InvalidRequest) else error)


class _Progress:
    """Whether an answer has begun, after which a failure is an interruption."""

    started = False


def _check_tools(entry: ModelEntry, serving: Any) -> None:
    """Raises ValueError where the model could not be told of tools, or its calls not be read."""
    if serving.parser_cls is None or serving.parser_cls.tool_parser_cls is None:
        raise ValueError(
            f"model '{entry.name}' cannot have tools: nobody says how it writes its calls; set `tool_parser` to one of "
            "vLLM's parsers, or take tools out of `capabilities`"
        )
    template = serving.chat_template or getattr(serving.renderer.tokenizer, "chat_template", None)
    if isinstance(template, str) and "tools" not in template:
        raise ValueError(
            f"model '{entry.name}' cannot have tools: its chat template has no place for them; set `chat_template`, or "
            "take tools out of `capabilities`"
        )


def _translate(error: Exception, model: str, started: bool) -> SwitchyardError:
    """Our error for what vLLM raised before (or after) the answer had `started`."""
    from vllm.exceptions import GracefulHTTPError, VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"Model '{model}' had not finished in time; allow more time or fewer tokens.")
    if started:
        return StreamInterrupted(f"Model '{model}' broke off its answer; send the request again.")
    if isinstance(error, EngineDeadError):
        return ModelUnavailable(f"The engine of model '{model}' has died and is restarted; try again.", None, 5.0)
    if isinstance(error, GracefulHTTPError):
        return Overloaded(f"Model '{model}' has too many requests waiting; try again later.", None, 1.0)
    if isinstance(error, (VLLMClientError, ValueError)):
        return _invalid(error, model)
    return InternalError(f"Model '{model}' failed ({type(error).__name__}); its replica's log says why.")


def _invalid(error: Exception, model: str) -> InvalidRequest:
    """vLLM's own words about a wrong request, less the values that Pydantic and vLLM's own errors quote."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return InvalidRequest(
            f"Model '{model}' refuses the request: {first['msg']}.", str(first["loc"][0]) if first["loc"] else None
        )
    message = str(error.args[0]) if error.args else type(error).__name__
    return InvalidRequest(f"Model '{model}' refuses the request: {message}", getattr(error, "parameter", None))
