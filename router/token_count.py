"""How long a question is, for whoever wants to know before asking it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from models.base import Call
from models.errors import SwitchyardError
from models.messages import ChatRequest
from router.events import Principal
from router.tokens import prompt_tokens

if TYPE_CHECKING:
    from router.pipeline import Options, Pipeline

COUNT_TIMEOUT_S = 2.0
"""A model that is asleep or busy is not waited for longer: then an estimate is the answer."""


@dataclass(frozen=True, slots=True)
class TokenCount:
    """`estimated`: no tokenizer has seen the question."""

    tokens: int
    estimated: bool


@runtime_checkable
class TokenCounter(Protocol):
    """A `ModelPort` that may know."""

    async def count_tokens(self, request: ChatRequest, call: Call) -> int | None:
        """None: this model does not say."""


async def count_tokens(pipeline: Pipeline, request: ChatRequest, principal: Principal, options: Options) -> TokenCount:
    """The model's own count of a question for a named model, where it gives one in time; else an estimate.

    Raises what the request itself would be refused with, except that it is too long. Nothing is charged or written.
    """
    tokens = prompt_tokens(request)
    estimate = TokenCount(tokens.expected, estimated=True)
    if request.model == "auto":
        return estimate
    course = pipeline.course(request, principal, options)
    pipeline.decide(request, principal, None, replace(tokens, at_least=0), options, course)
    port = pipeline.backend_of(request.model).port
    if not isinstance(port, TokenCounter):
        return estimate
    try:
        async with asyncio.timeout(COUNT_TIMEOUT_S):
            counted = await port.count_tokens(request, Call("count", principal.org, COUNT_TIMEOUT_S))
    except TimeoutError:
        return estimate
    except SwitchyardError as error:
        if error.http_status < 500 and error.http_status != 429:
            raise
        return estimate
    return estimate if counted is None else TokenCount(counted, estimated=False)
