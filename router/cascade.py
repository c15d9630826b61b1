"""Is the cheap model's answer good enough to be given out? Judged by its first tokens, before anyone has seen them.

A cascade asks the cheapest model first and goes on to a stronger one where the answer does not convince (FrugalGPT,
Chen et al. 2023, https://arxiv.org/abs/2305.05176). What it has to go by here is the mean log probability of the first
tokens (a model that is wrong is less sure of them), and what can be seen of the form: a refusal, an empty answer, JSON
or a tool call that is none. Pure: the same events give the same judgement.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from models.messages import (
    ChatRequest,
    Completion,
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    UsageReport,
    fold,
)
from router.json_form import begins_json, fits_schema, parsed
from router.settings import GateSettings
from router.tokens import output_tokens

Verdict = Literal["wait", "release", "escalate"]
Reason = Literal[
    "early",
    "begun",
    "sure",
    "unjudged",
    "unsure",
    "disagreement",
    "empty",
    "refusal",
    "json",
    "schema",
    "tool_call",
    "content_filter",
]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of what has come so far. `tokens` were looked at; `mean_logprob` is None where the engine gives none, and
    `mean_entropy` where it was not asked for. agreement: with further samples, where there were any.

    reason: `early` (wait), `begun` (nothing is judged, the answer has begun), `sure`, `unjudged` (no log probabilities,
    nothing wrong with the form), or what is wrong: `unsure`, `disagreement` (other samples say other things), `empty`,
    `refusal`, `json`, `schema`, `tool_call`, `content_filter`.
    """

    verdict: Verdict
    reason: Reason
    tokens: int = 0
    mean_logprob: float | None = None
    mean_entropy: float | None = None
    agreement: float | None = None


def judge(
    events: Sequence[Event], request: ChatRequest, gate: GateSettings | None, filter_escalates: bool = False
) -> Judgement:
    """What to do with the first `events` of an answer to `request`.

    Within `gate.tokens` tokens this is no longer `wait`; without a gate, with the first piece of the answer. An answer
    that is all there is judged as one, however short. `filter_escalates`: a content filter that ends the answer
    before its first text sends the question on.
    """
    if request.sampling.n > 1:  # the first of several answers stands for all
        events = [event for event in events if isinstance(event, UsageReport) or event.choice == 0]
    answer = fold(events)
    finished = answer.finish_reason is not None
    if answer.finish_reason == "content_filter" and not answer.text:
        return Judgement("escalate" if filter_escalates else "release", "content_filter")
    if gate is None:
        return Judgement("release" if finished or any(map(_begins, events)) else "wait", "begun")
    wrong = _wrong(answer, request, gate)
    shown = answer.logprobs[: gate.tokens]
    tokens = len(shown) or output_tokens(events)
    logprobs, entropies = [token.logprob for token in shown], _entropies(shown, gate)
    told = tokens, _mean(logprobs), _mean(entropies)
    if wrong is not None:
        return Judgement("escalate", wrong, *told)
    full = finished or tokens >= gate.tokens
    if not logprobs:
        return Judgement("release", "unjudged", *told) if full else Judgement("wait", "early", *told)
    # No log probability is above 0 and no entropy below: were all tokens that are still missing certain, the means
    # could not be better than this.
    count = len(logprobs) if full else gate.tokens
    sure = sum(logprobs) / count >= gate.min_mean_logprob
    if entropies and gate.max_mean_entropy is not None:
        sure = sure and sum(entropies) / count <= gate.max_mean_entropy
    if not sure:
        return Judgement("escalate", "unsure", *told)
    return Judgement("release", "sure", *told) if full else Judgement("wait", "early", *told)


def _entropies(shown: Sequence[TokenLogprob], gate: GateSettings) -> list[float]:
    """Of each token's place, in nats, as far as its likeliest tokens are known: what is left counts as one more."""
    if gate.max_mean_entropy is None or not all(token.top for token in shown):
        return []
    return [_entropy([math.exp(other.logprob) for other in token.top]) for token in shown]


