"""vLLM's outputs as our events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from models.messages import Event, Finish, FinishReason, TextDelta, TokenLogprob, Usage, UsageReport
from models.vllm_tools import AnswerParser

_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
_LEAST_LOGPROB = -9999.0  # JSON has no infinity


def token_logprobs(output: Any, top: int) -> tuple[TokenLogprob, ...]:
    """The log probabilities in one of vLLM's `CompletionOutput`s, with the `top` likeliest tokens of each place."""
    rows = []
    for token, place in zip(output.token_ids, output.logprobs or (), strict=True):
        likeliest = sorted(place.values(), key=lambda entry: entry.rank or 0)[:top]
        rows.append(replace(_token(place[token]), top=tuple(map(_token, likeliest))))
    return tuple(rows)


def _token(entry: Any) -> TokenLogprob:
    return TokenLogprob(entry.decoded_token or "", max(entry.logprob, _LEAST_LOGPROB))


class OutputReader:
    """Makes events of vLLM's `RequestOutput`s.

    top_logprobs: how many alternatives of each token to tell; None: no log probabilities. parsers: makes the parser of
    each choice; None: the answer is plain text.
    """

    def __init__(self, top_logprobs: int | None = None, parsers: Callable[[int], AnswerParser] | None = None) -> None:
        self.finished = False
        self._top_logprobs = top_logprobs
        self._make_parser = parsers
        self._parsers: dict[int, AnswerParser] = {}
        self._output_tokens = 0
        # By choice: tokens that are no text yet, since they are half a character or may become a stop sequence.
        self._held: dict[int, TextDelta] = {}

    def read(self, output: Any) -> list[Event]:
        events: list[Event] = []
        for choice in output.outputs:
            events.extend(self._choice(choice, output.prompt_token_ids))
        self.finished = output.finished
        if self.finished:
            thought_tokens = sum(parser.reasoning_tokens for parser in self._parsers.values())
            input_tokens, cached_tokens = len(output.prompt_token_ids), output.num_cached_tokens or 0
            usage = Usage(input_tokens, self._output_tokens, cached_tokens, reasoning_tokens=thought_tokens)
            events.append(UsageReport(usage))
        return events

    def _choice(self, choice: Any, prompt_token_ids: Any) -> Iterator[Event]:
        index, reason = choice.index, choice.finish_reason
        self._output_tokens += len(choice.token_ids)
        if reason and reason not in _FINISH:  # aborted from outside, or failed in the engine
            raise RuntimeError(f"the engine ended the request with '{reason}'")
        rows = () if self._top_logprobs is None else token_logprobs(choice, self._top_logprobs)
        if self._make_parser is None:
            yield from self._plain(choice, rows)
        else:
            yield from self._parsed(choice, rows, prompt_token_ids)
        if reason:
            called = index in self._parsers and self._parsers[index].called
            stop = choice.stop_reason if isinstance(choice.stop_reason, str) else None  # else the number of a token
            yield Finish("tool_calls" if called and reason == "stop" else _FINISH[reason], index, stop)

    def _plain(self, choice: Any, rows: tuple[TokenLogprob, ...]) -> Iterator[Event]:
        tokens, index = len(choice.token_ids), choice.index
        if held := self._held.pop(index, None):
            tokens, rows = held.tokens + tokens, held.logprobs + rows
        delta = TextDelta(choice.text, tokens, rows, index)
        if choice.text or (choice.finish_reason and tokens):
            yield delta
        elif tokens:
            self._held[index] = delta

    def _parsed(self, choice: Any, rows: tuple[TokenLogprob, ...], prompt_token_ids: Any) -> Iterator[Event]:
        """Log probabilities go with the text of their output. Those of calls and thoughts have an empty text."""
        assert self._make_parser is not None
        if choice.index not in self._parsers:
            self._parsers[choice.index] = self._make_parser(choice.index)
        events = self._parsers[choice.index].read(choice, prompt_token_ids)
        tokens = len(choice.token_ids)
        for event in events:
            if isinstance(event, TextDelta) and tokens:
                yield replace(event, tokens=tokens, logprobs=rows)
                tokens, rows = 0, ()
            else:
                yield event
        if rows:
            yield TextDelta("", tokens, rows, choice.index)
