"""Labelled answers in a file: what was asked, and how good the answer was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.errors import InvalidRequest
from models.messages import Message, TextPart

Labelled = tuple[tuple[Message, ...], float]


def labelled(path: Path) -> list[Labelled]:
    """Of JSON lines `{"prompt", "good"}`: good in [0, 1], or true and false; a prompt is a text, or a list of messages
    `{"role", "content"}`. Raises `InvalidRequest`, which names the line."""
    found = []
    for number, line in _lines(path):
        try:
            entry = json.loads(line)
            messages, good = conversation(entry["prompt"]), float(entry["good"])
            if not 0 <= good <= 1:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise InvalidRequest(
                f'Line {number} of {path} is not like {{"prompt": "...", "good": 1}}, with \'good\' from 0 to 1.'
            ) from None
        found.append((messages, good))
    return found


def prompts_by_request(path: Path) -> dict[str, tuple[Message, ...]]:
    """Of JSON lines `{"id", "prompt"}`: the id of a request. Raises `InvalidRequest`, which names the line."""
    found = {}
    for number, line in _lines(path):
        try:
            entry = json.loads(line)
            found[str(entry["id"])] = conversation(entry["prompt"])
        except (ValueError, KeyError, TypeError):
            raise InvalidRequest(f'Line {number} of {path} is not like {{"id": "req_...", "prompt": "..."}}.') from None
    return found


def conversation(prompt: Any) -> tuple[Message, ...]:
    """Raises KeyError, TypeError or ValueError for what is no prompt."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = []
    for turn in turns:
        if not isinstance(turn["content"], str) or turn["role"] not in ("system", "developer", "user", "assistant"):
            raise ValueError
        messages.append(Message(turn["role"], (TextPart(turn["content"]),)))
    if not messages:
        raise ValueError
    return tuple(messages)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON may have other ends of lines within a text
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRequest(f"{path} cannot be read ({why}).") from None
    yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
