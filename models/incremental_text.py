"""Text out of tokens, as early as it is certain: no half characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_WINDOW_TOKENS = 16


class IncrementalText:
    """Feed tokens with `push`; what it and a last `flush` return joins to the text up to the first of `stop`.

    `decode` gives the text of some tokens. Without a stop string the whole is `decode` of all tokens. Once `stopped`,
    by `stop_found`, nothing more comes.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._tokens: list[int] = []  # a window at the end, which begins where the text was whole
        self._whole = 0  # tokens of the window up to which it was whole last
        self._taken = 0  # characters of the window's text already taken
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stopped = False
        self.stop_found: str | None = None

    def push(self, tokens: Sequence[int]) -> str:
        return "" if self.stopped else self._release(self._text_of(tokens, final=False), final=False)

    def flush(self) -> str:
        return "" if self.stopped else self._release(self._text_of((), final=True), final=True)

    def _text_of(self, tokens: Sequence[int], final: bool) -> str:
        self._tokens.extend(tokens)
        text = self._decode(self._tokens)
        # An unfinished character shows as replacement marks, one or several. The decoder of sentencepiece also shows
        # the whole characters before it so, if all of them are spelt in bytes: they were taken before.
        sure = text if final else text.rstrip("\ufffd")
        new = sure[self._taken :]
        self._taken = max(self._taken, len(sure))
        if sure == text and tokens:
            if len(self._tokens) > _WINDOW_TOKENS:
                # The window keeps its last piece, since a decoder may write a word differently at the beginning.
                del self._tokens[: self._whole]
                self._taken = len(self._decode(self._tokens))
            self._whole = len(self._tokens)
        return new

    def _release(self, text: str, final: bool) -> str:
        """What of held and new text can be no part of a stop string."""
        if not self._stop:
            return text
        text = self._held + text
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            at, self.stop_found = min(found)
            return text[:at]
        keep = 0 if final else max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
