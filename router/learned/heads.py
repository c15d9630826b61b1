"""What is known of one model's own answers: the chance that it answers a prompt well, fitted on outcomes of that very
model (`fitting`). Of a prompt unlike all of those it says nothing, and the model is placed as any other is.

A logistic regression on hashed words and pairs of words (`hashing.asked_terms`), in one file of safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import models
from router.learned.hashing import Sparse
from router.learned.model import Array, digest_of, read_arrays

FORMAT = "switchyard-head-1"
_DEMO = Path(models.__file__).parent / "demo" / "heads"


@dataclass(frozen=True, slots=True)
class Head:
    """weights: [2^k], with `at_zero`: log odds of a good answer, of terms at unit length. seen: [2^m] bits, which terms
    the outcomes had; least_seen: the share of a prompt's terms that has to be among them. about: what its maker wrote
    of the outcomes. version: a digest of the numbers."""

    weights: Array
    at_zero: float
    seen: Array
    least_seen: float
    version: str
    about: Mapping[str, Any]

    def known(self, terms: Sparse) -> float:
        """Share of its terms that outcomes had, in [0, 1]."""
        places = terms[0]
        return float(self.seen[places & (len(self.seen) - 1)].mean()) if len(places) else 0.0

    def chance(self, terms: Sparse) -> float | None:
        """Of a good answer, in (0, 1); None for a prompt unlike those that it was fitted on."""
        if self.known(terms) < self.least_seen:
            return None
        return float(1 / (1 + np.exp(-np.clip(self.log_odds(terms), -30, 30))))

    def log_odds(self, terms: Sparse) -> float:
        places, values = terms
        length = float(np.sqrt((values * values).sum())) or 1.0
        return float((values / length) @ self.weights[places & (len(self.weights) - 1)]) + self.at_zero

    def save(self, path: Path) -> None:
        from safetensors.numpy import save

        arrays = {
            "weights": self.weights.astype(np.float16),
            "at_zero": np.array([self.at_zero]),
            "seen": np.packbits(self.seen),
            "least_seen": np.array([self.least_seen]),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"format": FORMAT, "digest": digest_of(arrays), "about": json.dumps(dict(self.about), sort_keys=True)}
        path.write_bytes(save(arrays, metadata=head))


def load_head(named: str) -> Head:
    """`named`: a path, or one of those in the package ("demo:small"). Raises ValueError, which names the file, for one
    that is missing, damaged or of another format."""
    path = _DEMO / f"{named.replace(':', '-')}.safetensors" if named.startswith("demo:") else Path(named).expanduser()
    arrays, head = read_arrays(path, FORMAT)
    try:
        weights, seen = arrays["weights"].astype(np.float64), np.unpackbits(arrays["seen"])
        found = Head(
            weights,
            float(arrays["at_zero"][0]),
            seen,
            float(arrays["least_seen"][0]),
            head["digest"][:8],
            json.loads(head["about"]),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no {FORMAT} file: {error}") from error
    sizes = (len(weights), len(seen))
    if weights.ndim != 1 or any(size == 0 or size & (size - 1) for size in sizes) or not np.isfinite(weights).all():
        raise ValueError(f"{path} is no {FORMAT} file: its tables are of sizes that cannot be")
    return found
