"""Fits a head: what is known of one model's own answers, from outcomes (`heads` says what becomes of it).

Needs scikit-learn, which comes with the encoder. Deterministic: the same outcomes give the same file.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.messages import Message
from router.gates import auroc
from router.learned.hashing import Sparse
from router.learned.heads import Head
from router.learned.model import Array
from router.learned.report import ece
from router.learned.strategy import terms_of

LEAST_OUTCOMES, LEAST_OF_EACH = 200, 20
FOLDS = 5
SEEN_TIMES = 2
COMMON = 0.003
"""Share of all prompts from which a term belongs to the wording, not to what is asked about."""
LEFT_OUT = 0.02
"""Share of prompts like those that were fitted on that the head may take for strangers."""
LEAST_SEEN, MOST_ASKED_FOR = 0.5, 0.65
"""Bounds of the share of a prompt's terms that outcomes must have had. With many outcomes of few wordings nearly every
term of the others is known, and who asked for that would take a new wording for a stranger."""
STRENGTHS = (1.0, 8.0, 64.0)
"""Inverse strength of the regularisation; the best by cross-validation is taken."""
START_SCALE = 10.0
"""By which another head's word is made larger, so that it is all but free of regularisation."""
FEWEST_PLACES, MOST_PLACES = 1 << 10, 1 << 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """How good, in [0, 1], the answer to a conversation was."""

    messages: tuple[Message, ...]
    good: float


@dataclass(frozen=True, slots=True)
class Quality:
    """Of chances for wordings that the fit did not see: the area under the ROC curve, the expected calibration error,
    and the share of prompts of which the head would have spoken."""

    outcomes: int
    good: float
    auroc: float
    ece: float
    within: float


@dataclass(frozen=True, slots=True)
class _Rows:
    """terms: scipy's sparse [n, places], rows of unit length; hashes: of each row; folds: [n]."""

    terms: Any
    hashes: list[Array]
    good: Array
    folds: Array


def fit_head(outcomes: Sequence[Outcome], made_for: str = "", start: Head | None = None) -> tuple[Head, Quality]:
    """`start`: of a model that answers much the same well, where there are few outcomes: the fit says how far this one
    differs. Raises ValueError for too few outcomes, or nearly all of one kind or of one prompt."""
    good = np.array([outcome.good for outcome in outcomes], np.float64)
    if len(outcomes) < LEAST_OUTCOMES or min(good.sum(), (1 - good).sum()) < LEAST_OF_EACH:
        raise ValueError(
            f"{len(outcomes)} outcomes, {good.sum():.0f} of them good, are too few for a head: it takes "
            f"{LEAST_OUTCOMES}, with {LEAST_OF_EACH} good and {LEAST_OF_EACH} bad ones. With fewer, place the model."
        )
    rows = _rows([terms_of(outcome.messages) for outcome in outcomes], good, start)
    if len(np.unique(rows.folds)) < 2:
        raise ValueError(
            f"{len(outcomes)} outcomes of one prompt, or nearly so, say nothing of others: give more prompts."
        )
    said = {strength: _cross_fitted(rows, strength) for strength in STRENGTHS}
    strength = min(STRENGTHS, key=lambda each: _log_loss(_calibrated(said[each], good)[0], good))
    chances, (slope, shift) = _calibrated(said[strength], good)
    weights, at_zero = _regression(rows.terms, good, strength)
    if start is not None:
        scale = weights[-1] * START_SCALE
        weights, at_zero = weights[:-1] + scale * start.weights, at_zero + scale * start.at_zero
    known, seen = _known_elsewhere(rows), _seen(rows.hashes)
    least_seen = min(MOST_ASKED_FOR, max(LEAST_SEEN, float(np.quantile(known, LEFT_OUT))))
    if start is not None and len(start.seen) >= len(seen):
        seen, least_seen = start.seen, start.least_seen
    quality = Quality(
        len(good),
        float(good.mean()),
        auroc(list(zip(chances, good, strict=True))),
        ece(chances, good),
        float((known >= least_seen).mean()),
    )
    about: dict[str, Any] = {"model": made_for, "outcomes": len(good), "good": round(quality.good, 4)}
    if start is not None:
        about["started_from"] = {**start.about, "version": start.version}
    return Head((slope * weights).astype(np.float16), slope * at_zero + shift, seen, least_seen, "", about), quality


# ---- rows ----------------------------------------------------------------------------------------------------------


