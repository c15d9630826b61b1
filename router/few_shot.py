"""Which examples of a tenant are most like a question: by the cluster's encoder, else by the words in common."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from models.errors import SwitchyardError

Embed = Callable[[Sequence[str], int | None], Awaitable[tuple[list[bytes], int]]]
"""`embeddings.EmbedderPort.embed`, of vectors of unit length."""

MOST_VECTORS = 2_000
"""Of examples, kept in a process: about 1.5 kB each."""
MAX_CHARS = 2_000
"""Of a text that is compared."""
_WORD = re.compile(r"\w+")


class Examples:
    """Finds them; the vectors of examples are made once."""

    def __init__(self) -> None:
        self._vectors: OrderedDict[str, array[float]] = OrderedDict()

    async def nearest(
        self, question: str, known: Sequence[str], count: int, embed: Embed | None
    ) -> tuple[list[int], str]:
        """The positions of the `count` of `known` that are most like `question`, the most alike last (next to the
        question), and by what they were found: `encoder` or `words`."""
        asked, texts = question[:MAX_CHARS], [text[:MAX_CHARS] for text in known]
        if embed is not None:
            try:
                return _best(await self._by_meaning(asked, texts, embed), count), "encoder"
            except SwitchyardError:
                pass  # without it the words in common have to do
        return _best(_by_words(asked, texts), count), "words"

    async def _by_meaning(self, asked: str, texts: Sequence[str], embed: Embed) -> list[float]:
        missing = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        vectors, _ = await embed([asked, *missing], None)
        made = [array("f", vector) for vector in vectors]
        fresh = dict(zip(missing, made[1:], strict=True))
        found = [self._vectors.get(text) or fresh[text] for text in texts]
        self._vectors.update(fresh)
        for text in texts:
            if text in self._vectors:
                self._vectors.move_to_end(text)
        while len(self._vectors) > MOST_VECTORS:
            self._vectors.popitem(last=False)
        return [math.fsum(map(float.__mul__, made[0], vector)) for vector in found]


def _by_words(asked: str, texts: Sequence[str]) -> list[float]:
    """The share of the question's words, by how rare they are among the examples."""
    words = [frozenset(_WORD.findall(text.casefold())) for text in texts]
    spread = Counter(word for each in words for word in each)
    weight = {word: math.log((1 + len(texts)) / (1 + number)) + 0.1 for word, number in spread.items()}
    mine = frozenset(_WORD.findall(asked.casefold()))
    sizes = [math.sqrt(sum(weight[word] for word in each)) or 1.0 for each in words]
    return [sum(weight[word] for word in mine & each) / size for each, size in zip(words, sizes, strict=True)]


def _best(likeness: Sequence[float], count: int) -> list[int]:
    ranked = sorted(range(len(likeness)), key=lambda position: (-likeness[position], position))
    return ranked[:count][::-1]
