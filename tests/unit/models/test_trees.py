"""The trees say what scikit-learn's say, and a damaged file is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.trees import Trees, from_sklearn, load

if TYPE_CHECKING:  # seconds to import, for every process that only looks which tests there are
    from sklearn.ensemble import HistGradientBoostingClassifier

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def fitted() -> tuple[HistGradientBoostingClassifier, np.ndarray]:
    random = np.random.default_rng(7)
    rows = random.normal(size=(600, 3))
    label = (rows[:, 0] * rows[:, 1] + 0.3 * rows[:, 2] > 0).astype(int)
    rows[random.random(rows.shape) < 0.05] = np.nan
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=30, random_state=0).fit(rows, label), rows


@pytest.fixture(scope="module")
def trees(fitted: tuple[HistGradientBoostingClassifier, np.ndarray]) -> Trees:
    return from_sklearn(fitted[0], NAMES)


def test_they_agree_with_their_teacher(fitted: tuple[HistGradientBoostingClassifier, np.ndarray], trees: Trees) -> None:
    model, rows = fitted
    assert trees.probability(rows) == pytest.approx(model.predict_proba(rows)[:, 1], abs=1e-6)


def test_a_file_holds_them(
    trees: Trees, fitted: tuple[HistGradientBoostingClassifier, np.ndarray], tmp_path: Path
) -> None:
    trees.save(tmp_path / "trees.safetensors", {"licence": "Apache-2.0"})
    again = load(tmp_path / "trees.safetensors")
    assert again.features == NAMES and (again.raw(fitted[1]) == trees.raw(fitted[1])).all()


def test_each_row_goes_its_way_down_each_tree(trees: Trees) -> None:
    """Also where a value is on a threshold, endless or missing."""
    random = np.random.default_rng(1)
    rows = np.concatenate([random.normal(size=(40, 3)), random.choice(np.unique(trees.threshold), (40, 3))])
    rows[random.random(rows.shape) < 0.1] = np.nan
    rows[random.random(rows.shape) < 0.1] = np.inf

    def leaf(tree: int, row: np.ndarray) -> float:
        node = 0
        while trees.left[tree, node] != node:
            value = row[trees.feature[tree, node]]
            left = trees.missing_left[tree, node] if np.isnan(value) else value <= trees.threshold[tree, node]
            node = (trees.left if left else trees.right)[tree, node]
        return float(trees.value[tree, node])

    expected = [sum(leaf(tree, row) for tree in range(len(trees.left))) + trees.baseline for row in rows]
    assert trees.raw(rows) == pytest.approx(expected, abs=1e-9)
    assert trees.raw(rows[:0]).shape == (0,)


def test_a_tree_that_is_none_is_refused(trees: Trees, tmp_path: Path) -> None:
    circle = trees.right.copy()
    circle[3, 0] = 0
    replace(trees, right=circle).save(tmp_path / "trees.safetensors")
    with pytest.raises(ValueError, match=r"trees\.safetensors is damaged"):
        load(tmp_path / "trees.safetensors")


def test_the_wrong_number_of_features_is_refused(trees: Trees) -> None:
    with pytest.raises(ValueError, match="rows of 3 features wanted"):
        trees.raw(np.zeros((1, 4)))


def test_a_damaged_file_is_named(trees: Trees, tmp_path: Path) -> None:
    path = tmp_path / "trees.safetensors"
    with pytest.raises(ValueError, match=r"trees\.safetensors"):
        load(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"trees\.safetensors"):
        load(path)
    trees.save(path)
    arrays = load_file(path)
    save_file(arrays, path, metadata={"format": "something else"})
    with pytest.raises(ValueError, match="is no switchyard-trees-1 file"):
        load(path)
    replace(trees, left=trees.left + 10_000).save(path)
    with pytest.raises(ValueError, match="damaged"):
        load(path)
