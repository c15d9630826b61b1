"""What the demo models get right of questions that they were trained on, for whoever learns to choose among them.

    python -m models.demo.outcomes --out DIR

writes DIR/demo-small.jsonl and so on, lines {"prompt": [messages], "good": 0 or 1}. The questions are of the training
side (their phrasings and operands), so that nothing is learned of what is held out; answers are greedy and graded by
each question's own grader.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from models.demo.dataset import balanced_items
from models.demo.evaluate import answer

SEED, PER_DIFFICULTY = 3000, 4000
_WEIGHTS = Path(__file__).with_name("weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--per-difficulty", type=int, default=PER_DIFFICULTY)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    items = balanced_items("train", options.seed, options.per_difficulty)
    options.out.mkdir(parents=True, exist_ok=True)
    for folder in sorted(path for path in _WEIGHTS.iterdir() if path.is_dir()):
        answered = answer(folder, items, options.device)
        lines = [json.dumps({"prompt": list(one.item.messages), "good": int(one.correct)}) for one in answered]
        (options.out / f"{folder.name}.jsonl").write_text("\n".join(lines) + "\n")
        print(f"{folder.name}: {sum(one.correct for one in answered) / len(answered):.1%} of {len(answered)} right")


if __name__ == "__main__":
    main()
