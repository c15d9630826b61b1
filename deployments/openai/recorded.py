"""A question and its answer as OpenAI's API has them, written down somewhere, as what the caches keep of such."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.openai.body import explained
from deployments.openai.chat_schema import parse_chat
from models.errors import InvalidRequest
from models.messages import Event, Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage, UsageReport
from router.accounting.prices import PriceBook
from router.cache_transfer import MAX_TOKENS, checked
from router.fingerprint import fingerprint
from router.policy import AUTO
from router.ports import CachedAnswer, CacheKey
from router.recall import answer_ttl_s
from router.settings import IngressSettings


class _Part(BaseModel):
    """Other fields of an answer are nothing that the caches keep."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Function(_Part):
    name: str = Field(min_length=1)
    arguments: str


class _Call(_Part):
    id: str
    function: _Function


class _Message(_Part):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(_Part):
    index: int = Field(0, ge=0)
    message: _Message
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"] = "stop"


class _Usage(_Part):
    prompt_tokens: int = Field(0, ge=0, le=MAX_TOKENS)
    completion_tokens: int = Field(0, ge=0, le=MAX_TOKENS)


class _Completion(_Part):
    model: str = Field(min_length=1, max_length=200)
    created: float | None = Field(None, ge=0, allow_inf_nan=False, description="Unix seconds; None: it is made now")
    choices: list[_Choice] = Field(min_length=1, max_length=16)
    usage: _Usage = _Usage()


def recorded_answer(
    told: dict[str, Any], org: str, settings: IngressSettings, prices: PriceBook
) -> tuple[CacheKey, CachedAnswer] | None:
    """`told`: a `request`, such as POST /v1/chat/completions takes, and its `response`. None: an answer to such a
    question, or such an answer, is not kept. Raises `InvalidRequest`."""
    if set(told) != {"request", "response"} or not isinstance(told["request"], dict):
        raise InvalidRequest("a line has a 'request' and its 'response', and nothing else")
    parsed = parse_chat(told["request"])
    try:
        completion = _Completion.model_validate(told["response"])
    except ValidationError as error:
        raise explained(error) from None
    request, now_unix_s = parsed.request, time.time()
    found = fingerprint(request, org, parsed.options.namespace, settings, parsed.options.wish)
    ends = {choice.finish_reason for choice in completion.choices}
    at_limit = "length" in ends and request.sampling.max_tokens is not None
    whole = "content_filter" not in ends and ("length" not in ends or at_limit)
    whole = whole and sorted(choice.index for choice in completion.choices) == list(range(request.sampling.n))
    if (
        found is None
        or not whole
        or parsed.options.cache in ("off", "no-store")
        or request.sampling.top_logprobs is not None
    ):
        return None
    model = completion.model if request.model == AUTO else request.model  # a provider calls it by a longer name
    key, usage = found.key(settings), Usage(completion.usage.prompt_tokens, completion.usage.completion_tokens)
    made_unix_s = now_unix_s if completion.created is None else min(completion.created, now_unix_s)
    answer = CachedAnswer(
        f"import_{secrets.token_hex(12)}",
        model,
        (*_events(completion), UsageReport(usage)),
        usage,
        prices.cost_microusd(model, usage),
        made_unix_s,
        answer_ttl_s(settings, org, request),
        parsed.options.tags,
        made_unix_s,
    )
    return key if not at_limit else key.exact_only(), checked(answer)


def _events(completion: _Completion) -> Iterator[Event]:
    for choice in completion.choices:
        message, number = choice.message, choice.index
        if message.reasoning_content:
            yield ReasoningDelta(message.reasoning_content, choice=number)
        if message.content:
            yield TextDelta(message.content, choice=number)
        for index, call in enumerate(message.tool_calls or ()):
            yield ToolCallDelta(index, call.id, call.function.name, call.function.arguments, number)
        yield Finish(choice.finish_reason, number)
