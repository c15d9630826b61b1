"""Ids of tool calls as a provider takes them.

An id only pairs a call with its result. Each provider makes its own kind, and some refuse those of others, so a
conversation that goes on with another model would break at its first tool call.
"""

from __future__ import annotations

import re
import string
from hashlib import blake2b

_ALPHABET = string.digits + string.ascii_letters
_LENGTH = 9


def fitting(identifier: str, taken: re.Pattern[str] | None) -> str:
    """`identifier`, where all of it matches what is `taken` (None: anything is), else nine letters and digits made of
    its digest, which every known provider takes.

    The same id always becomes the same one, so call and result stay a pair and a provider's cache of the prompt holds.
    Two ids become the same one with a chance of 1 in 10^16 (62^9).
    """
    if taken is None or taken.fullmatch(identifier):
        return identifier
    left = int.from_bytes(blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=16).digest(), "big")
    letters = []
    for _ in range(_LENGTH):
        left, place = divmod(left, len(_ALPHABET))
        letters.append(_ALPHABET[place])
    return "".join(letters)
