"""vLLM's engine as a `ChatModel`: vLLM's own chat rendering and sampling parameters, its outputs as our events.

The answer is the same, token for token, as from vLLM's own server; what is left out is that server's work per token
(Pydantic chunks, JSON, server-sent events), which costs as much as a small model does.
Nothing of vLLM is imported before `VllmModel` is made, and nothing of it leaves here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import fields, replace
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
from models.messages import (
    ChatRequest,
    Event,
    Finish,
    FinishReason,
    Message,
    ReasoningPart,
    TextDelta,
    TextPart,
    TokenLogprob,
    Usage,
    UsageReport,
)

_ABLE = Capabilities(
    json_object=True, json_schema=True, logprobs=True, multiple_choices=True, seed=True, penalties=True
)
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class VllmModel:
    """A `ChatModel` over a running engine.

    serving: vLLM's `OpenAIServingChat` of that engine, which holds the engine client, the renderer and the defaults of
    the model's generation config.
    """

    def __init__(self, entry: ModelEntry, serving: Any) -> None:
        for field in fields(Capabilities):
            if getattr(entry.capabilities, field.name) and not getattr(_ABLE, field.name):
                raise ValueError(
                    f"model '{entry.name}': the vllm engine has no {field.name}; take it out of `capabilities`"
                )
        self._entry = entry
        self._serving = serving
        self._engine = serving.engine_client
        self._closed = False
        self._request_class = _unbounded_request_class()

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
                _, prompt = await self._prompt(request, streamed=False)
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
        reader = OutputReader(self._token_logprobs(request.sampling.top_logprobs))
        with self._errors() as progress:
            async with asyncio.timeout_at(deadline_s):
                prompt, sampling = await self._render(request, streamed)
            async with aclosing(self._engine.generate(prompt, sampling, call.request_id)) as outputs:
                while not reader.finished:
                    async with asyncio.timeout_at(deadline_s):
                        output = await anext(outputs)
                    if batch := reader.read(output):
                        progress.started = True
                        yield batch

    async def _render(self, request: ChatRequest, streamed: bool) -> tuple[Any, Any]:
        """vLLM's prompt and `SamplingParams` for `request`."""
        from vllm.entrypoints.serve.utils.api_utils import get_max_tokens

        asked, prompt = await self._prompt(request, streamed)
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
        return prompt, asked.to_sampling_params(max_tokens, self._serving.default_sampling_params)

    async def _prompt(self, request: ChatRequest, streamed: bool) -> tuple[Any, Any]:
        """vLLM's own request for `request`, and its prompt. Templating and tokenising run in vLLM's own threads."""
        asked = self._request_class(**openai_request(request, streamed))
        renderer = self._serving.online_renderer
        if request.raw_prompt:
            (prompt,) = await renderer.preprocess_completion(asked, request.messages[-1].text, None)
        else:
            rendered = await renderer.render_chat(asked)
            if not isinstance(rendered, tuple):  # an ErrorResponse
                raise InvalidRequest(f"Model '{self._entry.name}': {rendered.error.message}")
            (prompt,) = rendered[1]
        return asked, prompt

    def _token_logprobs(self, top: int | None) -> Callable[[Any], tuple[TokenLogprob, ...]]:
        """A function that takes the log probabilities out of one of vLLM's outputs; of none when `top` is None."""
        if top is None:
            return lambda choice: ()

        def read(choice: Any) -> tuple[TokenLogprob, ...]:
            tokenizer = self._serving.renderer.tokenizer
            found = self._serving._create_chat_logprobs(choice.token_ids, choice.logprobs, tokenizer, top)
            return tuple(
                TokenLogprob(
                    row.token,
                    row.logprob,
                    tuple(TokenLogprob(other.token, other.logprob) for other in row.top_logprobs),
                )
                for row in found.content
            )

        return read

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


class OutputReader:
    """Makes events of vLLM's `RequestOutput`s. `logprobs` makes ours of one `CompletionOutput`'s."""

    def __init__(self, logprobs: Callable[[Any], tuple[TokenLogprob, ...]]) -> None:
        self.finished = False
        self._logprobs = logprobs
        self._output_tokens = 0
        # By choice: tokens that are no text yet, since they are half a character or may become a stop sequence.
        self._held: dict[int, TextDelta] = {}

    def read(self, output: Any) -> list[Event]:
        events: list[Event] = []
        for choice in output.outputs:
            events.extend(self._choice(choice))
        self.finished = output.finished
        if self.finished:
            input_tokens, cached_tokens = len(output.prompt_token_ids), output.num_cached_tokens or 0
            events.append(UsageReport(Usage(input_tokens, self._output_tokens, cached_tokens)))
        return events

    def _choice(self, choice: Any) -> Iterator[Event]:
        tokens, index, reason = len(choice.token_ids), choice.index, choice.finish_reason
        self._output_tokens += tokens
        rows = self._logprobs(choice)
        if held := self._held.pop(index, None):
            tokens, rows = held.tokens + tokens, held.logprobs + rows
        delta = TextDelta(choice.text, tokens, rows, index)
        if choice.text or (reason and tokens):
            yield delta
        elif tokens:
            self._held[index] = delta
        if reason:
            if reason not in _FINISH:  # aborted from outside, or failed in the engine
                raise RuntimeError(f"the engine ended the request with '{reason}'")
            yield Finish(_FINISH[reason], index)


def openai_request(request: ChatRequest, streamed: bool) -> dict[str, Any]:
    """`request` as the JSON body that vLLM's own server takes. The answer's length is left out: it is set later."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [_openai_message(message) for message in request.messages],
        "stream": streamed,
        "n": sampling.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "response_format": _openai_response_format(request),
    }
    if request.raw_prompt:
        body["add_special_tokens"] = True  # those that a chat template would have written
    if sampling.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    return {key: value for key, value in body.items() if value is not None}


def _openai_message(message: Message) -> dict[str, Any]:
    texts = [part.text for part in message.parts if isinstance(part, TextPart)]
    thoughts = [part.text for part in message.parts if isinstance(part, ReasoningPart)]
    parts = [{"type": "text", "text": text} for text in texts]
    # Several parts stay apart: whether and how they are joined is the chat template's affair.
    shown: dict[str, Any] = {"role": message.role, "content": texts[0] if len(texts) == 1 else parts or ""}
    if thoughts:
        shown["reasoning"] = "".join(thoughts)
    if message.name:
        shown["name"] = message.name
    return shown


def _openai_response_format(request: ChatRequest) -> dict[str, Any] | None:
    wanted = request.response_format
    if wanted is None or wanted.kind != "json_schema":
        return {"type": wanted.kind} if wanted else None
    schema = {"name": wanted.name or "answer", "schema": json.loads(wanted.schema or "{}"), "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": schema}


def _unbounded_request_class() -> Any:
    """vLLM's request without its length check, which says no more of a long prompt than that it is too long: it cuts
    the text before it counts. Our own check is in `_render`."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    base: Any = ChatCompletionRequest

    class UnboundedRequest(base):  # type: ignore[misc]
        def build_tok_params(self, model_config: Any) -> Any:
            return replace(super().build_tok_params(model_config), max_total_tokens=None, max_output_tokens=0)

    return UnboundedRequest


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
