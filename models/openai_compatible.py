"""Chat completions over HTTP: OpenAI, vLLM, Groq, Ollama and whoever else speaks `POST /v1/chat/completions`.

The wire format is this class, the vendor is data (`base_url`, key, catalogue entries).
Source: https://platform.openai.com/docs/api-reference/chat, and vLLM's and Groq's deviations where they are named.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from models.base import Call
from models.catalog import ModelEntry
from models.errors import UnsupportedFeature
from models.messages import (
    ChatRequest,
    Event,
    Finish,
    FinishReason,
    ImagePart,
    Message,
    ReasoningDelta,
    ReasoningPart,
    Sampling,
    TextDelta,
    TextPart,
    TokenLogprob,
    Tool,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from models.openai_turns import openai_turns
from models.prefix_salt import PrefixSalt
from models.providers import Quirks
from models.quick_json import decoded
from models.sse import SSEDecoder
from models.tool_call_ids import with_fitting_ids
from models.upstream import GARBLED, UpstreamCall, begin, begin_health_check, parse_json
from models.upstream_http import HttpUpstream

_STREAM = "a chat completion stream"
_CHARACTERS_PER_TOKEN = 4
_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "model_length": "length",  # Mistral: the context is full
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class OpenAICompatibleModel:
    """A `ChatModel` for all the models of one endpoint.

    entries: by catalogue name; an entry's `source` is the model's name upstream.
    base_url: up to and with the version, such as `https://api.openai.com/v1`.
    quirks: None: none, but OpenAI's own address gets the newer name of `max_tokens`.
    """

    def __init__(
        self,
        entries: Mapping[str, ModelEntry],
        base_url: str,
        api_key: str | None,
        quirks: Quirks | None = None,
    ) -> None:
        self._entries = dict(entries)
        is_openai = (urlsplit(base_url).hostname or "").endswith("openai.com")
        self._quirks = quirks or Quirks(max_tokens_field="max_completion_tokens" if is_openai else "max_tokens")
        headers = {**self._quirks.headers, **key_header(self._quirks, api_key)}
        self._http = HttpUpstream(base_url, headers, self._quirks.query)
        self._salt = PrefixSalt.of_endpoint(api_key) if self._quirks.prefix_salt else None

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        entry, upstream = begin(self._entries, request, call, self._http.is_closed)
        asked = encode(request, entry, self._quirks)
        if self._salt is not None:
            asked |= _present(cache_salt=self._salt.of(call.tenant))
        body = json.dumps(asked, ensure_ascii=False).encode()
        answer = _Answer(request, upstream)
        async with aclosing(self._http.stream(upstream, "chat/completions", body, answer)) as events:  # type: ignore[type-var]
            async for event in events:
                yield event

    async def check_health(self) -> None:
        """Lists the endpoint's models, which costs nothing; an endpoint without that list is healthy if it answers."""
        await self._http.check_health(begin_health_check(self._entries, self._http.is_closed), "models")

    async def close(self) -> None:
        await self._http.close()


def key_header(quirks: Quirks, api_key: str | None) -> dict[str, str]:
    """The header that has the endpoint's key; none without one."""
    if not api_key:
        return {}
    return {quirks.key_header: f"Bearer {api_key}" if quirks.key_header == "authorization" else api_key}


# ---- the question --------------------------------------------------------------------------------------------------


def encode(request: ChatRequest, entry: ModelEntry, quirks: Quirks) -> dict[str, Any]:
    """The JSON body of a chat completion request, always a stream that ends with its usage.

    Raises `InvalidRequest` for a schema that is not JSON, and `UnsupportedFeature` for a budget of thinking, which this
    dialect has no word for, whatever an entry claims.
    """
    if request.thinking and request.thinking.mode == "budget":
        where = "thinking.budget_tokens"
        raise UnsupportedFeature(f"Model '{entry.name}' takes no budget of thinking; leave out '{where}'.", where)
    messages = with_fitting_ids(request.messages, quirks.tool_call_ids)
    body: dict[str, Any] = {
        "model": entry.source or entry.name,
        "messages": [_message(message, quirks) for message in openai_turns(messages)],
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling(request.sampling, quirks),
    }
    if request.tools:
        body["tools"] = [{"type": "function", "function": _tool(tool)} for tool in request.tools]
    if choice := request.tool_choice:
        named = {"type": "function", "function": {"name": choice.name}}
        body["tool_choice"] = named if choice.mode == "tool" else choice.mode
    if (wanted := request.response_format) and wanted.kind != "text":
        body["response_format"] = {"type": wanted.kind}
        if wanted.kind == "json_schema":
            schema = parse_json(wanted.schema or "{}", "response_format")
            body["response_format"]["json_schema"] = _present(
                name=wanted.name, description=wanted.description, schema=schema, strict=wanted.strict
            )
    effort = request.reasoning_effort
    if effort == "none" and not entry.capabilities.reasoning:
        effort = None  # that is what it does anyway, and it may not know the field
    effort = effort or (entry.effort_with_tools if request.tools else None)
    if request.thinking and request.thinking.mode == "off" and entry.capabilities.reasoning:
        effort = "none"
    if effort == "none" and quirks.no_thinking == "thinking":
        effort, body["thinking"] = None, {"type": "disabled"}
    if request.prefill:  # vLLM's and SGLang's words for it
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    body |= _present(
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning_effort=effort,
        verbosity=request.verbosity,
        user=request.user,
        **{name: getattr(request, name) for name in quirks.knows},
    )
    return _without(body, quirks)


