"""Gradient-boosted trees, read from a safetensors file and evaluated by numpy alone: no pickle, no compiled runtime.

Training is scikit-learn's (`HistGradientBoostingClassifier` or `...Regressor`, one output); `from_sklearn` copies what
it grew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "switchyard-trees-1"
MAX_LEAVES = 64
"""Of a tree: what still can be reached is one number."""

_CELLS = 4_000_000
"""Of memory for rows that are evaluated at once: rows by features by trees."""

_ARRAYS = ("feature", "threshold", "left", "right", "missing_left", "value")


@dataclass(frozen=True, slots=True)
class _Masks:
    """All splits of all trees as sets of leaves that can still be reached, one bit each, from the left (QuickScorer:
    Lucchese et al. 2015, https://doi.org/10.1145/2766462.2767733). What a row's value rules out in every tree is known
    by its place among the feature's thresholds; what is left when all features are asked is the leaf. So a row costs
    a search and one `and` for each feature, however deep the trees are.
    """

    used: np.ndarray[Any, Any]  # [used]; the features that are split on
    thresholds: np.ndarray[Any, Any]  # complex, in order: a place in `used`, and a threshold of that feature
    left: np.ndarray[Any, Any]  # [thresholds + 2 used, trees]; by place among the thresholds, then for NaN
    values: np.ndarray[Any, Any]  # [trees * leaves], float32
    first: np.ndarray[Any, Any]  # [trees]; of each tree's in `values`

    def leaves(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What each tree adds, shape [n, trees]."""
        cells = rows.take(self.used, axis=1)
        feature = np.arange(len(self.used))
        keys = np.empty(cells.shape, np.complex128)
        keys.real, keys.imag = feature, cells
        place = self.thresholds.searchsorted(keys) + feature  # the number of thresholds below; equal ones go left
        missing = np.isnan(cells)
        if missing.any():
            place = np.where(missing, len(self.thresholds) + len(self.used) + feature, place)
        found = np.bitwise_and.reduce(self.left.take(place, axis=0), axis=1)
        at: np.ndarray[Any, Any] = self.values.take(np.bitwise_count((found - 1) & ~found) + self.first)
        return at


@dataclass(frozen=True)
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
        masks = self._masks
        some = max(1, _CELLS // (max(1, len(masks.used)) * len(masks.first)))
        parts = [masks.leaves(rows[start : start + some]) for start in range(0, len(rows), some)]
        added = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.zeros((0, 1))])
        sums: np.ndarray[Any, Any] = added.sum(axis=1, dtype=np.float64) + self.baseline
        return sums

    def probability(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Of the positive class, for trees of a classifier; shape [n], in (0, 1)."""
        odds: np.ndarray[Any, Any] = 1.0 / (1.0 + np.exp(-np.clip(self.raw(rows), -60, 60)))
        return odds

    @cached_property
    def _masks(self) -> _Masks:
        """Raises ValueError for trees that are none, or have more than `MAX_LEAVES`."""
        walked = [_walked(left, right) for left, right in zip(self.left, self.right, strict=True)]
        size = max(len(leaves) for leaves, _ in walked)
        values = np.zeros((len(walked), size), np.float32)
        splits = []
        for row, (leaves, inner) in enumerate(walked):
            values[row, : len(leaves)] = self.value[row, leaves]
            splits += [(row, at, (1 << last) - (1 << first)) for at, first, last in inner]
        tree, node = (np.array([each[part] for each in splits], np.intp) for part in (0, 1))
        used, place = np.unique(self.feature[tree, node], return_inverse=True)
        keys = np.empty(len(splits), np.complex128)
        keys.real, keys.imag = place, self.threshold[tree, node]
        thresholds, above = np.unique(keys, return_inverse=True)

        kind = np.dtype(f"u{next(bytes_ for bytes_ in (2, 4, 8) if size <= 8 * bytes_)}")
        kept = ~np.array([each[2] for each in splits], np.uint64).astype(kind)
        steps = np.full((len(thresholds) + 2 * len(used), len(walked)), np.iinfo(kind).max, kind)
        np.bitwise_and.at(steps, (above + place + 1, tree), kept)
        begin = np.searchsorted(thresholds.real, np.arange(len(used) + 1)) + np.arange(len(used) + 1)
        for start, end in pairwise(begin.tolist()):  # a value above a threshold is above all that are lower
            np.bitwise_and.accumulate(steps[start:end], axis=0, out=steps[start:end])
        right = ~self.missing_left[tree, node]
        np.bitwise_and.at(steps, (begin[-1] + place[right], tree[right]), kept[right])
        return _Masks(used, thresholds, steps, values.ravel(), np.arange(0, values.size, size))

    def save(self, path: Path, about: dict[str, str] | None = None) -> None:
        """`about` goes into the file's header beside what is needed to read it."""
        from safetensors.numpy import save_file

        head = {"format": FORMAT, "features": json.dumps(self.features), "baseline": repr(self.baseline)}
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        save_file(arrays, path, metadata={**(about or {}), **head, "depth": str(self.depth)})


def _walked(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> tuple[list[int], list[tuple[int, int, int]]]:
    """The leaves of one tree from the left, and its splits: the node, the first leaf on its left side and the first on
    its right. Raises ValueError for more than `MAX_LEAVES`, and where a node is reached twice."""
    leaves: list[int] = []
    inner: list[tuple[int, int, int]] = []
    seen: set[int] = set()

    def walk(node: int) -> None:
        if node in seen or len(seen) > 2 * MAX_LEAVES:
            raise ValueError(f"a tree of more than {MAX_LEAVES} leaves, or one that is none")
        seen.add(node)
        if left[node] == node:
            leaves.append(node)
            return
        first = len(leaves)
        walk(int(left[node]))
        inner.append((node, first, len(leaves)))
        walk(int(right[node]))

    walk(0)
    if len(leaves) > MAX_LEAVES:
        raise ValueError(f"a tree of more than {MAX_LEAVES} leaves")
    return leaves, inner


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
    try:
        trees._masks  # noqa: B018
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Install the project again") from error


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
