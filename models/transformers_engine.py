"""A local model on transformers' own continuous batching: requests join and leave the running batch at every token.

Written against transformers 5.23 (`generation/continuous_batching`). Its generation loop runs in a thread of its own
and hands each token to the event loop with `call_soon_threadsafe`, so nothing here polls. Memory is capped: left to
itself the engine takes 60 % of what is free for its KV cache.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from models.base import Call, Capabilities, check_supported
from models.catalog import ModelEntry
from models.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    ModelUnavailable,
    StreamInterrupted,
    SwitchyardError,
)
from models.incremental_text import IncrementalText
from models.messages import (
    ChatRequest,
    Event,
    Finish,
    Sampling,
    TextDelta,
    TokenLogprob,
    Usage,
    UsageReport,
)
from models.transformers_sampling import Choosing, Sampler, TokenRow, choosing_of

_ABLE = Capabilities(logprobs=True, multiple_choices=True, seed=True, penalties=True, logit_bias=True, top_k=True)
_PAGE_TOKENS = 32  # a request holds whole pages of KV cache: small ones waste little on short conversations
_LONG_PROMPT_CHARS = 4096  # tokenising this much takes about a millisecond; more goes to a thread
_STOP_TIMEOUT_S = 10.0


class TransformersChatModel:
    """A `ChatModel` on the CPU, on the checkpoint in `folder` (a path or hub id, see `models.registry`).

    kv_cache_gb: memory for the KV cache; one whole context always fits.
    max_batch_tokens: prompt tokens of one step; longer prompts are taken in pieces, between other requests' tokens.
    threads: CPU threads of this process's torch; None leaves OMP_NUM_THREADS, which Ray sets to the CPUs it reserved.

    Blocks while it loads. Raises `ModelUnavailable` when the checkpoint cannot be loaded.
    """

    def __init__(
        self,
        entry: ModelEntry,
        folder: str,
        kv_cache_gb: float = 0.5,
        max_batch_tokens: int = 512,
        threads: int | None = None,
    ) -> None:
        entry.check_engine_has(_ABLE)
        self._entry = entry
        self._tokenizer, model = _load(entry, folder, threads)
        self._default = model.generation_config
        eos = self._default.eos_token_id
        self._eos = frozenset([eos] if isinstance(eos, int) else eos or [])
        self._manager = _start(model, entry, kv_cache_gb, max(max_batch_tokens, entry.max_batch), self._eos)
        self._vocabulary = model.config.get_text_config().vocab_size
        self._requests = 0

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        await self.check_health()
        check_supported(request, self._entry.capabilities, self._entry.name)
        deadline_s = asyncio.get_running_loop().time() + call.timeout_s
        prompt = await self._prompt(request)
        limit = self._output_limit(request.sampling, len(prompt))
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        answers: dict[str, _Answer] = {}
        try:
            for choice in range(request.sampling.n):
                choosing = self._choosing(request.sampling, choice)
                request_id = self._submit(prompt, limit, choosing, outputs.put_nowait)
                text = IncrementalText(self._decode, request.sampling.stop)
                answers[request_id] = _Answer(choice, text, self._eos, choosing, self._logprobs)
            while not all(answer.ended for answer in answers.values()):
                output = await self._next(outputs, deadline_s, call)
                answer = answers[output.request_id]
                if answer.ended:
                    continue  # on its way when it was cancelled
                if output.error is not None:
                    raise self._broken(any(answer.output_tokens for answer in answers.values()))
                for event in answer.take(output):
                    yield event
                if answer.ended:
                    self._forget(output.request_id, answer.finished)
        finally:
            for request_id, answer in answers.items():
                if not answer.ended:
                    self._forget(request_id, finished=False)
        yield UsageReport(Usage(len(prompt), sum(answer.output_tokens for answer in answers.values())))

    async def count_tokens(self, request: ChatRequest, call: Call) -> int:
        """How long the prompt of `request` is."""
        return len(await self._prompt(request))

    async def check_health(self) -> None:
        if not self._manager.is_running() or self._manager.background_thread_status.can_accept_new_requests():
            raise self._broken(False)

    async def close(self) -> None:
        await asyncio.to_thread(self._manager.stop, timeout=_STOP_TIMEOUT_S, hard_stop=True)

    # ---- the way in ------------------------------------------------------------------------------------------------

    async def _prompt(self, request: ChatRequest) -> list[int]:
        if sum(len(message.text) for message in request.messages) > _LONG_PROMPT_CHARS:
            return await asyncio.to_thread(self._encode, request)
        return self._encode(request)

    def _encode(self, request: ChatRequest) -> list[int]:
        from jinja2 import TemplateError

        if request.raw_prompt:
            raw: list[int] = self._tokenizer(request.messages[-1].text)["input_ids"]
            return raw
        roles = {"developer": "system"}
        messages = [{"role": roles.get(m.role, m.role), "content": m.text} for m in request.messages]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, chat_template=self._entry.chat_template, add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"Model '{self._entry.name}' cannot take this conversation: {error}; change the messages or the model.",
                "messages",
            ) from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _output_limit(self, sampling: Sampling, input_tokens: int) -> int:
        room_tokens = self._entry.context_tokens - input_tokens
        if room_tokens <= 0:
            raise ContextLengthExceeded(
                f"The prompt has {input_tokens} tokens, model '{self._entry.name}' takes {self._entry.context_tokens} "
                "with the answer; shorten it or choose a model with a longer context.",
                "messages",
            )
        limits = (sampling.max_tokens, self._entry.max_output_tokens, room_tokens)
        return max(1, min(limit for limit in limits if limit is not None))

    def _choosing(self, sampling: Sampling, choice: int) -> Choosing:
        if sampling.logit_bias and sampling.logit_bias[-1][0] >= self._vocabulary:
            raise InvalidRequest(
                f"Model '{self._entry.name}' has the tokens 0 to {self._vocabulary - 1}; correct 'logit_bias'.",
                "logit_bias",
            )
        return choosing_of(sampling, self._default, choice)

    def _submit(self, prompt: list[int], limit: int, choosing: Choosing, deliver: Callable[[Any], None]) -> str:
        self._requests += 1
        request_id = str(self._requests)
        self._manager.register_result_handler(request_id, deliver)
        more = {} if choosing.is_plain else {"choosing": choosing}
        accepted = self._manager.add_request(prompt, request_id, max_new_tokens=limit, streaming=True, **more)
        if accepted is None:
            self._forget(request_id, finished=True)
            raise self._broken(False)
        return request_id

    # ---- the way out -----------------------------------------------------------------------------------------------

    async def _next(self, outputs: asyncio.Queue[Any], deadline_s: float, call: Call) -> Any:
        try:
            async with asyncio.timeout_at(deadline_s):
                return await outputs.get()
        except TimeoutError:
            raise DeadlineExceeded(
                f"Model '{self._entry.name}' had not finished after {call.timeout_s:g} s; "
                "allow more time or fewer tokens."
            ) from None

    def _logprobs(self, rows: Sequence[TokenRow]) -> tuple[TokenLogprob, ...]:
        return tuple(
            TokenLogprob(
                self._token_text(token),
                logprob,
                tuple(TokenLogprob(self._token_text(other), other_logprob) for other, other_logprob in top),
            )
            for token, logprob, top in rows
        )

    def _token_text(self, token: int) -> str:
        text: str = self._tokenizer.decode([token])
        # Sentencepiece's decoder drops the space at the beginning of a text, which is here a token's own.
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return f" {text}" if piece.startswith("\u2581") and not text.startswith(" ") else text

    def _forget(self, request_id: str, finished: bool) -> None:
        if not finished:
            self._manager.cancel_request(request_id)
        # the engine takes the handlers of finished requests away itself, those of cancelled ones it keeps for ever
        self._manager.output_router.result_handlers.pop(request_id, None)

    def _broken(self, answering: bool) -> SwitchyardError:
        name = self._entry.name
        if answering:
            return StreamInterrupted(f"Model '{name}' broke off its answer; send the request again.")
        return ModelUnavailable(f"The engine of model '{name}' has stopped; send the request again in a moment.")


class _Answer:
    """One choice on its way: the engine's outputs in, events out. `finished`: the engine ended it, not a stop string.

    logprobs: makes ours of what was noted of the tokens.
    """

    def __init__(
        self,
        choice: int,
        text: IncrementalText,
        eos: frozenset[int],
        choosing: Choosing,
        logprobs: Callable[[Sequence[TokenRow]], tuple[TokenLogprob, ...]],
    ) -> None:
        self._choice = choice
        self._text = text
        self._eos = eos
        self._choosing = choosing
        self._logprobs = logprobs
        self._unsent_from = 0
        self.output_tokens = 0
        self.ended = self.finished = False

    def take(self, output: Any) -> list[Event]:
        events: list[Event] = []
        tokens = output.generated_tokens[self.output_tokens :]
        self.output_tokens += len(tokens)
        self.finished = output.is_finished()
        piece = self._text.push(tokens) + (self._text.flush() if self.finished else "")
        if piece:
            rows = self._choosing.rows[self._unsent_from : self.output_tokens]
            unsent_tokens = self.output_tokens - self._unsent_from
            events.append(TextDelta(piece, unsent_tokens, self._logprobs(rows), self._choice))
            self._unsent_from = self.output_tokens
        self.ended = self.finished or self._text.stopped
        if self.ended:
            stopped = self._text.stopped or tokens[-1] in self._eos
            events.append(Finish("stop" if stopped else "length", self._choice, self._text.stop_found))
        return events


# ---- loading -------------------------------------------------------------------------------------------------------


class _Nowhere(queue.Queue[Any]):
    """Where tokens go that arrive for a request that has left: kept, they would pile up."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        pass


