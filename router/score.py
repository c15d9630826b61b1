"""Scores a file of prompts with the learned classifier.

    python -m router.score IN OUT

IN has JSON lines {"id", "prompt"}, OUT gets {"id", "score"} in the same order; a score in [0, 1],
higher: the prompt needs a large model more. A prompt is a text, or a list of messages {"role", "content"} as in the
chat API."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from models.messages import Message, TextPart
from router.settings import ClassifierSettings
from router.strategies import STRATEGIES


def main(argv: Sequence[str]) -> int:
    """0 when done, 1 when a file cannot be read or written, 2 for a wrong command line."""
    if len(argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    strategy = STRATEGIES["learned"](ClassifierSettings())
    try:
        with open(argv[0], encoding="utf-8") as asked, open(argv[1], "w", encoding="utf-8") as told:
            for number, line in enumerate(asked, 1):
                if line.strip():
                    name, messages = _read(line, f"{argv[0]}:{number}")
                    told.write(json.dumps({"id": name, "score": strategy.assess(messages).score}) + "\n")
    except (OSError, ValueError) as error:
        print(f"router.score: {error}", file=sys.stderr)
        return 1
    return 0


def _read(line: str, where: str) -> tuple[Any, list[Message]]:
    try:
        row = json.loads(line)
        prompt = row["prompt"]
        if isinstance(prompt, str):
            return row["id"], [Message("user", (TextPart(prompt),))]
        return row["id"], [Message(turn["role"], (TextPart(str(turn["content"])),)) for turn in prompt]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{where}: not like {{"id": 1, "prompt": "text"}}: {error}') from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