def _without(body: dict[str, Any], quirks: Quirks) -> dict[str, Any]:
    for field in quirks.leaves_out:
        body.pop(field, None)
    if "name" in quirks.leaves_out:
        for message in body["messages"]:
            message.pop("name", None)
    return body


def _present(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _sampling(sampling: Sampling, quirks: Quirks) -> dict[str, Any]:
    fields = _present(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop=list(sampling.stop) or None,
        n=sampling.n if sampling.n > 1 else None,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        top_logprobs=sampling.top_logprobs,
        logprobs=True if sampling.top_logprobs is not None else None,
        logit_bias={str(token): bias for token, bias in sampling.logit_bias} or None,
    )
    named = {quirks.seed_field: sampling.seed, quirks.max_tokens_field: sampling.max_tokens}
    return {**fields, **_present(**named)}


def _message(message: Message, quirks: Quirks) -> dict[str, Any]:
    """`developer` goes as `system`, which OpenAI takes for the same and others know. Earlier reasoning goes to servers
    that have a name for it and stays behind at others, which would refuse it."""
    fields: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _content(message),
        **_present(name=message.name, tool_call_id=message.tool_call_id),
    }
    thoughts = "".join(part.text for part in message.parts if isinstance(part, ReasoningPart))
    if thoughts and quirks.reasoning_field:
        fields[quirks.reasoning_field] = thoughts
    if message.tool_calls:
        fields["content"] = fields["content"] or None
        fields["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return fields


def _content(message: Message) -> str | list[dict[str, Any]]:
    # Plain text goes as one string: servers join lists of text parts in ways of their own.
    if not any(isinstance(part, ImagePart) for part in message.parts):
        return message.text
    parts: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, TextPart):
            parts.append({"type": "text", "text": part.text})
        elif isinstance(part, ImagePart):
            parts.append({"type": "image_url", "image_url": {"url": part.url, "detail": part.detail}})
    return parts


def _tool(tool: Tool) -> dict[str, Any]:
    parameters = parse_json(tool.parameters, "tools")
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": parameters,
        **_present(strict=tool.strict),
    }


# ---- the answer ----------------------------------------------------------------------------------------------------