def _load(entry: ModelEntry, folder: str, threads: int | None) -> tuple[Any, Any]:
    """Tokenizer and model, ready to run."""
    import torch
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its warnings show token ids of prompts
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=entry.dtype, attn_implementation="sdpa"
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelUnavailable(
            f"Model '{entry.name}' cannot be loaded from '{folder}' ({str(error).splitlines()[0]}); set `source` to a "
            "whole checkpoint of a causal language model."
        ) from error
    if tokenizer.chat_template is None and entry.chat_template is None:
        raise ModelUnavailable(f"Model '{entry.name}' has no chat template; set `chat_template` in its entry.")
    longest = getattr(model.config, "max_position_embeddings", entry.context_tokens)
    if entry.context_tokens > longest:
        raise ModelUnavailable(
            f"Model '{entry.name}' reads {longest} tokens; set `context_tokens` to no more than that."
        )
    return tokenizer, model.eval()


def _start(model: Any, entry: ModelEntry, kv_cache_gb: float, max_batch_tokens: int, eos: frozenset[int]) -> Any:
    """The engine, with its memory taken, its thread running and its first step behind it."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(eos_token_id=sorted(eos) or -1),  # type: ignore[no-untyped-call]
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=_PAGE_TOKENS,
            num_blocks=_pages(model, entry, kv_cache_gb),
            max_batch_tokens=max_batch_tokens,
            max_requests_per_batch=entry.max_batch,
            allow_block_sharing=False,  # its prefix cache does not know tenants: a hit's speed would tell on another
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
        ),
    )
    manager.logit_processor = Sampler()
    manager.warmup()  # takes the memory now, in this thread, so that too little of it is an error here
    # A thread is daemonic as its creator is: a process that has to go does not wait for the engine.
    starter = threading.Thread(target=manager.start, daemon=True)
    starter.start()
    starter.join()
    manager.add_request([0], max_new_tokens=2)
    if manager.get_result(timeout=600) is None:
        manager.stop(timeout=_STOP_TIMEOUT_S, hard_stop=True)
        raise ModelUnavailable(f"The engine of model '{entry.name}' does not start; its replica's log says why.")
    manager.output_router.output_queue = _Nowhere()
    return manager


def _pages(model: Any, entry: ModelEntry, kv_cache_gb: float) -> int:
    """Pages of KV cache: what `kv_cache_gb` holds, not more than a batch of full contexts needs, nor less than one."""
    config = model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * heads * head * model.dtype.itemsize
    # one page more than the context: the last one may be begun
    context_pages = math.ceil(entry.context_tokens / _PAGE_TOKENS) + 1
    affordable = int(kv_cache_gb * 1024**3 / (token_bytes * _PAGE_TOKENS))
    return max(context_pages, min(affordable, context_pages * entry.max_batch))
