"""Gradient-boosted trees, read from a safetensors file and evaluated by numpy alone: no pickle, no compiled runtime.

Training is scikit-learn's (`HistGradientBoostingClassifier` or `...Regressor`, one output); `from_sklearn` copies what
it grew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "switchyard-trees-1"
_ARRAYS = ("feature", "threshold", "left", "right", "missing_left", "value")


@dataclass(frozen=True, slots=True)
class Trees:
    """A sum of decision trees over named features. Arrays are of shape [trees, nodes]; a leaf is its own child."""

    features: tuple[str, ...]
    baseline: float
    depth: int
    feature: np.ndarray[Any, Any]  # int32
    threshold: np.ndarray[Any, Any]  # float64; go left when the value is not above it
    left: np.ndarray[Any, Any]  # int32
    right: np.ndarray[Any, Any]  # int32
    missing_left: np.ndarray[Any, Any]  # bool; where NaN goes
    value: np.ndarray[Any, Any]  # float32; what a leaf adds

    def raw(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The sum of all trees for `rows` of shape [n, features]; for a classifier these are log odds, shape [n].

        Raises ValueError for another number of features."""
        if rows.ndim != 2 or rows.shape[1] != len(self.features):
            raise ValueError(f"rows of {len(self.features)} features wanted, shape {rows.shape} given")
        # Nodes of all trees under one number, and `take`: a third of the time of indexing with two arrays.
        trees, nodes = self.feature.shape
        first = np.arange(0, trees * nodes, nodes)[None, :]
        at = np.repeat(first, rows.shape[0], axis=0)
        cells, of_row = np.ascontiguousarray(rows).ravel(), np.arange(0, rows.size, rows.shape[1])[:, None]
        missing = np.isnan(cells).any()
        for _ in range(self.depth):
            value = cells.take(self.feature.take(at) + of_row)
            goes_left = value <= self.threshold.take(at)
            if missing:
                goes_left |= np.isnan(value) & self.missing_left.take(at)
            at = np.where(goes_left, self.left.take(at), self.right.take(at)) + first
        sums: np.ndarray[Any, Any] = self.value.take(at).sum(axis=1, dtype=np.float64) + self.baseline
        return sums

    def probability(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Of the positive class, for trees of a classifier; shape [n], in (0, 1)."""
        odds: np.ndarray[Any, Any] = 1.0 / (1.0 + np.exp(-np.clip(self.raw(rows), -60, 60)))
        return odds

    def save(self, path: Path, about: dict[str, str] | None = None) -> None:
        """`about` goes into the file's header beside what is needed to read it."""
        from safetensors.numpy import save_file

        head = {"format": FORMAT, "features": json.dumps(self.features), "baseline": repr(self.baseline)}
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        save_file(arrays, path, metadata={**(about or {}), **head, "depth": str(self.depth)})


def load(path: Path) -> Trees:
    """Raises ValueError, which names the file, for one that is missing, damaged, or of another format."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            head = file.metadata() or {}
            if head.get("format") != FORMAT:
                raise ValueError(f"{path} is no {FORMAT} file")
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
        trees = Trees(tuple(json.loads(head["features"])), float(head["baseline"]), int(head["depth"]), **arrays)
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"{path} can't be read as {FORMAT}: {error}") from error
    _check(trees, path)
    return trees


def _check(trees: Trees, path: Path) -> None:
    shape = trees.feature.shape
    nodes = shape[1] if len(shape) == 2 else 0
    sound = nodes > 0 and all(getattr(trees, name).shape == shape for name in _ARRAYS)
    for name, below in (("left", nodes), ("right", nodes), ("feature", len(trees.features))):
        index = getattr(trees, name)
        sound = sound and index.min() >= 0 and index.max() < below
    if not sound or not np.isfinite(trees.value).all():
        raise ValueError(f"{path} is damaged: its trees point outside themselves. Install the project again")


def from_sklearn(model: Any, features: tuple[str, ...]) -> Trees:
    """The trees of a fitted `HistGradientBoosting*` model without categorical features."""
    grown = [iteration[0].nodes for iteration in model._predictors]
    size = max(len(nodes) for nodes in grown)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "feature": np.zeros((len(grown), size), np.int32),
        "threshold": np.zeros((len(grown), size), np.float64),
        "left": np.tile(np.arange(size, dtype=np.int32), (len(grown), 1)),
        "right": np.tile(np.arange(size, dtype=np.int32), (len(grown), 1)),
        "missing_left": np.zeros((len(grown), size), np.bool_),
        "value": np.zeros((len(grown), size), np.float32),
    }
    for row, nodes in enumerate(grown):
        inner = np.flatnonzero(nodes["is_leaf"] == 0)
        arrays["feature"][row, inner] = nodes["feature_idx"][inner]
        arrays["threshold"][row, inner] = nodes["num_threshold"][inner]
        arrays["left"][row, inner] = nodes["left"][inner]
        arrays["right"][row, inner] = nodes["right"][inner]
        arrays["missing_left"][row, inner] = nodes["missing_go_to_left"][inner].astype(bool)
        arrays["value"][row, : len(nodes)] = nodes["value"]
    depth = max(int(nodes["depth"].max()) for nodes in grown)
    return Trees(features, float(np.ravel(model._baseline_prediction)[0]), depth, **arrays)
