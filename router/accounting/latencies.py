"""How long requests took, as histograms that add up: percentiles of any time without reading its requests.

Buckets grow by a constant ratio, so a percentile is right to within 2 % of itself, whatever it is (the construction of
DDSketch: Masson et al., 2019).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ERROR = 0.02
BUCKETS = 600
"""From 0.01 ms to 3 days."""
PERCENTILES = (50, 95, 99)
_LEAST_MS = 0.01
_LOG_RATIO = math.log((1 + ERROR) / (1 - ERROR))
_COUNT = 2**32 - 1


def bucket_of(ms: float) -> int:
    if not ms > _LEAST_MS:  # a time that is no number too
        return 0
    return min(BUCKETS - 1, math.ceil(math.log(ms / _LEAST_MS) / _LOG_RATIO)) if math.isfinite(ms) else BUCKETS - 1


def packed(counts: Mapping[int, int]) -> bytes:
    """As they are kept: 8 bytes (little-endian) for each bucket, its number in the upper half, its count below."""
    return array("Q", [bucket << 32 | count for bucket, count in counts.items() if count > 0]).tobytes()


def unpacked(data: bytes) -> dict[int, int]:
    pairs = array("Q")
    pairs.frombytes(data)
    return {pair >> 32: pair & _COUNT for pair in pairs}


def percentiles(
    groups: int, kept: Iterable[tuple[int, bytes]], single: Iterable[tuple[int, float]]
) -> list[dict[str, float] | None]:
    """By group, of numbers from 0: `p50`, `p95` and `p99` in ms; None where nothing is known.

    kept: histograms, each with its group. single: times that are in none, each with its group.
    """
    import numpy as np

    counts = np.zeros((max(1, groups), BUCKETS))
    numbers, blobs = [], []
    for number, blob in kept:
        numbers.append((number, len(blob) // 8))
        blobs.append(blob)
    if numbers:
        pairs = np.frombuffer(b"".join(blobs), "<u8")
        owner = np.repeat(np.array([n for n, _ in numbers]), np.array([length for _, length in numbers]))
        np.add.at(counts, (owner, (pairs >> 32).astype(np.int64)), pairs & _COUNT)
    for number, ms in single:
        counts[number, bucket_of(ms)] += 1
    return _read_off(counts)[:groups]


def _read_off(counts: NDArray[np.float64]) -> list[dict[str, float] | None]:
    import numpy as np

    middle = _LEAST_MS * np.exp(_LOG_RATIO * np.arange(BUCKETS)) * (1 - ERROR)
    summed = counts.cumsum(axis=1)
    total = summed[:, -1]
    found: dict[str, Any] = {}
    for percent in PERCENTILES:
        rank = np.maximum(np.ceil(total * percent / 100), 1)
        found[f"p{percent}"] = middle[(summed >= rank[:, None]).argmax(axis=1)]
    return [
        {name: round(float(values[row]), 3) for name, values in found.items()} if total[row] else None
        for row in range(len(total))
    ]
