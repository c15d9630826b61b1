"""Measures trained models on held-out questions: accuracy by difficulty and kind, and whether sure means right.

    python -m models.demo.evaluate models/demo/weights/demo-small models/demo/weights/demo-medium --json scores.json

Answers are decoded greedily and graded by each question's own grader.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.demo.dataset import DATA_VERSION, held_out_items
from models.demo.items import DIFFICULTIES, Item

HELD_OUT_SEED, PER_DIFFICULTY = 2026, 600  # a seed that nobody looked at while training was tuned
_BATCH = 64
_MAX_NEW_TOKENS = 80


@dataclass(frozen=True, slots=True)
class Answered:
    """`confidence` is the mean log probability (natural) of the answer's tokens, its end included; `logprobs` are those
    of its tokens one by one, the end last where the model ended by itself."""

    item: Item
    answer: str
    correct: bool
    confidence: float
    logprobs: tuple[float, ...] = ()


def answer(folder: Path, items: Sequence[Item], device: str = "cpu") -> list[Answered]:
    """Greedy answers of the model in `folder`, in the order of `items`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    load: Any = AutoModelForCausalLM
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = load.from_pretrained(folder, dtype=torch.float32 if device == "cpu" else torch.bfloat16).to(device)
    prompts = [
        tokenizer.apply_chat_template(list(item.messages), add_generation_prompt=True, tokenize=False) for item in items
    ]
    # A batch takes as long as its longest answer: those that want answers of one length go together.
    order = sorted(range(len(items)), key=lambda index: (len(items[index].answer), len(prompts[index])))
    answered: dict[int, Answered] = {}
    for start in range(0, len(order), _BATCH):
        indices = order[start : start + _BATCH]
        texts, logprobs = _generate(model, tokenizer, [prompts[index] for index in indices])
        for index, text, tokens in zip(indices, texts, logprobs, strict=True):
            confidence = sum(tokens) / len(tokens)
            answered[index] = Answered(items[index], text, items[index].grader.grade(text), confidence, tokens)
    return [answered[index] for index in range(len(items))]


def _generate(model: Any, tokenizer: Any, prompts: list[str]) -> tuple[list[str], list[tuple[float, ...]]]:
    import torch

    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    out = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=_MAX_NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    ids = out.sequences[:, inputs["input_ids"].shape[1] :]
    log_probs = torch.stack(out.logits, dim=1).float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    ended = (ids == tokenizer.eos_token_id).int()
    counts = (ended.cumsum(-1) - ended) == 0  # the first end counts, what pads the row after it does not
    logprobs = [tuple(row[kept].tolist()) for row, kept in zip(log_probs, counts, strict=True)]
    return tokenizer.batch_decode(ids, skip_special_tokens=True), logprobs


def auroc(answered: Sequence[Answered]) -> float | None:
    """The probability that a right answer is surer than a wrong one; None when all are right or all wrong."""
    right = [one.confidence for one in answered if one.correct]
    wrong = [one.confidence for one in answered if not one.correct]
    if not right or not wrong:
        return None
    wins = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
    return wins / (len(right) * len(wrong))


def scores(answered: Sequence[Answered]) -> dict[str, Any]:
    """Accuracy overall, by difficulty and by kind, and the AUROC of confidence."""
    groups: dict[str, list[Answered]] = defaultdict(list)
    for one in answered:
        groups[one.item.difficulty].append(one)
        groups[f"{one.item.difficulty}/{one.item.kind}"].append(one)
    accuracy = {name: round(sum(one.correct for one in group) / len(group), 4) for name, group in groups.items()}
    overall_auroc = auroc(answered)
    return {
        "questions": len(answered),
        "overall": round(sum(one.correct for one in answered) / len(answered), 4),
        "by_difficulty": {name: accuracy[name] for name in DIFFICULTIES if name in accuracy},
        "by_kind": {name: accuracy[name] for name in sorted(accuracy) if "/" in name},
        "auroc_of_confidence": overall_auroc and round(overall_auroc, 4),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table: a row per difficulty and kind, a column per model."""
    names = list(results)
    rows = [["", *names], ["---"] * (len(names) + 1)]
    rows.append(["overall", *(f"{results[name]['overall']:.1%}" for name in names)])
    for part in ("by_difficulty", "by_kind"):
        for key in results[names[0]][part]:
            rows.append([key.replace("_", " "), *(f"{results[name][part][key]:.1%}" for name in names)])
    rows.append(["AUROC of confidence", *(str(results[name]["auroc_of_confidence"]) for name in names)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="model folders")
    parser.add_argument("--json", type=Path, help="write the scores here as well")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--per-difficulty", type=int, default=PER_DIFFICULTY)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--wrong", type=int, default=0, help="show so many wrong answers of each model")
    options = parser.parse_args()
    items = held_out_items(options.seed, options.per_difficulty)
    results = {}
    for folder in options.folders:
        answered = answer(folder, items, options.device)
        results[folder.name] = scores(answered)
        for one in [one for one in answered if not one.correct][: options.wrong]:
            print(f"{one.item.kind}: {one.item.question!r} wants {one.item.answer!r}, got {one.answer!r}")
    print(table(results))
    if options.json:
        settings = {"data_version": DATA_VERSION, "seed": options.seed, "per_difficulty": options.per_difficulty}
        options.json.write_text(json.dumps({**settings, "models": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
