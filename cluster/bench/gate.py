"""Learns the gate of a cascade from outcomes: how sure a demonstration model was of its first tokens, and was it right?

    python -m cluster.bench.gate --model demo-small --stronger demo-medium --json gate.json

Asks both models held-out questions whose answers are known (greedily, with transformers, in this process), and prints
for each number of tokens k and each threshold of their mean log probability: the share of answers that would be given
out, how many of those are right, and how many a cascade of the two would get right. For every k it picks the threshold
that gives out most while at least `--target` of what is given out is right. The questions are of a seed of their own,
without those of the published scores.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import models.demo
from cluster.bench import end_to_end
from cluster.bench.session import exit_code, tell, write_json
from models.demo import evaluate
from models.demo.dataset import held_out_items
from models.demo.items import Item
from models.messages import ChatRequest, Event, Finish, Message, TextDelta, TextPart, TokenLogprob
from router.accounting.feedback import wilson
from router.cascade import judge
from router.gates import auroc, threshold
from router.settings import GateSettings

SEED = 2028
PUBLISHED = ((evaluate.HELD_OUT_SEED, 3 * evaluate.PER_DIFFICULTY), (end_to_end.SEED, 1800))
"""Seeds and numbers of questions of the model card and, more than it asks by default, of the end-to-end benchmark."""
WEIGHTS = Path(models.demo.__file__).with_name("weights")
TOKENS = (4, 8, 16, None)
THRESHOLDS = (-0.005, -0.01, -0.02, -0.03, -0.05, -0.075, -0.1, -0.15, -0.2, -0.3, -0.5)
_ASKED = ChatRequest("auto", (Message("user", (TextPart("?"),)),))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one question. `logprobs` are those of the answer's tokens, its end not included: engines do not show it."""

    right: bool
    stronger_right: bool
    logprobs: tuple[float, ...]

    def sureness(self, tokens: int | None) -> float:
        first = self.logprobs[:tokens]
        return sum(first) / len(first)


@dataclass(frozen=True, slots=True)
class Row:
    """What a gate with this threshold does, as shares of 1. `lost`: questions that the stronger model alone would have
    got right and the cascade does not; `won`: the other way round."""

    threshold: float
    released: float
    accuracy_of_released: float
    accuracy_of_cascade: float
    lost: int
    won: int


def row(outcomes: Sequence[Outcome], tokens: int | None, threshold: float) -> Row:
    released = [each for each in outcomes if each.sureness(tokens) >= threshold]
    right = sum(each.right for each in released)
    lost = sum(each.stronger_right and not each.right for each in released)
    won = sum(each.right and not each.stronger_right for each in released)
    return Row(
        threshold,
        len(released) / len(outcomes),
        right / len(released) if released else math.nan,
        (sum(each.stronger_right for each in outcomes) + won - lost) / len(outcomes),
        lost,
        won,
    )


def judged(outcomes: Iterable[Outcome], tokens: int | None) -> list[tuple[float, float]]:
    """By their first tokens, as `router.gates` has it."""
    return [(each.sureness(tokens), float(each.right)) for each in outcomes]


def discarded_tokens(outcomes: Iterable[Outcome], gate: GateSettings) -> float:
    """Tokens that the gate of the product had seen when it gave an answer up, in the mean of those it gave up."""
    seen: list[int] = []
    for each in outcomes:
        events: list[Event] = []
        for logprob in each.logprobs:
            events.append(TextDelta("w ", 1, (TokenLogprob("w ", logprob),)))
            if judge(events, _ASKED, gate).verdict != "wait":
                break
        else:
            events.append(Finish("stop"))
        if judge(events, _ASKED, gate).verdict == "escalate":
            seen.append(sum(isinstance(event, TextDelta) for event in events))
    return sum(seen) / len(seen) if seen else 0.0


def report(outcomes: Sequence[Outcome], target: float) -> str:
    """In Markdown, a table for each number of tokens."""
    alone = sum(each.right for each in outcomes) / len(outcomes)
    stronger = sum(each.stronger_right for each in outcomes) / len(outcomes)
    lines = [f"{len(outcomes)} questions; alone {alone:.1%} right, the stronger model {stronger:.1%}"]
    for tokens in TOKENS:
        chosen = threshold(judged(outcomes, tokens), target)
        name = "the whole answer" if tokens is None else f"k = {tokens}"
        lines += [
            "",
            f"{name}: AUROC {auroc(judged(outcomes, tokens)):.3f}",
            "",
            "| mean log probability from | given out | of it right (95 % interval) | cascade right | lost / won |",
            "|---|---|---|---|---|",
        ]
        rows = {row(outcomes, tokens, threshold) for threshold in (*THRESHOLDS, *([chosen] if chosen else []))}
        for each in sorted(rows, key=lambda each: -each.threshold):
            given_out = round(each.released * len(outcomes))
            right = each.accuracy_of_released * given_out if given_out else 0.0
            low, high = wilson(right, given_out)
            mark = " (learned)" if each.threshold == chosen else ""
            lines.append(
                f"| {each.threshold:.3g}{mark} | {each.released:.1%} "
                f"| {each.accuracy_of_released:.1%} ({low:.1%} to {high:.1%}) "
                f"| {each.accuracy_of_cascade:.1%} | {each.lost} / {each.won} |"
            )
        if tokens is not None and chosen is not None:
            gate = GateSettings(tokens=tokens, min_mean_logprob=chosen)
            lines += ["", f"An answer that is given up has cost {discarded_tokens(outcomes, gate):.1f} tokens by then."]
    return "\n".join(lines)


def ask(model: str, stronger: str, per_difficulty: int) -> list[Outcome]:
    """Both models, the same questions."""
    items = questions(per_difficulty)
    tell(f"{len(items)} questions to {model} and {stronger}")
    both = [evaluate.answer(WEIGHTS / name, items) for name in (model, stronger)]
    return [Outcome(mine.correct, theirs.correct, shown(mine)) for mine, theirs in zip(*both, strict=True)]


def questions(per_difficulty: int) -> list[Item]:
    """Those of `SEED` that are in none of the published sets."""
    published = {str(item.messages) for seed, count in PUBLISHED for item in held_out_items(seed, count // 3)}
    return [item for item in held_out_items(SEED, per_difficulty) if str(item.messages) not in published]


def shown(answered: evaluate.Answered) -> tuple[float, ...]:
    """The log probabilities that an engine shows: not that of the end."""
    return answered.logprobs[:-1] or answered.logprobs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.bench.gate", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="demo-small", help="whose gate it is")
    parser.add_argument("--stronger", default="demo-medium", help="who answers what is not given out")
    parser.add_argument("--per-difficulty", type=int, default=500, help="questions, before the published ones go")
    parser.add_argument("--target", type=float, default=0.95, help="share of what is given out that has to be right")
    parser.add_argument("--json", type=Path, help="write the outcomes there too")
    options = parser.parse_args(argv)

    def measure() -> None:
        outcomes = ask(options.model, options.stronger, options.per_difficulty)
        write_json(options.json, {"seed": SEED, "outcomes": [asdict(each) for each in outcomes]})
        print(report(outcomes, options.target))

    return exit_code(measure)


if __name__ == "__main__":
    raise SystemExit(main())
