"""No count that cannot be reaches the books."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import astuple

from models.base import Call, ChatModel
from models.catalog import ModelEntry
from models.messages import ChatRequest, Event, Usage, UsageReport
from models.reliability.prompt_usage import characters, output_usage, prompt_usage
from models.reliability.tally import Tally


class PlausibleUsage:
    """Puts an estimate in place of a provider's count that is negative, no number, contradicts itself, is none although
    there is an answer, or is more than the model's context can hold."""

    def __init__(self, model: ChatModel, entries: Iterable[ModelEntry], tally: Tally) -> None:
        self._model, self._tally = model, tally
        self._context_tokens = {entry.name: entry.context_tokens for entry in entries}

    async def stream(self, request: ChatRequest, call: Call) -> AsyncIterator[Event]:
        seen = 0
        async with aclosing(self._model.stream(request, call)) as events:  # type: ignore[type-var]
            async for event in events:
                seen += characters(event)
                yield self._checked(event, request, seen) if isinstance(event, UsageReport) else event

    def _checked(self, report: UsageReport, request: ChatRequest, seen: int) -> UsageReport:
        # Twice: a provider's idea of its context and the catalogue's differ.
        most = 2 * self._context_tokens.get(request.model, 0)
        # An early count, which is marked as estimated, may be of the prompt only.
        if _adds_up(report.usage, most, most * request.sampling.n, bool(seen) and not report.estimated):
            return report
        self._tally.add("usage_replaced", request.model)
        return UsageReport(prompt_usage(request) + output_usage(seen), estimated=True)

    async def check_health(self) -> None:
        await self._model.check_health()

    async def close(self) -> None:
        await self._model.close()


def _adds_up(usage: Usage, most_input: int, most_output: int, answered: bool) -> bool:
    counts = astuple(usage)
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        return False
    cached = usage.cached_input_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    return (
        0 < usage.input_tokens <= most_input
        and cached <= usage.input_tokens
        and usage.reasoning_tokens <= usage.output_tokens <= most_output
        and (usage.output_tokens > 0 or not answered)
    )
