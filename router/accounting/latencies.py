"""How long requests took, as histograms that add up: percentiles of any time without reading its requests.

Buckets grow by a constant ratio, so a percentile is right to within 2 % of itself, whatever it is (the construction of
DDSketch: Masson et al., 2019).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    groups: int, kept: Sequence[tuple[int, bytes, int]], single: Sequence[tuple[int, float, int]]
) -> list[dict[str, float] | None]:
    """By group, of numbers from 0: `p50`, `p95` and `p99` in ms; None where nothing is known.

    kept: histograms, each with its group. single: times that are in none, each with its group. Both with 1, or with -1
    where they are to be taken off.
    """
    import numpy as np

    numbers, blobs, signs = zip(*kept, strict=True) if kept else ((), (), ())
    pairs, each = np.frombuffer(b"".join(blobs), "<u8"), np.array([len(blob) // 8 for blob in blobs], np.int64)
    others = np.array([(number, bucket_of(ms), sign) for number, ms, sign in single], np.int64).reshape(-1, 3)
    owners = np.concatenate((np.repeat(np.array(numbers, np.int64), each), others[:, 0]))
    buckets = np.concatenate(((pairs >> 32).astype(np.int64), others[:, 1]))
    counted = pairs & _COUNT
    if -1 in signs:
        counted = counted * np.repeat(np.array(signs, np.float64), each)
    weights = np.concatenate((counted, others[:, 2]))
    if not len(buckets):
        return [None] * groups
    first = int(buckets.min())  # most of the buckets are nobody's
    width = int(buckets.max()) - first + 1
    counts = np.bincount(owners * width + (buckets - first), weights, groups * width)
    return _read_off(counts.reshape(-1, width), first)


def _read_off(counts: NDArray[Any], first: int) -> list[dict[str, float] | None]:
    """`counts` of a group in each row, from the bucket `first` on, which are summed up in place."""
    import numpy as np

    numbers = range(first, first + counts.shape[1])
    shown = np.array([round(_LEAST_MS * math.exp(_LOG_RATIO * n) * (1 - ERROR), 3) for n in numbers])
    summed = counts.cumsum(axis=1, out=counts)
    total = summed[:, -1]
    names, found = [f"p{percent}" for percent in PERCENTILES], []
    for percent in PERCENTILES:
        rank = np.maximum(np.ceil(total * percent / 100), 1)
        found.append(shown[(summed >= rank[:, None]).argmax(axis=1)].tolist())
    return [
        dict(zip(names, values, strict=True)) if count > 0 else None
        for count, values in zip(total.tolist(), zip(*found, strict=True), strict=True)
    ]