def _entropy(chances: Sequence[float]) -> float:
    return sum(-chance * math.log(chance) for chance in (*chances, 1 - sum(chances)) if chance > 0)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def consistent(judgement: Judgement, events: Sequence[Event], samples: Sequence[str], gate: GateSettings) -> Judgement:
    """A judgement that would let the answer through, once what the model says in `samples` is known too."""
    found = agreement(fold(events).text, samples)
    judgement = replace(judgement, agreement=found)
    if found is None or found >= gate.min_agreement:
        return judgement
    return replace(judgement, verdict="escalate", reason="disagreement")


def agreement(answer: str, samples: Sequence[str]) -> float | None:
    """Mean share, in [0, 1], of the words that the answer and a sample have in common (Jaccard), as far as the shorter
    of the two goes. None without samples."""
    shares = [_in_common(_WORD.findall(answer.casefold()), _WORD.findall(sample.casefold())) for sample in samples]
    return sum(shares) / len(shares) if shares else None


_WORD = re.compile(r"\w+")


def _in_common(one: Sequence[str], other: Sequence[str]) -> float:
    shorter = min(len(one), len(other))
    if not shorter:
        return float(len(one) == len(other))
    mine, theirs = set(one[:shorter]), set(other[:shorter])
    return len(mine & theirs) / len(mine | theirs)


def without_logprobs(events: Sequence[Event]) -> list[Event]:
    """For a caller who asked for none: they were the gate's."""
    return [
        replace(event, logprobs=()) if isinstance(event, TextDelta) and event.logprobs else event for event in events
    ]


def _begins(event: Event) -> bool:
    match event:
        case TextDelta() | ReasoningDelta():
            return bool(event.text)
        case ToolCallDelta() | Finish():
            return True
    return False


# ---- form ----------------------------------------------------------------------------------------------------------

_SORRY = r"(?:i(?:['\u2019]?m| am) (?:very |so |really )?sorry|sorry|i apologi[sz]e|unfortunately)?"
_CANNOT = r"i (?:can ?not|can['\u2019]?t|won['\u2019]?t|will not|must decline)"
_UNABLE = r"i(?:['\u2019]m| am) (?:unable|not able|not allowed) to"
_REFUSAL = re.compile(
    rf"{_SORRY}[\s,.:;!-]*(?:(?:but|however)[\s,]+)?(?:{_CANNOT}|{_UNABLE}|as an ai\b)", re.IGNORECASE
)


def refuses(text: str) -> bool:
    """Whether an answer begins as a refusal, in English. That it does not know is an answer."""
    return _REFUSAL.match(text.lstrip(" \t\r\n\"'*_>#")) is not None


def _wrong(answer: Completion, request: ChatRequest, gate: GateSettings) -> Reason | None:
    """What is wrong with the form of an answer, as far as it has come. One cut at its limit has come only so far."""
    whole = answer.finish_reason in ("stop", "tool_calls")
    if answer.tool_calls:
        return "tool_call" if _wrong_call(answer, request, whole) else None
    if answer.finish_reason is not None and not answer.text.strip():
        return "empty"
    if gate.refusals and refuses(answer.text):
        return "refusal"
    wanted = request.response_format
    if wanted is None or wanted.kind == "text":
        return None
    if not begins_json(answer.text):
        return "json"
    if whole:
        value = parsed(answer.text)
        if not isinstance(value, dict):
            return "json"
        if wanted.schema is not None and not fits_schema(value, parsed(wanted.schema)):
            return "schema"
    return None


def _wrong_call(answer: Completion, request: ChatRequest, whole: bool) -> bool:
    """A tool that was not offered, or arguments that are no JSON object."""
    schemas = {tool.name: tool.parameters for tool in request.tools}
    for call in answer.tool_calls:
        if call.name not in schemas:
            return True
        if whole:
            arguments = parsed(call.arguments or "{}")
            if not isinstance(arguments, dict) or not fits_schema(arguments, parsed(schemas[call.name])):
                return True
        elif not begins_json(call.arguments):
            return True
    return False