def _rows(terms: Sequence[Sparse], good: Array, start: Head | None) -> _Rows:
    """With `start`, its log odds are one more column."""
    from scipy import sparse

    hashes = [places for places, _ in terms]
    size = len(start.weights) if start is not None else _size(len(np.unique(np.concatenate(hashes))), 4)
    values = [counts / np.sqrt((counts**2).sum()) for _, counts in terms]
    ends = np.cumsum([0, *map(len, hashes)])
    matrix = sparse.csr_matrix(
        (np.concatenate(values), np.concatenate(hashes) & (size - 1), ends), shape=(len(terms), size)
    )
    if start is not None:
        said = np.array([[START_SCALE * start.log_odds(each)] for each in terms])
        matrix = sparse.hstack([matrix, sparse.csr_matrix(said)], format="csr")
    return _Rows(matrix, hashes, good, _folds(hashes))


def _size(distinct: int, times: int) -> int:
    """Of a table in which few of so many hashes meet."""
    return int(min(MOST_PLACES, max(FEWEST_PLACES, 1 << (times * distinct - 1).bit_length())))


def _folds(hashes: Sequence[Array]) -> Array:
    """Prompts of one wording share a fold: they have the same common terms. Where there are few wordings, prompts that
    are the same in all share one."""
    distinct, counts = np.unique(np.concatenate(hashes), return_counts=True)
    common = distinct[counts >= max(2, COMMON * len(hashes))]
    wordings = [np.sort(places[np.isin(places, common)]) for places in hashes]
    folds = np.array([_fold(wording) for wording in wordings])
    return folds if len(np.unique(folds)) == FOLDS else np.array([_fold(np.sort(places)) for places in hashes])


def _fold(hashes: Array) -> int:
    return zlib.crc32(hashes.astype("<i8").tobytes()) % FOLDS


def _seen(hashes: Sequence[Array]) -> Array:
    distinct, counts = np.unique(np.concatenate(hashes), return_counts=True)
    often = distinct[counts >= SEEN_TIMES]
    seen = np.zeros(_size(len(often), 16), np.uint8)
    seen[often & (len(seen) - 1)] = 1
    return seen


def _known_elsewhere(rows: _Rows) -> Array:
    """Of each prompt, the share of its terms that other folds have."""
    known = np.zeros(len(rows.folds))
    for fold in range(FOLDS):
        seen = _seen([places for places, where in zip(rows.hashes, rows.folds, strict=True) if where != fold])
        for row in np.flatnonzero(rows.folds == fold):
            known[row] = seen[rows.hashes[row] & (len(seen) - 1)].mean()
    return known


# ---- regression ----------------------------------------------------------------------------------------------------


def _regression(terms: Any, good: Array, strength: float) -> tuple[Array, float]:
    """Weights and intercept of log odds. An outcome between bad and good counts as a part of both."""
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    rows = sparse.vstack([terms, terms])
    labels = np.concatenate([np.ones(len(good)), np.zeros(len(good))])
    shares = np.concatenate([good, 1 - good])
    counted = shares > 0
    if len(np.unique(labels[counted])) < 2:  # a fold that left only one kind to the others
        return np.zeros(terms.shape[1]), 3.0 if good.sum() > 0 else -3.0
    regression = LogisticRegression(C=strength, solver="liblinear", max_iter=500)
    fitted = regression.fit(rows[counted], labels[counted], shares[counted])
    return fitted.coef_[0], float(fitted.intercept_[0])


def _cross_fitted(rows: _Rows, strength: float) -> Array:
    """Log odds of each prompt, fitted without its fold."""
    odds = np.zeros(len(rows.good))
    for fold in np.unique(rows.folds):
        here = rows.folds == fold
        weights, at_zero = _regression(rows.terms[~here], rows.good[~here], strength)
        odds[here] = rows.terms[here] @ weights + at_zero
    return odds


def _calibrated(odds: Array, good: Array) -> tuple[Array, tuple[float, float]]:
    """Chances, and the line that made them of log odds (Platt 1999)."""
    from scipy import sparse

    weights, shift = _regression(sparse.csr_matrix(odds[:, None]), good, 1e6)
    slope = float(weights[0])
    return 1 / (1 + np.exp(-np.clip(slope * odds + shift, -30, 30))), (slope, shift)


def _log_loss(chances: Array, good: Array) -> float:
    bound = np.clip(chances, 1e-6, 1 - 1e-6)
    return float(-(good * np.log(bound) + (1 - good) * np.log(1 - bound)).mean())
