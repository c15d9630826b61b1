"""Where in a body the arguments of its tool calls stand, so that they go on byte for byte as they came."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from json.decoder import scanstring  # type: ignore[attr-defined]  # it is there, only not in typeshed

from models.errors import InvalidRequest

_SPACE = re.compile(r"[ \t\n\r]*")

Visit = Callable[[int], int]
"""Reads the value that begins at an index and gives the index behind it."""


class RawInputs:
    """`found`: the text of `input` of each block, by the numbers of its message and of the block in it.

    Reads valid JSON only, and every value once: what is not on the way to an `input` is skipped by the decoder in C.
    Raises `InvalidRequest` for NaN and the infinities, which Python takes for numbers and JSON does not, and for what
    Python refuses (integers of more than 4300 digits).
    """

    def __init__(self, text: str) -> None:
        self.found: dict[tuple[int, int], str] = {}
        self._text = text
        self._skip = json.JSONDecoder(parse_constant=_refused, strict=False).raw_decode
        try:
            self._object(self._space(0), {"messages": self._messages})
        except (ValueError, RecursionError):
            raise InvalidRequest("A number in 'messages' is too long, or values lie too deep in each other.") from None

    def _messages(self, at: int) -> int:
        self.found.clear()  # of two fields of one name the last one counts
        return self._array(at, lambda number, at: self._message(number, at))

    def _message(self, message: int, at: int) -> int:
        def blocks(at: int) -> int:
            for key in [key for key in self.found if key[0] == message]:
                del self.found[key]
            return self._array(at, lambda number, at: self._object(at, {"input": lambda at: keep(number, at)}))

        def keep(block: int, at: int) -> int:
            end = self._value(at)
            self.found[message, block] = self._text[at:end]
            return end

        return self._object(at, {"content": blocks})

    def _value(self, at: int) -> int:
        return self._skip(self._text, at)[1]

    def _object(self, at: int, fields: dict[str, Visit]) -> int:
        """Past the object at `at`. Its `fields` are visited; of another kind of value at `at` there are none."""
        text = self._text
        if text[at] != "{":
            return self._value(at)
        at = self._space(at + 1)
        while text[at] != "}":
            name, at = scanstring(text, at + 1, False)
            at = self._space(self._space(at) + 1)  # the colon
            at = self._space(fields.get(name, self._value)(at))
            if text[at] == ",":
                at = self._space(at + 1)
        return at + 1

    def _array(self, at: int, visit: Callable[[int, int], int]) -> int:
        text = self._text
        if text[at] != "[":
            return self._value(at)
        at, number = self._space(at + 1), 0
        while text[at] != "]":
            at = self._space(visit(number, at))
            if text[at] == ",":
                at = self._space(at + 1)
            number += 1
        return at + 1

    def _space(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        return found.end() if found else at


def _refused(constant: str) -> float:
    raise InvalidRequest(f"{constant} is not JSON; a number must be finite.", "messages")
