"""Whether two answers say the same, as far as that can be seen without a judge: for the cache's audits."""

from __future__ import annotations

import re
from collections import Counter

from router.ports import CachedAnswer

SAME_SHARE, OTHER_SHARE = 0.6, 0.25
"""Shares of words in common (F1) from which two answers with the same numbers agree, below which they do not."""

_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def agree(a: CachedAnswer, b: CachedAnswer) -> bool | None:
    """None where it cannot be said. Answers that only differ in wording share most words and all numbers; models that
    sample write the same thing in many ways, so the middle is left open instead of being guessed."""
    if a.completion.tool_calls or b.completion.tool_calls:
        return a.completion.tool_calls == b.completion.tool_calls
    words_a, words_b = (Counter(_WORD.findall(each.completion.text.lower())) for each in (a, b))
    if words_a == words_b:
        return True
    shared = 2 * (words_a & words_b).total() / max(1, words_a.total() + words_b.total())
    numbers_a, numbers_b = ({word for word in words if _NUMBER.fullmatch(word)} for words in (words_a, words_b))
    if numbers_a != numbers_b and not (numbers_a & numbers_b):
        return False
    if shared >= SAME_SHARE and numbers_a == numbers_b:
        return True
    return False if shared < OTHER_SHARE else None