class _Answer:
    """Decodes the body of one streamed answer. `done` is set by `[DONE]`."""

    def __init__(self, request: ChatRequest, upstream: UpstreamCall) -> None:
        self._request = request
        self._upstream = upstream
        self._sse = SSEDecoder()
        self._finishes: dict[int, Finish] = {}
        self._usage: Usage | None = None
        self._calls: set[tuple[int, int]] = set()
        self._characters = 0
        self.done = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        with self._upstream.reading(_STREAM):
            found = self._sse.feed(chunk)
        for data in found:
            if data == b"[DONE]":
                self.done = True
                break
            events: list[Event] = []
            try:
                self._read(decoded(data), events)
            except GARBLED as error:
                raise self._upstream.garbled(_STREAM) from error
            yield from events

    def end(self) -> list[Event]:
        """`Finish` of each choice and the usage, once the body has ended."""
        if not self._finishes or len(self._finishes) < self._request.sampling.n:
            raise self._upstream.broken("ended its answer before it was finished")
        report = UsageReport(self._usage) if self._usage else self._estimate()
        return [*(finish for _, finish in sorted(self._finishes.items())), report]

    def _read(self, chunk: dict[str, Any], events: list[Event]) -> None:
        if error := chunk.get("error"):
            status = error.get("code") if isinstance(error, dict) else None
            raise self._upstream.refused(status if isinstance(status, int) else 500, {}, error)
        for choice in chunk.get("choices") or ():
            index = choice.get("index") or 0
            self._read_delta(choice.get("delta") or {}, _logprobs(choice.get("logprobs")), index, events)
            if reason := choice.get("finish_reason"):
                if reason not in _FINISH:
                    raise self._upstream.broken("broke off its answer")
                stop = choice.get("stop_reason")  # vLLM's: the sequence it stopped at, or the number of a token
                self._finishes[index] = Finish(_FINISH[reason], index, stop if isinstance(stop, str) else None)
        # Groq's own place for it, where it ignores `include_usage`.
        if usage := chunk.get("usage") or (chunk.get("x_groq") or {}).get("usage"):
            self._usage = token_usage(usage, "prompt", "completion") or self._usage

    def _read_delta(
        self, delta: dict[str, Any], logprobs: tuple[TokenLogprob, ...], choice: int, events: list[Event]
    ) -> None:
        # DeepSeek and older vLLM say `reasoning_content`, OpenRouter, Groq and newer vLLM `reasoning`.
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            self._characters += len(reasoning)
            events.append(ReasoningDelta(reasoning, choice=choice))
        text = delta.get("content") or delta.get("refusal") or ""
        if text or logprobs:
            self._characters += len(text)
            events.append(TextDelta(text, len(logprobs), logprobs, choice))
        for call in delta.get("tool_calls") or ():
            events.append(self._tool_call(call, choice))

    def _tool_call(self, call: dict[str, Any], choice: int) -> ToolCallDelta:
        known = sum(of == choice for of, _ in self._calls)
        index = call.get("index")
        if index is None:  # Gemini's compatible endpoint: whole calls without an index
            index = known if call.get("id") else max(0, known - 1)
        function = call.get("function") or {}
        arguments = function.get("arguments") or ""
        self._characters += len(arguments)
        if (choice, index) in self._calls:  # some repeat id and name with each piece
            return ToolCallDelta(index, arguments=arguments, choice=choice)
        self._calls.add((choice, index))
        return ToolCallDelta(index, call.get("id") or None, function.get("name") or None, arguments, choice)

    def _estimate(self) -> UsageReport:
        asked = sum(len(message.text) for message in self._request.messages)
        tokens = (-(-asked // _CHARACTERS_PER_TOKEN), -(-self._characters // _CHARACTERS_PER_TOKEN))
        return UsageReport(Usage(*tokens), estimated=True)


def _logprobs(logprobs: dict[str, Any] | None) -> tuple[TokenLogprob, ...]:
    return token_logprobs(logprobs.get("content") or ()) if logprobs else ()


def token_logprobs(rows: Iterable[dict[str, Any]]) -> tuple[TokenLogprob, ...]:
    """One for each token of a piece of text, as OpenAI's APIs write them."""
    return tuple(_token(row, tuple(_token(top) for top in row.get("top_logprobs") or ())) for row in rows)


def _token(token: dict[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    text, raw = token["token"], token.get("bytes")
    given = bytes(raw) if isinstance(raw, list) else None
    return TokenLogprob(text, token["logprob"], top, None if given == text.encode("utf-8", "replace") else given)


def token_usage(usage: dict[str, Any], read: str, made: str) -> Usage | None:
    """read, made: what the API calls the tokens of the prompt and of the answer. None for counts that are none: ours is
    better than theirs then."""
    details = usage.get(f"{read}_tokens_details") or {}
    counts = {
        "input_tokens": usage.get(f"{read}_tokens"),
        "output_tokens": usage.get(f"{made}_tokens"),
        "cached_input_tokens": details.get("cached_tokens") or usage.get("prompt_cache_hit_tokens"),  # DeepSeek's
        "reasoning_tokens": (usage.get(f"{made}_tokens_details") or {}).get("reasoning_tokens"),
    }
    written = details.get("cache_write_tokens")
    if any(not isinstance(count or 0, int) for count in (*counts.values(), written)):
        return None
    found = Usage(**{kind: count or 0 for kind, count in counts.items()})
    # "Unadjusted": never more than what of the prompt was not read from the cache.
    return replace(
        found, cache_write_5m_tokens=min(written or 0, max(0, found.input_tokens - found.cached_input_tokens))
    )
