"""Which stored answer may answer a request: the same question, asked by the same tenant.

`exact` is a digest of the whole request. `scope` is a digest of everything but the text of the last user turn; only
requests of one scope are compared by meaning. Both digest Python's `repr` of the frozen request, which is one-to-one
for dataclasses of plain values (strings are quoted and escaped, nothing is joined) and takes in a new field of
`ChatRequest` without being told. The tenant is a field of its own, so no text can reach over into another partition.

Whether a similar question may answer takes as long to say as the digests, so it is asked when the exact cache missed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from hashlib import blake2b
from operator import attrgetter
from typing import Any

from models.messages import ChatRequest, ImagePart, Message, TextPart
from router.ports import CacheKey
from router.question import bare
from router.settings import IngressSettings

MAX_SIMILAR_CHARS = 4096
"""A longer last turn is not compared by meaning: it would take the encoder too long. The encoder checks the exact
number of word pieces."""

_CODE = re.compile(r"[`{}\[\]<>=+*/\\|^~#@_]|\n\s+\S|--|::|->|\d[%°‰$]|\w\(|[A-Za-z]\.[A-Za-z]|\d!")
"""What looks like code or a formula: there case, spaces and marks may count."""

_TIME_SENSITIVE = re.compile(
    r"\b(?:today|tonight|tomorrow|yesterday|now|nowadays|currently|current|recent|recently|latest|newest|breaking|upcoming"
    r"|so far|these days|at the moment|right away|up[- ]to[- ]date|as of|what time|what day|which day|what date"
    r"|(?:this|last|next|past|coming) (?:\w+ )?(?:second|minute|hour|day|week|weekend|month|quarter|year|season|monday"
    r"|tuesday|wednesday|thursday|friday|saturday|sunday|morning|afternoon|evening|night|spring|summer|autumn|fall|winter)s?"
    r"|(?:days?|weeks?|months?|years?|hours?|minutes?) ago"
    r"|heute|gestern|morgen|jetzt|aktuell\w*|neueste\w*|aujourd'hui|hier|demain|maintenant|actuel\w*"
    r"|hoy|ayer|mañana|ahora|actual\w*|oggi|ieri|domani|adesso|attual\w*|hoje|ontem|amanhã|agora|vandaag|gisteren|nu)\b",
    re.IGNORECASE,
)


def _fields_besides(kind: type, *names: str) -> Callable[[Any], tuple[object, ...]]:
    return attrgetter(*(field.name for field in fields(kind) if field.name not in names))


_besides_messages = _fields_besides(ChatRequest, "messages", "user", "prompt_cache_key", "safety_identifier")
_besides_parts = _fields_besides(Message, "parts")


class Fingerprint:
    """Of one request of one tenant. `exact` is the key of this very question, closed to similar ones."""

    def __init__(self, request: ChatRequest, tenant: str, wish: str = "", circle: str = "") -> None:
        self._request = request
        whose = (tenant, wish) if wish else (tenant,)
        last = request.messages[-1] if request.messages else None
        self._last = last if last is not None and _plain_user_turn(last) else None
        if self._last is None:
            self._rest, parts = _Digest(*whose, repr((_besides_messages(request), request.messages))), None
        else:
            rest = (_besides_messages(request), request.messages[:-1], _besides_parts(self._last))
            self._rest, parts = _Digest(*whose, repr(rest)), self._last.parts
        self.exact = CacheKey(tenant, self._rest.of("question", repr(parts)), circle=circle)

    def key(self, settings: IngressSettings) -> CacheKey:
        """The key, opened to similar questions where one of them may answer."""
        last = self._last
        if last is None or not settings.semantic_cache or not _similar_may_answer(self._request, settings):
            return self.exact
        spelling = one_spelling(last.text)
        key = self.exact if spelling is None else replace(self.exact, surface=self._rest.of("surface", spelling))
        if not last.text.strip() or len(last.text) > MAX_SIMILAR_CHARS or time_sensitive(last.text):
            return key
        return replace(key, scope=self._rest.of("scope"), text=last.text)


def fingerprint(
    request: ChatRequest, org: str, namespace: str, settings: IngressSettings, wish: str = "", circle: str = ""
) -> Fingerprint | None:
    """None: an answer to this is neither looked up nor stored. wish: what is asked of the model, which is a part of
    the question. circle: see `CacheKey`."""
    return Fingerprint(request, partition(org, namespace), wish, circle) if _cacheable(request, settings) else None


def circle_of(models: Sequence[str]) -> str:
    """Of those who may use these models."""
    return _Digest("circle").of(*sorted(models))[:16]


def partition(org: str, namespace: str) -> str:
    """The `tenant` of the cache's keys: no other org or namespace has the same."""
    return f"{len(org)}:{org}/{namespace}"


def parts_of(tenant: str) -> tuple[str, str]:
    """Organisation and namespace of a `partition`."""
    length, _, rest = tenant.partition(":")
    return rest[: int(length)], rest[int(length) + 1 :]


class _Digest:
    """BLAKE2b over fields, each preceded by its length in bytes. What several digests begin with is hashed once."""

    def __init__(self, *fields: str) -> None:
        self._hash = blake2b(digest_size=32)
        self._add(fields)

    def of(self, *fields: str) -> str:
        """256 bits in hex over the first fields and then `fields`."""
        longer = _Digest()
        longer._hash = self._hash.copy()
        longer._add(fields)
        return longer._hash.hexdigest()

    def _add(self, fields: tuple[str, ...]) -> None:
        for field in fields:
            data = field.encode("utf-8", "surrogatepass")
            self._hash.update(len(data).to_bytes(8, "big"))
            self._hash.update(data)


def _cacheable(request: ChatRequest, settings: IngressSettings) -> bool:
    """An explicit high temperature asks for variety, and what an address shows may change."""
    if request.sampling.temperature is not None and request.sampling.temperature > settings.exact_cache.max_temperature:
        return False
    return not any(
        isinstance(part, ImagePart) and part.url[:5].lower() != "data:"
        for message in request.messages
        for part in message.parts
    )


def _plain_user_turn(message: Message) -> bool:
    return message.role == "user" and all(isinstance(part, TextPart) for part in message.parts)


def _similar_may_answer(request: ChatRequest, settings: IngressSettings) -> bool:
    sampling = request.sampling
    temperature = sampling.temperature
    return not (
        request.tools
        or request.raw_prompt  # goes on word for word
        or any(message.tool_calls or message.role == "tool" for message in request.messages)
        or request.has_images
        or sampling.n > 1
        or sampling.seed is not None
        or sampling.top_logprobs is not None  # those of another prompt would be untrue
        or (temperature is not None and temperature > settings.semantic_max_temperature)
    )


def one_spelling(text: str) -> str | None:
    """`text` without what does not change a question: case, runs of spaces, a greeting, a closing mark. None where it
    has code, in which all of that may count, or nothing is left."""
    if _CODE.search(text):
        return None
    plain = " ".join(bare(text).split())
    return plain.rstrip("?.! ").casefold() or None


def time_sensitive(text: str, year: int | None = None) -> bool:
    """Whether the answer depends on when it is asked. `year` is the present one unless given."""
    year = year or time.gmtime().tm_year
    return bool(_TIME_SENSITIVE.search(text)) or any(str(y) in text for y in (year, year + 1))
