"""How the transformers engine chooses each token: per request in one batch, and with what it notes of them."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from models.messages import Sampling

if TYPE_CHECKING:
    import torch

_GREEDY_BELOW = 1e-5  # temperatures under this would overflow the logits
_LEAST_LOGPROB = -9999.0  # JSON has no infinity

TokenRow = tuple[int, float, tuple[tuple[int, float], ...]]
"""A token, its log probability, and the likeliest tokens at its place with theirs."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How one answer's tokens are drawn. `top_k` 0: no limit."""

    temperature: float
    top_p: float
    top_k: int
    seed: int


def draw_of(sampling: Sampling, default: Any, choice: int = 0) -> Draw | None:
    """None: greedy. What the request leaves open is as the model's generation_config.json says, else temperature 1.
    Of several choices each has a seed of its own, one more than the last, as in vLLM."""
    temperature, top_p = sampling.temperature, sampling.top_p
    if temperature is None:
        temperature = 1.0 if default.temperature is None else default.temperature
    if temperature < _GREEDY_BELOW:
        return None
    if top_p is None:
        top_p = 1.0 if default.top_p is None else default.top_p
    seed = random.getrandbits(64) if sampling.seed is None else sampling.seed + choice
    top_k = default.top_k if sampling.top_k is None else sampling.top_k
    return Draw(temperature, top_p, top_k or 0, seed)


@dataclass(slots=True)
class Choosing:
    """How the tokens of one answer are chosen, and what the engine's thread notes down of them.

    presence, frequency: subtracted from the logit of a token that the answer has, once and for each time. bias: added
    to logits, by token. top: how many of the likeliest tokens to note in `rows`; None: nothing is noted.
    """

    draw: Draw | None
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    top: int | None = None
    counts: Counter[int] = field(default_factory=Counter)
    rows: list[TokenRow] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> Choosing:
        """The engine copies the request when it has to start it anew: it is the same answer, so this goes on."""
        return self

    @property
    def is_plain(self) -> bool:
        """Whether the engine's own greedy choice is all that is needed."""
        return self.draw is None and self.top is None and not self._changes_logits

    @property
    def _changes_logits(self) -> bool:
        return bool(self.presence or self.frequency or self.bias)

    def changed(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits` [vocabulary] with penalties and biases."""
        if not self._changes_logits:
            return logits
        logits = logits.clone()
        for token, bias in self.bias:
            logits[token] += bias
        for token, count in self.counts.items():
            logits[token] -= self.presence + count * self.frequency
        return logits

    def note(self, token: int, logits: torch.Tensor) -> None:
        """`token` was chosen where the model gave `logits` [vocabulary], before anything was done to them."""
        if self.presence or self.frequency:
            self.counts[token] += 1
        if self.top is None:
            return
        logprobs = logits.log_softmax(dim=-1)
        likeliest = logprobs.topk(min(self.top, len(logprobs)))
        pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        top = tuple((other, max(logprob, _LEAST_LOGPROB)) for other, logprob in pairs)
        self.rows.append((token, max(float(logprobs[token]), _LEAST_LOGPROB), top))


def choosing_of(sampling: Sampling, default: Any, choice: int = 0) -> Choosing:
    """For the `choice`-th answer. `default`: the model's generation config."""
    return Choosing(
        draw_of(sampling, default, choice),
        sampling.presence_penalty or 0.0,
        sampling.frequency_penalty or 0.0,
        sampling.logit_bias,
        sampling.top_logprobs,
    )


class Sampler:
    """Takes the place of the engine's list of logits processors, which knows neither a request's seed nor greedy and
    sampled requests in one batch.

    The engine picks the largest of the scores this returns. A greedy request's row stays as it is; a sampled one's gets
    Gumbel noise, and the largest of logits + Gumbel noise is an exact draw from their softmax (Maddison et al., "A*
    Sampling", 2014). The noise depends on seed and position only, so the batch around a request does not matter.
    """

    tensors_required = 0
    do_processing = True

    def __init__(self) -> None:
        import torch

        self._generator = torch.Generator()
        self._rows: list[tuple[int, Choosing, int]] = []

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        pass  # they are the engine's own

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        pass  # no per-request tensors: the engine's batches are synchronous, so `_rows` is of the batch at hand

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        states = [request.state for request in requests_in_batch if request.has_new_token]
        self._rows = [
            (row, choosing, len(state.initial_tokens) + len(state.generated_tokens))
            for row, state in enumerate(states)
            if (choosing := state.logit_processor_kwargs.get("choosing"))
        ]
        return arg_storage

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, args: torch.Tensor) -> torch.Tensor:
        for row, choosing, position in self._rows:
            logits = scores[row].clone()
            changed = choosing.changed(logits)
            if choosing.draw is not None:
                changed = self.perturbed(changed / choosing.draw.temperature, choosing.draw, position)
            scores[row] = changed
            choosing.note(int(changed.argmax()), logits)
        return scores

    def perturbed(self, logits: torch.Tensor, draw: Draw, position: int) -> torch.Tensor:
        """`logits` [vocabulary] without what top-k and top-p exclude, plus noise."""
        import torch

        if 0 < draw.top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(draw.top_k).values[-1], -math.inf)
        if draw.top_p < 1:
            ordered, index = logits.sort(descending=True)
            chances = ordered.softmax(dim=-1)
            excluded = chances.cumsum(dim=-1) - chances >= draw.top_p  # what comes before it is enough already
            excluded[0] = False
            logits = logits.masked_fill(torch.zeros_like(excluded).scatter(0, index, excluded), -math.inf)
        digest = hashlib.blake2b(f"{draw.seed}:{position}".encode(), digest_size=8).digest()
        self._generator.manual_seed(int.from_bytes(digest[:4], "big"))  # its state has 32 bits of seed
        exponential = torch.empty(len(logits)).exponential_(generator=self._generator)
        return logits - exponential.clamp_min(1e-30).log()
