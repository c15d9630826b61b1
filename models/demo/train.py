"""Trains a demo model from scratch.

    python -m models.demo.train --size small --hours 0.4 --out /some/folder [--resume]

The data is made on the way and hangs on seed and step alone. The budget counts the process' own CPU time, so a pause
costs nothing; on a GPU it counts the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.demo.dataset import DATA_VERSION, held_out_items, training_items
from models.demo.grow import grow
from models.demo.items import DIFFICULTIES, Item
from models.demo.shapes import CONTEXT_TOKENS, SHAPES, SIZES, Shape, config
from models.demo.tokenizer import EOS_ID, encoded, save

_WARM_UP_STEPS = 60
_DECAY_FROM = 0.35  # of the budget: constant until there, then linear to zero
_CHUNK_TOKENS = 1024  # a batch is sorted by length and worked on in parts of about this many tokens
_VALIDATION_SEED, _VALIDATION_ITEMS = 1000, 200  # per difficulty; the scores published are of other seeds
_CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class Budget:
    """Ends after `hours` or, when given, after exactly `steps`."""

    hours: float
    steps: int | None = None

    def progress(self, step: int, elapsed_s: float) -> float:
        return step / self.steps if self.steps else elapsed_s / (self.hours * 3600)


def rate_scale(step: int, progress: float) -> float:
    """Warm-up, stay, decay: the peak is 1."""
    return min(1.0, (step + 1) / _WARM_UP_STEPS) * min(1.0, max(0.01, (1 - progress) / (1 - _DECAY_FROM)))


class Trainer:
    """Model, optimizer and step count, saved and loaded as one."""

    def __init__(self, shape: Shape, seed: int, device: str) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from models.demo.optimizer import Optimizer

        torch.manual_seed(seed)
        self.shape, self.seed, self.device = shape, seed, device
        self.step, self.elapsed_s, self.tokens = 0, 0.0, 0
        make: Any = LlamaForCausalLM
        self.model = make(LlamaConfig(**config(shape))).to(device)
        self._optimizer = Optimizer(self.model, shape.learning_rate, shape.embedding_rate)

    def train_step(self, scale: float) -> float:
        """One batch. Returns the mean loss of its answer tokens."""
        import torch

        shape = self.shape
        items = training_items(self.seed, self.step, shape.batch_items, shape.mixture, shape.emphasis)
        rows = sorted(encoded(items), key=lambda row: len(row[0]))
        answer_tokens = sum(len(ids) - prompt for ids, prompt in rows)
        total = 0.0
        for chunk in _chunks(rows):
            with self._precision():
                logits, wanted = self._answers(chunk)
            loss = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum") / answer_tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step(scale)
        self.step += 1
        self.tokens += sum(len(ids) for ids, _ in rows)
        return total

    def validate(self, items: Sequence[Item]) -> dict[str, float]:
        """Share of answers that greedy decoding would give word for word, by difficulty and kind."""
        import torch

        right: dict[str, list[bool]] = defaultdict(list)
        order = sorted(zip(encoded(items), items, strict=True), key=lambda pair: len(pair[0][0]))
        with torch.no_grad():
            for start in range(0, len(order), 64):
                part = order[start : start + 64]
                with self._precision():
                    logits, wanted = self._answers([row for row, _ in part])
                lengths = [len(ids) - prompt for (ids, prompt), _ in part]
                hits = (logits.argmax(-1) == wanted).split(lengths)
                for hit, (_, item) in zip(hits, part, strict=True):
                    right[item.difficulty].append(bool(hit.all()))
                    right[f"{item.difficulty}/{item.kind}"].append(bool(hit.all()))
        return {name: sum(hits) / len(hits) for name, hits in sorted(right.items())}

    def _answers(self, rows: Sequence[tuple[list[int], int]]) -> tuple[Any, Any]:
        """Logits and wanted ids of the answer tokens alone, row by row. Rows are padded at the right, where causal
        attention never looks back from."""
        import torch

        longest = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([row + [EOS_ID] * (longest - len(row)) for row, _ in rows], device=self.device)
        where = torch.zeros(ids.shape, dtype=torch.bool)
        for index, (row, prompt) in enumerate(rows):
            where[index, prompt - 1 : len(row) - 1] = True
        where = where.to(self.device)
        hidden = self.model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        return self.model.lm_head(hidden[where[:, :-1]]), ids[:, 1:][where[:, :-1]]

    def _precision(self) -> Any:
        import torch

        return torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda")

    def save_checkpoint(self, folder: Path) -> None:
        import torch

        state = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "counts": (self.step, self.elapsed_s, self.tokens),
        }
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / f"{_CHECKPOINT}.new")
        (folder / f"{_CHECKPOINT}.new").replace(folder / _CHECKPOINT)

    def load_checkpoint(self, folder: Path) -> None:
        import torch

        state = torch.load(folder / _CHECKPOINT, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_s, self.tokens = state["counts"]

    def export(self, folder: Path, **facts: object) -> None:
        """The folder that transformers and vLLM load: bfloat16 weights, tokenizer, and how it was trained."""
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().to("cpu", torch.bfloat16) for name, tensor in self.model.state_dict().items()}
        copy = type(self.model)(self.model.config).to(torch.bfloat16)
        copy.load_state_dict(weights)
        copy.generation_config.do_sample = False
        copy.save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)  # written private
        save(folder, CONTEXT_TOKENS)
        training = {
            "data_version": DATA_VERSION,
            "seed": self.seed,
            "steps": self.step,
            "tokens": self.tokens,
            "batch_items": self.shape.batch_items,
            "mixture": self.shape.mixture,
            "emphasis": self.shape.emphasis,
            "learning_rate": self.shape.learning_rate,
            "embedding_rate": self.shape.embedding_rate,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "time_s": round(self.elapsed_s),
            **facts,
        }
        (folder / "training.json").write_text(json.dumps(training, indent=2) + "\n")


def _chunks(rows: Sequence[tuple[list[int], int]]) -> list[list[tuple[list[int], int]]]:
    """Rows sorted by length, cut so that a part padded to its longest row holds at most `_CHUNK_TOKENS`."""
    chunks: list[list[tuple[list[int], int]]] = [[]]
    for row in rows:
        if chunks[-1] and (len(chunks[-1]) + 1) * len(row[0]) > _CHUNK_TOKENS:
            chunks.append([])
        chunks[-1].append(row)
    return chunks


def train(trainer: Trainer, budget: Budget, folder: Path, checkpoint_every_s: float = 150) -> None:
    """Trains until the budget is used, saves a checkpoint every few minutes and at the end."""
    clock = time.process_time if trainer.device == "cpu" else time.monotonic
    validation = held_out_items(_VALIDATION_SEED, _VALIDATION_ITEMS)
    mark, saved_s, losses = clock(), trainer.elapsed_s, [0.0]
    while (progress := budget.progress(trainer.step, trainer.elapsed_s)) < 1:
        losses.append(trainer.train_step(rate_scale(trainer.step, progress)))
        now = clock()
        trainer.elapsed_s, mark = trainer.elapsed_s + now - mark, now
        if trainer.step % 50 == 0:
            rate = trainer.tokens / trainer.elapsed_s
            loss = sum(losses[-50:]) / len(losses[-50:])
            print(f"step {trainer.step} {progress:.0%} loss {loss:.4f} {rate:.0f} tokens/s", flush=True)
        if trainer.elapsed_s - saved_s > checkpoint_every_s:
            saved_s = trainer.elapsed_s
            trainer.save_checkpoint(folder)
            _report(trainer, trainer.validate(validation), details=False)
    trainer.save_checkpoint(folder)
    _report(trainer, trainer.validate(validation), details=True)


def _report(trainer: Trainer, scores: dict[str, float], details: bool) -> None:
    overall = " ".join(f"{name} {scores[name]:.3f}" for name in DIFFICULTIES)
    print(f"held out after {trainer.elapsed_s:.0f} s, step {trainer.step}: {overall}", flush=True)
    weak = {name: round(score, 2) for name, score in scores.items() if "/" in name and (details or score < 0.9)}
    print(f"  {weak}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and result")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--hours", type=float, default=3.0, help="training time; CPU time on a CPU")
    parser.add_argument("--steps", type=int, help="exactly so many steps, whatever the time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-items", type=int, help="conversations per step, if not the size's own number")
    parser.add_argument("--grow-from", type=Path, help="folder of a smaller trained model to begin with")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    import torch

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    shape = SHAPES[options.size]
    if options.batch_items:
        shape = replace(shape, batch_items=options.batch_items)
    trainer = Trainer(shape, options.seed, device)
    if options.grow_from and not options.resume:
        grow(trainer.model, options.grow_from)
    if options.resume:
        trainer.load_checkpoint(options.out)
    train(trainer, Budget(options.hours, options.steps), options.out)
    machine = f"{torch.get_num_threads()} core(s) of a CPU" if device == "cpu" else torch.cuda.get_device_name()
    grown_from = options.grow_from.name if options.grow_from else None
    trainer.export(options.out / f"demo-{options.size}", size=options.size, grown_from=grown_from, machine=machine)


if __name__ == "__main__":
    main()
