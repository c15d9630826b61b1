"""Which examples of a tenant are most like a question: by the cluster's encoder, else by the words in common."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from models.errors import SwitchyardError
from router.ports import Embedded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Embed = Callable[[Sequence[str], int | None], Awaitable[Embedded]]
"""`embeddings.EmbedderPort.embed`, of vectors of unit length."""

MOST_VECTORS = 8_000
"""Of examples, kept in a process: about 1.5 kB each."""
MOST_INDEXES = 16
"""Of the words of a tenant's examples, kept in a process: up to about a megabyte each."""
AT_ONCE = 32
"""Examples in a call of the encoder, which keeps others waiting for about 0.2 s on a core then."""
MAX_CHARS = 2_000
"""Of a text that is compared."""
_WORD = re.compile(r"\w+")


class Examples:
    """Finds them; the words of examples are made once, their vectors once by each encoder, which may be replaced while
    this process runs.

    wait_s: for vectors that are not there yet. They are made in the background, so what one request does not live to
    see another has.
    """

    def __init__(self, wait_s: float = 2.0) -> None:
        self._wait_s = wait_s
        self._vectors: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()  # by encoder and text
        self._encoder = ""  # whose vector was the last to come
        self._coming: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        self._indexes: OrderedDict[tuple[str, ...], asyncio.Task[_Words]] = OrderedDict()

    async def nearest(
        self, question: str, known: Sequence[str], count: int, embed: Embed | None
    ) -> tuple[list[int], str]:
        """The positions of the `count` of `known` that are most like `question`, the most alike last (next to the
        question), and by what they were found: `encoder` or `words`."""
        asked = question[:MAX_CHARS]
        if embed is not None:
            likeness = await self._by_meaning(asked, [text[:MAX_CHARS] for text in known], embed)
            if likeness is not None:
                return _best(likeness, count), "encoder"
        return _best((await self._words_of(tuple(known))).likeness(asked), count), "words"

    async def _by_meaning(self, asked: str, texts: Sequence[str], embed: Embed) -> list[float] | None:
        """None: the encoder has not all of the vectors, so the words in common have to do."""
        import numpy as np

        encoder, held = self._encoder, self._held(texts)  # taken now, since others may be evicted meanwhile
        if missing := [text for text in dict.fromkeys(texts) if text not in held]:
            await self._fetched(missing, embed)
            held = (held if self._encoder == encoder else {}) | self._held(texts)
            encoder = self._encoder
        if any(text not in held for text in texts):
            return None
        try:
            mine = await embed([asked], None)
        except SwitchyardError:
            return None
        if mine.encoder != encoder:
            self._encoder = mine.encoder  # who asks next has the examples read by this one
            return None
        rows = np.stack([held[text] for text in texts])
        found: list[float] = (rows @ np.frombuffer(mine.vectors[0], np.float32)).tolist()
        return found

    def _held(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        held = {text: self._vectors[self._encoder, text] for text in texts if (self._encoder, text) in self._vectors}
        for text in held:
            self._vectors.move_to_end((self._encoder, text))
        return held

    async def _fetched(self, missing: Sequence[str], embed: Embed) -> None:
        """Wait until the vectors are here, for `wait_s` at most."""
        fresh = [text for text in missing if text not in self._coming]
        if len(self._coming) + len(fresh) <= MOST_VECTORS:
            for start in range(0, len(fresh), AT_ONCE):
                some = fresh[start : start + AT_ONCE]
                task = asyncio.create_task(self._fetch(some, embed))
                self._coming |= dict.fromkeys(some, task)
        if tasks := {self._coming[text] for text in missing if text in self._coming}:
            await asyncio.wait(tasks, timeout=self._wait_s)

    async def _fetch(self, texts: Sequence[str], embed: Embed) -> None:
        import numpy as np

        try:
            async with self._turn:
                made = await embed(texts, None)
            self._encoder = made.encoder
            for text, vector in zip(texts, made.vectors, strict=True):
                self._vectors[made.encoder, text] = np.frombuffer(vector, np.float32)
            while len(self._vectors) > MOST_VECTORS:
                self._vectors.popitem(last=False)
        except SwitchyardError:
            pass  # who needs them next tries again
        finally:
            for text in texts:
                self._coming.pop(text, None)

    async def _words_of(self, known: tuple[str, ...]) -> _Words:
        """Made in another thread: for hundreds of long examples that takes a third of a second."""
        if known not in self._indexes:
            self._indexes[known] = asyncio.create_task(asyncio.to_thread(_Words, known))
            if len(self._indexes) > MOST_INDEXES:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(known)
        return await asyncio.shield(self._indexes[known])


class _Words:
    """Which examples have a word, and how much it tells."""

    def __init__(self, known: Sequence[str]) -> None:
        import numpy as np

        words = [frozenset(_WORD.findall(text[:MAX_CHARS].casefold())) for text in known]
        spread = Counter(word for each in words for word in each)
        self._weight = {word: math.log((1 + len(words)) / (1 + number)) + 0.1 for word, number in spread.items()}
        sizes = [math.sqrt(sum(self._weight[word] for word in each)) or 1.0 for each in words]
        having: dict[str, list[int]] = {word: [] for word in spread}
        for position, each in enumerate(words):
            for word in each:
                having[word].append(position)
        self._sizes = np.array(sizes)
        self._having = {word: np.array(positions, np.int32) for word, positions in having.items()}

    def likeness(self, asked: str) -> list[float]:
        """The share of the question's words in each example, by how rare they are among the examples."""
        import numpy as np

        found = np.zeros(len(self._sizes))
        for word in frozenset(_WORD.findall(asked.casefold())) & self._having.keys():
            found[self._having[word]] += self._weight[word]
        shares: list[float] = (found / self._sizes).tolist()
        return shares


def _best(likeness: Sequence[float], count: int) -> list[int]:
    ranked = sorted(range(len(likeness)), key=lambda position: (-likeness[position], position))
    return ranked[:count][::-1]
