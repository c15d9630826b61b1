"""A stored answer as it lies in memory and on disk: a tenth of what its events take as objects.

An event of one token takes about 150 bytes as an object and 10 in JSON. Opened, an answer of 200 tokens takes 0.2 ms,
which is less than its way over a hop.
"""

from __future__ import annotations

import json
import sys
import zlib
from dataclasses import dataclass

from router.cache_lines import back, plain
from router.ports import CachedAnswer

_COMPRESS_FROM_BYTES = 512


@dataclass(slots=True)
class PackedAnswer:
    """A `CachedAnswer` whose usage and events are JSON in `body`, compressed where that pays."""

    answer_id: str
    model: str
    cost_microusd: int
    created_at_unix_s: float
    ttl_s: float
    tags: tuple[str, ...]
    opened_at_unix_s: float
    body: bytes
    version: str = ""

    @classmethod
    def of(cls, answer: CachedAnswer) -> PackedAnswer:
        body = json.dumps([plain(answer.usage), [plain(event) for event in answer.events]], separators=(",", ":"))
        data = body.encode()
        return cls(
            answer.answer_id,
            sys.intern(answer.model),
            answer.cost_microusd,
            answer.created_at_unix_s,
            answer.ttl_s,
            answer.tags,
            answer.opened_at_unix_s,
            zlib.compress(data, 1) if len(data) >= _COMPRESS_FROM_BYTES else data,
            sys.intern(answer.version),
        )

    def opened(self) -> CachedAnswer:
        """Raises KeyError or TypeError for what another version of this packed."""
        body = self.body if self.body.startswith(b"[") else zlib.decompress(self.body)
        usage, events = json.loads(body)
        return CachedAnswer(
            self.answer_id,
            self.model,
            tuple(map(back, events)),
            back(usage),
            self.cost_microusd,
            self.created_at_unix_s,
            self.ttl_s,
            self.tags,
            self.opened_at_unix_s,
            self.version,
        )
